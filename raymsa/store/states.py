"""The states of jobs and tasks, and when a task may start: said once, for drivers who claim and people who look."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import ColumnElement, and_, exists

from raymsa.store.tables import tasks, waits

RANKS = ("done", "queued", "paused", "running", "cancelled", "failed")  # the last of its tasks' is the job's state
LIVE = ("queued", "running")  # it ends by itself; runs have these, too
UNFINISHED = (*LIVE, "paused")
ENDED = ("done", "failed", "cancelled")


def state_of(states: Iterable[str]) -> str:
    """A job's state from its tasks'."""
    return max(states, key=RANKS.index, default="done")


def ready(at: Any) -> ColumnElement[bool]:
    """A task may start at a moment (UNIX seconds, or a bound parameter): it is queued, what it waits for is done, and
    it need not wait before it is tried again."""
    other = tasks.alias("other")
    waiting = exists().where(waits.c.task_id == tasks.c.id, waits.c.after_id == other.c.id, other.c.state != "done")
    later = and_(tasks.c.not_before.is_not(None), tasks.c.not_before > at)
    return and_(tasks.c.state == "queued", ~waiting, ~later)
