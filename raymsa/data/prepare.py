"""Raw clips to shards, through Ray Data: planned ahead, one task per shard, resumed after a kill, the manifest last."""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raymsa.clip import RawClip, Reject
from raymsa.cluster import EMBEDDED, SPARE_CPUS
from raymsa.data.account import account, say_result
from raymsa.data.decoder import LIMIT_S, Decoder
from raymsa.data.folder import check_rows, claim, disk_line, drop_parts, finished, locked
from raymsa.data.manifest import Manifest
from raymsa.data.plan import plan_shards, row_digests
from raymsa.data.progress import Count, Lines, Progress
from raymsa.data.shardfile import PARTS, ShardTask, Written, kept, write_shard
from raymsa.datasets.base import Layout
from raymsa.errors import Cancelled, DataError
from raymsa.place import check, place, remove

LOOK_S = 0.5  # how often progress is shown and a stop is looked for
LEAVE_S = 3.0  # given to the tasks of an execution that is stopped
ATTEMPTS = 3  # at an execution, when Ray workers die; decoders are processes of their own and do not count here
LIMIT = "RAYMSA_DECODE_LIMIT_S"  # seconds a small file may take, in place of LIMIT_S
Say = Callable[[str], None]
Stop = Callable[[], bool]


def prepare(
    dataset: Layout,
    raw: Path,
    out: Path,
    say: Say,
    stop: Stop = lambda: False,
    progress: Progress | None = None,
) -> Manifest:
    """The shards of a dataset in `out`, made when they are not there yet; the caller has started Ray.

    Finished shards of an earlier, interrupted call are kept; `stop` is asked twice a second. Raises Cancelled then, and
    DataError, in one line, when the raw folder or its labels are unusable, when `out` holds other clips, or when the
    disk is full.
    """
    raw, out = place(raw), place(out)
    check(raw)
    check(out)
    try:
        there = _prepared(dataset, raw, out, say)
        if there:
            return there
        rows = _rows(dataset, raw, say)
        with locked(out, say, stop):
            return _prepared(dataset, raw, out, say) or _prepare(
                dataset, raw, out, rows, say, stop, progress or Lines(say)
            )
    except OSError as error:
        raise DataError(disk_line(error, out)) from None


def _prepare(
    dataset: Layout, raw: Path, out: Path, rows: list[RawClip | Reject], say: Say, stop: Stop, progress: Progress
) -> Manifest:
    claim(dataset, out)
    plan = plan_shards(rows, raw, out, dataset.media, _limit_s())
    done = _write_shards(plan.tasks, out, say, stop, progress)
    made = account(dataset, raw, out, plan, done)
    remove(out / PARTS)
    say_result(dataset, made, out, say)
    return made


def _prepared(dataset: Layout, raw: Path, out: Path, say: Say) -> Manifest | None:
    there = finished(dataset, out)
    if there is None:
        return None
    rows = _labels_now(dataset, raw, say)
    if rows:
        check_rows(out, there, *row_digests(rows, raw))
    say(f"{out}: prepared already, {sum(there.counts.values())} clips; delete the folder to prepare again")
    return there


def _labels_now(dataset: Layout, raw: Path, say: Say) -> list[RawClip | Reject]:
    """The rows to compare a finished folder with; where the raw clips are not, the shards stand for themselves."""
    if not raw.is_dir():
        return []
    try:
        return list(dataset.clips(raw))
    except DataError as error:
        say(f"warning: not compared with what was prepared: {error}")
        return []


def _rows(dataset: Layout, raw: Path, say: Say) -> list[RawClip | Reject]:
    dataset.make(raw)
    if not raw.is_dir():
        raise DataError(dataset.missing(raw))
    rows = list(dataset.clips(raw))
    if not rows:
        raise DataError(f"{raw}: the label file has no rows")
    say(f"{dataset.name}: {len(rows)} rows in {raw}")
    return rows


def _limit_s() -> float:
    try:
        return float(os.environ.get(LIMIT) or LIMIT_S)
    except ValueError:
        raise DataError(f"{LIMIT}: given {os.environ[LIMIT]!r}; give a number of seconds") from None


def _write_shards(tasks: list[ShardTask], out: Path, say: Say, stop: Stop, progress: Progress) -> list[Written]:
    """Each task's result, in the order of the tasks; those that an earlier call finished are not done again."""
    done = kept(tasks)
    left = [task for task in tasks if task.name not in done]
    if done:
        say(f"{len(done)} of {len(tasks)} shards are there already")
    drop_parts(out)
    if left:
        try:
            with _executed(left) as running:
                while len(done) < len(tasks):
                    for written in running.results(LOOK_S):
                        done[written.name] = written
                    progress(_count(tasks, done, running.under_way()))
                    if stop() and len(done) < len(tasks):
                        raise Cancelled(f"{out}: stopped after {len(done)} of {len(tasks)} shards; they are kept")
        finally:
            drop_parts(out)
    return [done[task.name] for task in tasks]


def _count(tasks: list[ShardTask], done: dict[str, Written], under_way: dict[str, tuple[int, int]]) -> Count:
    clips = rejects = 0
    for task in tasks:
        written = done.get(task.name)
        one = (len(task.clips), len(written.rejects)) if written else under_way.get(task.name, (0, 0))
        clips, rejects = clips + one[0], rejects + one[1]
    return Count(clips, sum(len(task.clips) for task in tasks), rejects)


