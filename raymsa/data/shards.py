"""Prepared shards streamed to a run, in one Ray Data execution for all that it reads.

A stream is one read task after another. Each reads its row groups in order, with threads, and waits when nobody takes
what it has read; so the order is the plan's whatever the number of threads, and what is on its way is bounded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from raymsa.clip import Clip
from raymsa.data.execution import QUEUED, READERS, TASK_GROUPS, Execution, packed
from raymsa.data.groups import Clips, Plan, RowGroup, clips_of, count, largest_clip, largest_group, mib, table
from raymsa.data.groups import read as read
from raymsa.errors import DataError

TASK_BYTES = 2 * 10**9  # of one read task: a task costs 10 ms, and one that dies starts again
IN_FLIGHT = READERS + 2 * QUEUED + 2  # blocks at most: and one between the two queues, and one that the worker takes
BLOCK_BYTES = 16 * 2**20  # smaller row groups are handed over together
PASS = "pass"  # noqa: S105 - the column that says which pass a row belongs to


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
        self._begun = ThreadPoolExecutor(1, "raymsa-stream").submit(Execution, tasks, self._block_bytes, True)

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


def _end(begun: Future[Execution]) -> None:
    with suppress(Exception):  # told already, by `of`
        begun.result().end()


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
