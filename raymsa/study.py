"""A search's brain: Optuna, in memory. What it learned is in the store as runs, and is told to it again from there."""

from __future__ import annotations

import hashlib
import json
import math
import random
import warnings
from collections.abc import Iterable
from typing import Any

from raymsa.searchspec import Aim
from raymsa.space import Space, Values
from raymsa.store.states import LIVE
from raymsa.trials import Trial

TRIES = 20  # for settings that were not tried yet; training twice with one seed gives the same number twice
CMA_WANTS = 10  # earlier runs: it begins from the best tenth of them
MEDIAN_WANTS = 5  # trials that are done before the median of them ends others
KEPT = 3  # asha lets one in so many go on


class Study:
    """Proposes settings and gives trials up, by what it was told of the others.

    The sampler is seeded anew for each trial by its number, and all it knows is in Optuna's trials: a study that was
    told the same runs again proposes the same.
    """

    def __init__(self, search: dict[str, Any], space: Space, aim: Aim, seed: int, past: Iterable[Trial] = ()) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.CRITICAL)
        self._optuna, self._space, self._seed = optuna, space, seed
        self._algorithm: str = search["algorithm"]
        pruner = _pruner(search.get("scheduler", "none"), search.get("min_epochs", 1))
        direction = "maximize" if aim.high_is_good else "minimize"
        self._study = optuna.create_study(direction=direction, pruner=pruner)
        self._past = [frozen(trial, space) for trial in past]
        self._study.add_trials(self._past)
        self._points = self._in_order(search["trials"]) if self._algorithm == "grid" else None
        self._asked: dict[str, Any] = {}
        self._tried: set[str] = set()

    def propose(self, number: int) -> tuple[Values, Any]:
        """Settings for the trial with this number, which were not tried yet; and Optuna's trial, to be given back."""
        for attempt in range(TRIES):
            if self._points is not None:
                self._study.enqueue_trial(self._points[number])
            elif attempt == TRIES - 1 and (left := self._untried()):
                self._study.enqueue_trial(left[0])
            asked = self._ask(number, attempt)
            values = self._space.suggest(asked)
            if _key(values) not in self._tried or self._points is not None:
                break
            if attempt < TRIES - 1:
                self._study.tell(asked, state=self._optuna.trial.TrialState.FAIL)
        self._tried.add(_key(values))
        return values, asked

    def began(self, run_id: str, asked: Any) -> None:
        """A run is made of what was proposed."""
        self._asked[run_id] = asked

    def replay(self, trials: Iterable[Trial]) -> None:
        """Tell everything the store has, in the order in which it happened; runs that are not over stay open."""
        known = [one for one in trials if self._space.params(one.values) is not None]
        asks = [(one.asked_at, 0, one.number, one) for one in known]
        ends = [(math.inf if one.over_at is None else one.over_at, 1, one.number, one) for one in known]
        for _, is_end, _, one in sorted(asks + ends, key=lambda moment: moment[:3]):
            if not is_end:
                self._ask_again(one)
                continue
            for epoch, value in one.epochs.items():
                self.report(one.run_id, epoch, value)
            if one.state not in LIVE:
                self.tell(one)

    def _ask_again(self, trial: Trial) -> None:
        """The same settings for the same number. cma-es writes down only for what it proposed itself where it was; told
        the same, it proposes the same."""
        asked = self._ask(trial.number, 0) if self._algorithm == "cma-es" else None
        if asked is None or self._space.suggest(asked) != trial.values:
            if asked is not None:
                self._study.tell(asked, state=self._optuna.trial.TrialState.FAIL)
            self._study.enqueue_trial(self._space.params(trial.values))
            asked = self._ask(trial.number, 0)
            self._space.suggest(asked)
        self._tried.add(_key(trial.values))
        self.began(trial.run_id, asked)

    def report(self, run_id: str, epoch: int, value: float) -> bool:
        """A trial's metric after an epoch; whether to end it now."""
        asked = self._asked.get(run_id)
        if asked is None:
            return False
        with warnings.catch_warnings():  # the same epoch said twice is a warning; the first one stands
            warnings.simplefilter("ignore")
            asked.report(value, epoch)
            return bool(asked.should_prune())

    def tell(self, trial: Trial) -> None:
        """How a run ended; one without a number has failed: left open, it would be waited for for ever."""
        asked = self._asked.pop(trial.run_id, None)
        if asked is None:
            return
        states = self._optuna.trial.TrialState
        if trial.state == "pruned":
            self._study.tell(asked, state=states.PRUNED)
        elif trial.state != "done" or trial.objective is None or math.isnan(trial.objective):
            self._study.tell(asked, state=states.FAIL)
        else:
            self._study.tell(asked, trial.objective)

    def states(self) -> list[str]:
        """Optuna's state of every trial, for a look from outside."""
        return [trial.state.name for trial in self._study.get_trials(deepcopy=False)]

    def _ask(self, number: int, attempt: int) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Optuna about its own experiments
            self._study.sampler = self._sampler(_seed(self._seed, number, attempt))
            return self._study.ask()

    def _sampler(self, seed: int) -> Any:
        samplers = self._optuna.samplers
        if self._algorithm == "tpe":
            return samplers.TPESampler(seed=seed)
        if self._algorithm == "cma-es":
            return samplers.CmaEsSampler(seed=seed, source_trials=self._numbers() or None)
        return samplers.RandomSampler(seed=seed)  # a grid's points are given

    def _numbers(self) -> list[Any]:
        """Earlier runs for cma-es, which wants exactly the fields that it moves."""
        kept = []
        for trial in self._past:
            distributions = {f: d for f, d in trial.distributions.items() if "choice" not in self._space.ranges[f]}
            params = {field: trial.params[field] for field in distributions}
            kept.append(self._optuna.trial.create_trial(value=trial.value, params=params, distributions=distributions))
        return kept

    def _in_order(self, wanted: int) -> list[dict[str, Any]]:
        """A grid's points as they come; if only some of them are wanted, those of the whole grid alike."""
        found = self._space.points() or []
        if wanted < len(found):
            random.Random(self._seed).shuffle(found)  # noqa: S311
        return found

    def _untried(self) -> list[dict[str, Any]]:
        found = self._space.points() or []
        random.Random(self._seed).shuffle(found)  # noqa: S311
        known = {_key(trial.params) for trial in self._study.get_trials(deepcopy=False) if trial.params}
        return [params for params in found if _key(params) not in known]


