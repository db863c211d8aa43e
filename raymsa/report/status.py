"""What a person asks of a job: how far it is, how long still, what it waits for, why something failed."""

from __future__ import annotations

import heapq
import os
import shlex
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from raymsa.causes import WORDS
from raymsa.home import driver_lock, job_log, run_dir
from raymsa.store import Store, overview, queries
from raymsa.store.queries import Job, RunRow, Task
from raymsa.store.states import LIVE, UNFINISHED, state_of
from raymsa.words import duration, moment

LAST_LINES = 8  # of a failed run's log
LOG_BYTES = 64 * 1024  # read from its end
LOGS = 20  # logs of failed runs that are read; of a thousand nobody reads more, and each look at the page asks
CLAIMED_S = 5.0  # a driver that is idle takes a task sooner than that
ADVICE = {"failed": "retry", "cancelled": "retry", "paused": "resume"}


@dataclass(frozen=True)
class Failure:
    """Something that failed: `times` it did, when it is tried again (UNIX seconds), and the end of its log."""

    what: str
    cause: str
    words: str
    error: str
    times: int
    again_at: float | None
    log: list[str]
    log_at: str


@dataclass(frozen=True)
class Status:
    """A job at the moment `now` (UNIX seconds). `waits`: a task's kind or a run's id -> what it waits for."""

    job: Job
    state: str
    now: float
    planned: int
    tasks: list[Task]
    runs: list[RunRow]
    waits: dict[str, str]
    left_s: float | None
    left: str
    failures: list[Failure]

    @property
    def deadline(self) -> float | None:
        """UNIX seconds when what is not done has failed; None without one, or when the job is over."""
        return min((t.deadline for t in self.tasks if t.deadline and t.state in UNFINISHED), default=None)

    @property
    def not_here(self) -> int:
        """Runs of a job that is done and that this store does not hold: it was imported, and not all of it. Of a search
        nobody knows how many there were."""
        return self.planned - len(self.runs) if self.state == "done" and not self.job.spec.get("search") else 0


def status(store: Store, name: str) -> Status:
    """The status of the job with this id, start of an id, or name. Raises NotFound, UsageError."""
    job = queries.job(store, name)
    tasks, runs, now = queries.tasks(store, job.id), queries.runs(store, job.id), store.clock()
    planned = max(overview.planned_runs(job.spec), len(runs))
    state = state_of(task.state for task in tasks)
    left_s, left = rest(runs, planned, now) if state in UNFINISHED else (None, "")
    return Status(
        job=job,
        state=state,
        now=now,
        planned=planned,
        tasks=tasks,
        runs=runs,
        waits=_task_waits(store, job, tasks, now) | _run_waits(tasks, runs, now),
        left_s=left_s,
        left=left,
        failures=[*_run_failures(runs), *_task_failures(job, tasks)],
    )


def as_json(store: Store, found: Status) -> dict[str, Any]:
    """All of it as plain data, with the job's history."""
    about = {"id": found.job.id, "name": found.job.name, "state": found.state, "planned": found.planned}
    about |= {"runs": overview.run_counts(found.runs), "created_at": found.job.created_at}
    about |= {"submitted_by": found.job.submitted_by, "deadline": found.deadline}
    more = {"now": found.now, "waits": found.waits, "left_s": found.left_s, "left": found.left}
    more |= {"failures": [asdict(failure) for failure in found.failures]}
    rows = {"tasks": [asdict(task) for task in found.tasks], "runs": [asdict(run) for run in found.runs]}
    return {"job": about, **rows, **more, "events": [asdict(event) for event in queries.events(store, found.job.id)]}


def left_of(run: RunRow | overview.Running, now: float) -> float | None:
    """Seconds of training that a run has left: what it said last, less the time since then."""
    if run.left_s is None or run.heard_at is None:
        return None
    return max(0.0, run.left_s - max(0.0, now - run.heard_at))


def rest(runs: list[RunRow], planned: int, now: float) -> tuple[float | None, str]:
    """Seconds until the last run is trained, and what that supposes; (None, "") when nothing is known yet."""
    running = {run.id: left for run in runs if run.state == "running" and (left := left_of(run, now)) is not None}
    training = sum(run.state == "running" for run in runs)
    still = max(0, planned - training - sum(run.state not in LIVE for run in runs))
    took = [run.wall_s for run in runs if run.state in ("done", "pruned")]
    took += [now - (run.started_at or now) + running[run.id] for run in runs if run.id in running]
    if len(running) < training or not took or not (running or still):
        return None, ""
    ends = list(running.values()) or [0.0]
    each = sum(took) / len(took)
    heapq.heapify(ends)
    for _ in range(still):
        heapq.heapreplace(ends, ends[0] + each)
    supposes = f", if the {still} not begun take {duration(each)} like the others" if still else ""
    at_a_time = f", {len(ends)} at a time" if still > 1 else ""
    when = "" if running else " once it goes on"
    return max(ends), f"about {duration(max(ends))} of training left{when}{supposes}{at_a_time}"


def served_here() -> str:
    """The driver with a Ray session of its own on this machine, host:pid; empty if there is none."""
    path = driver_lock()
    with suppress(OSError):  # read, not locked: a lock that is tried for a moment would keep a driver from starting
        inode = f":{path.stat().st_ino}"
        if any(line.split()[5].endswith(inode) for line in Path("/proc/locks").read_text().splitlines()):
            return path.read_text(encoding="utf-8").strip() or "a driver"
    return ""


