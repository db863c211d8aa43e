"""Prepared shards through Ray Data: streamed, in one execution for all that a run reads, or held in the object store
for all runs of a job.

A stream is one read task after another. Each reads its row groups in order, with threads, and waits when nobody takes
what it has read; so the order is the plan's whatever the number of threads, and what is on its way is bounded.
"""

from __future__ import annotations

import logging
import uuid
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from raymsa.clip import Clip
from raymsa.data.groups import Clips, Plan, RowGroup, clips_of, count, largest_clip, largest_group, mib, table
from raymsa.data.groups import read as read
from raymsa.errors import DataError

READER_CPUS = 0.1  # logical: one reader for each run, beside the CPUs that `cluster.runs_at_once` gives to runs
READERS = 2  # threads of a read task
QUEUED = 2  # blocks that wait for the worker, in Ray Data and once more in the read task's own queue
IN_FLIGHT = READERS + 2 * QUEUED + 2  # blocks at most: and one between the two queues, and one that the worker takes
TASK_BYTES, TASK_GROUPS = 2 * 10**9, 1024  # of one read task: a task costs 10 ms, and one that dies starts again
BLOCK_BYTES = 16 * 2**20  # smaller row groups are handed over together
SHARED_BYTES = 64_000_000  # about the size of an object that runs share
SHARERS = 4  # read tasks at a time that put clips into the store; each takes half a GiB meanwhile
SHARE = 0.5  # of the object store that clips held for all runs may take
PASS = "pass"  # noqa: S105 - the column that says which pass a row belongs to


Places = dict[tuple[str, int], tuple[Any, int]]  # row group (path, number) -> object, the row in it where it begins


class Shared(NamedTuple):
    """Clips in the object store. They stay there as long as the actor that knows their places lives."""

    name: str
    holder: Any


def stream(plan: Plan, mark: Path, readers: int = READERS) -> Clips:
    """The clips of a plan, read ahead by one Ray Data execution that begins at once.

    `mark` is a file for the readers: from which pass on clips are still wanted, when passes were left out.
    """
    return Streamed(plan, mark, readers)


class Streamed:
    """The worker's end of a stream."""

    def __init__(self, plan: Plan, mark: Path, readers: int) -> None:
        self._plan, self._mark, self._at = plan, mark, 0
        mark.unlink(missing_ok=True)
        self._block_bytes = max(BLOCK_BYTES, largest_group(plan))
        tasks = [
            partial(_ordered, groups, number, mark, readers)
            for number, whole in enumerate(plan)
            for groups in packed(whole, TASK_BYTES, TASK_GROUPS)
        ]
        # In a thread, because Ray Data returns with the first clips only, and meanwhile a model can be loaded.
        self._begun = ThreadPoolExecutor(1, "raymsa-stream").submit(_Execution, tasks, self._block_bytes, True)

    def of(self, number: int) -> Iterator[Clip]:
        """The clips of a pass; a block's media are copied, so that its place in the store is free at once."""
        if number > self._at:
            self._mark.write_text(str(number))
        self._at, wanted = number + 1, count(self._plan[number])
        while wanted > 0:
            block = self._begun.result().next_table()
            if block is None or (at := block[PASS][0].as_py()) > number:
                raise DataError(f"the stream of clips ended {wanted} clips early, in pass {number}")
            if at == number:
                wanted -= block.num_rows
                yield from clips_of(block.drop_columns([PASS]), copy=True)

    def about(self, held: int) -> str:
        """In a sentence."""
        most = held * largest_clip(self._plan) + 2 * self._block_bytes  # clips of a block go together
        return (
            f"clips are streamed by Ray Data; at most {mib(most)} of them are held here "
            f"({held} clips), and {mib(IN_FLIGHT * self._block_bytes)} are on their way ({IN_FLIGHT} row groups)"
        )

    def close(self) -> None:
        """End the execution: an early stop leaves clips unread, and their readers at work."""
        self._begun.add_done_callback(_end)  # it may not have begun: a model that does not load must not wait for it
        self._mark.unlink(missing_ok=True)


def _end(begun: Future[_Execution]) -> None:
    with suppress(Exception):  # told already, by `of`
        begun.result().end()


