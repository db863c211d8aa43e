"""One run inside Ray: a Ray Train worker with one GPU (or CPUs), and the Tune trial that starts it."""

from __future__ import annotations

import logging
import os
import re
import socket
import time
import uuid
import warnings
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from raymsa.causes import cause_of
from raymsa.errors import Lost, RaymsaError, Stopped
from raymsa.home import log_to
from raymsa.place import write_at_once

# Ray's own retries are off: they would be endless, and what is tried again, when and how often is causes.py's to say.
ONCE = {"max_failures": 0, "controller_failure_limit": 0, "max_preemption_failures": 0}
STOP_EVERY_S, PREEMPTION_EVERY_S = 0.5, 5.0
ERROR_LINE = re.compile(r"[A-Za-z_.]+(Error|Exception)[^:]*: .")


def trial(config: dict[str, Any]) -> None:
    """The body of a Tune trial: make the run `config["work"]` in a Ray Train worker, passing its reports to Tune."""
    from ray import tune
    from ray.train import TrainingFailedError

    work = config["work"]
    try:
        _trainer(work).fit()
    except TrainingFailedError as error:  # raised, it would only look like a fault of Tune's
        why, cause = death(str(error))
        tune.report(
            {"run_id": work["run_id"], "error": f"the training worker died: {why}", "cause": cause, "seconds": 0.0}
        )


def death(text: str) -> tuple[str, str]:
    """What killed a process, from Ray's pages of text: one line, and the cause."""
    if "low on memory" in text or "OutOfMemoryError" in text:
        advice = "lower train.batch_tokens or train.window_clips, or free memory"
        return f"host memory ran out, and Ray ended the run; {advice}", "memory"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    named = [line for line in lines if ERROR_LINE.match(line)]
    return (named or lines or ["it ended without a reason"])[-1][:300], "lost"


def _trainer(work: dict[str, Any]) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.v2._internal.callbacks import DatasetsCallback
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    class Trainer(DataParallelTrainer):  # type: ignore[misc]
        """Without Train's own data: our runs stream theirs, and a process that manages none takes 2 s to start."""

        def _create_default_callbacks(self) -> list[Any]:
            return [one for one in super()._create_default_callbacks() if not isinstance(one, DatasetsCallback)]

    resources = work["spec"]["resources"]
    # Not TorchTrainer: one worker needs no process group, and neither this process nor the controller needs torch.
    return Trainer(
        train,
        train_loop_config=work,
        scaling_config=ScalingConfig(
            num_workers=1,
            use_gpu=resources["gpus"] > 0,
            resources_per_worker={
                "CPU": resources["cpus"],
                **({"GPU": 1} if resources["gpus"] else {}),
                **resources.get("custom", {}),
            },
        ),
        # A name of its own for every attempt: Ray would resume an old one from its snapshot, we resume from ours.
        run_config=RunConfig(
            name=f"{work['run_id']}-{uuid.uuid4().hex[:8]}",
            storage_path=work["storage"],
            failure_config=FailureConfig(**ONCE),
            callbacks=[TuneReportCallback()],
        ),
    )


def train(work: dict[str, Any]) -> None:
    """The body of the worker: one run, from its last checkpoint if there is one. Its errors are reported, not raised,
    so that what is tried again is decided in one place."""
    import ray.train
    import torch
    from ray.util import get_current_placement_group

    _be_quiet()
    with suppress(OSError):  # a full disk is told below
        Path(work["folder"]).mkdir(parents=True, exist_ok=True)
    node = ray.get_runtime_context().get_node_id()
    _log(work, f"worker process {os.getpid()} on {socket.gethostname()}, on node {node}")
    cost = _Cost()
    group = get_current_placement_group()

    def report(values: dict[str, Any]) -> None:
        about = {"run_id": work["run_id"], "placement_group": group.id.hex() if group else None}
        ray.train.report({**values, **about, "seconds": cost.since_last()})

    # At once, so that the driver knows the placement group before the model is loaded.
    report({"place": _place()})
    try:
        torch.set_num_threads(work["spec"]["resources"]["cpus"])
        _execute(work, torch.device("cuda" if work["spec"]["resources"]["gpus"] else "cpu"), report)
    except Stopped as stopped:
        _log(work, str(stopped))
        report({"stopped": str(stopped)})
    except RaymsaError as error:
        _log(work, f"failed: {error}")
        report({"error": str(error), "cause": error.cause})
    except Exception as error:
        report(_told(work, error))


