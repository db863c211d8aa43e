"""One Ray Data execution: tasks of our own, their tables in the tasks' order, made ahead no further than is asked."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Any

from raymsa.data.groups import RowGroup
from raymsa.errors import DataError

READER_CPUS = 0.1  # logical: one reader for each run, beside the CPUs that `cluster.runs_at_once` gives to runs
READERS = 2  # threads of a read task
QUEUED = 2  # blocks that wait for the worker, in Ray Data and once more in the read task's own queue
SHARERS = 4  # read tasks at a time that put clips into the store; each takes half a GiB meanwhile
TASK_GROUPS = 1024  # row groups of a task


def packed(groups: Iterable[RowGroup], most_bytes: int, most_groups: int) -> Iterator[list[RowGroup]]:
    """Consecutive groups together, up to a size (one always fits)."""
    pack: list[RowGroup] = []
    size = 0
    for group in groups:
        if pack and (size + group.bytes > most_bytes or len(pack) == most_groups):
            yield pack
            pack, size = [], 0
        pack.append(group)
        size += group.bytes
    if pack:
        yield pack


class Execution:
    """One Ray Data execution: the objects that tasks make, in the tasks' order. Returns with the first one made.

    A bounded one has one task at a time, which waits while QUEUED blocks are waiting to be taken.
    """

    def __init__(self, tasks: list[Any], block_bytes: int, bounded: bool) -> None:
        self.refs: Iterator[Any] = iter(())  # of the objects that have rows
        self._executor: Any = None
        if tasks:
            bundles, _, self._executor = _got(_dataset(tasks, block_bytes, bounded)._execute_to_iterator)
            self.refs = _refs(bundles)
        if tasks and bounded:
            # Ray Data bounds what is made ahead only for a consumer that says what it holds itself: here, nothing.
            self._executor.set_external_consumer_bytes(0)

    def next_table(self) -> Any:
        """The next object's arrow table; None after the last one."""
        import ray

        ref = next(self.refs, None)
        return None if ref is None else _got(ray.get, ref)

    def end(self) -> None:
        """Stop making objects."""
        self.refs = iter(())
        if self._executor is not None:
            self._executor.shutdown(force=True)


def _refs(bundles: Iterator[Any]) -> Iterator[Any]:
    while (bundle := _got(next, bundles, None)) is not None:
        yield from [entry.ref for entry in bundle.blocks if entry.metadata.num_rows]


def _dataset(tasks: list[Any], block_bytes: int, bounded: bool) -> Any:
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)  # it tells of every execution on stderr
    context = ray.data.DataContext.get_current().copy()  # prepare has settings of its own
    context.enable_progress_bars = context.print_on_execution_start = False
    context.execution_options.preserve_order = True
    # Ray Data puts tables together up to this, and cuts what is half as large again: so one group is one block, unless
    # it is small, and no block is larger than the largest group.
    context.target_max_block_size = block_bytes * 7 // 10
    context._max_num_blocks_in_streaming_gen_buffer = QUEUED
    limit: dict[str, Any] = {}
    where: dict[str, Any] = {}
    if bounded:  # a stream: read beside its worker if there is room
        limit = {"object_store_memory": QUEUED * block_bytes}
        here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
        where = {"label_selector": here, "fallback_strategy": [{"label_selector": {}}]}
    context.execution_options.resource_limits = ray.data.ExecutionResources.for_limits(**limit)
    with ray.data.DataContext.current(context):
        return ray.data.read_datasource(
            _source(tasks),
            override_num_blocks=len(tasks),
            num_cpus=READER_CPUS,
            concurrency=1 if bounded else SHARERS,
            **where,
        )


def _got(ask: Any, *about: Any) -> Any:
    """What Ray gives; a reader's own error as it was raised there."""
    from ray.exceptions import RayTaskError

    try:
        return ask(*about)
    except RayTaskError as error:
        if isinstance(error.cause, DataError):
            raise DataError(str(error.cause).splitlines()[0]) from None  # Ray adds advice of its own
        raise


def _source(tasks: list[Any]) -> Any:
    from ray.data import Datasource, ReadTask
    from ray.data.block import BlockMetadata

    unknown = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)

    class Shards(Datasource):  # type: ignore[misc]
        """Read tasks as they are given."""

        def estimate_inmemory_data_size(self) -> int | None:
            return None

        def get_read_tasks(self, *_: Any, **__: Any) -> list[Any]:
            return [ReadTask(task, unknown) for task in tasks]

    return Shards()
