"""A job file becomes a job in the queue."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from raymsa import queue
from raymsa.errors import UsageError
from raymsa.plan import anchored, shards_of, tasks_of
from raymsa.provenance import git_commit, who
from raymsa.store import Store, queries


def submit(store: Store, job: Any) -> str:
    """Queue a job: its tasks, one after the other. Returns the job's id. Raises NotFound for an unknown `after`."""
    job = anchored(job)
    tasks = [queue.NewTask(kind, {"shards": str(shards_of(job.dataset))}) for kind in tasks_of(job)]
    folder, wish = Path.cwd(), job.queue
    return queue.put(
        store,
        job.name,
        job.model_dump(mode="json"),
        tasks,
        submitted_by=who(),
        folder=str(folder),
        git_commit=git_commit(folder),
        priority=wish.priority,
        max_attempts=wish.retries + 1,
        after=[task for name in wish.after for task in _awaited(store, name)],
        deadline_s=None if wish.deadline_h is None else wish.deadline_h * 3600,
    )


def _awaited(store: Store, name: str) -> list[int]:
    """The tasks of `JOB`, or the one of `JOB/KIND`. Raises NotFound, and UsageError for a kind the job has not."""
    job_name, _, kind = name.partition("/")
    tasks = queries.tasks(store, queries.job(store, job_name).id)
    found = [task.id for task in tasks if kind in ("", task.kind)]
    if not found:
        kinds = ", ".join(task.kind for task in tasks)
        raise UsageError(f"queue.after: given '{name}'; job {job_name} has the tasks {kinds}")
    return found
