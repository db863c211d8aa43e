"""MLflow: a tracking store in one SQLite file, an experiment per job name, a parent run per group, a child per seed.

Source of the limits: mlflow/utils/validation.py of MLflow 3.
"""

from __future__ import annotations

import hashlib
import json
import logging
import posixpath
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from raymsa.errors import RaymsaError
from raymsa.exporters.base import Done, Exporter, Recorded, locked, needed, surroundings

STATES = {"done": "FINISHED", "failed": "FAILED", "cancelled": "KILLED", "pruned": "KILLED", "running": "RUNNING"}
NOT_ALLOWED = re.compile(r"[^\w\-. /]", re.ASCII)  # in names of metrics and parameters
NAME, PARAM, TAG = 250, 6000, 5000  # characters
METRICS, OTHERS = 1000, 100  # of one call
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
KEY, WHOLE = "raymsa.key", "raymsa.exported"  # tags: whose run it is; the digest of what is in it, set last


class MLflow(Exporter):
    """FOLDER/mlflow.db, and the spec of each run as a file under FOLDER/artifacts."""

    kind: Literal["mlflow"] = "mlflow"

    def write(self, runs: Sequence[Recorded], out: Path) -> Done:
        """Add the runs; one that has changed since it was exported is replaced, one that has not is left alone."""
        with surroundings("MLFLOW_", QUIET):  # read when it is imported
            needed("mlflow", self.kind)
            logging.getLogger("mlflow").setLevel(logging.ERROR)
            return _add(runs, out.absolute())


def _add(runs: Sequence[Recorded], out: Path) -> Done:
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    url = f"sqlite:///{out}/mlflow.db"
    done = Done([], [], f"mlflow ui --backend-store-uri {shlex.quote(url)}")
    try:
        with locked(out):
            tracker = _Tracker(url, out / "artifacts")
            for one in runs:
                (done.written if tracker.add(one) else done.there).append(one.run.id)
    except (MlflowException, SQLAlchemyError) as error:  # mlflow.db may be something else
        raise RaymsaError(f"{out}: MLflow refused: {' '.join(str(error).split())[:300]}") from None
    return done


class _Tracker:
    """A tracking store that runs are added to."""

    def __init__(self, url: str, artifacts: Path) -> None:
        from mlflow import MlflowClient

        self._client = MlflowClient(tracking_uri=url, registry_uri=url)
        self._artifacts = artifacts

    def add(self, one: Recorded) -> bool:
        """Whether the run had to be written."""
        experiment = self._experiment(one.job.name)
        there = self._with_key(experiment, one.key)
        if any(run.data.tags.get(WHOLE) == one.mark for run in there):
            return False
        for run in there:  # it has changed, or an export was killed in the middle of it
            self._client.delete_run(run.info.run_id)
        tags = {**_tags(one), KEY: one.key, "mlflow.parentRunId": self._parent(experiment, one)}
        begun = int(one.begun_at * 1000)
        made = self._client.create_run(experiment, start_time=begun, tags=tags, run_name=one.run.id[:NAME])
        self._fill(made.info.run_id, one)
        return True

    def _experiment(self, name: str) -> str:
        wanted = (name or "-")[:NAME]
        found = self._client.get_experiment_by_name(wanted)
        if found is not None:
            return str(found.experiment_id)
        return str(self._client.create_experiment(wanted, artifact_location=self._artifacts.as_uri()))

    def _with_key(self, experiment: str, key: str) -> list[Any]:
        return list(self._client.search_runs([experiment], filter_string=f"tags.`{KEY}` = '{key}'"))

    def _parent(self, experiment: str, one: Recorded) -> str:
        """The run that stands for the group: its seeds are shown under it."""
        key = hashlib.sha256(f"group {one.job.id} {one.run.group_key}".encode()).hexdigest()[:32]
        there = self._with_key(experiment, key)
        if there:
            return str(there[0].info.run_id)
        about = {KEY: key, "raymsa.group": one.run.group_key[:TAG], "raymsa.job": one.job.id}
        name = f"{one.run.variant} {one.run.group_key[:6]}"[:NAME]
        begun = int(one.begun_at * 1000)
        made = self._client.create_run(experiment, start_time=begun, tags=about, run_name=name)
        self._client.set_terminated(made.info.run_id, "FINISHED", end_time=begun)
        return str(made.info.run_id)

    def _fill(self, run_id: str, one: Recorded) -> None:
        from mlflow.entities import Metric, Param

        metrics = [Metric(*given) for given in _metrics(one)]
        params = [Param(name, _text(value)) for name, value in _named(one.params).items()]
        for start in range(0, len(params), OTHERS):
            self._client.log_batch(run_id, params=params[start : start + OTHERS])
        for start in range(0, len(metrics), METRICS):
            self._client.log_batch(run_id, metrics=metrics[start : start + METRICS])
        self._client.log_dict(run_id, one.run.spec, "spec.json")
        state, end = STATES.get(one.run.state, "SCHEDULED"), int(one.ended_at * 1000)
        if one.run.state in ("running", "queued"):
            self._client.update_run(run_id, status=state)
        else:
            self._client.set_terminated(run_id, state, end_time=end)
        self._client.set_tag(run_id, WHOLE, one.mark)


def _metrics(one: Recorded) -> Iterator[tuple[str, float, int, int]]:
    """Name, value, time in ms and step; the finals at the last step."""
    for moment in one.moments:
        for name, value in _named(moment.values).items():
            yield name, value, int(moment.at * 1000), moment.step
    for name, value in _named(one.finals).items():
        yield name, value, int(one.ended_at * 1000), one.run.step or 0


def _tags(one: Recorded) -> dict[str, str]:
    """Ours, and those that MLflow's own pages show."""
    own = {"mlflow.user": one.job.submitted_by, "mlflow.source.name": "raymsa"}
    if one.run.git_commit:
        own["mlflow.source.git.commit"] = one.run.git_commit
    tags = {f"raymsa.{name}": value for name, value in one.tags.items()}
    return {name[:NAME]: value[:TAG] for name, value in {**own, **tags}.items()}


def _named(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values under names that MLflow takes; two that would share one are told apart."""
    named: dict[str, Any] = {}
    for name, value in values.items():
        allowed = NOT_ALLOWED.sub("_", name)[: NAME - 10]
        if not allowed or posixpath.normpath(allowed) != allowed or allowed.startswith((".", "/")):
            allowed = "_" + re.sub(r"[./]", "_", allowed)
        number = 2
        unique = allowed
        while unique in named:
            unique, number = f"{allowed}_{number}", number + 1
        named[unique] = value
    return named


def _text(value: Any) -> str:
    return (value if isinstance(value, str) else json.dumps(value))[:PARAM]
