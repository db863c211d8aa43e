"""CSV: three tables, runs, steps and predictions. A spreadsheet takes none of their texts for a formula."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from raymsa.exporters.base import Done, Exporter, Recorded
from raymsa.place import new_folder
from raymsa.report.formats import csv_cell
from raymsa.store import queries

STEPS = ("run", "step", "epoch", "at", "name", "value")
PREDICTIONS = ("run", "split", "clip_id", "label", "score", "text", "parsed", "in_range")


class Csv(Exporter):
    """runs.csv (one line per run), steps.csv and predictions.csv (one line per value and clip)."""

    kind: Literal["csv"] = "csv"

    def write(self, runs: Sequence[Recorded], out: Path) -> Done:
        """Three files in a new folder. Raises UsageError when something is there already."""
        rows = [_run(one) for one in runs]
        heads = list(dict.fromkeys(name for row in rows for name in row))
        with new_folder(out) as folder:
            _table(folder / "runs.csv", heads, ([row.get(name) for name in heads] for row in rows))
            _table(folder / "steps.csv", STEPS, (line for one in runs for line in _steps(one)))
            _table(folder / "predictions.csv", PREDICTIONS, (line for one in runs for line in _predictions(one)))
        return Done([one.run.id for one in runs], [], f"{out}/runs.csv, steps.csv, predictions.csv")


def _run(one: Recorded) -> dict[str, Any]:
    """One line: tags, times (UNIX seconds), final metrics, parameters."""
    times = {"started_at": one.run.started_at, "finished_at": one.run.finished_at, "step": one.run.step}
    params = {f"param.{name}": value for name, value in one.params.items()}
    return {**one.tags, "seed": one.run.seed, **times, **one.finals, **params}


def _steps(one: Recorded) -> Iterable[list[Any]]:
    for row in queries.steps(one.store, one.run.id):
        yield [row.run_id, row.step, row.epoch, row.at, row.name, row.value]


def _predictions(one: Recorded) -> Iterable[list[Any]]:
    for row in queries.predictions(one.store, one.run.id):
        yield [row.run_id, row.split, row.clip_id, row.label, row.score, row.text, row.parsed, row.in_range]


def _table(path: Path, heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with path.open("w", encoding="utf-8", errors="replace", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(map(csv_cell, heads))
        writer.writerows(map(csv_cell, row) for row in rows)
