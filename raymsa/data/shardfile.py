"""One shard, from its planned list of clips to a Parquet file: what a single prepare task does. No Ray in here.

A task writes a local file and then puts it in its place; its sidecar, written after that, says what came out. A task
that is killed leaves neither, or the shard without its sidecar, and is done again to the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from raymsa.clip import SHARD_SCHEMA, Clip, RawClip, Reject, to_row
from raymsa.data.decoder import LIMIT_S, Decoder
from raymsa.datasets.base import MediaSettings
from raymsa.errors import MediaError
from raymsa.place import is_local, local_copy, place, put, states, write_at_once

PARTS = ".parts"  # folder beside the shards, gone once the manifest is there
GROUP_ROWS = 32  # a row group is what a reader holds at once, so it is bounded in rows and in bytes
GROUP_BYTES = 64_000_000
BINARY = ("frames", "audio")
SAME_IN_BOTH = ("id", "video_id", "text", "label", "split", "targets", "previous")  # of RawClip and Clip
# Called with clips done, and rejects among them, several times a second; what it raises ends the task.
Watch = Callable[[int, int], None]


class ShardTask(BaseModel):
    """A planned shard; `raw` and `out` are paths or addresses. `plan` is the digest of all that its bytes depend on."""

    name: str
    split: str
    clips: list[RawClip]
    plan: str
    raw: str
    out: str
    media: MediaSettings
    limit_s: float = LIMIT_S


class Written(BaseModel):
    """What a task made: its sidecar. rows 0: every clip was rejected and there is no file."""

    name: str
    split: str
    plan: str
    rows: int
    bytes: int
    sha256: str
    rejects: list[Reject]
    missing: list[tuple[str, str]]  # clip id, what it was kept without
    damaged: list[tuple[str, str]]  # clip id, what could not be decoded of it
    without_sound: int
    without_picture: int
    cut_sound: int
    seconds: float
    audio_tokens: int
    video_tokens: int
    media_bytes: int  # uncompressed
    largest_clip_bytes: int


def kept(tasks: list[ShardTask]) -> dict[str, Written]:
    """Sidecars, by name, of the shards that an earlier call finished and that are still what is asked for."""
    if not tasks:
        return {}
    out = place(tasks[0].out)
    there = states(out, [name for task in tasks for name in (task.name, _sidecar(task))])
    found = {}
    for task in tasks:
        shard, sidecar = there[task.name], there[_sidecar(task)]
        written = _read_sidecar(out / _sidecar(task)) if sidecar else None
        if written and written.plan == task.plan and (not written.rows or (shard and shard.bytes == written.bytes)):
            found[task.name] = written
    return found


def _sidecar(task: ShardTask) -> str:
    return f"{PARTS}/{task.name}.json"


def _read_sidecar(path: Path) -> Written | None:
    try:
        return Written.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # half written, or of another version
        return None


def write_shard(task: ShardTask, decoder: Decoder, watch: Watch = lambda done, rejects: None) -> Written:
    """Decode the clips of one shard and write it. Raises OSError when the disk, or the network, does not do it."""
    out = place(task.out)
    # Beside its place, so that renaming is all that is left to do; for an address in the temporary folder.
    folder = out / PARTS if is_local(out) else Path(tempfile.gettempdir())
    part = folder / f"{task.name}.{os.getpid()}.part"
    results = _Results(task, decoder, watch)
    try:
        rows = _write_rows(part, results.clips())
        size, sha256 = part.stat().st_size, _sha256(part)
        if rows:
            put(part, out / task.name)
    finally:
        part.unlink(missing_ok=True)
    written = results.written(rows, size if rows else 0, sha256 if rows else "")
    write_at_once(out / _sidecar(task), written.model_dump_json())
    return written


class _Results:
    """What happened to each clip of a task, collected while its shard is written."""

    def __init__(self, task: ShardTask, decoder: Decoder, watch: Watch) -> None:
        self.task, self.decoder, self.watch = task, decoder, watch
        self.raw = place(task.raw)
        self.done = 0
        self.rejects: list[Reject] = []
        self.missing: list[tuple[str, str]] = []
        self.damaged: list[tuple[str, str]] = []
        self.counts: Counter[str] = Counter()
        self.seconds = 0.0
        self.largest = 0

    def clips(self) -> Iterator[Clip]:
        """The clips that could be decoded, in the task's order; each is to be used before the next is asked for."""
        for raw_clip in self.task.clips:
            self._look()
            try:
                clip = self._clip(raw_clip)
            except MediaError as error:
                self.rejects.append(Reject(raw_clip.id, str(raw_clip.media), str(error)))
            else:
                self._count(clip)
                yield clip
            self.done += 1
        self._look()

    def written(self, rows: int, size: int, sha256: str) -> Written:
        return Written(
            name=self.task.name,
            split=self.task.split,
            plan=self.task.plan,
            rows=rows,
            bytes=size,
            sha256=sha256,
            rejects=self.rejects,
            missing=self.missing,
            damaged=self.damaged,
            without_sound=self.counts["no sound"],
            without_picture=self.counts["no picture"],
            cut_sound=self.counts["cut"],
            seconds=self.seconds,
            audio_tokens=self.counts["audio tokens"],
            video_tokens=self.counts["video tokens"],
            media_bytes=self.counts["bytes"],
            largest_clip_bytes=self.largest,
        )

    def _look(self) -> None:
        self.watch(self.done, len(self.rejects))

    def _clip(self, raw: RawClip) -> Clip:
        known = {name: getattr(raw, name) for name in SAME_IN_BOTH}
        if raw.media is None:
            return Clip(**known)
        try:
            with local_copy(self.raw / raw.media.as_posix()) as path:
                media = self.decoder.decode(path, self._look)
        except FileNotFoundError:
            raise MediaError("missing file") from None
        self.damaged += [(raw.id, note) for note in media.notes]
        absent = {"sound": media.audio_S is None, "picture": media.frames_FHWC is None}
        self.missing += [(raw.id, f"has no {stream}") for stream, is_so in absent.items() if is_so]
        if media.truncated:
            self.counts["cut"] += 1
            self.missing.append((raw.id, f"sound is cut at {self.task.media.max_audio_s:g} s (media.max_audio_s)"))
        return Clip(**known, seconds=media.seconds, frames_FHWC=media.frames_FHWC, audio_S=media.audio_S)

    def _count(self, clip: Clip) -> None:
        size = sum(array.nbytes for array in (clip.frames_FHWC, clip.audio_S) if array is not None)
        self.largest = max(self.largest, size)
        self.seconds += clip.seconds
        self.counts.update(
            {
                "no sound": clip.audio_S is None,
                "no picture": clip.frames_FHWC is None,
                "audio tokens": clip.audio_tokens,
                "video tokens": clip.video_tokens,
                "bytes": size,
            }
        )


