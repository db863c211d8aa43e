"""What every dataset config says, the one method a layout has to bring, and the rules every row is held to."""

import math
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import ClassVar, Literal, NamedTuple

from pydantic import Field, model_validator

from raymsa.clip import RawClip, Reject
from raymsa.plugins import Spec

MERGED_PATCH = 28  # pixels: 14-pixel patches, merged 2 x 2 into one token (Qwen2.5-Omni vision tower)
SPLIT_SPELLINGS = {"train": "train", "valid": "valid", "val": "valid", "dev": "valid", "test": "test"}


class MediaSettings(Spec):
    """How clips are decoded by `prepare`; part of the shards' identity."""

    max_frames: int = Field(16, ge=1, le=768, description="frames kept per clip, spread evenly over it")
    max_pixels: int = Field(
        128 * MERGED_PATCH**2,
        ge=MERGED_PATCH**2,
        description="pixels per frame after resizing (both sides multiples of 28); the default is the least "
        "that the model's own processor makes",
    )
    max_audio_s: float = Field(300.0, gt=0, description="seconds of sound kept per clip; the audio tower's own limit")


class Row(NamedTuple):
    """One row of a label file as it stands there: all text, nothing checked. `media` is empty for a text-only row."""

    id: str
    video_id: str
    text: str
    score: str
    split: str
    media: str


class Layout(Spec):
    """A dataset: where it lies, how it is laid out, and what its labels mean."""

    expects: ClassVar[str] = "a label file and its media"  # completes "the raw folder holds ..." in error texts

    name: str = Field(description="short name, used in tables and folder names", pattern=r"^[a-z0-9][a-z0-9_.-]*$")
    raw: str | None = Field(None, description="folder with the raw clips and labels")
    shards: str | None = Field(None, description="folder with prepared shards; default: under RAYMSA_HOME/shards")
    low: float = Field(-3.0, description="lowest possible label")
    high: float = Field(3.0, description="highest possible label")
    metrics: Literal["mosi", "sims"] = Field("mosi", description="metric rules: mosi (MOSI, MOSEI) or sims (CH-SIMS)")
    published: dict[Literal["train", "valid", "test"], int] = Field(
        default_factory=dict, description="clips per split as published; `prepare` warns when the counts differ"
    )
    media: MediaSettings = Field(default_factory=MediaSettings, description="how clips are decoded")

    @model_validator(mode="after")
    def _range_is_a_range(self) -> "Layout":
        if not self.low < self.high:
            raise ValueError(f"low ({self.low}) must be below high ({self.high})")
        return self

    def make(self, raw: Path) -> None:
        """Called by `prepare` before anything is read: a layout that makes its own clips does it here, once."""

    @abstractmethod
    def clips(self, raw: Path) -> Iterator[RawClip | Reject]:
        """Every row of the label file, in file order: a clip, or the reason why it is none.

        Raises DataError when the folder or the label file as a whole is unusable.
        """

    def checked(self, rows: Iterator[Row | Reject]) -> Iterator[RawClip | Reject]:
        """Each row as a clip, or the first rule that it breaks; a row that is a Reject already passes through."""
        seen: Counter[str] = Counter()
        for row in rows:
            if isinstance(row, Reject):
                yield row
                continue
            seen[row.id] += 1
            problem = self._problem(row, again=seen[row.id] > 1)
            yield Reject(row.id, row.media, problem) if problem else _clip(row)

    def _problem(self, row: Row, again: bool) -> str | None:
        if not row.id:
            return "the id is empty"
        if again:
            return "the id stands twice in the label file; the first row is kept"
        if row.split.strip().lower() not in SPLIT_SPELLINGS:
            return f"split {row.split!r} is none of train, valid, test"
        if not row.text.strip() and not row.media:
            return "neither text nor media"
        return self._label_problem(row.score) or _path_problem(row.media)

    def _label_problem(self, score: str) -> str | None:
        try:
            label = float(score)
        except ValueError:
            return f"label {score!r} is not a number"
        if not math.isfinite(label):
            return f"label {score!r} is not a finite number"
        if not self.low <= label <= self.high:
            return f"label {score} is outside [{self.low:g}, {self.high:g}]"
        return None


def _path_problem(media: str) -> str | None:
    path = PurePath(media)
    if path.is_absolute() or ".." in path.parts:
        return "the path leaves the raw folder"
    return "the path holds a NUL character" if "\0" in media else None


def _clip(row: Row) -> RawClip:
    media = Path(row.media) if row.media else None
    split = SPLIT_SPELLINGS[row.split.strip().lower()]
    return RawClip(row.id, row.video_id, row.text.strip(), float(row.score), split, media)