def share(groups: list[RowGroup], stop: Callable[[], bool] = lambda: False) -> tuple[Shared | None, str]:
    """The clips of the groups in the object store, for all runs of a job, if they fit; and a sentence that says why.

    `stop` is asked after each part. Raises DataError when a shard is damaged.
    """
    import ray

    size, store = sum(group.bytes for group in groups), store_bytes()
    fact = f"{mib(size)} of clips, an object store of {mib(store)}"
    if not groups:
        return None, "there are no clips to share"
    if size > SHARE * store:
        return None, f"every run streams its clips: they are more than {SHARE:.0%} of the object store ({fact})"
    packs = list(packed(groups, SHARED_BYTES, TASK_GROUPS))
    try:
        refs = []
        with closing(_put_here(packs) if _one_node() else _read_anywhere(packs, largest_group([groups]))) as made:
            for ref in made:
                refs.append(ref)
                if stop():
                    return None, "stopped while the clips were read"
        name = f"raymsa-clips-{uuid.uuid4().hex}"
        # Beside the driver, without which the session is over: any other node may go, and the places with it.
        here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
        holder = ray.remote(_Holder).options(name=name, num_cpus=0, label_selector=here).remote(_places(packs, refs))
        ray.get(holder.places.remote())
    except ray.exceptions.RayError as error:
        return None, f"every run streams its clips: sharing them failed ({' '.join(str(error).split())[:200]})"
    return Shared(name, holder), f"all runs share their clips in the object store ({fact})"


def _one_node() -> bool:
    import ray

    return len([node for node in ray.nodes() if node["Alive"]]) == 1


def _put_here(packs: list[list[RowGroup]]) -> Generator[Any, None, None]:
    """Objects of the packs, in order, read by this process: on one machine that is sooner done than Ray Data begins."""
    import ray

    with ThreadPoolExecutor(READERS) as pool:
        going = [pool.submit(lambda pack: ray.put(_together(pack)[0]), pack) for pack in packs]
        try:
            yield from (one.result() for one in going)
        finally:
            pool.shutdown(cancel_futures=True)


def _read_anywhere(packs: list[list[RowGroup]], largest: int) -> Generator[Any, None, None]:
    """The same by Ray Data, on all nodes: reading may be slow, and one node's store small."""
    made = _Execution([partial(_together, pack) for pack in packs], 4 * max(SHARED_BYTES, largest), False)
    try:
        yield from made.refs
    except GeneratorExit:  # nobody wants the rest
        made.end()
        raise


def places(name: str) -> Places | None:
    """The places of shared clips, for a worker; None when they are gone."""
    import ray

    try:
        found: Places = ray.get(ray.get_actor(name).places.remote())
    except (ray.exceptions.RayError, ValueError):  # a node died, and what knew the places with it
        return None
    return found


def free(shared: Shared) -> None:
    """Give the memory of shared clips back."""
    import ray

    ray.kill(shared.holder)


class _Holder:
    """An actor: Tune keeps what it was once given for as long as the session lives, and its files take no objects."""

    def __init__(self, known: Places) -> None:
        self._known = known

    def places(self) -> Places:
        """Where the clips are."""
        return self._known


def take(plan: Plan, known: Places) -> Clips:
    """The clips of a plan from the object store, without a copy and without an execution."""
    return Taken(plan, known)


class Taken:
    """The clips of a plan as views of what all runs share; what was lost is read from its file."""

    def __init__(self, plan: Plan, known: Places) -> None:
        self._plan, self._places = plan, known

    def of(self, number: int) -> Iterator[Clip]:
        """The clips of a pass."""
        for group in self._plan[number]:
            yield from clips_of(self._table(group))

    def about(self, held: int) -> str:
        """In a sentence."""
        return "clips are shared with the job's other runs in the object store; none are held here"

    def close(self) -> None:
        """Nothing goes on by itself."""

    def _table(self, group: RowGroup) -> Any:
        import ray

        ref, first = self._places.get((group.path, group.number), (None, 0))
        if ref is not None:
            with suppress(ray.exceptions.RayError):  # its node died, and Ray could not make it again
                return ray.get(ref).slice(first + group.first, group.rows)
        return table(group)


def store_bytes() -> int:
    """Size of the smallest object store of the session: a run may be on any node."""
    import ray

    return int(min(n["Resources"].get("object_store_memory", 0) for n in ray.nodes() if n["Alive"]))


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


def _places(packs: list[list[RowGroup]], refs: list[Any]) -> Places:
    found = {}
    for pack, ref in zip(packs, refs, strict=True):
        first = 0
        for group in pack:
            found[group.path, group.number] = (ref, first)
            first += group.rows
    return found


class _Execution:
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


def _together(groups: list[RowGroup]) -> list[Any]:
    """The body of a read task whose groups become one object."""
    return [pa.concat_tables([table(group) for group in groups])]


def _ordered(groups: list[RowGroup], number: int, mark: Path, readers: int) -> Iterator[Any]:
    """The body of a stream's read task: tables of the groups, in order, read by threads."""
    left = iter(groups)
    with ThreadPoolExecutor(readers) as pool:
        going: deque[Future[Any]] = deque()
        while _wanted_from(mark) <= number:
            going.extend(pool.submit(table, group) for group in islice(left, readers - len(going)))
            if not going:
                return
            rows = going.popleft().result()
            yield rows.append_column(PASS, pa.repeat(pa.scalar(number, pa.int32()), rows.num_rows))


def _wanted_from(mark: Path) -> int:
    try:
        return int(mark.read_text())
    except (OSError, ValueError):  # none, or not whole yet
        return 0
