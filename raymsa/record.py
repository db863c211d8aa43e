"""What runs report, written to the store as it comes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from raymsa.causes import again_in
from raymsa.data.manifest import Manifest, target
from raymsa.evaluation.metrics import CRITERIA, constant_scores, measure
from raymsa.home import run_dir
from raymsa.spec import QueueSpec
from raymsa.store import Store, queries, records
from raymsa.target import Classes, Target, task_of
from raymsa.training.predictions import read_predictions

FACTS = ("trainable_parameters", "steps_total")  # known when a run begins


class Recorder:
    """Listens to the runs of one task and writes the store."""

    def __init__(
        self, store: Store, manifest: Manifest, queue: QueueSpec, facts: dict[str, Any], say: Callable[[str], None]
    ) -> None:
        self._store, self._manifest, self._queue, self._facts, self._say = store, manifest, queue, facts, say
        self._over: set[str] = set()  # runs that said themselves how their attempt ended

    def report(self, run_id: str, values: dict[str, Any]) -> None:
        """Record one report of a run; which keys it has says what happened (see training/run.py).

        What is recorded is taken out of `values`: called again after StoreAway, it goes on where it was.
        """
        run = queries.run(self._store, run_id)
        if "seconds" in values:
            self._count(run, values)
            del values["seconds"]
        if "place" in values:  # a new attempt
            records.update_run(self._store, run_id, place=values["place"])
        if "steps_total" in values:
            self._begin(run_id, values)
            del values["steps_total"]
        if values.get("line"):
            self._say(f"{name_of(run_id)}  {values.pop('line')}")
        if values.get("stopped"):
            self._over.add(run_id)
            records.set_run_state(self._store, run_id, "queued", detail=values["stopped"])
            self._say(f"{name_of(run_id)}  {values['stopped']}")
        if values.get("error") and run_id not in self._over:  # else its worker died on its way out
            self._fail(run, values["error"], values["cause"])
            self._over.add(run_id)
        if values.get("finished"):
            self._finish(run, values)
            self._over.add(run_id)

    def ended(self, run_id: str, error: tuple[str, str] | None, pruned: bool) -> None:
        """A run's trial is over; an error (and its cause) counts unless the run has said itself how it ended."""
        if run_id in self._over:
            self._over.discard(run_id)  # its next attempt may die without a word, and counts then
            return
        run = queries.run(self._store, run_id)
        if pruned:
            records.set_run_state(self._store, run_id, "pruned", detail=f"after epoch {run.epoch}")
            self._say(f"{name_of(run_id)}  stopped early after epoch {run.epoch}: others do better")
        elif error is not None:
            self._fail(run, *error)

    def _count(self, run: queries.RunRow, values: dict[str, Any]) -> None:
        """What it cost, and how far it is."""
        seconds, resources = values["seconds"], run.spec["resources"]
        facts: dict[str, Any] = {"left_s": values["left_s"]} if "left_s" in values else {}
        if values.get("memory_bytes", 0) > (run.peak_memory_bytes or 0):  # over all attempts, not the last alone
            facts["peak_memory_bytes"] = values["memory_bytes"]
        if "valid_error" in values:
            facts |= {"best_epoch": values["best_epoch"], "valid_error": values["best_valid_error"]}
        cost = (seconds, seconds * (resources["gpus"] or resources["cpus"]))
        records.record_steps(self._store, run.id, values.get("steps") or (), cost, **facts)

    def _fail(self, run: queries.RunRow, error: str, cause: str) -> None:
        again_s = again_in(cause, run.failures + 1, self._queue.retries, self._queue.backoff_s)
        records.fail_run(self._store, run.id, error, cause, again_s)
        later = "" if again_s is None else f" (again in {again_s:.0f} s)"
        self._say(f"{name_of(run.id)}  failed: {error}{later}")

    def _begin(self, run_id: str, values: dict[str, Any]) -> None:
        records.start_run(self._store, run_id, **self._facts, **{key: values[key] for key in FACTS})
        where = f"goes on at step {values['resumed_at']}" if values["resumed_at"] else "starts"
        self._say(f"{name_of(run_id)}  {where}; {values['trainable_parameters']:,} trainable parameters")

    def _finish(self, run: queries.RunRow, values: dict[str, Any]) -> None:
        run_id = run.id
        aim = target(self._manifest, task_of(run.spec))  # the job's, whoever prepared first
        rows = read_predictions(run_dir(run_id))
        splits = {row["split"] for row in rows}
        finals = {split: _metrics(aim, [r for r in rows if r["split"] == split]) for split in splits}
        facts = {"best_epoch": values["best_epoch"], "data_wait": values["data_wait"]}
        rule = CRITERIA[aim.profile]
        if "valid" in finals:
            facts["valid_error"] = rule.turned(finals["valid"][rule.metric])
        path = str(run_dir(run_id))
        records.finish_run(self._store, run_id, facts, finals, rows, [{"name": "folder", "path": path}])
        shown = ", ".join(f"{split} {rule.words} {finals[split][rule.metric]:.4f}" for split in finals)
        self._say(f"{name_of(run_id)}  done: {shown}")


def name_of(run_id: str) -> str:
    """A run's id without its job's: how its lines are told apart on screen."""
    return run_id.split("-", 1)[1]


def _metrics(aim: Target, rows: list[dict[str, Any]]) -> dict[str, float]:
    score, label = [r["score"] for r in rows], [r["label"] for r in rows]
    floor = constant_scores(aim.profile, aim.constant, label)
    shares = {} if isinstance(aim, Classes) else {"out_of_range": _share(rows, "in_range")}
    if any(r["text"] is not None for r in rows):
        shares["unparsable"] = _share(rows, "parsed")
    return {**measure(aim.profile, score, label), **{f"constant_{k}": v for k, v in floor.items()}, **shares}


def _share(rows: list[dict[str, Any]], flag: str) -> float:
    return sum(not row[flag] for row in rows) / len(rows)
