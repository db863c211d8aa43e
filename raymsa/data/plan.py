"""Which clip goes to which shard, decided before anything is decoded: from rows, file sizes and settings alone.

Nothing depends on timing, so a call that was killed and is run again plans, and writes, the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from raymsa.clip import SAMPLE_RATE, SPLITS, RawClip, Reject, Unlabelled
from raymsa.data.decoder import LIMIT_S
from raymsa.data.manifest import FORMAT, versions
from raymsa.data.shardfile import ShardTask, plan_digest
from raymsa.datasets.base import MediaSettings, with_previous
from raymsa.place import State, states

SHARD_BYTES = 256_000_000  # about the most in one file, uncompressed
ROW_BYTES = 4_000  # text and ids; what a text-only clip is planned with
PLANNED_AUDIO_S = 30.0  # sound planned for a clip whose file is small; nearly all clips of the field are shorter
PLANNED_BYTES_PER_S = 16_000  # of a file: a larger file is planned with more seconds of sound


class Plan(NamedTuple):
    """Every row of the label file, those without a file rejected already, and the shards of the others.

    `digests` has an id and a digest of each row as it stood, see `digests`.
    """

    rows: list[RawClip | Reject]
    tasks: list[ShardTask]
    digests: list[tuple[str, str]]


def plan_shards(
    rows: list[RawClip | Reject], raw: Path, out: Path, media: MediaSettings, limit_s: float = LIMIT_S
) -> Plan:
    """One task per shard; splits do not share a shard, and clips stay in the order of the label file."""
    files = _files(rows, raw)
    made_from = digests(rows, files)
    rows = [_present(row, files) for row in with_previous(rows)]
    made_with = {"media": media.model_dump(mode="json"), "versions": versions(), "format": FORMAT}
    tasks = []
    for split in SPLITS:
        clips = [row for row in rows if isinstance(row, RawClip) and row.split == split]
        for number, group in enumerate(_packed(clips, files, media)):
            state = [{**asdict(clip), "media": _name(clip), "file": _state(clip, files)} for clip in group]
            task = ShardTask(
                name=f"{split}-{number:05d}.parquet",
                split=split,
                clips=group,
                plan=plan_digest(state, made_with),
                raw=str(raw),
                out=str(out),
                media=media,
                limit_s=limit_s,
            )
            tasks.append(task)
    return Plan(rows, tasks, made_from)


def row_digests(rows: list[RawClip | Reject], raw: Path) -> tuple[list[tuple[str, str]], set[str]]:
    """As `Plan.digests`, for rows that are not to be planned; and the ids of clips whose file is not there."""
    files = _files(rows, raw)
    return digests(rows, files), {r.id for r in rows if isinstance(r, RawClip) and _state(r, files) is None}


def digests(rows: list[RawClip | Reject], files: dict[str, State | None]) -> list[tuple[str, str]]:
    """An id and a digest of each row: what the label file says and how large the clip's file is.

    Not when it was written: a copy of the raw folder is the same data.
    """
    found = []
    for number, row in enumerate(rows):
        if isinstance(row, Reject):
            # The words of one that was left out for its label stand in the clips after it.
            words = [row.video_id, row.split, row.text] if isinstance(row, Unlabelled) else []
            said: object = [row.id, row.media, *words]
        else:
            file = _state(row, files)
            # An order that is only the row's number would make all rows differ after one that is gone.
            order = None if row.order == number else row.order
            said = [{**asdict(row), "media": _name(row), "order": order}, file.bytes if file else None]
        found.append((row.id, hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]))
    return found


def row_changes(there: list[tuple[str, str]], now: list[tuple[str, str]]) -> str:
    """In words how two sets of rows differ; empty when they do not."""
    if there == now:
        return ""
    old, new = dict(there), dict(now)
    counts = {
        "added": len(new.keys() - old.keys()),
        "gone": len(old.keys() - new.keys()),
        "changed": sum(old[name] != new[name] for name in old.keys() & new.keys()),
    }
    words = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    again = Counter(name for name, _ in now) != Counter(name for name, _ in there)
    return words or ("a row more or less that stands twice" if again else "in another order")


def most_bytes(clip: RawClip, file_bytes: int, media: MediaSettings) -> float:
    """The most that a clip takes in a shard, uncompressed: all frames, at the full pixel budget, and the sound."""
    if clip.media is None:
        return ROW_BYTES
    audio_s = min(media.max_audio_s, max(PLANNED_AUDIO_S, file_bytes / PLANNED_BYTES_PER_S))
    return ROW_BYTES + media.max_frames * media.max_pixels * 3 + audio_s * SAMPLE_RATE * 2


def _name(clip: RawClip) -> str | None:
    return None if clip.media is None else clip.media.as_posix()


def _files(rows: list[RawClip | Reject], raw: Path) -> dict[str, State | None]:
    """The state of each media file, by its name in the raw folder."""
    return states(raw, [name for row in rows if isinstance(row, RawClip) and (name := _name(row))])


def _state(clip: RawClip, files: dict[str, State | None]) -> State | None:
    name = _name(clip)
    return files[name] if name else State(0, "")


def _present(row: RawClip | Reject, files: dict[str, State | None]) -> RawClip | Reject:
    # Rejected here and not by a task, so that a folder with few of its files makes few shards.
    if isinstance(row, Reject) or row.media is None:
        return row
    file = _state(row, files)
    if file is None:
        return Reject(row.id, str(row.media), "missing file")
    return Reject(row.id, str(row.media), "empty file (0 bytes)") if file.bytes == 0 else row


def _packed(clips: list[RawClip], files: dict[str, State | None], media: MediaSettings) -> Iterator[list[RawClip]]:
    """Clips in groups that stay under SHARD_BYTES even if every one is as large as it can be."""
    group: list[RawClip] = []
    size = 0.0
    for clip in clips:
        file = _state(clip, files)
        most = most_bytes(clip, file.bytes if file else 0, media)
        if group and size + most > SHARD_BYTES:
            yield group
            group, size = [], 0.0
        group.append(clip)
        size += most
    if group:
        yield group
