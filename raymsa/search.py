"""Several runs under Ray Tune: Tune schedules, Ray Train trains, a `Listener` in this process hears of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from ray import tune
from ray.tune.search import Searcher

from raymsa.cluster import remove_placement_group
from raymsa.data.shards import Shared, free
from raymsa.proposals import Proposals
from raymsa.training.worker import trial

TRIAL_DEATHS = 2  # a run's own errors are reported, so a trial that dies was killed: it goes on from its checkpoint
ERROR_LINE = re.compile(r"[A-Za-z_.]+(Error|Exception)[^:]*: .")
TRIAL_CPUS = 0.01  # a trial's own actor only waits for its worker; Ray refuses 0 here


class Listener(Protocol):
    """Who hears of the runs, in the driver's process."""

    def report(self, run_id: str, values: dict[str, Any]) -> None:
        """A run said something."""

    def ended(self, run_id: str, error: str | None) -> None:
        """A run's trial is over; `error` when it ended without saying so itself."""


def run_all(
    proposals: Proposals,
    listener: Listener,
    stop: Callable[[], bool],
    at_once: int,
    storage: Path,
    shared: Shared | None = None,
) -> None:
    """Train every proposed run, at most `at_once` at a time, until all are over or `stop` says so.

    `shared` are the clips of all runs in the object store, which are freed at the end.
    """
    follow = Follow(listener)
    name = shared.name if shared is not None else None

    def over() -> bool:
        return follow.trouble is not None or stop()

    try:
        storage.mkdir(parents=True, exist_ok=True)
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(trial, storage=str(storage), shared=name), {"CPU": TRIAL_CPUS}),
            tune_config=tune.TuneConfig(search_alg=Proposer(proposals), num_samples=-1, max_concurrent_trials=at_once),
            run_config=tune.RunConfig(
                storage_path=str(storage),
                callbacks=[follow],
                stop=WhenAsked(over),
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=TRIAL_DEATHS),
            ),
        )
        tuner.fit()
    finally:
        follow.reap_all()
        if shared is not None:
            free(shared)
    if follow.trouble is not None:
        raise follow.trouble


class _Live:
    """Tune writes its callbacks to disk, for a restore of its own that we never ask for: live objects stay out."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class Proposer(_Live, Searcher):  # type: ignore[misc]
    """Gives Tune its trials one by one. What it knows is in the store, so there is nothing for Tune to save."""

    def __init__(self, proposals: Proposals) -> None:
        super().__init__()
        self._proposals = proposals
        self._run_ids: dict[str, str] = {}

    def suggest(self, trial_id: str) -> Any:
        """The next run as a trial's config."""
        work = self._proposals.next()
        if work is None:
            return Searcher.FINISHED
        self._run_ids[trial_id] = work["run_id"]
        return {"work": work}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """A trial is over, one way or another."""
        if run_id := self._run_ids.pop(trial_id, None):
            self._proposals.over(run_id)

    def save(self, checkpoint_path: str) -> None:
        """An empty file: Tune wants one."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Never asked for."""


class Follow(_Live, tune.Callback):  # type: ignore[misc]
    """Hands Tune's news to the listener, and removes the placement groups that stopped trials leave behind.

    Ray's own cleaner needs a running dashboard; without one, a stopped trial's GPU would never be free again.
    """

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._groups: dict[str, str] = {}
        self.trouble: Exception | None = None  # of the listener; Tune would make a page of text of it

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        """A report of a run."""
        if group := result.get("placement_group"):
            self._groups[trial.trial_id] = group
        if "run_id" in result:
            self._tell(lambda: self._listener.report(result["run_id"], result))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """A trial ended by itself, or was stopped."""
        self._over(trial, None)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """A trial was lost."""
        self._over(trial, reason(trial))

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """A trial was killed and starts again: what its worker held must be free first."""
        self._reap(trial)

    def reap_all(self) -> None:
        """Remove what is left when the experiment was stopped."""
        for trial_id in list(self._groups):
            remove_placement_group(self._groups.pop(trial_id))

    def _over(self, trial: Any, error: str | None) -> None:
        self._reap(trial)
        self._tell(lambda: self._listener.ended(trial.config["work"]["run_id"], error))

    def _tell(self, call: Callable[[], None]) -> None:
        """The first trouble ends the experiment; what comes after it is not recorded, and made again later."""
        if self.trouble is None:
            try:
                call()
            except Exception as error:
                self.trouble = error

    def _reap(self, trial: Any) -> None:
        if group := self._groups.pop(trial.trial_id, None):
            remove_placement_group(group)


class WhenAsked(_Live, tune.Stopper):  # type: ignore[misc]
    """Ends the experiment when the driver is asked to stop."""

    def __init__(self, stop: Callable[[], bool]) -> None:
        self._stop = stop

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Never a single trial."""
        return False

    def stop_all(self) -> bool:
        """Asked by Tune at every turn of its loop."""
        return self._stop()


def reason(trial: Any) -> str:
    """Why Tune gave a trial up, in one line."""
    try:
        error = trial.get_pickled_error() or trial.get_error()
    except Exception:  # the error's class may not be importable here
        error = None
    text = str(getattr(error, "cause", None) or error or "")
    if "low on memory" in text or "OutOfMemoryError" in text:
        return (
            "host memory ran out, and Ray ended the run; lower train.batch_tokens or train.window_clips, or free memory"
        )
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    named = [line for line in lines if ERROR_LINE.match(line)]
    return (named or lines or ["the trial ended without a reason"])[-1][:300]