class _Stopped(Exception):
    """Inside a task: the prepare it belongs to was stopped."""


class _Board:
    """Where tasks write how far they are, and read whether they should stop; an actor of Ray."""

    def __init__(self) -> None:
        self.under_way: dict[str, tuple[int, int]] = {}
        self.stopped = False

    def report(self, shard: str, clips: int, rejects: int) -> bool:
        """True: stop."""
        self.under_way[shard] = (clips, rejects)
        return self.stopped

    def read(self) -> dict[str, tuple[int, int]]:
        """Clips done and rejects of each shard that was begun."""
        return self.under_way

    def stop(self) -> None:
        """Tasks end at their next look."""
        self.stopped = True


class _Writer:
    """One of Ray Data's pool: writes one shard after the other, with a decoder process of its own."""

    def __init__(self, board: Any) -> None:
        self._board, self._looked = board, 0.0
        self._decoder: Decoder | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        task = ShardTask.model_validate_json(row["task"])
        self._decoder = self._decoder or Decoder(task.media, task.limit_s)
        try:
            written = write_shard(task, self._decoder, lambda clips, rejects: self._look(task.name, clips, rejects))
        except _Stopped:
            return {"written": "", "error": ""}
        except OSError as error:  # one line instead of a traceback
            return {"written": "", "error": disk_line(error, place(task.out))}
        return {"written": written.model_dump_json(), "error": ""}

    def _look(self, shard: str, clips: int, rejects: int) -> None:
        import ray

        if time.monotonic() - self._looked > LOOK_S:
            self._looked = time.monotonic()
            if ray.get(self._board.report.remote(shard, clips, rejects)):
                raise _Stopped


class _Execution:
    """One Ray Data execution. A thread waits for its results, so that a stop is seen while there are none."""

    def __init__(self, tasks: list[ShardTask], board: Any) -> None:
        self._tasks, self._board = tasks, board
        self._results: queue.Queue[Written | BaseException] = queue.Queue()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="prepare", daemon=True)
        self._thread.start()

    def results(self, wait_s: float) -> Iterator[Written]:
        """Those that have come, after waiting for the first. Raises DataError when the execution failed."""
        try:
            result = self._results.get(timeout=wait_s)
            while True:
                if isinstance(result, BaseException):
                    raise result
                yield result
                result = self._results.get_nowait()
        except queue.Empty:
            return

    def under_way(self) -> dict[str, tuple[int, int]]:
        """Clips done and rejects, by shard."""
        import ray
        from ray.exceptions import RayError

        try:
            return dict(ray.get(self._board.read.remote(), timeout=LOOK_S))
        except RayError:  # it is still starting, or was killed: there is no progress to be shown
            return {}

    def end(self) -> None:
        """Stop the tasks, and wait a moment for them."""
        self._over.set()
        self._board.stop.remote()
        self._thread.join(LEAVE_S)

    def _run(self) -> None:
        from ray.exceptions import RayActorError, RayError

        left = {task.name: task for task in self._tasks}
        try:
            for attempt in range(1, ATTEMPTS + 1):
                try:
                    self._once(left)
                    return
                except RayActorError:
                    if attempt == ATTEMPTS:
                        raise
        except RayError as error:
            reason = str(error).strip().splitlines()[-1]
            line = f"{self._tasks[0].out}: a task of Ray Data failed: {reason}; run again: what is done is kept"
            self._results.put(DataError(line))
        except BaseException as error:  # raised again where the results are read
            self._results.put(error)

    def _once(self, left: dict[str, ShardTask]) -> None:
        for row in _pool([*left.values()], self._board).iter_rows():
            if self._over.is_set():
                return
            if row["error"]:
                raise DataError(row["error"])
            written = Written.model_validate_json(row["written"])
            del left[written.name]
            self._results.put(written)


@contextmanager
def _executed(tasks: list[ShardTask]) -> Iterator[_Execution]:
    import ray

    board = ray.remote(_Board).options(num_cpus=0).remote()
    running = _Execution(tasks, board)
    try:
        yield running
    finally:
        running.end()
        ray.kill(board)


def _pool(tasks: list[ShardTask], board: Any) -> Any:
    """The tasks over a pool of writers, one per core."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False  # ours is the progress
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")  # until Ray 2.64 has another way
    items = [{"task": task.model_dump_json()} for task in tasks]
    return ray.data.from_items(items, override_num_blocks=len(items)).map(
        _Writer,
        fn_constructor_args=(board,),
        # One task at a time for each: a second one would wait behind the first while another writer has nothing to do.
        compute=ray.data.ActorPoolStrategy(size=min(len(tasks), _cores()), max_tasks_in_flight_per_actor=1),
        num_cpus=1,
        max_restarts=0,  # Ray would start a dead worker again without end, and says so on stderr: see ATTEMPTS
        max_task_retries=0,
    )


def _cores() -> int:
    """Real cores of the session; an embedded one declares some more than there are."""
    import ray

    resources = ray.cluster_resources()
    return max(1, int(resources.get("CPU", 1)) - (SPARE_CPUS if EMBEDDED in resources else 0))