def _task_waits(store: Store, job: Job, tasks: list[Task], now: float) -> dict[str, str]:
    found: dict[str, str] = {}
    before: Task | None = None
    kinds = [task.kind for task in tasks]
    for task in tasks:
        label = task.kind if kinds.count(task.kind) == 1 else f"{task.kind} {task.seq + 1}"
        if before is not None and before.state != "done" and task.state == "queued":
            advice = f", which is {before.state}" if before.state in ADVICE else ""
            found[label] = f"{before.kind} of this job{advice}"
        elif why := _waits_for(store, job, task, now):
            found[label] = why
        before = task
    return found


def _waits_for(store: Store, job: Job, task: Task, now: float) -> str:
    """What one task waits for, if it is not another one of its job."""
    if task.state == "paused":
        return f"somebody to go on with it: raymsa resume {shlex.quote(job.id)}"
    if task.state == "running":
        return _ends(task, now)
    if task.state != "queued":
        return ""
    if others := queries.awaited(store, job.id):
        return "; ".join(_other(store, other) for other in others)
    if task.not_before is not None and task.not_before > now:
        return f"its next try at {moment(task.not_before, now)}, in {duration(task.not_before - now)}"
    return _driver(store, task, now)


def _ends(task: Task, now: float) -> str:
    if task.lease_until is not None and task.lease_until < now:
        silent = duration(now - task.lease_until)
        return f"another driver: {task.driver} is silent, its lease ended {silent} ago; raymsa work"
    return f"its end: {task.asked} was asked for" if task.asked else ""


def stuck(store: Store, job_id: str) -> str:
    """What a job waits for that will not come by itself, and what to do; nothing where it need not wait so."""
    return next((_other(store, task) for task in queries.awaited(store, job_id) if task.state in ADVICE), "")


def _other(store: Store, other: Task) -> str:
    name = queries.job(store, other.job_id).name
    advice = f": raymsa {ADVICE[other.state]} {shlex.quote(other.job_id)}" if other.state in ADVICE else ""
    return f"{other.kind} of job {other.job_id} ({name}), which is {other.state}{advice}"


def _driver(store: Store, task: Task, now: float) -> str:
    """A task that could start: why nobody takes it."""
    busy = [other for other in queries.running_tasks(store) if (other.lease_until or 0) >= now]
    if busy:
        ahead = overview.before(store, task)
        does = ", ".join(f"{t.driver} does {t.kind} of job {t.job_id}" for t in busy[:3])
        more = f" and {len(busy) - 3} more are busy" if len(busy) > 3 else ""
        return f"a free driver: {does}{more}" + (f"; {ahead} tasks are before it" if ahead else "; it is next")
    since = overview.ready_since(store, task.id)
    if since is not None and now - since < CLAIMED_S:
        return f"a driver, since {duration(now - since)}"
    if here := served_here():
        return f"a driver: {here} serves this machine, but starts, or serves another store"
    return "a driver, and none serves the queue: raymsa work"


def _run_waits(tasks: list[Task], runs: list[RunRow], now: float) -> dict[str, str]:
    """What runs wait for whose task is being done."""
    begun = {task.id: task.started_at or 0.0 for task in tasks if task.state == "running"}
    return {run.id: _run_wait(run, begun[run.task_id], now) for run in runs if _open(run) and run.task_id in begun}


def _open(run: RunRow) -> bool:
    return run.state == "queued"


def _run_wait(run: RunRow, begun: float, now: float) -> str:
    if run.not_before is not None and run.not_before > now:
        return f"its next try at {moment(run.not_before, now)}, in {duration(run.not_before - now)}"
    if run.place and (run.heard_at or 0) > max(begun, run.not_before or 0):
        return f"its model, which is loaded on {run.place}"
    return "a free device"


def _run_failures(runs: list[RunRow]) -> list[Failure]:
    failed = [run for run in runs if run.state in ("failed", "queued") and run.error]
    logs = [_log(run_dir(run.id) / "log.txt", (run.place or "").partition(" ")[0]) for run in failed[:LOGS]]
    logs += [([], str(run_dir(run.id) / "log.txt")) for run in failed[LOGS:]]
    return [_failure(run, run.id, run.failures, log) for run, log in zip(failed, logs, strict=True)]


def _task_failures(job: Job, tasks: list[Task]) -> list[Failure]:
    """Of runs that failed, their own logs are shown, not that of their task."""
    failed = [task for task in tasks if task.error]
    hosts = [(task.driver or "").partition(":")[0] for task in failed]
    logs = [([], "") if t.cause == "runs" else _log(job_log(job.id), h) for t, h in zip(failed, hosts, strict=True)]
    return [_failure(task, task.kind, task.attempts, log) for task, log in zip(failed, logs, strict=True)]


def _failure(row: RunRow | Task, what: str, times: int, log: tuple[list[str], str]) -> Failure:
    cause = row.cause or "fault"
    again = row.not_before if row.state == "queued" else None
    return Failure(what, cause, WORDS.get(cause, cause), row.error or "", times, again, *log)


def last_lines(path: Path, most: int, most_bytes: int = LOG_BYTES) -> list[str]:
    """The end of a log. Raises OSError."""
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - most_bytes))
        return file.read().decode(errors="replace").splitlines()[-most:]


def no_log(host: str) -> str:
    """Why there is no log here of what happened on a host."""
    elsewhere = host and host != os.uname().nodename
    return f"its log is on {host}, not here" if elsewhere else "it left no log on this machine"


def _log(path: Path, host: str) -> tuple[list[str], str]:
    """The last lines of a log, or where it is."""
    with suppress(OSError):
        return last_lines(path, LAST_LINES), str(path)
    return [], no_log(host)