def _write_rows(part: Path, clips: Iterator[Clip]) -> int:
    """Rows written. Statistics and dictionaries of media columns would only cost space.

    zstd's level 1 writes as fast as lz4 and takes a fifth less space, measured on decoded video.
    """
    plain = [field.name for field in SHARD_SCHEMA if field.name not in (*BINARY, "frames_shape")]
    rows = 0
    with part.open("wb") as file:
        with pq.ParquetWriter(
            file,
            SHARD_SCHEMA,
            compression="zstd",
            compression_level=1,
            use_dictionary=False,
            write_statistics=plain,
            write_page_checksum=True,  # so that a flipped byte is found and named
            write_batch_size=1,  # a page ends after a large value: pages of one clip, not copies of a whole group
        ) as writer:
            for group in _groups(clips):
                writer.write_table(_table(group), row_group_size=GROUP_ROWS)
                rows += len(group)
        file.flush()
        os.fsync(file.fileno())
    return rows


def _groups(clips: Iterator[Clip]) -> Iterator[list[dict[str, Any]]]:
    group: list[dict[str, Any]] = []
    size = 0
    for clip in clips:
        row = to_row(clip)
        group.append(row)
        size += len(row["frames"] or b"") + len(row["audio"] or b"")
        if len(group) == GROUP_ROWS or size > GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _table(group: list[dict[str, Any]]) -> Any:
    return pa.Table.from_arrays(
        [_column([row[field.name] for row in group], field) for field in SHARD_SCHEMA], schema=SHARD_SCHEMA
    )


def _column(values: list[Any], field: Any) -> Any:
    if field.name not in BINARY or None in values:
        return pa.array(values, field.type)
    ends = np.cumsum([0, *map(len, values)], dtype=np.int64)  # joined in one step: appending would grow and copy
    return pa.LargeBinaryArray.from_buffers(
        field.type, len(values), [None, pa.py_buffer(ends), pa.py_buffer(b"".join(values))]
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def plan_digest(clips: list[dict[str, Any]], settings: dict[str, Any]) -> str:
    """Digest of all that a shard's bytes depend on: its rows, the state of their files, and the settings."""
    return hashlib.sha256(json.dumps([clips, settings], sort_keys=True).encode()).hexdigest()
