"""One run inside Ray: a Ray Train worker with one GPU (or CPUs), and the Tune trial that starts it."""

from __future__ import annotations

import logging
import os
import socket
import time
import uuid
import warnings
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from raymsa.errors import RaymsaError

WORKER_DEATHS = 3  # a worker that dies this often without a word has a reason; the run fails then
CONTROLLER_DEATHS = 3  # Ray's default is to try for ever


def trial(config: dict[str, Any], storage: str, shared: str | None = None) -> None:
    """The body of a Tune trial: make the run `config["work"]` in a Ray Train worker, passing its reports to Tune.

    `shared` names the job's clips in the object store; None where every run streams its own.
    """
    from ray import tune
    from ray.train import TrainingFailedError

    work = config["work"]
    try:
        _trainer({**work, "shared": shared}, storage).fit()
    except TrainingFailedError as error:  # raised, it would make Tune start the whole trial again
        reason = " ".join(str(error).split())[:300]
        say = f"the training worker died {WORKER_DEATHS + 1} times: {reason}"
        tune.report({"run_id": work["run_id"], "error": say, "seconds": 0.0})


def _trainer(work: dict[str, Any], storage: str) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    resources = work["spec"]["resources"]
    # TorchTrainer's base class: one worker needs no process group, and neither this process nor the controller torch.
    return DataParallelTrainer(
        train,
        train_loop_config=work,
        scaling_config=ScalingConfig(
            num_workers=1,
            use_gpu=resources["gpus"] > 0,
            resources_per_worker={"CPU": resources["cpus"], **({"GPU": 1} if resources["gpus"] else {})},
        ),
        # A name of its own for every attempt: Ray would resume an old one from its snapshot, we resume from ours.
        run_config=RunConfig(
            name=f"{work['run_id']}-{uuid.uuid4().hex[:8]}",
            storage_path=storage,
            failure_config=FailureConfig(max_failures=WORKER_DEATHS, controller_failure_limit=CONTROLLER_DEATHS),
            callbacks=[TuneReportCallback()],
        ),
    )


def train(work: dict[str, Any]) -> None:
    """The body of the worker: one run, from its last checkpoint if there is one. Its errors are reported, not raised,
    because Ray would try a run again that can only fail again."""
    import ray.train
    import torch
    from ray.util import get_current_placement_group

    _be_quiet()
    Path(work["folder"]).mkdir(parents=True, exist_ok=True)
    _log(work, f"worker process {os.getpid()} on {socket.gethostname()}")
    cost = _Cost()
    group = get_current_placement_group()

    def report(values: dict[str, Any]) -> None:
        about = {"run_id": work["run_id"], "placement_group": group.id.hex() if group else None}
        ray.train.report({**values, **about, "seconds": cost.since_last()})

    report({})  # at once, so that the driver knows the placement group before the model is loaded
    try:
        torch.set_num_threads(work["spec"]["resources"]["cpus"])
        _execute(work, torch.device("cuda" if work["spec"]["resources"]["gpus"] else "cpu"), report)
    except RaymsaError as error:
        _log(work, f"failed: {error}")
        report({"error": str(error)})
    except Exception as error:  # a fault of ours or of a library: the whole trace belongs into the log
        logging.exception("run %s", work["run_id"])
        _log(work, f"failed: {_trace()}")
        reason = " ".join(str(error).split())[:500]
        report({"error": f"{type(error).__name__}: {reason}; see `raymsa logs {work['run_id']}`"})


def _execute(work: dict[str, Any], device: Any, report: Any) -> None:
    from raymsa.data import manifest, shards
    from raymsa.place import place
    from raymsa.spec import JobSpec
    from raymsa.training.run import Work, execute

    folder = place(work["shards"])
    known = shards.places(work["shared"]) if work["shared"] else None
    mark = Path(work["folder"]) / "wanted"
    stream = partial(shards.stream, mark=mark) if known is None else partial(shards.take, known=known)
    made = Work(JobSpec.model_validate(work["spec"]), folder, manifest.read(folder), Path(work["folder"]))
    execute(made, device, stream, report)


def _be_quiet() -> None:
    warnings.filterwarnings("ignore")
    for name in ("ray.data", "ray.train", "bitsandbytes", "accelerate"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _log(work: dict[str, Any], line: str) -> None:
    with suppress(OSError), (Path(work["folder"]) / "log.txt").open("a", encoding="utf-8") as file:
        file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {line}\n")


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
