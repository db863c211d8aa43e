"""The queue, tasks and runs as rows of words, for terminals and pages alike; the first row is the heading."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raymsa.evaluation.criteria import criterion_of
from raymsa.report.cells import metric_column, number
from raymsa.report.status import Status, left_of
from raymsa.report.top import FIELDS, Frame
from raymsa.store.queries import RunRow
from raymsa.words import duration, moment

Rows = list[tuple[str, ...]]
BAR = 20  # cells of a run's progress
GPU_HEADING = ("GPU", "name", "busy %", "MiB used", "of", "°C", "W")  # one for each of FIELDS
FIRST = ("running", "queued", "paused", "failed", "cancelled", "done")

assert len(GPU_HEADING) == len(FIELDS)


def counts(states: dict[str, int]) -> str:
    """How many there are of each state, in words: those that are not over first."""
    order = sorted(states, key=lambda state: FIRST.index(state) if state in FIRST else len(FIRST))
    return ", ".join(f"{states[state]:,} {state}" for state in order) or "none"


def running(found: Frame) -> Rows:
    """The tasks that drivers hold."""
    rows: Rows = [("job", "name", "task", "for", "last said")]
    for task in found.running:
        since = duration(found.now - task.started_at) if task.started_at else ""
        asked = f"({task.asked} asked for) " if task.asked else ""
        rows.append((task.job_id, short(found.names.get(task.job_id, "")), task.kind, since, asked + (task.said or "")))
    return rows


def training(found: Frame, bar: bool) -> Rows:
    """The runs that train now; with a bar of characters where there is room."""
    rows: Rows = [("run", "where", "epoch", "step", "done", "clips/s", "left", "heard")]
    for run in found.runs:
        left = left_of(run, found.now)
        share = (run.step or 0) / run.steps_total if run.steps_total else 0.0
        done = f"{'#' * round(share * BAR):.<{BAR}} {share:4.0%}" if bar else ""
        step = f"{run.step or 0}/{run.steps_total or '?'}"
        speed = "" if run.clips_per_s is None else f"{run.clips_per_s:.1f}"
        heard = "" if run.heard_at is None else f"{duration(found.now - run.heard_at)} ago"
        shown = (step, done, speed, "" if left is None else duration(left), heard)
        rows.append((run.id, run.place or "", str(run.epoch or ""), *shown))
    return rows


def next_tasks(found: Frame) -> Rows:
    """The tasks that a driver would be given next."""
    rows: Rows = [("job", "name", "task", "priority", "submitted")]
    for waiting in found.next:
        task = waiting.task
        ago = f"{duration(found.now - task.created_at)} ago"
        rows.append((task.job_id, short(waiting.job_name), task.kind, str(task.priority), ago))
    return rows


def drivers(found: Frame) -> Rows:
    """Who holds what, and for how long."""
    rows: Rows = [("driver", "holds", "its lease")]
    for driver in dict.fromkeys(task.driver or "?" for task in found.running):
        mine = [task for task in found.running if (task.driver or "?") == driver]
        left = min((task.lease_until or 0) for task in mine) - found.now
        lease = f"ends in {duration(left)}" if left >= 0 else f"ended {duration(-left)} ago: it is silent"
        rows.append((driver, ", ".join(f"{task.kind} of {task.job_id}" for task in mine), lease))
    return rows


def no_driver(found: Frame) -> str:
    """Drivers are known by what they hold, and one on this machine by its lock."""
    if found.here:
        return f"none holds a task; {found.here} serves this machine"
    return "none holds a task" + ("; `raymsa work` serves the queue" if found.next else "")


def tasks(found: Status) -> Rows:
    """A job's tasks."""
    rows: Rows = [("task", "state", "attempt", "driver", "since", "for")]
    for task in found.tasks:
        since = moment(task.started_at, found.now) if task.started_at else ""
        took = duration((task.finished_at or found.now) - task.started_at) if task.started_at else ""
        if task.state in ("queued", "paused"):  # an earlier attempt's
            since = took = ""
        attempt = f"{task.attempts}/{task.max_attempts}"
        rows.append((task.kind, task.state, attempt, task.driver or "", since, took))
    return rows


def runs(found: Status) -> Rows:
    """A job's runs."""
    valid_is = valid_heading(found.job.spec)
    heading = ("run", "state", "where", "since", "epoch", "step", "left", valid_is, "attempts", "device time")
    return [heading, *(run_row(run, found.now) for run in found.runs)]


def run_row(run: RunRow, now: float) -> tuple[str, ...]:
    """One run: the cells under the heading of `runs`."""
    step = f"{run.step or 0}/{run.steps_total}" if run.steps_total is not None else ""
    where = since = left = ""
    if run.state == "running":
        where, since = run.place or "", moment(run.started_at or now, now)
        left_s = left_of(run, now)
        left = "" if left_s is None else duration(left_s)
    facts = (str(run.epoch or ""), step, left, valid(run), str(run.attempts), duration(run.device_s))
    return (run.id, run.state, where, since, *facts)


def run_facts(run: RunRow, now: float) -> Rows:
    """One run in words: (what, value), those that are known."""
    best = f" (best, after epoch {run.best_epoch})" if run.best_epoch is not None else ""
    shown: dict[str, str] = {
        "variant": run.variant,
        "seed": str(run.seed),
        "where": run.place or "",
        "epoch": str(run.epoch or ""),
        "step": f"{run.step or 0:,} of {run.steps_total:,}" if run.steps_total is not None else "",
        valid_heading(run.spec): valid(run) + best if run.valid_error is not None else "",
        "time trained": duration(run.wall_s) if run.wall_s else "",
        "device time": duration(run.device_s) if run.device_s else "",
        "waited for data": "" if run.data_wait is None else f"{100 * run.data_wait:.0f} %",
        "peak memory": gib(run.peak_memory_bytes),
        "trainable parameters": "" if run.trainable_parameters is None else f"{run.trainable_parameters:,}",
        "begun": moment(run.started_at, now) if run.started_at else "",
        "ended": moment(run.finished_at, now) if run.finished_at else "",
        "attempts": str(run.attempts),
        "group": run.group_key,
        "clips' digest": run.data_digest or "",
        "commit": run.git_commit or "",
        "versions": ", ".join(f"{name} {version}" for name, version in (run.versions or {}).items()),
    }
    return [(what, value) for what, value in shown.items() if value]


def gib(size: int | None) -> str:
    """Bytes as people read memory; empty where it is not known."""
    return "" if size is None else f"{size / 2**30:.2f} GiB"


def valid(run: RunRow) -> str:
    """The metric on valid that decides for a run; empty where there is none yet."""
    rule = criterion_of(run.spec)
    return "" if run.valid_error is None else number(rule.metric, rule.turned(run.valid_error))


def valid_heading(spec: Mapping[str, Any]) -> str:
    """What `valid` gives, with its unit; of a job's or a run's spec."""
    rule = criterion_of(spec)
    return metric_column(rule.metric, f"valid {rule.words}").heading


def short(name: str, most: int = 28) -> str:
    """A name that may be long, in a narrow column."""
    return name if len(name) <= most else name[: most - 1] + "…"
