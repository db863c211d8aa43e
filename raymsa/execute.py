"""What a task is: prepare a job's data, train its runs, or train its best settings again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raymsa.cluster import no_room, runs_at_once
from raymsa.data.manifest import Manifest
from raymsa.errors import DataError, Lost, RaymsaError, RunsFailed
from raymsa.home import home
from raymsa.lease import Lease, Say
from raymsa.place import place
from raymsa.plan import raw_of
from raymsa.proposals import Listed, Proposals, Proposed, confirming, enter
from raymsa.provenance import versions
from raymsa.record import Recorder
from raymsa.spec import check, runs
from raymsa.store import Store, queries
from raymsa.store.queries import Task

OVER = ("done", "failed", "pruned")  # a run's states that nothing is left to do for


def execute(store: Store, task: Task, lease: Lease, log: Say) -> None:
    """Do one task, until it is done or the lease is over. Raises RaymsaError when it failed."""
    job = queries.job(store, task.job_id)
    if task.kind == "prepare":
        _prepare(job, place(task.payload["shards"]), lease, log)
    elif task.kind in ("train", "confirm"):
        _train(store, job, task, lease, log)
    else:
        raise RaymsaError(f"task kind '{task.kind}' is unknown to this version of raymsa")


def _spec(job: queries.Job) -> Any:
    """A job's checked spec. Raises SpecError for one that another version of raymsa wrote."""
    return check(job.spec, f"job {job.id}")


def _prepare(job: queries.Job, shards: Path, lease: Lease, log: Say) -> None:
    from raymsa.data.prepare import prepare

    dataset = _spec(job).dataset
    _say_no_room(1, 0, {}, log)
    prepare(dataset, raw_of(dataset), shards, log, lease.over)


def _train(store: Store, job: queries.Job, task: Task, lease: Lease, log: Say) -> None:
    from raymsa.data import manifest
    from raymsa.search import run_all

    spec, shards = _spec(job), task.payload["shards"]
    made = manifest.read(place(shards))
    wish = spec.resources
    at_once = runs_at_once(wish.cpus, wish.gpus, wish.custom, spec.queue.runs_at_once)
    _say_no_room(wish.cpus, wish.gpus, wish.custom, log)
    rows = queries.runs(store, job.id)
    _check_data(made, rows, spec, log)
    proposals, planned = _proposals(store, job, task, spec, made, log)
    mine = [row for row in queries.runs(store, job.id) if row.task_id == task.id]
    over = sum(row.state in OVER for row in mine)
    log(f"{planned} runs, {over} done already; {at_once} at a time")
    if over < planned:
        facts = {"data_digest": made.digest, "versions": versions(), "git_commit": job.git_commit}
        storage = home() / "ray" / job.id
        shared = _shared(spec, place(shards), made, log, lease.over)
        run_all(proposals, Recorder(store, made, spec.queue, facts, log), lease, at_once, storage, shared)
        shutil.rmtree(storage, ignore_errors=True)
    _close(store, job, task, lease, log)


def _say_no_room(cpus: int, gpus: int, custom: dict[str, float], log: Say) -> None:
    """An autoscaler may be bringing a node, or nobody: Ray would wait for either without a word."""
    if why := no_room(cpus, gpus, custom):
        log(why)


def _check_data(made: Manifest, rows: list[queries.RunRow], spec: Any, log: Say) -> None:
    """Raises DataError when runs of the job were made from other clips; warns of a context that there is not."""
    other = next((row for row in rows if row.state == "done" and row.data_digest not in (None, made.digest)), None)
    if other:
        raise DataError(
            f"{made.name}: the shards hold data {made.digest}, but run {other.id} was trained on data "
            f"{other.data_digest}; their results cannot stand in one table: submit the job anew"
        )
    asks = max(run.spec.inputs.context for run in runs(spec))
    if asks and not made.with_previous:
        log(
            f"warning: inputs.context is {asks}, but no clip of {made.name} has another before it in its video: "
            "every run goes without; a table says which clips belong together in `columns.video`"
        )


def _shared(spec: Any, folder: Path, made: Manifest, log: Say, stop: Callable[[], bool]) -> Any:
    """The clips that the job's runs read, in the object store if they fit there; else None."""
    from raymsa.data.groups import row_groups
    from raymsa.data.shared import share

    if all(run.spec.inputs.cache == "towers" for run in runs(spec)):
        log("every run reads the towers' outputs (inputs.cache: towers): sound and picture are not shared")
        return None
    splits = dict.fromkeys((*(("train", "valid") if spec.train.epochs else ()), *spec.evaluate.splits))
    groups = [group for split in splits for group in row_groups(folder, [f.name for f in made.of(split)])]
    shared, why = share(groups, stop)
    log(why)
    return shared


def _proposals(
    store: Store, job: queries.Job, task: Task, spec: Any, made: Manifest, log: Say
) -> tuple[Proposals, int]:
    """What gives the task's runs, and how many there will be."""
    shards = task.payload["shards"]
    if task.kind == "train" and spec.search:
        proposed = Proposed(store, job, task.id, shards, made.digest)
        for line in proposed.about:
            log(line)
        return proposed, proposed.planned
    planned = runs(spec) if task.kind == "train" else confirming(store, job)
    rows = [row for row in enter(store, job.id, task.id, planned) if row.task_id == task.id]
    return Listed(store, rows, shards), len(rows)


def _close(store: Store, job: queries.Job, task: Task, lease: Lease, log: Say) -> None:
    """A task whose runs are not all done has failed, unless it was stopped: then its runs follow it. A search goes on
    without the settings that failed, as long as one is done."""
    rows = [row for row in queries.runs(store, job.id) if row.task_id == task.id]
    left = [row for row in rows if row.state not in ("done", "pruned")]
    if not left or lease.over():
        return
    ended = all(row.state == "failed" for row in left)
    if task.kind == "train" and job.spec["search"] and ended and any(row.state == "done" for row in rows):
        log(f"the search goes on without {len(left)} trials that failed; raymsa search {job.id} names them")
        return
    failed = "; ".join(f"{row.id}: {row.error or 'ended without a result'}" for row in left)
    raise (RunsFailed if ended else Lost)(f"{len(left)} runs failed: {failed}")
