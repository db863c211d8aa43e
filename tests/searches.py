"""Searches without Ray: real jobs in a real store, and a stand-in for training that gives a number for a setting."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raymsa.jobfile import load_job
from raymsa.proposals import Proposed
from raymsa.store import Store, queries, records
from raymsa.submit import submit
from tests.jobs import job_file

SPACE = {"lora.rank": {"choice": [2, 4, 8]}, "train.lora_lr": {"loguniform": [1e-5, 1e-1]}}
EPOCHS = 4


def new_job(store: Store, folder: Path, name: str = "small", **search: Any) -> queries.Job:
    """A queued job with a search."""
    block = {"space": SPACE, "trials": 6, **search}
    train = {"epochs": EPOCHS, "batch_clips": 8, "patience": EPOCHS, "lora_lr": 1e-4}
    return queries.job(store, submit(store, load_job(job_file(folder, name, search=block, train=train))))


def proposals(store: Store, job: queries.Job, data: str | None = "d1") -> Proposed:
    """What a driver makes of it when it takes the task up."""
    task = next(task for task in queries.tasks(store, job.id) if task.kind == "train")
    return Proposed(store, job, task.id, "shards", data)


def valid_mae(spec: dict[str, Any], epoch: int) -> float:
    """Best at a rate of 1e-3; falls with the epochs."""
    off = abs(math.log10(spec["train"]["lora_lr"]) + 3)
    return 0.5 + off / 5 + 0.01 * (spec["lora"]["rank"] == 2) + 0.4 / epoch


def train(
    store: Store,
    source: Proposed,
    at_most: int = 1000,
    epochs: int = EPOCHS,
    value: Callable[[dict[str, Any], int], float] = valid_mae,
) -> list[str]:
    """Make up to so many runs, as Tune and the recorder would; returns their ids. The last one stops after `epochs`."""
    made: list[str] = []
    while len(made) < at_most and (work := source.next()) is not None:
        made.append(work["run_id"])
        last = EPOCHS if len(made) < at_most else epochs
        one_run(store, source, work, last, value)
    return made


def one_run(store: Store, source: Proposed, work: dict[str, Any], epochs: int, value: Any = valid_mae) -> None:
    """One run, to its end or up to an epoch; then it is left as a killed driver leaves it."""
    run_id, row = work["run_id"], queries.run(store, work["run_id"])
    records.start_run(store, run_id, data_digest="d1", steps_total=EPOCHS)
    for epoch in range((row.epoch or 0) + 1, epochs + 1):
        now = value(work["spec"], epoch)
        told = {"run_id": run_id, "epoch": epoch, "valid_error": now, "valid_mae": now, "valid_corr": -now}
        give_up = source.prune({**told, "last": epoch == EPOCHS})
        record(store, run_id, epoch, now)
        if give_up:
            records.set_run_state(store, run_id, "pruned")
            source.over(run_id)
            return
    if epochs == EPOCHS:
        records.finish_run(store, run_id, {}, {"valid": {"mae": now, "corr": -now}, "test": {"mae": now, "corr": -now}})
        source.over(run_id)


def record(store: Store, run_id: str, epoch: int, value: float) -> None:
    """What a run reports after an epoch."""
    row = queries.run(store, run_id)
    best = epoch if row.valid_error is None or value < row.valid_error else row.best_epoch
    error = value if best == epoch else row.valid_error
    entry = {"step": epoch, "epoch": epoch, "values": {"valid_mae": value, "valid_corr": -value}}
    records.record_steps(store, run_id, [entry], (1.0, 1.0), best_epoch=best, valid_error=error)


def settings(store: Store, job: queries.Job) -> list[tuple[Any, ...]]:
    """Rank, rate, state and epochs of every trial, in their order."""
    rows = sorted(queries.runs(store, job.id), key=lambda row: row.id)
    return [(r.spec["lora"]["rank"], r.spec["train"]["lora_lr"], r.state, r.epoch) for r in rows]