def _told(work: dict[str, Any], error: Exception) -> dict[str, Any]:
    """What is reported of an error that is not ours; the whole trace of a fault belongs into the log."""
    cause = cause_of(error)
    if cause == "disk":
        said = f"no space left on the disk of {work['folder']}; free some: it goes on from its last checkpoint"
        _log(work, f"failed: {said}")
    else:
        logging.exception("run %s", work["run_id"])
        _log(work, f"failed: {_trace()}")
        reason = " ".join(str(error).split())[:500]
        said = f"{type(error).__name__}: {reason}; see `raymsa logs {work['run_id']}`"
    return {"error": said, "cause": cause}


def _execute(work: dict[str, Any], device: Any, report: Any) -> None:
    from raymsa.data import manifest, shards, shared
    from raymsa.place import place
    from raymsa.spec import JobSpec
    from raymsa.training.run import Work, execute

    folder = place(work["shards"])
    known = shared.places(work["shared"]) if work["shared"] else None
    mark = Path(work["folder"]) / "wanted"
    stream = partial(shards.stream, mark=mark) if known is None else partial(shared.take, known=known)
    spec, mine = JobSpec.model_validate(work["spec"]), Path(work["folder"])
    made = Work(spec, folder, manifest.read(folder), mine, _Asked(Path(work["stop"]), mine / "worker"))
    execute(made, device, stream, report)


class _Asked:
    """Whether somebody wants the run to end: its driver made a file, or Ray says that the machine will be taken.

    Raises Lost when another worker has the run. Where a cluster lost its head, its workers do not hear of it for a
    minute, and a new driver may have begun meanwhile: two must not write one run's checkpoints.
    """

    def __init__(self, mark: Path, owner: Path) -> None:
        self._mark, self._stop, self._looked, self._asked_ray = mark, False, 0.0, time.monotonic()
        self._owner, self._name = owner, uuid.uuid4().hex
        with suppress(OSError):
            write_at_once(owner, self._name)

    def __call__(self) -> bool:
        now = time.monotonic()
        if not self._stop and now - self._looked > STOP_EVERY_S:
            self._looked = now
            with suppress(OSError):
                if self._owner.read_text() not in ("", self._name):
                    raise Lost("another worker has the run; this one ends without a checkpoint")
            self._stop = self._mark.exists() or self._preempted(now)
        return self._stop

    def _preempted(self, now: float) -> bool:
        from ray.train import get_preemption_info

        if now - self._asked_ray < PREEMPTION_EVERY_S:
            return False
        self._asked_ray = now
        return get_preemption_info() is not None


def _place() -> str:
    """Host and device, for people."""
    devices = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return f"{socket.gethostname()} {f'GPU {devices}' if devices else 'CPU'}"


def _be_quiet() -> None:
    warnings.filterwarnings("ignore")
    for name in ("ray.data", "ray.train", "bitsandbytes", "accelerate"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _log(work: dict[str, Any], line: str) -> None:
    log_to(Path(work["folder"]) / "log.txt", line)


def _trace() -> str:
    import traceback

    return traceback.format_exc()


class _Cost:
    """Seconds since the last report, so that the cost of an attempt that is killed is counted up to its last report."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def since_last(self) -> float:
        now = time.monotonic()
        seconds, self._last = now - self._last, now
        return seconds
