"""Several runs under Ray Tune: Tune schedules, Ray Train trains, a `Listener` in this process hears of it."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from ray import tune
from ray.tune.search import Searcher

from raymsa.cluster import remove_own_placement_groups, remove_placement_group
from raymsa.data.shared import Shared, free
from raymsa.errors import StoreAway
from raymsa.proposals import Proposals
from raymsa.training.worker import death, trial

TRIAL_CPUS = 0.01  # a trial's own actor only waits for its worker; Ray refuses 0 here
GRACE_S = 60.0  # for running trainings to write a checkpoint when they are asked to stop
STORE_EVERY_S = 2.0  # between two tries to reach a store that does not answer


class Listener(Protocol):
    """Who hears of the runs, in the driver's process."""

    def report(self, run_id: str, values: dict[str, Any]) -> None:
        """A run said something. What is recorded is taken out of `values`, so that a call that ended in StoreAway can
        be repeated and counts nothing twice."""

    def ended(self, run_id: str, error: tuple[str, str] | None, pruned: bool) -> None:
        """A run's trial is over; `error` and its cause when it ended without saying so itself."""


class Until(Protocol):
    """How long to go on."""

    def over(self) -> bool:
        """It is time to end: trainings write a checkpoint first."""

    def at_once(self) -> bool:
        """There is no time for that."""


def run_all(
    proposals: Proposals,
    listener: Listener,
    until: Until,
    at_once: int,
    storage: Path,
    shared: Shared | None = None,
) -> None:
    """Train every proposed run, at most `at_once` at a time, until all are over or `until` says so.

    `shared` are the clips of all runs in the object store, which are freed at the end. Raises what the listener or
    the proposals raised; StoreAway only after it lasted until the end.
    """
    storage.mkdir(parents=True, exist_ok=True)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # pages about trials that die: the reason is recorded
    stop = storage / f"stop-{uuid.uuid4().hex[:8]}"  # of this attempt alone: an old one must not stop a new training
    common = {"storage": str(storage), "stop": str(stop), "shared": shared.name if shared is not None else None}
    follow = Follow(listener, until)
    ends = Ends(follow, until, proposals, stop)
    proposer = Proposer(proposals, common, ends, follow)
    EXPERIMENTS.begin()
    try:
        tuner = tune.Tuner(
            tune.with_resources(trial, {"CPU": TRIAL_CPUS}),
            tune_config=tune.TuneConfig(search_alg=proposer, num_samples=-1, max_concurrent_trials=at_once),
            run_config=tune.RunConfig(
                name=f"tune-{uuid.uuid4().hex[:8]}",
                storage_path=str(storage),
                callbacks=[follow],
                stop=ends,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=0),
            ),
        )
        tuner.fit()
    finally:
        follow.reap_all()
        EXPERIMENTS.end()
        stop.unlink(missing_ok=True)
        if shared is not None:
            free(shared)
    if follow.trouble is not None:
        raise follow.trouble


class Experiments:
    """How many this driver runs (`--tasks-at-once`). Where there is none, its Ray job holds no placement group: one is
    left behind by a trial that is killed before its first report, which would have named it."""

    def __init__(self) -> None:
        self._lock, self._running = threading.Lock(), 0

    def begin(self) -> None:
        """One begins."""
        with self._lock:
            self._sweep()
            self._running += 1

    def end(self) -> None:
        """One is over."""
        with self._lock:
            self._running -= 1
            self._sweep()

    def _sweep(self) -> None:
        if not self._running:  # else it could be another task's, in training
            remove_own_placement_groups()


EXPERIMENTS = Experiments()


class _Live:
    """Tune writes its callbacks to disk, for a restore of its own that we never ask for: live objects stay out."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class Proposer(_Live, Searcher):  # type: ignore[misc]
    """Gives Tune its trials one by one. What it knows is in the store, so there is nothing for Tune to save."""

    def __init__(self, proposals: Proposals, common: dict[str, Any], ends: Ends, follow: Follow) -> None:
        super().__init__()
        self._proposals, self._common, self._ends, self._follow = proposals, common, ends, follow

    def suggest(self, trial_id: str) -> Any:
        """The next run as a trial's config; None while all that is left waits for its time."""
        for run_id in self._follow.take_over():
            self._follow.tell(partial(self._proposals.over, run_id))
        if self._ends.asked():
            return Searcher.FINISHED
        work = self._follow.tell(self._proposals.next)
        if work is None:
            return None if self._proposals.waiting() and not self._ends.asked() else Searcher.FINISHED
        return {"work": {**work, **self._common}}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tune says this before it tells `Follow`: what came of the run is not recorded yet."""

    def save(self, checkpoint_path: str) -> None:
        """An empty file: Tune wants one."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Never asked for."""


