"""Reads, by subject; rows come back as frozen dataclasses. What the rest of raymsa asks is `queries.NAME`."""

from raymsa.store.queries.figures import (
    all_finals,
    by_epoch,
    clip_counts,
    finals,
    last_rates,
    predictions,
    score_ranges,
    steps,
)
from raymsa.store.queries.finding import CANDIDATES
from raymsa.store.queries.nouns import Artifact, Event, Job, Prediction, RunRow, Step, Task
from raymsa.store.queries.queued import (
    awaited,
    events,
    job,
    job_states,
    jobs,
    running_tasks,
    something_to_do,
    state,
    tasks,
    untold,
)
from raymsa.store.queries.trained import artifacts, done_mark, done_on, finished, group, group_key, run, runs

__all__ = [
    "CANDIDATES",
    "Artifact",
    "Event",
    "Job",
    "Prediction",
    "RunRow",
    "Step",
    "Task",
    "all_finals",
    "artifacts",
    "awaited",
    "by_epoch",
    "clip_counts",
    "done_mark",
    "done_on",
    "events",
    "finals",
    "finished",
    "group",
    "group_key",
    "job",
    "job_states",
    "jobs",
    "last_rates",
    "predictions",
    "run",
    "running_tasks",
    "runs",
    "score_ranges",
    "something_to_do",
    "state",
    "steps",
    "tasks",
    "untold",
]
