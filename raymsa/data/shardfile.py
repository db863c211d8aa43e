"""One shard, from its planned list of clips to a Parquet file: what a single prepare task does. No Ray in here.

A task writes to a temporary name and renames; its sidecar, written after that, says what came out. A task that is
killed leaves neither, or the shard without its sidecar, and is done again to the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from raymsa.clip import SHARD_SCHEMA, Clip, RawClip, Reject, to_row
from raymsa.data.manifest import write_at_once
from raymsa.data.media import decode
from raymsa.datasets.base import MediaSettings
from raymsa.errors import MediaError

PARTS = ".parts"  # folder beside the shards, gone once the manifest is there
GROUP_ROWS = 32  # a row group is what a reader holds at once, so it is bounded in rows and in bytes
GROUP_BYTES = 64_000_000
ATTEMPTS = 100  # at one shard; Ray starts a task again whenever its process dies, without end
SAME_IN_BOTH = ("id", "video_id", "text", "label", "split", "targets", "previous")  # of RawClip and Clip
CRASHES_ALLOWED = 1  # per clip: the first may have been the machine's fault (memory), the second is the clip's


class ShardTask(BaseModel):
    """A planned shard. `plan` is the digest of all that its bytes depend on; `session` names this call of prepare."""

    name: str
    split: str
    clips: list[RawClip]
    plan: str
    raw: Path
    out: Path
    media: MediaSettings
    session: str


class Written(BaseModel):
    """What a task made: its sidecar. rows 0: every clip was rejected and there is no file."""

    name: str
    split: str
    plan: str
    rows: int
    bytes: int
    sha256: str
    rejects: list[Reject]
    notes: list[tuple[str, str]]  # clip id, what could not be decoded of it
    without_sound: int
    without_picture: int
    cut_sound: int


class Journal(BaseModel):
    """Where a task is. It survives the task's process: a clip that is still `at` in the next attempt crashed it."""

    session: str
    attempts: int = 0
    done: int = 0
    rejects: int = 0
    at: str | None = None
    crashes: Counter[str] = Counter()


def kept(task: ShardTask) -> Written | None:
    """The sidecar of a shard that an earlier call finished and that is still what is asked for."""
    try:
        written = Written.model_validate_json((task.out / PARTS / f"{task.name}.json").read_text(encoding="utf-8"))
        size = (task.out / task.name).stat().st_size if written.rows else 0
    except (OSError, ValueError):
        return None
    return written if written.plan == task.plan and size == written.bytes else None


def read_journal(task: ShardTask) -> Journal:
    """How far a task of this session has come; a fresh journal when it has not begun."""
    try:
        journal = Journal.model_validate_json(_journal_path(task).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        journal = Journal(session="")
    return journal if journal.session == task.session else Journal(session=task.session)


def write_shard(task: ShardTask) -> Written:
    """Decode the clips of one shard and write it. Raises OSError when the disk does not take it."""
    import torch

    torch.set_num_threads(1)  # the parallelism is one task per core
    part = task.out / PARTS / f"{task.name}.{os.getpid()}.part"
    journal = _next_attempt(task)
    results = _Results(task, journal)
    try:
        rows = _write_rows(part, results.clips())
        size, sha256 = part.stat().st_size, _sha256(part)
        if rows:
            part.replace(task.out / task.name)
    finally:
        part.unlink(missing_ok=True)
    written = results.written(rows, size if rows else 0, sha256 if rows else "")
    write_at_once(task.out / PARTS / f"{task.name}.json", written.model_dump_json())
    return written


class _Results:
    """What happened to each clip of a task, collected while its shard is written."""

    def __init__(self, task: ShardTask, journal: Journal) -> None:
        self.task, self.journal = task, journal
        self.rejects: list[Reject] = []
        self.notes: list[tuple[str, str]] = []
        self.missing: Counter[str] = Counter()

    def clips(self) -> Iterator[Clip]:
        """The clips that could be decoded, in the task's order."""
        for done, raw_clip in enumerate(self.task.clips):
            self._journal(done, raw_clip.id)
            try:
                yield self._clip(raw_clip)
            except MediaError as error:
                self.rejects.append(Reject(raw_clip.id, str(raw_clip.media), str(error)))
        self._journal(len(self.task.clips), None)

    def written(self, rows: int, size: int, sha256: str) -> Written:
        return Written(
            name=self.task.name,
            split=self.task.split,
            plan=self.task.plan,
            rows=rows,
            bytes=size,
            sha256=sha256,
            rejects=self.rejects,
            notes=self.notes,
            without_sound=self.missing["sound"],
            without_picture=self.missing["picture"],
            cut_sound=self.missing["cut"],
        )

    def _clip(self, raw: RawClip) -> Clip:
        known = {
            name: getattr(raw, name) for name in ("id", "video_id", "text", "label", "split", "targets", "previous")
        }
        if raw.media is None:
            self.missing.update(("sound", "picture"))
            return Clip(**known)
        if self.journal.crashes[raw.id] > CRASHES_ALLOWED:
            raise MediaError(
                f"decoding it ended the process {self.journal.crashes[raw.id]} times (crash, or no memory)"
            )
        media = _decode(self.task.raw / raw.media, self.task.media)
        self.notes += [(raw.id, note) for note in media.notes]
        absent = {"sound": media.audio_S is None, "picture": media.frames_FHWC is None, "cut": media.truncated}
        self.missing.update(name for name, is_so in absent.items() if is_so)
        return Clip(**known, seconds=media.seconds, frames_FHWC=media.frames_FHWC, audio_S=media.audio_S)

    def _journal(self, done: int, at: str | None) -> None:
        self.journal.done, self.journal.at, self.journal.rejects = done, at, len(self.rejects)
        _journal_path(self.task).write_text(self.journal.model_dump_json(), encoding="utf-8")


def _decode(path: Path, settings: MediaSettings) -> Any:
    try:
        return decode(path, settings)
    except MediaError:
        raise
    except Exception as error:  # a decoder's own bug must not end a job of hours; the reason names it
        raise MediaError(f"the decoder failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}") from None


def _journal_path(task: ShardTask) -> Path:
    return task.out / PARTS / f"{task.name}.at"


def _next_attempt(task: ShardTask) -> Journal:
    journal = read_journal(task)
    journal.attempts += 1
    if journal.attempts > ATTEMPTS:
        raise ChildProcessError(f"{task.name}: its process died {ATTEMPTS} times")
    if journal.at is not None:
        journal.crashes[journal.at] += 1
    return journal


def _write_rows(part: Path, clips: Iterator[Clip]) -> int:
    """Rows written. Statistics and dictionaries of media columns would only cost space."""
    plain = [field.name for field in SHARD_SCHEMA if field.name not in ("frames", "frames_shape", "audio")]
    rows = 0
    with part.open("wb") as file:
        with pq.ParquetWriter(
            file, SHARD_SCHEMA, compression="zstd", use_dictionary=False, write_statistics=plain
        ) as writer:
            for group in _groups(clips):
                writer.write_table(pa.Table.from_pylist(group, schema=SHARD_SCHEMA), row_group_size=GROUP_ROWS)
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


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def plan_digest(clips: list[dict[str, Any]], settings: dict[str, Any]) -> str:
    """Digest of all that a shard's bytes depend on: its rows, the state of their files, and the settings."""
    return hashlib.sha256(json.dumps([clips, settings], sort_keys=True).encode()).hexdigest()
