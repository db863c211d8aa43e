"""A job's clips in Ray's object store, for all of its runs, where they fit there."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from functools import partial
from typing import Any, NamedTuple

import pyarrow as pa

from raymsa.clip import Clip
from raymsa.data.execution import READERS, TASK_GROUPS, Execution, packed
from raymsa.data.groups import Clips, Plan, RowGroup, clips_of, largest_group, mib, table

SHARED_BYTES = 64_000_000  # about the size of an object that runs share
SHARE = 0.5  # of the object store that clips held for all runs may take

Places = dict[tuple[str, int], tuple[Any, int]]  # row group (path, number) -> object, the row in it where it begins


class Shared(NamedTuple):
    """Clips in the object store. They stay there as long as the actor that knows their places lives."""

    name: str
    holder: Any


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
    made = Execution([partial(_together, pack) for pack in packs], 4 * max(SHARED_BYTES, largest), False)
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


def _places(packs: list[list[RowGroup]], refs: list[Any]) -> Places:
    found = {}
    for pack, ref in zip(packs, refs, strict=True):
        first = 0
        for group in pack:
            found[group.path, group.number] = (ref, first)
            first += group.rows
    return found


def _together(groups: list[RowGroup]) -> list[Any]:
    """The body of a read task whose groups become one object."""
    return [pa.concat_tables([table(group) for group in groups])]
