"""Row groups of prepared shards: which there are, in which order a pass reads them, and reading them without Ray.

The order is a pure function of (shards, seed, epoch): whole row groups are shuffled here, clips inside a window later
(`collate.steps`). So it depends neither on how many readers there are nor on how the clips come.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raymsa.clip import FRAMES_PER_TOKEN, MERGED_PATCH, Clip, from_row
from raymsa.errors import DataError
from raymsa.place import is_local, place, reaching

MEDIA = ("frames", "audio", "heard", "seen")  # the columns that are nearly all of a row, as far as it has them
AT_ONCE = 8  # files whose metadata is asked for at a time; far away each answer takes a while


class RowGroup(NamedTuple):
    """The unit of reading: at most 32 clips of one file; `rows` of them are wanted, from the one numbered `first`."""

    path: str
    number: int
    rows: int
    first: int = 0
    bytes: int = 0  # uncompressed, of the whole group
    largest: int = 0  # bytes of its largest clip's media


Plan = list[list[RowGroup]]  # passes over clips, in the order in which they will be asked for


class Clips(Protocol):
    """The clips of a plan, a pass at a time."""

    def of(self, number: int) -> Iterator[Clip]:
        """The clips of pass `number`, in order; what is left of the passes before it is never read."""

    def about(self, held: int) -> str:
        """How the clips come and how much memory that takes, where `held` of them are kept at a time."""

    def close(self) -> None:
        """Stop reading."""


def row_groups(folder: Path, files: Iterable[str]) -> list[RowGroup]:
    """Every row group of the given shard files, in order. Raises DataError when a file cannot be read."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = pool.map(_groups_of, [str(folder / name) for name in files])
        return [group for groups in found for group in groups]


def shuffled(groups: list[RowGroup], seed: int, epoch: int) -> list[RowGroup]:
    """The groups in the order of one epoch."""
    return [groups[i] for i in np.random.default_rng([seed, epoch]).permutation(len(groups))]


def after(groups: Iterable[RowGroup], clips: int) -> list[RowGroup]:
    """What is left of a pass when its first `clips` are not wanted: groups before them are gone, one may be cut."""
    left = []
    for group in groups:
        cut = min(clips, group.rows)
        clips -= cut
        if cut < group.rows:
            left.append(group._replace(first=group.first + cut, rows=group.rows - cut))
    return left


def count(groups: Iterable[RowGroup]) -> int:
    """Clips of the groups."""
    return sum(group.rows for group in groups)


def table(group: RowGroup) -> Any:
    """The wanted rows of a group as an arrow table. Raises DataError when the file is damaged or gone."""
    try:
        with reaching("read", place(group.path)):
            return _opened(group.path).read_row_group(group.number).slice(group.first, group.rows)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{group.path}: row group {group.number} cannot be read: {_line(error)}") from None


def clips_of(rows: Any, copy: bool = False) -> Iterator[Clip]:
    """The clips in an arrow table of the shard schema: views of its memory, or with `copy` of a copy."""
    there = [name for name in MEDIA if name in rows.column_names]
    media = [_values(rows[name], copy) for name in there]
    for row, *values in zip(rows.drop_columns(there).to_pylist(), *media, strict=True):
        yield from_row({**row, **dict(zip(there, values, strict=True))})


class Read:
    """Clips read in this process, when they are asked for."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def of(self, number: int) -> Iterator[Clip]:
        """The clips of a pass."""
        for group in self._plan[number]:
            yield from clips_of(table(group))

    def about(self, held: int) -> str:
        """In a sentence."""
        most = held * largest_clip(self._plan) + largest_group(self._plan)
        return f"clips are read in this process; at most {mib(most)} of them are held"

    def close(self) -> None:
        """Nothing goes on by itself."""


def read(plan: Plan) -> Clips:
    """The clips of a plan without Ray."""
    return Read(plan)


def largest_clip(plan: Plan) -> int:
    """Bytes of the largest clip of a plan."""
    return max((group.largest for groups in plan for group in groups), default=0)


def largest_group(plan: Plan) -> int:
    """Bytes of the largest row group of a plan."""
    return max((group.bytes for groups in plan for group in groups), default=0)


def mib(size: float) -> str:
    """A size for people."""
    return f"{size / 2**20:,.0f} MiB" if size < 10 * 2**30 else f"{size / 2**30:,.1f} GiB"


def _opened(path: str) -> Any:
    """A shard file, opened: where a run opens shards."""
    file = place(path)
    if is_local(file):
        opened = pq.ParquetFile(path)
        if "vector_type" not in opened.schema_arrow.names:
            return opened
        # Vectors are not compressed, so nothing else would notice a flipped byte.
        return pq.ParquetFile(path, metadata=opened.metadata, page_checksum_verification=True)
    with reaching("read", file):
        return pq.ParquetFile(file.open("rb"))


def _groups_of(path: str) -> list[RowGroup]:
    try:
        meta = _opened(path).metadata
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read: {_line(error)}") from None
    found = [meta.row_group(number) for number in range(meta.num_row_groups)]
    return [
        RowGroup(path, number, group.num_rows, bytes=group.total_byte_size, largest=_largest(group))
        for number, group in enumerate(found)
    ]


def _largest(group: Any) -> int:
    """Bytes of a group's largest clip, from its statistics alone: pixels follow from video tokens."""
    columns = [group.column(i) for i in range(group.num_columns)]
    most = {c.path_in_schema: c.statistics.max for c in columns if c.statistics and c.statistics.has_min_max}
    if "vector_bytes" in most:
        return int(most["vector_bytes"])
    pixels = (most.get("video_tokens") or 0) * FRAMES_PER_TOKEN * MERGED_PATCH**2
    known = int(pixels * 3 + (most.get("audio_samples") or 0) * 2)
    return known or int(group.total_byte_size / max(1, group.num_rows))


def _values(column: Any, copy: bool) -> Iterator[np.ndarray | None]:
    """Views [bytes] of a large_binary column's values; arrow's own scalars would be copies.

    A copy is made of all values at once: the pages of one large array cost a fifth of those of many small ones.
    """
    for chunk in column.chunks:
        _, offsets, data = chunk.buffers()
        at = np.frombuffer(offsets, np.int64)[chunk.offset : chunk.offset + len(chunk) + 1].tolist()
        space = np.frombuffer(data or b"", np.uint8)[at[0] : at[-1]]
        space = space.copy() if copy else space
        for i, valid in enumerate(chunk.is_valid().to_pylist()):
            yield space[at[i] - at[0] : at[i + 1] - at[0]] if valid else None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
