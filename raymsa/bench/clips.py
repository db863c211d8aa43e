"""The clips that are timed: those of a job's shards, or clips made up to stated lengths.

Axes: F frames, H height, W width, C colours, S audio samples.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from raymsa.clip import SAMPLE_RATE, Clip
from raymsa.data import manifest as manifests
from raymsa.data.groups import Read, RowGroup, count, row_groups, shuffled
from raymsa.data.picture import grid
from raymsa.errors import DataError, UsageError
from raymsa.place import place
from raymsa.target import Regression, Target, Task

ASPECT = (3, 4)  # of a made-up picture, as of a talking head's camera
DIFFERENT = 4  # made-up clips of one form with media of their own: noise costs nothing to read, only to hold
WORDS = ("the", "film", "was", "good", "and", "story", "bad", "so", "I", "liked", "it", "but", "not", "all", "music")
PICTURE = re.compile(r"(\d+)x(\d+(?:\.\d+)?)(k?)")
SOUND = re.compile(r"(\d+(?:\.\d+)?)s")
TEXT = re.compile(r"(\d+)w")


class Form(NamedTuple):
    """Lengths of a made-up clip: frames, pixels of each, seconds of sound, words."""

    frames: int = 0
    pixels: int = 0
    seconds: float = 0.0
    words: int = 0


class Source(Protocol):
    """Clips for training and scoring."""

    @property
    def target(self) -> Target:
        """What is predicted, with what the training labels say."""

    def epoch(self, number: int) -> Iterator[Clip]:
        """The training clips of an epoch in their order."""

    def scored(self, most: int) -> list[Clip]:
        """The first clips that would be scored."""


def form(text: str) -> Form:
    """`16x100k,5s,25w` is 16 frames of 100,000 pixels, 5 seconds of sound, 25 words; what is left out is not there.

    Raises UsageError.
    """
    given: dict[str, Any] = {}
    for part in text.split(","):
        if match := PICTURE.fullmatch(part.strip()):
            new: dict[str, float] = {
                "frames": int(match[1]),
                "pixels": int(float(match[2]) * (1000 if match[3] else 1)),
            }
        elif match := SOUND.fullmatch(part.strip()):
            new = {"seconds": float(match[1])}
        elif match := TEXT.fullmatch(part.strip()):
            new = {"words": int(match[1])}
        else:
            raise UsageError(
                f"--made-up {text}: {part.strip()!r} is no length; write 16x100k for frames x pixels, 5s for seconds "
                "of sound, 25w for words, with commas between"
            )
        if twice := given.keys() & new.keys():
            raise UsageError(f"--made-up {text}: {'pixels and frames' if len(twice) > 1 else twice.pop()} stand twice")
        given |= new
    made = Form(**given)
    if made.frames and made.pixels < 28 * 28:
        raise UsageError(f"--made-up {text}: a picture has 784 pixels or more (28 x 28)")
    if made.frames and not made.seconds:
        made = made._replace(seconds=made.frames / 2)  # 2 frames per second, as the model assumes
        return made._replace(seconds=-made.seconds)  # negative: of the picture alone
    return made


@dataclass(frozen=True)
class MadeUp:
    """Noise and words of given lengths, one form after another; an epoch is `count` of them."""

    forms: tuple[Form, ...]
    task: Task
    count: int

    @property
    def target(self) -> Target:
        """The job's task, with the labels of the made-up clips."""
        return self.task.with_labels(self.task.learned([self._label(i) for i in range(self.count)]))

    def epoch(self, number: int) -> Iterator[Clip]:
        """Every clip once; all epochs are the same."""
        return (self._clip(index) for index in range(self.count))

    def scored(self, most: int) -> list[Clip]:
        """The first of them."""
        return [self._clip(index) for index in range(most)]

    def _clip(self, index: int) -> Clip:
        shape = self.forms[index % len(self.forms)]
        frames_FHWC, audio_S = _media(shape, index // len(self.forms) % DIFFERENT)
        words = np.random.default_rng(index).choice(WORDS, shape.words)
        return Clip(
            id=f"made-up-{index:05d}",
            video_id="made-up",
            text=" ".join(words),
            label=self._label(index),
            split="train",
            seconds=abs(shape.seconds),
            frames_FHWC=frames_FHWC,
            audio_S=audio_S,
        )

    def _label(self, index: int) -> float:
        if isinstance(self.task, Regression):
            return self.task.low + (self.task.high - self.task.low) * (index % 7) / 6
        return float(index % len(self.task.classes))


@dataclass(frozen=True)
class Prepared:
    """The clips of a job's shards."""

    shards: Path
    manifest: manifests.Manifest
    task: Task
    seed: int
    splits: tuple[str, ...]  # those that are scored

    @property
    def target(self) -> Target:
        """The job's task with the labels of the training clips."""
        return manifests.target(self.manifest, self.task)

    def epoch(self, number: int) -> Iterator[Clip]:
        """The train split in the order that a run has in this epoch."""
        return Read([shuffled(self.groups("train"), self.seed, number)]).of(0)

    def scored(self, most: int) -> list[Clip]:
        """The first clips of the last split that a run scores; of train where those splits are empty."""
        found = [groups for split in (*reversed(self.splits), "train") if count(groups := self.groups(split))]
        return list(islice(Read(found[:1]).of(0), most)) if found else []

    def groups(self, split: str) -> list[RowGroup]:
        """The row groups of a split."""
        return row_groups(self.shards, [file.name for file in self.manifest.of(split)])


@dataclass(frozen=True)
class First:
    """The first clips of every epoch of a source: steps over all of them are the same work, whatever their order."""

    source: Source
    most: int

    @property
    def target(self) -> Target:
        """As of the source."""
        return self.source.target

    def epoch(self, number: int) -> Iterator[Clip]:
        """The first `most` of the source's."""
        return islice(self.source.epoch(number), self.most)

    def scored(self, most: int) -> list[Clip]:
        """As of the source."""
        return self.source.scored(most)


def source(spec: Any, shards: str | None, made_up: list[str], epoch: int) -> Source:
    """The clips of a job: of its shards, or made up, `epoch` of them. Raises DataError and UsageError."""
    if made_up:
        return MadeUp(tuple(map(form, made_up)), spec.dataset.task, epoch)
    assert shards is not None
    folder = place(shards)
    found = Prepared(folder, manifests.read(folder), spec.dataset.task, spec.seeds[0], spec.evaluate.splits)
    if not count(found.groups("train")):
        raise DataError(f"{shards}: no train clips; there is nothing to measure")
    return found


@lru_cache(maxsize=64)
def _media(shape: Form, number: int) -> tuple[np.ndarray | None, np.ndarray | None]:
    random = np.random.default_rng(number)
    frames_FHWC = audio_S = None
    if shape.frames:
        height, width = grid(ASPECT[0] * 1000, ASPECT[1] * 1000, shape.pixels)
        frames_FHWC = random.integers(0, 256, (shape.frames, height, width, 3), dtype=np.uint8)
    if shape.seconds > 0:
        audio_S = random.normal(0, 3000, int(shape.seconds * SAMPLE_RATE)).astype(np.int16)
    return frames_FHWC, audio_S