class Follow(_Live, tune.Callback):  # type: ignore[misc]
    """Hands Tune's news to the listener, and removes the placement groups that stopped trials leave behind.

    Ray's own cleaner needs a running dashboard; without one, a stopped trial's GPU would never be free again.
    """

    def __init__(self, listener: Listener, until: Until) -> None:
        self._listener, self._until = listener, until
        self._groups: dict[str, str] = {}
        self.training: set[str] = set()  # runs that could write a checkpoint
        self.pruned: set[str] = set()
        self._ended: list[str] = []  # runs that the proposals have not heard of yet
        self.trouble: Exception | None = None  # of the listener; Tune would make a page of text of it

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        """A report of a run."""
        if group := result.get("placement_group"):
            self._groups[trial.trial_id] = group
        if "run_id" not in result:
            return
        if "steps_total" in result:
            self.training.add(result["run_id"])
        if {"stopped", "error", "finished"} & result.keys():
            self.training.discard(result["run_id"])
        news = dict(result)
        self.tell(lambda: self._listener.report(result["run_id"], news))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """A trial ended by itself, or was stopped."""
        self._over(trial, None)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """A trial was lost."""
        self._over(trial, reason(trial))

    def reap_all(self) -> None:
        """Remove what is left when the experiment was stopped."""
        for trial_id in list(self._groups):
            remove_placement_group(self._groups.pop(trial_id))

    def tell(self, call: Callable[[], Any]) -> Any:
        """Call the listener or the proposals. A store that does not answer is waited for, as long as the task is ours.

        The first trouble ends the experiment; what comes after it is not recorded, and made again later. So is what
        comes when the lease is lost: another driver may be making these runs.
        """
        while self.trouble is None and not self._until.at_once():
            try:
                return call()
            except StoreAway as error:
                if self._until.over():
                    self.trouble = error
                time.sleep(STORE_EVERY_S)
            except Exception as error:
                self.trouble = error
        return None

    def take_over(self) -> list[str]:
        """Runs that ended since the last call."""
        ended, self._ended = self._ended, []
        return ended

    def _over(self, trial: Any, error: tuple[str, str] | None) -> None:
        if group := self._groups.pop(trial.trial_id, None):
            remove_placement_group(group)
        run_id = trial.config["work"]["run_id"]
        self.training.discard(run_id)
        self.tell(lambda: self._listener.ended(run_id, error, run_id in self.pruned))
        self._ended.append(run_id)


class Ends(_Live, tune.Stopper):  # type: ignore[misc]
    """Ends single trials that promise nothing, and all of them when the driver is asked to stop."""

    def __init__(self, follow: Follow, until: Until, proposals: Proposals, mark: Path) -> None:
        self._follow, self._until, self._proposals, self._mark = follow, until, proposals, mark
        self._asked_at: float | None = None

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Whether a search gives this trial up."""
        if "valid_error" not in result or not self._follow.tell(lambda: self._proposals.prune(result)):
            return False
        self._follow.pruned.add(result["run_id"])
        return True

    def asked(self) -> bool:
        """No more trials are to begin."""
        return self._follow.trouble is not None or self._until.over()

    def stop_all(self) -> bool:
        """Asked by Tune at every turn of its loop; the first time, trainings are asked for a checkpoint."""
        if not self.asked():
            return False
        if self._asked_at is None:
            self._asked_at = time.monotonic()
            self._mark.touch()
        late = time.monotonic() - self._asked_at > GRACE_S
        return late or not self._follow.training or self._follow.trouble is not None or self._until.at_once()


def reason(trial: Any) -> tuple[str, str]:
    """Why Tune gave a trial up, in one line, and the cause."""
    try:
        error = trial.get_pickled_error() or trial.get_error()
    except Exception:  # the error's class may not be importable here
        error = None
    told = (str(getattr(error, "cause", None) or ""), str(error or ""))  # the cause of an actor's death may be empty
    return death(next((text for text in told if text.strip()), ""))
