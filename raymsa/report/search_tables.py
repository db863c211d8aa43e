"""A search on the screen: what was confirmed, what mattered, every trial."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

from raymsa.report.cells import heading, number, spread_text, table, words
from raymsa.report.search import Confirmed, Search
from raymsa.space import Values
from raymsa.trials import Trial

WORDS = {"pruned": "ended early"}  # of states, for people


def render_search(found: Search, console: Console) -> None:
    """Print a whole search: the best settings, importances, the trials."""
    way = "high" if found.high_is_good else "low"
    states = ", ".join(f"{count} {WORDS.get(state, state)}" for state, count in found.states.items())
    console.print(
        words(
            f"search of {found.name} ({found.job_id}): {found.algorithm}, early end by {found.scheduler}; {way} valid "
            f"{found.metric} is good; {len(found.trials)} of {found.planned} trials: {states or 'none yet'}"
        )
    )
    for made in _confirmed(found):
        console.print(made)
    console.print(words(verdict(found)))
    if found.importance is not None:
        shares = ", ".join(f"{field} {share:.2f}" for field, share in found.importance.items())
        console.print(words(f"importance for the best tenth (PED-ANOVA): {shares}"))
    else:
        console.print("importance: too few trials went to their end, or all gave the same")
    render_trials(found, console)
    for one in (one for one in found.trials if one.error):
        console.print(words(f"{one.name} is {one.state}: {one.error}"))


def render_trials(found: Search, console: Console) -> None:
    """Print the trials alone, the best first; one seed each, so none of them is a result."""
    early = [one for one in found.trials if one.state == "pruned"]
    ranked = {one.run_id: at for at, one in enumerate(found.best)}
    rows = sorted(found.trials, key=lambda one: (ranked.get(one.run_id, len(ranked)), one.number))
    fields = shown_fields(rows)
    title = f"trials, each with seed {found.seed}: for choosing"
    made = table(title, ["trial", "valid\n" + heading(found.metric), "best\nepoch", "epochs", *fields, "state"])
    for one in rows:
        epochs = str(max(one.epochs, default=0))
        best = "-" if one.best_epoch is None else str(one.best_epoch)
        cells = [
            number(found.metric, one.objective),
            best,
            epochs,
            *shown_values(one.values, fields),
            shown_state(found, one),
        ]
        made.add_row(*map(words, [one.name, *cells]))
    console.print(made)
    if early:
        shown = ", ".join(f"{one.name} after epoch {one.stopped_at()}" for one in early)
        console.print(words(f"ended early by {found.scheduler}: {shown}"))


def _confirmed(found: Search) -> Iterator[Table]:
    if not found.confirmed:
        return
    fields = shown_fields(found.confirmed)
    title = f"confirmed: valid {found.metric}, mean ± sd over fresh seeds"
    made = table(title, ["setting", "valid\n" + heading(found.metric), "runs", "as a\ntrial", *fields])
    for one in found.confirmed:
        name = shown_setting(found, one)
        runs = f"{one.valid.runs if one.valid else 0}/{one.planned}"
        cells = [spread_text(found.metric, one.valid), runs, number(found.metric, one.searched)]
        made.add_row(*map(words, [name, *cells, *shown_values(one.values, fields)]))
    yield made


def verdict(found: Search) -> str:
    """Whether the search was worth it, in a line."""
    if not found.confirmed and not found.best:
        return "no trial has gone to its end with a number yet"
    if not found.confirmed:
        todo = "they are not confirmed yet" if found.to_confirm else "`search.confirm` would run them with fresh seeds"
        return f"the best of {len(found.trials)} trials on one seed are also the luckiest; {todo}"
    left = sum(one.planned - (one.valid.runs if one.valid else 0) for one in found.confirmed)
    if left:
        return f"not confirmed: {left} runs with fresh seeds are not done"
    first = found.confirmed[0]
    default = next((one for one in found.confirmed if one.is_default), None)
    if first is default:
        return "the file's own settings were not beaten on fresh seeds"
    means = [number(found.metric, one.valid.mean) for one in (first, default) if one is not None and one.valid]
    return f"best on fresh seeds: {first.name}, valid {found.metric} " + " against the file's own ".join(means)


def shown_fields(rows: Iterable[Any]) -> list[str]:
    """The fields that any of the settings has."""
    return list(dict.fromkeys(field for row in rows for field in row.values))


def shown_values(values: Values, fields: list[str]) -> list[str]:
    """A setting's values of these fields as words."""
    return [_value(values[field]) if field in values else "-" for field in fields]


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def shown_state(found: Search, one: Trial) -> str:
    """How a trial stands, in words."""
    if one.state == "pruned":
        return f"ended early after epoch {one.stopped_at()}"
    return ", ".join(filter(None, [one.state, found.collapsed.get(one.run_id)]))


def shown_setting(found: Search, one: Confirmed) -> str:
    """A setting's name, and what has to be known with it."""
    said = ["default"] if one.is_default and one.name != "default" else []
    said += [found.collapsed[one.name]] if one.name in found.collapsed else []
    return f"{one.name} ({', '.join(said)})" if said else one.name
