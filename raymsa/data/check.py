"""A raw folder held against its label file, before anything is decoded: `raymsa prepare FILE --check-only`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from raymsa.clip import SPLITS, RawClip, Reject
from raymsa.data.stats import by_reason, label_summary
from raymsa.datasets.base import Layout
from raymsa.datasets.folder import ENDINGS
from raymsa.errors import DataError
from raymsa.place import check as reach
from raymsa.target import Classification

SHOWN = 3  # examples in a warning
ENOUGH = 100  # clips whose labels say something about the range


@dataclass(frozen=True)
class SplitCheck:
    """One split. `rows` keep to the rules, and `labels` is of them; `clips` of them have their file too."""

    rows: int
    clips: int
    published: int | None
    missing: int
    empty: int
    without_words: int
    labels: dict[str, Any]


@dataclass(frozen=True)
class Check:
    """What is in a raw folder. `missing` and `empty` are media files that rows name; no row names those in `surplus`.

    `shared_videos` are the videos with clips in more than one split, with these splits, of `videos` in all.
    """

    name: str
    raw: str
    task: str
    rows: int
    clips: int
    splits: dict[str, SplitCheck]
    rejects_by_reason: dict[str, int]
    rejects: list[dict[str, str]]
    missing: list[str]
    empty: list[str]
    surplus: list[str]
    duplicates: list[str]
    without_words: list[str]
    videos: int
    shared_videos: dict[str, list[str]]
    warnings: list[str]


def check(dataset: Layout, raw: Path) -> Check:
    """Rows, files and labels of a raw folder held against each other; folders are listed once, nothing is decoded.

    Raises DataError when the folder or its label file as a whole is unusable. `raw` may lie on another machine.
    """
    rows = _rows(dataset, raw)
    named = {_media(row) for row in rows} - {""}
    files = media_files(raw, named) if named else set()
    gone = named - files
    empty = {name for name in named & files if _is_empty(raw / name)}
    bad = gone | empty
    clips = [row for row in rows if isinstance(row, RawClip)]
    left = [clip for clip in clips if _media(clip) not in bad]
    rejects = [row for row in rows if isinstance(row, Reject)]
    spread = _splits_of_videos(clips)
    found = Check(
        name=dataset.name,
        raw=str(raw),
        task=dataset.task.kind,
        rows=len(rows),
        clips=len(left),
        splits={split: _split(dataset, split, clips, left, gone, empty) for split in SPLITS},
        rejects_by_reason=by_reason(row.reason for row in rejects),
        rejects=[{"id": row.id, "media": row.media, "reason": row.reason} for row in rejects],
        missing=sorted({_media(clip) for clip in clips} & gone),
        empty=sorted({_media(clip) for clip in clips} & empty),
        surplus=sorted(files - named),
        duplicates=[name for name, times in Counter(row.id for row in rows).items() if times > 1],
        without_words=[clip.id for clip in clips if not clip.text],
        videos=len(spread),
        shared_videos={video: splits for video, splits in spread.items() if len(splits) > 1},
        warnings=[],
    )
    found.warnings.extend(_warnings(dataset, found))
    return found


def usable(dataset: Layout, raw: Path) -> tuple[int, list[RawClip]]:
    """How many rows there are, and the clips among them whose file is there and not empty. Raises DataError."""
    found = check(dataset, raw)
    bad = {*found.missing, *found.empty}
    return found.rows, [row for row in _rows(dataset, raw) if isinstance(row, RawClip) and _media(row) not in bad]


def media_files(raw: Path, named: Iterable[str] = ()) -> set[str]:
    """Media files under a folder, as paths relative to it: by their endings, or because they are named."""
    wanted = set(named)
    endings = ENDINGS.keys() | {PurePosixPath(name).suffix.lower() for name in wanted} - {""}
    found = set()
    folders: list[tuple[Path, str, tuple[Any, ...]]] = [(raw, "", ())]
    while folders:
        folder, prefix, above = folders.pop()
        for entry in _entries(folder):
            name = prefix + entry.name
            if PurePosixPath(name).suffix.lower() in endings:  # asking each one whether it is a folder costs a call
                found |= {name} if name in wanted or not entry.name.startswith(".") else set()
            elif entry.is_dir():
                here = _identity(entry)
                if here is None or here not in above:  # a link to a folder above leads round in circles
                    folders.append((entry, f"{name}/", (*above, here)))
            elif name in wanted:
                found.add(name)
    return found


def _media(row: RawClip | Reject) -> str:
    """A row's media file, spelt as `media_files` spells it; empty for a row without one."""
    return PurePosixPath(row.media).as_posix() if row.media else ""


