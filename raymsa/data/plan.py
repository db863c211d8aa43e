"""Which clip goes to which shard, decided before anything is decoded: from rows, file sizes and settings alone.

Nothing depends on timing, so a call that was killed and is run again plans, and writes, the same bytes.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from raymsa.clip import SAMPLE_RATE, SPLITS, RawClip, Reject
from raymsa.data.manifest import FORMAT, versions
from raymsa.data.shardfile import ShardTask, plan_digest
from raymsa.datasets.base import MediaSettings, with_previous

SHARD_BYTES = 256_000_000  # about the most in one file, uncompressed
ROW_BYTES = 4_000  # text and ids; what a text-only clip is planned with
PLANNED_AUDIO_S = 30.0  # sound planned for a clip whose file is small; nearly all clips of the field are shorter
PLANNED_BYTES_PER_S = 16_000  # of a file: a larger file is planned with more seconds of sound


class Plan(NamedTuple):
    """Every row of the label file, those without a file rejected already, and the shards of the others."""

    rows: list[RawClip | Reject]
    tasks: list[ShardTask]


class _File(NamedTuple):
    bytes: int
    changed_ns: int


def plan_shards(rows: list[RawClip | Reject], raw: Path, out: Path, media: MediaSettings) -> Plan:
    """One task per shard; splits do not share a shard, and clips stay in the order of the label file."""
    session = uuid.uuid4().hex
    files = {row.id: _file(raw, row) for row in rows if isinstance(row, RawClip)}
    rows = [_present(row, files) for row in with_previous(rows)]
    made_with = {"media": media.model_dump(mode="json"), "versions": versions(), "format": FORMAT}
    tasks = []
    for split in SPLITS:
        clips = [row for row in rows if isinstance(row, RawClip) and row.split == split]
        for number, group in enumerate(_packed(clips, files, media)):
            state = [{**asdict(clip), "media": str(clip.media), "file": files[clip.id]} for clip in group]
            task = ShardTask(
                name=f"{split}-{number:05d}.parquet",
                split=split,
                clips=group,
                plan=plan_digest(state, made_with),
                raw=raw,
                out=out,
                media=media,
                session=session,
            )
            tasks.append(task)
    return Plan(rows, tasks)


def most_bytes(clip: RawClip, file_bytes: int, media: MediaSettings) -> float:
    """The most that a clip takes in a shard, uncompressed: all frames, at the full pixel budget, and the sound."""
    if clip.media is None:
        return ROW_BYTES
    audio_s = min(media.max_audio_s, max(PLANNED_AUDIO_S, file_bytes / PLANNED_BYTES_PER_S))
    return ROW_BYTES + media.max_frames * media.max_pixels * 3 + audio_s * SAMPLE_RATE * 2


def _file(raw: Path, clip: RawClip) -> _File | None:
    """The state of a clip's file; None where it is missing, zeros where the clip has none."""
    if clip.media is None:
        return _File(0, 0)
    try:
        state = (raw / clip.media).stat()
    except OSError:
        return None
    return _File(state.st_size, state.st_mtime_ns)


def _present(row: RawClip | Reject, files: dict[str, _File | None]) -> RawClip | Reject:
    # Rejected here and not by a task, so that a folder with few of its files makes few shards.
    if isinstance(row, Reject) or row.media is None:
        return row
    file = files[row.id]
    if file is None:
        return Reject(row.id, str(row.media), "missing file")
    return Reject(row.id, str(row.media), "empty file (0 bytes)") if file.bytes == 0 else row


def _packed(clips: list[RawClip], files: dict[str, _File | None], media: MediaSettings) -> Iterator[list[RawClip]]:
    """Clips in groups that stay under SHARD_BYTES even if every one is as large as it can be."""
    group: list[RawClip] = []
    size = 0.0
    for clip in clips:
        file = files[clip.id]
        most = most_bytes(clip, file.bytes if file else 0, media)
        if group and size + most > SHARD_BYTES:
            yield group
            group, size = [], 0.0
        group.append(clip)
        size += most
    if group:
        yield group
