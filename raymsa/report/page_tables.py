"""The tables of a report, as sheets: the same on the page, in Markdown and in LaTeX."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from raymsa.evaluation.metrics import PROFILES
from raymsa.merge import flat
from raymsa.report.bins import Interval, interval, limits, signs
from raymsa.report.cells import GIB, HOUR_S, metric_column
from raymsa.report.evidence import Evidence, Group, Training
from raymsa.report.finals import HEALTH
from raymsa.report.formats import Cell, Column, Noted, Sheet, shown
from raymsa.report.group_sheets import sheets
from raymsa.report.groups import GroupTable
from raymsa.report.plots import named
from raymsa.report.plots_runs import SHOWN, values
from raymsa.report.search import Confirmed, Search
from raymsa.report.search_tables import shown_fields, shown_setting, shown_state, shown_values
from raymsa.report.spread import spread
from raymsa.report.worst import Worst
from raymsa.target import Classification

SIGN_RULES = {"mosi": "Clips labelled exactly 0 are left out.", "sims": "0 counts as negative."}
DIFFER = "the runs differ in this"


def scores(tables: Sequence[GroupTable]) -> dict[str, Sheet]:
    """The main tables, as `raymsa results` has them but for cost and single seeds: those have tables of their own."""
    made = {}
    for number, (table, sheet) in enumerate(zip(tables, sheets(tables), strict=True), 1):
        words = {f"test_{name}": _metric(name) for name in table.metrics}
        words[f"valid_{table.decides}"] = valid_column(table.decides)
        kept = [n for n, column in enumerate(sheet.columns) if column.name in ("label", "data", "seeds", *words)]
        columns = tuple(words.get(sheet.columns[n].name, sheet.columns[n]) for n in kept)
        rows = tuple(tuple(row[n] for n in kept) for row in sheet.rows)
        name = "results" if number == 1 else f"results_{number}"
        made[name] = Sheet(sheet.title, columns, rows, ("Sample sd (ddof 1), none for one seed.",))
    return made


def valid_column(metric: str) -> Column:
    """The metric that decides."""
    return metric_column(f"valid_{metric}", f"valid {named(metric)}", metric)


def by_seed(about: Evidence) -> Sheet:
    """Every finished run for itself."""
    found = about.found
    names = [name for name in SHOWN[found.profile] if name in found.metrics]
    columns = (
        *(Column(name, name.replace("_", " ")) for name in ("variant", "seed", "run", "best_epoch")),
        valid_column(found.decides),
        *(metric_column(f"test_{name}", f"test {named(name)}", name) for name in names),
    )
    rows = [
        (
            _named(about, group, one),
            *_of_run(one, found.decides),
            *(one.finals.get("test", {}).get(name) for name in names),
        )
        for group in about.groups
        for one in group.runs
    ]
    return Sheet("Every run", columns, tuple(rows), ("The epoch that was best on valid is the one that is tested.",))


def intervals(about: Evidence) -> Sheet:
    """How far the mean over these few seeds can be trusted."""
    names = [name for name in SHOWN[about.found.profile] if name in about.found.metrics]
    metrics = [_metric(name) for name in names]
    columns = (Column("variant", "variant"), Column("seeds", "seeds"), *metrics)
    rows = tuple(
        (group.name, len(group.runs), *(_interval(interval(values(group, m.name), limits(m.name)), m) for m in metrics))
        for group in about.groups
        if group.runs
    )
    notes = (
        "Mean and 95 % t interval of the mean over seeds, as if seeds were draws from a normal distribution. It says "
        "nothing about other clips: all seeds are tested on the same ones.",
        "Few seeds tell little: of two, it reaches 9 sd to either side of the mean, of four 1.6. It ends where the "
        "metric does, and there is none where all seeds are equal.",
    )
    return Sheet("Interval of the mean over seeds", columns, rows, notes)


def sign_table(about: Evidence) -> Sheet | None:
    """The figures behind the calibration of the sign, and of how many clips they are."""
    if isinstance(about.task, Classification):
        return None
    columns = [
        Column("variant", "variant"),
        Column("score", "|score| (points)"),
        Column("right", "right sign (%)", 1, 100),
    ]
    rows = tuple(
        (group.name, f"{low:.3g} to {high:.3g}", spread(share_R[~np.isnan(share_R)].tolist()), clips)
        for group in about.groups
        if group.score_RB.size
        for low, high, share_R, clips in signs(about.task, group.score_RB, about.label_B)
    )
    note = "Mean ± sample sd over seeds; clips are those of all seeds. " + SIGN_RULES[about.task.profile]
    return Sheet("Right signs by |score|", (*columns, Column("clips", "clips")), rows, (note,))


def metrics(about: Evidence) -> Sheet:
    """What the names of metrics mean here: papers mix them up."""
    known = PROFILES[about.found.profile]
    rows = tuple((_metric(name).heading, " ".join((known[name].__doc__ or "").split())) for name in about.found.metrics)
    return Sheet("What the metrics are", (Column("metric", "metric"), Column("rule", "how it is computed")), rows)


def health(about: Evidence) -> Sheet | None:
    """What was wrong with the answers themselves."""
    if not any(row.health for row in about.found.rows):
        return None
    columns = (Column("variant", "variant"), *(metric_column(name, name.replace("_", " ")) for name in HEALTH))
    rows = tuple((row.variant, *(row.health.get(name) for name in HEALTH)) for row in about.found.rows)
    notes = (
        "Unparsable: an answer in words that is no number in the form asked for (or no class); it counts as the "
        "middle of the range, or as wrong. Nothing is said of readouts that do not answer in words.",
        "Out of range: a score beyond the label range; it counts as the range's end.",
    )
    return Sheet("Unparsable and out-of-range answers on test", columns, rows, notes)


def cost(about: Evidence) -> Sheet:
    """What every run took."""
    columns = (
        *(Column(name, name) for name in ("variant", "seed")),
        Column("device_h", "device h", 3),
        Column("wall_h", "wall h", 3),
        Column("clips_per_s", "clips/s", 1),
        Column("peak_gib", "peak GiB", 2),
        Column("data_wait", "data wait (%)", 1, 100),
        Column("trainable", "trainable parameters"),
        Column("attempts", "attempts"),
    )
    rows = [_cost(group.name, one) for group in about.groups for one in group.runs]
    if len(rows) > 1:
        runs = about.trained
        total = (sum(one.run.device_s for one in runs) / HOUR_S, sum(one.run.wall_s for one in runs) / HOUR_S)
        rows.append(("all", "", *total, None, None, None, None, sum(one.run.attempts for one in runs)))
    notes = (
        "Device h: hours times GPUs (or CPU cores) that the run held, over all its attempts. Clips/s: median while "
        "training. Peak: of the GPU, or of the process on a CPU. Data wait: share of the training spent waiting.",
    )
    return Sheet("Cost", columns, tuple(rows), notes)


def unfinished(about: Evidence) -> Sheet | None:
    """Runs that are in no mean, and why."""
    left = about.found.unfinished
    columns = tuple(Column(name, name) for name in ("run", "variant", "seed", "state", "why"))
    rows = tuple((one.run_id, one.variant, str(one.seed), one.state, one.error or "") for one in left)
    return Sheet("Runs without results", columns, rows) if left else None


def worst_clips(about: Evidence, clips: list[Worst]) -> Sheet | None:
    """The clips with the largest errors, and what every seed said."""
    if not clips:
        return None
    names = list(clips[0].scores)
    error = "runs that are wrong (%)" if isinstance(about.task, Classification) else "mean |error|"
    form = (0, 100.0) if isinstance(about.task, Classification) else (2, 1.0)
    columns = (
        *(Column(name, name) for name in ("clip", "words", "label")),
        Column("error", error, *form),
        *(Column(f"scores_{name}", f"scores of {name}") for name in names),
    )
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (c.clip_id, c.text or "", value(about, c.label), c.error, *(_seeds(about, c.scores[n]) for n in names))
        for c in clips
    )
    order = "; ".join(f"{g.name} {', '.join(str(r.run.seed) for r in g.tested)}" for g in about.groups if g.tested)
    return Sheet("The worst clips", columns, rows, (f"Scores are in the order of the seeds: {order}.",))


def value(about: Evidence, label: float) -> str:
    """A label or score in words."""
    if isinstance(about.task, Classification):
        return about.task.classes[int(label)] if label >= 0 else "no class"
    return f"{label:+.2f}".replace("-", "−")


def trials(found: Search) -> Iterator[Sheet]:
    """A search: settings on fresh seeds, then what chose them."""
    metric = metric_column("valid", f"valid {named(found.metric)}", found.metric)
    if found.confirmed:
        fields = shown_fields(found.confirmed)
        columns = (Column("setting", "setting"), metric, Column("runs", "runs"), _as_trial(found), *map(_field, fields))
        rows = tuple(
            (shown_setting(found, one), one.valid, _runs(one), one.searched, *shown_values(one.values, fields))
            for one in found.confirmed
        )
        yield Sheet("Settings confirmed with fresh seeds", columns, rows, ("Mean ± sample sd over fresh seeds.",))
    fields, ranked = shown_fields(found.trials), {one.run_id: at for at, one in enumerate(found.best)}
    columns = (Column("trial", "trial"), metric, Column("best_epoch", "best epoch"), *map(_field, fields))
    tried: tuple[tuple[Cell, ...], ...] = tuple(
        (one.name, one.objective, one.best_epoch, *shown_values(one.values, fields), shown_state(found, one))
        for one in sorted(found.trials, key=lambda one: (ranked.get(one.run_id, len(ranked)), one.number))
    )
    note = f"One seed each ({found.seed}), for choosing: the best of many trials is also the luckiest."
    matter = ", ".join(f"{name} {share:.2f}" for name, share in (found.importance or {}).items())
    notes = (note, f"Importance for the best tenth (PED-ANOVA): {matter}.") if matter else (note,)
    yield Sheet("Trials of the search", (*columns, Column("state", "state")), tried, notes)


def settings(about: Evidence) -> Sheet:
    """The whole resolved spec, a row for each field."""
    rows = tuple((name, _plain(value)) for name, value in flat(about.job.spec))
    return Sheet("Every setting", (Column("setting", "setting"), Column("value", "value")), rows)


def environment(about: Evidence, store_facts: Mapping[str, str]) -> Sheet:
    """Versions, code, devices and data of the finished runs."""
    runs = [one.run for one in about.trained]
    packages = dict.fromkeys(name for run in runs for name in run.versions or {})
    facts: dict[str, Iterable[str | None]] = {
        "git commit": [run.git_commit or about.job.git_commit for run in runs] or [about.job.git_commit],
        "device": [run.place for run in runs],
        "data digest": [run.data_digest for run in runs],
        **{name: [(run.versions or {}).get(name) for run in runs] for name in packages},
    }
    rows: list[tuple[Cell, ...]] = [(name, _all(found)) for name, found in facts.items()]
    rows += list(store_facts.items())
    return Sheet("Environment", (Column("what", "what"), Column("value", "value")), tuple(rows))


def _all(found: Iterable[str | None]) -> Cell:
    """One value, or all that occur, with a note that they differ."""
    seen = list(dict.fromkeys(one or "not recorded" for one in found))
    return Noted(", ".join(seen), (DIFFER,)) if len(seen) > 1 else next(iter(seen), "not recorded")


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _cost(name: str, one: Training) -> tuple[Cell, ...]:
    run = one.run
    peak = None if run.peak_memory_bytes is None else run.peak_memory_bytes / GIB
    times = (run.device_s / HOUR_S, run.wall_s / HOUR_S, one.clips_per_s, peak)
    return (name, str(run.seed), *times, run.data_wait, run.trainable_parameters, run.attempts)


def _metric(name: str) -> Column:
    return metric_column(name, named(name))


def _interval(found: Interval | None, column: Column) -> str | None:
    if found is None:
        return None
    if found.low is None or found.high is None:
        return shown(found.mean, column)
    return f"{shown(found.mean, column)} ({shown(found.low, column)} to {shown(found.high, column)})"


def _seeds(about: Evidence, found: tuple[float, ...]) -> str:
    return ", ".join(value(about, score) for score in found)


def _named(about: Evidence, group: Group, one: Training) -> Cell:
    """The variant of a run, marked where this run is collapsed."""
    fallen = about.found.rows[group.place].collapse.of(one.run.seed)
    return (
        Noted(f"{group.name} ({fallen.words})", tuple(fallen.reasons(about.found.classes)))
        if fallen.words
        else group.name
    )


def _of_run(one: Training, decides: str) -> tuple[Cell, ...]:
    return (str(one.run.seed), one.run.id, one.run.best_epoch, one.finals.get("valid", {}).get(decides))


def _runs(one: Confirmed) -> str:
    return f"{one.valid.runs if one.valid else 0}/{one.planned}"


def _as_trial(found: Search) -> Column:
    return metric_column("as_trial", "as a trial", found.metric)


def _field(name: str) -> Column:
    return Column(name, name)
