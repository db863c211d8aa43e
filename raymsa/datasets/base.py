"""What every dataset config says, the one method a layout has to bring, and the rules every row is held to."""

import math
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path, PurePath
from typing import ClassVar, Literal, NamedTuple

from pydantic import Field

from raymsa.clip import CONTEXT_MOST, MERGED_PATCH, RawClip, Reject, Unlabelled
from raymsa.errors import DataError
from raymsa.plugins import Spec
from raymsa.target import Language, Regression, Task

SPLIT_SPELLINGS = {"train": "train", "test": "test", **dict.fromkeys(("valid", "val", "dev", "validation"), "valid")}


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
    """One row of a label file as it stands there: all text, nothing checked. `media` is empty for a text-only row.

    `targets` has every label by name; `order` is the place in the video or dialogue, None where the file's order is.
    """

    id: str
    video_id: str
    text: str
    targets: Mapping[str, str]
    split: str
    media: str
    order: float | None = None


class Layout(Spec):
    """A dataset: where it lies, how it is laid out, and what its labels mean."""

    expects: ClassVar[str] = "a label file and its media"  # completes "the raw folder holds ..." in error texts
    main_target: ClassVar[str] = "label"  # the label that a task without `target` takes

    name: str = Field(description="short name, used in tables and folder names", pattern=r"^[a-z0-9][a-z0-9_.-]*$")
    raw: str | None = Field(None, description="folder with the raw clips and labels")
    shards: str | None = Field(None, description="folder with prepared shards; default: under RAYMSA_HOME/shards")
    task: Task = Field(default_factory=Regression, description="what is predicted")
    language: Language = Field("en", description="language of the words, and of the prompt where none is given: en, zh")
    prompt: str | None = Field(
        None, description="user message after the media, or a .txt file with it; null asks for the task in `language`"
    )
    published: dict[Literal["train", "valid", "test"], int] = Field(
        default_factory=dict, description="clips per split as published; `prepare` warns when the counts differ"
    )
    media: MediaSettings = Field(default_factory=MediaSettings, description="how clips are decoded")

    def make(self, raw: Path) -> None:
        """Called by `prepare` before anything is read: a layout that makes its own clips does it here, once."""

    def missing(self, raw: Path) -> str:
        """The line for a raw folder that is not there: what belongs there, and how to name another."""
        return (
            f"{raw}: no such folder; the raw folder of a `{getattr(self, 'kind', self.name)}` dataset holds "
            f"{self.expects}; give it with --raw DIR (or dataset.raw in a job)"
        )

    @abstractmethod
    def clips(self, raw: Path) -> Iterator[RawClip | Reject]:
        """Every row of the label file, in file order: a clip, or the reason why it is none.

        Raises DataError when the folder or the label file as a whole is unusable.
        """

    def video_of(self, clip_id: str) -> str | None:
        """The video or dialogue that a clip's id names; None where ids do not say it."""
        return None

    def checked(self, rows: Iterator[Row | Reject]) -> Iterator[RawClip | Reject]:
        """Each row as a clip, or the first rule that it breaks; a row that is a Reject already passes through.

        Raises DataError when the rows do not have the label that the task asks for.
        """
        seen: Counter[str] = Counter()
        for number, row in enumerate(_in_one_order(list(rows))):
            if isinstance(row, Reject):
                yield row
                continue
            seen[row.id] += 1
            problem = self._problem(row, again=seen[row.id] > 1)
            yield Reject(row.id, row.media, problem) if problem else self._clip(row, number)

    @property
    def target(self) -> str:
        """Name of the label that is predicted."""
        return self.task.target or self.main_target

    def _problem(self, row: Row, again: bool) -> str | None:
        if not row.id:
            return "the id is empty"
        if again:
            return "the id stands twice in the label file; the first row is kept"
        if row.split.strip().lower() not in SPLIT_SPELLINGS:
            return f"split {row.split!r} is none of train, valid, test"
        if not row.text.strip() and not row.media:
            return "neither text nor media"
        return _path_problem(row.media) or _text_problem(row)

    def _clip(self, row: Row, number: int) -> RawClip | Unlabelled:
        """A row whose label is the only thing that may still be wrong with it."""
        if self.target not in row.targets:
            known = ", ".join(row.targets)
            raise DataError(f"{self.name}: task.target: given {self.target!r}; this label file has {known}")
        text, split = row.text.strip(), SPLIT_SPELLINGS[row.split.strip().lower()]
        order = number if row.order is None else row.order
        try:
            label = self.task.label(row.targets[self.target])
        except ValueError as reason:
            return Unlabelled(row.id, row.media, str(reason), row.video_id, split, text, order)
        return RawClip(
            id=row.id,
            video_id=row.video_id,
            text=text,
            label=label,
            split=split,
            media=Path(row.media) if row.media else None,
            order=order,
            targets={name: text for name, text in row.targets.items() if text.strip()},
        )


def with_previous(rows: list[RawClip | Reject]) -> list[RawClip | Reject]:
    """The same rows, each clip with the words of those before it in its video; never of another split or the future.

    Words of rows that were left out for their label are among them.
    """
    groups: dict[tuple[str, str], list[RawClip | Unlabelled]] = {}
    for clip in (row for row in rows if isinstance(row, (RawClip, Unlabelled))):
        groups.setdefault((clip.split, clip.video_id), []).append(clip)
    previous: dict[str, tuple[str, ...]] = {}
    for group in groups.values():
        group.sort(key=lambda clip: clip.order)
        for at, clip in enumerate(group):
            before = [c.text for c in group[:at] if c.order < clip.order and c.text]
            previous[clip.id] = tuple(before[-CONTEXT_MOST:])
    return [replace(row, previous=previous[row.id]) if isinstance(row, RawClip) else row for row in rows]


def _in_one_order(rows: list[Row | Reject]) -> list[Row | Reject]:
    """The same rows; where one of a video has no place of its own, all of that video are in the file's order."""
    without = {row.video_id for row in rows if isinstance(row, Row) and not math.isfinite(_place(row))}
    return [row._replace(order=None) if isinstance(row, Row) and row.video_id in without else row for row in rows]


def _place(row: Row) -> float:
    return math.nan if row.order is None else row.order


def _text_problem(row: Row) -> str | None:
    try:
        "".join((row.id, row.video_id, row.text, row.media, *row.targets, *row.targets.values())).encode()
    except UnicodeEncodeError as error:
        return f"half a character (U+{ord(error.object[error.start]):04X}): the text was cut or decoded wrongly"
    return None


def _path_problem(media: str) -> str | None:
    path = PurePath(media)
    if path.is_absolute() or ".." in path.parts:
        return "the path leaves the raw folder"
    return "the path holds a NUL character" if "\0" in media else None
