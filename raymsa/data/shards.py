"""Prepared shards as a stream of clips: through Ray Data, or plainly with pyarrow where there is no Ray.

The order is a pure function of (shards, seed, epoch): whole row groups are shuffled here, clips inside a window later
(`collate.steps`). So it does not depend on the number of readers.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raymsa.clip import Clip, from_row

READER_CPUS = 0.5  # logical: reading waits for the disk, and must fit beside Tune and Train on two cores


class RowGroup(NamedTuple):
    """The unit of reading: at most 32 clips of one file."""

    path: str
    number: int
    rows: int


def row_groups(folder: Path, files: Iterable[str]) -> list[RowGroup]:
    """Every row group of the given shard files, in order."""
    found = []
    for name in files:
        meta = pq.read_metadata(folder / name)
        found += [RowGroup(str(folder / name), i, meta.row_group(i).num_rows) for i in range(meta.num_row_groups)]
    return found


def shuffled(groups: list[RowGroup], seed: int, epoch: int) -> list[RowGroup]:
    """The groups in the order of one epoch."""
    return [groups[i] for i in np.random.default_rng([seed, epoch]).permutation(len(groups))]


def read(groups: Iterable[RowGroup]) -> Generator[Clip, None, None]:
    """Clips of the groups, in order, in this process."""
    for group in groups:
        yield from clips_of(_table(group))


def stream(groups: list[RowGroup]) -> Generator[Clip, None, None]:
    """Clips of the groups, in order, read ahead by Ray Data: one execution for the whole list."""
    import ray.data

    if not groups:
        return
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    items = [group._asdict() for group in groups]
    dataset = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        _read_block, batch_size=None, batch_format="pyarrow", num_cpus=READER_CPUS
    )
    for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2):
        yield from clips_of(table)


def clips_of(table: Any) -> Iterator[Clip]:
    """The clips in an arrow table of the shard schema, one at a time: a group's frames are never held twice."""
    for i in range(table.num_rows):
        yield from_row(table.slice(i, 1).to_pylist()[0])


def _read_block(block: Any) -> Any:
    return pa.concat_tables([_table(RowGroup(**item)) for item in block.to_pylist()])


def _table(group: RowGroup) -> Any:
    return pq.ParquetFile(group.path).read_row_group(group.number)