def frozen(trial: Trial, space: Space) -> Any:
    """A run that is over as a trial of Optuna's that was never asked for. Its values must lie in the space."""
    from optuna.trial import TrialState, create_trial

    known = trial.objective is not None and not math.isnan(trial.objective)
    state = {"done": TrialState.COMPLETE, "pruned": TrialState.PRUNED}.get(trial.state, TrialState.FAIL)
    if state == TrialState.COMPLETE and not known:
        state = TrialState.FAIL
    return create_trial(
        state=state,
        value=trial.objective if known and state != TrialState.FAIL else None,
        params=space.params(trial.values),
        distributions=space.distributions(),
        intermediate_values=trial.epochs,
        user_attrs={"run": trial.run_id, "setting": trial.name, "state": trial.state, "error": trial.error},
    )


def _pruner(scheduler: str, min_epochs: int) -> Any:
    import optuna

    if scheduler == "asha":
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=min_epochs, reduction_factor=KEPT)
    if scheduler == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=MEDIAN_WANTS, n_warmup_steps=min_epochs)
    return optuna.pruners.NopPruner()


def _seed(*parts: int) -> int:
    """Neighbouring numbers give unrelated seeds."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4])


def _key(values: dict[str, Any]) -> str:
    return json.dumps(values, sort_keys=True)