def _rows(dataset: Layout, raw: Path) -> list[RawClip | Reject]:
    reach(raw)
    if not raw.is_dir():
        if type(dataset).make is not Layout.make:
            raise DataError(f"{raw}: not there yet; this dataset makes its own clips: run `raymsa prepare` for it")
        raise DataError(dataset.missing(raw))
    rows = list(dataset.clips(raw))
    if not rows:
        raise DataError(f"{raw}: the label file has no rows")
    return rows


def _entries(folder: Path) -> Iterator[Path]:
    try:
        yield from folder.iterdir()
    except OSError:  # it may not be read: what rows name there is missing, as for `prepare`
        return


def _identity(folder: Path) -> Any:
    try:
        state = folder.stat()
        return (state.st_dev, state.st_ino) if state.st_ino else None
    except (OSError, AttributeError):  # folders of object stores have none, and no links either
        return None


def _is_empty(path: Path) -> bool:
    try:
        return path.stat().st_size == 0
    except OSError:
        return False


def _splits_of_videos(clips: list[RawClip]) -> dict[str, list[str]]:
    spread: dict[str, set[str]] = {}
    for clip in clips:
        spread.setdefault(clip.video_id, set()).add(clip.split)
    return {video: [split for split in SPLITS if split in splits] for video, splits in spread.items()}


def _split(
    dataset: Layout, split: str, clips: list[RawClip], left: list[RawClip], gone: set[str], empty: set[str]
) -> SplitCheck:
    mine = [clip for clip in clips if clip.split == split]
    return SplitCheck(
        rows=len(mine),
        clips=sum(clip.split == split for clip in left),
        published=next((clips for name, clips in dataset.published.items() if name == split), None),
        missing=sum(_media(clip) in gone for clip in mine),
        empty=sum(_media(clip) in empty for clip in mine),
        without_words=sum(not clip.text for clip in mine),
        labels=label_summary(dataset.task, [clip.label for clip in mine]),
    )


def _warnings(dataset: Layout, found: Check) -> Iterator[str]:
    """What a person should know before decoding: one line each, with examples."""
    for split, part in found.splits.items():
        if part.published is not None and part.clips != part.published:
            how = f"{abs(part.clips - part.published):,} {'fewer' if part.clips < part.published else 'more'}"
            yield f"{split} has {_count(part.clips, 'clip')}, published are {part.published:,} ({how})"
    for reason, times in found.rejects_by_reason.items():
        yield f"{_count(times, 'row')} left out: {reason}"
    listed = {
        "{} named in the label file {} missing": ("media file", found.missing),
        "{} {} empty (0 bytes)": ("media file", found.empty),
        "{} {} named by no row": ("media file", found.surplus),
        "{} {} twice or more": ("id", found.duplicates),
        "{} {} no words": ("clip", found.without_words),
    }
    verbs = {"id": ("stands", "stand"), "clip": ("has", "have")}
    for sentence, (noun, names) in listed.items():
        if names:
            verb = verbs.get(noun, ("is", "are"))[len(names) > 1]
            yield f"{sentence.format(_count(len(names), noun), verb)}: {_examples(names)}"
    yield from _shared(found)
    yield from _label_warnings(dataset, found)


def _shared(found: Check) -> Iterator[str]:
    if found.shared_videos:
        where = Counter("+".join(splits) for splits in found.shared_videos.values())
        how = ", ".join(f"{splits} {times}" for splits, times in where.most_common())
        yield (
            f"{len(found.shared_videos)} of {_count(found.videos, 'video')} have clips in more than one split ({how}): "
            "the same speaker is trained on and tested on; CH-SIMS is made so, other sets should not be"
        )


def _label_warnings(dataset: Layout, found: Check) -> Iterator[str]:
    for split in ("train", "test"):
        if found.clips and not found.splits[split].clips and not found.splits[split].published:
            yield f"{split} has no clips"
    seen = [part.labels for part in found.splits.values() if part.rows]
    task = dataset.task
    if isinstance(task, Classification):
        absent = [name for name, times in found.splits["train"].labels["classes"].items() if not times]
        if absent and found.splits["train"].rows:
            yield f"no training clip is of the class {', '.join(absent)}"
    elif seen and found.rows >= ENOUGH:
        low, high = min(part["min"] for part in seen), max(part["max"] for part in seen)
        if high - low <= (task.high - task.low) / 2:
            yield f"labels reach from {low:g} to {high:g} only; task.low is {task.low:g}, task.high {task.high:g}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _examples(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
