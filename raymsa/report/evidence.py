"""What a report shows of a job, read from the store once and unrounded: runs with their curves, scores by clip.

Axes: R runs (seeds) of a row of the table, B test clips.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raymsa.report.finals import completed
from raymsa.report.results import Results, results
from raymsa.store import Store, queries
from raymsa.target import Classification, Regression, task_of

POINTS = 60  # of a learning curve: more cannot be told apart in print


@dataclass(frozen=True)
class Training:
    """A run and how it went: `loss` are (epochs done, mean loss), `valid` (epoch, the deciding metric after it)."""

    run: queries.RunRow
    finals: Mapping[str, Mapping[str, float]]
    loss: tuple[tuple[float, float], ...]
    valid: tuple[tuple[int, float], ...]
    clips_per_s: float | None


@dataclass(frozen=True)
class Group:
    """A row of the table with its finished runs; `place` is its number, from 0. `score_RB` is of the clips of
    `Evidence.ids`, in their order, without runs that scored none; `answers` has every run's, empty for such a one."""

    name: str
    place: int
    runs: tuple[Training, ...]
    score_RB: NDArray[np.float64]
    answers: tuple[Mapping[str, queries.Prediction], ...]

    @property
    def tested(self) -> list[Training]:
        """The runs that scored test clips, one for each row of `score_RB`."""
        return [run for run, said in zip(self.runs, self.answers, strict=True) if said]


@dataclass(frozen=True)
class Evidence:
    """All of it. `ids` and `label_B` are the test clips that every finished run scored; `uncommon` others did not."""

    job: queries.Job
    state: str
    task: Regression | Classification
    found: Results
    groups: tuple[Group, ...]
    ids: tuple[str, ...]
    label_B: NDArray[np.float64]
    uncommon: int

    @property
    def trained(self) -> list[Training]:
        """Every finished run, in the table's order."""
        return [run for group in self.groups for run in group.runs]


def evidence(store: Store, job_id: str) -> Evidence:
    """Read a job; the id may be a unique prefix or a name. Raises NotFound."""
    job = queries.job(store, job_id)
    found = results(store, job.id)
    rows = {row.id: row for row in queries.runs(store, job.id)}
    valid = queries.by_epoch(store, job.id, f"valid_{found.decides}")
    answers = {name: _answers(store, name) for row in found.rows for name in row.run_ids}
    ids, seen = _common(answers.values())
    label = next((one for one in answers.values()), {})
    return Evidence(
        job=job,
        state=queries.state(store, job.id),
        task=task_of(job.spec),
        found=found,
        groups=tuple(
            Group(
                row.variant,
                place,
                tuple(_training(store, found, rows[name], valid.get(name, {})) for name in row.run_ids),
                _scores([answers[name] for name in row.run_ids], ids),
                tuple(answers[name] for name in row.run_ids),
            )
            for place, row in enumerate(found.rows)
        ),
        ids=ids,
        label_B=np.array([label[name].label for name in ids], float),
        uncommon=seen - len(ids),
    )


def _answers(store: Store, run_id: str) -> dict[str, queries.Prediction]:
    return {clip.clip_id: clip for clip in queries.predictions(store, run_id, "test")}


def _common(answers: Iterable[Mapping[str, queries.Prediction]]) -> tuple[tuple[str, ...], int]:
    """The clips that all runs scored, and how many any run did. A run that scored no test clip says nothing here."""
    scored = [set(one) for one in answers if one]
    if not scored:
        return (), 0
    return tuple(sorted(set.intersection(*scored))), len(set.union(*scored))


def _scores(answers: list[dict[str, queries.Prediction]], ids: tuple[str, ...]) -> NDArray[np.float64]:
    scores = [[one[name].score for name in ids] for one in answers if one]
    return np.array(scores, float).reshape(len(scores), len(ids))


def _training(
    store: Store,
    found: Results,
    run: queries.RunRow,
    valid: Mapping[int, float],
) -> Training:
    steps = queries.steps(store, run.id)
    rates = [step.value for step in steps if step.name == "clips_per_s"]
    return Training(
        run=run,
        finals=completed(store, run.id, queries.finals(store, run.id), found.profile),
        loss=_curve(run, [(step.step, step.value) for step in steps if step.name == "loss"]),
        valid=tuple(valid.items()),
        clips_per_s=statistics.median(rates) if rates else None,  # the first steps are slower: no mean
    )


def _curve(run: queries.RunRow, losses: list[tuple[int, float]]) -> tuple[tuple[float, float], ...]:
    """The loss over stretches of the training, each as long as the next, against the epochs done at their ends."""
    if not losses:
        return ()
    epochs = run.spec.get("train", {}).get("epochs") or run.epoch or 1
    per_epoch = (run.steps_total or losses[-1][0]) / epochs
    stretches = np.array_split(np.array(losses), min(POINTS, len(losses)))
    return tuple((float(part[-1, 0]) / per_epoch, float(part[:, 1].mean())) for part in stretches)
