"""The fields that a search tries, as Optuna has them.

A choice that is a plain value stands for itself, so that plots read well; any other is its JSON text.
"""

from __future__ import annotations

import json
from typing import Any

from raymsa.errors import SpecError
from raymsa.ranges import points, size
from raymsa.spec import Run, trial

Values = dict[str, Any]  # dotted field -> value


class Space:
    """The ranges of a search. `values` are what a spec holds, `params` the same as Optuna knows them."""

    def __init__(self, ranges: dict[str, dict[str, Any]], template: Run) -> None:
        self.ranges = {field: _as_stored(field, choice, template) for field, choice in ranges.items()}
        self._coded = {f: _coded(choice["choice"]) for f, choice in self.ranges.items() if "choice" in choice}

    def suggest(self, asked: Any) -> Values:
        """What Optuna's trial takes for every field."""
        return {field: self._suggest(asked, field) for field in self.ranges}

    def distributions(self) -> dict[str, Any]:
        """Optuna's distributions."""
        return {field: self._distribution(field) for field in self.ranges}

    def of_spec(self, spec: dict[str, Any]) -> Values:
        """What a run's plain spec holds in these fields; a field that it has not is left out."""
        found = {}
        for field in self.ranges:
            value: Any = spec
            for part in field.split("."):
                value = value.get(part, KeyError) if isinstance(value, dict) else KeyError
            if value is not KeyError:
                found[field] = self._as_proposed(field, value)
        return found

    def params(self, values: Values) -> dict[str, Any] | None:
        """Values as Optuna has them; None when one is missing or outside its range."""
        if values.keys() != self.ranges.keys() or not all(self._holds(field, value) for field, value in values.items()):
            return None
        return {field: self._code(field, value) for field, value in values.items()}

    def points(self) -> list[dict[str, Any]] | None:
        """All settings, the last field changing first; None where there is no end of them."""
        found: list[dict[str, Any]] = [{}]
        for field, choice in self.ranges.items():
            if (values := points(choice)) is None:
                return None
            found = [{**before, field: self._code(field, value)} for before in found for value in values]
        return found

    def planned(self, wanted: int) -> int:
        """How many trials there will be: choices that are written differently may be one setting, as [text, audio] and
        [audio, text] are."""
        return min(wanted, size(self.ranges) or wanted)

    def _suggest(self, asked: Any, field: str) -> Any:
        kind, values = next(iter(self.ranges[field].items()))
        if kind == "choice":
            return values[self._coded[field].index(asked.suggest_categorical(field, self._coded[field]))]
        if kind == "int":
            return asked.suggest_int(field, *values)
        return asked.suggest_float(field, *values, log=kind == "loguniform")

    def _distribution(self, field: str) -> Any:
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        kind, values = next(iter(self.ranges[field].items()))
        if kind == "choice":
            return CategoricalDistribution(self._coded[field])
        return IntDistribution(*values) if kind == "int" else FloatDistribution(*values, log=kind == "loguniform")

    def _holds(self, field: str, value: Any) -> bool:
        kind, values = next(iter(self.ranges[field].items()))
        if kind == "choice":
            return value in values
        return isinstance(value, int if kind == "int" else (int, float)) and bool(values[0] <= value <= values[1])

    def _as_proposed(self, field: str, value: Any) -> Any:
        """What an int range gave is an int again: the field may be a float, which lora.alpha is."""
        whole = "int" in self.ranges[field] and isinstance(value, (int, float)) and value == int(value)
        return int(value) if whole else value

    def _code(self, field: str, value: Any) -> Any:
        return self._coded[field][self.ranges[field]["choice"].index(value)] if field in self._coded else value


def _coded(values: list[Any]) -> list[Any]:
    """As themselves if they are plain and told apart (true is equal to 1), else as text."""
    plain = all(value is None or isinstance(value, (str, int, float)) for value in values)
    if plain and len(set(values)) == len(values):
        return values
    return [json.dumps(value, sort_keys=True, ensure_ascii=False) for value in values]


def _as_stored(field: str, choice: dict[str, Any], template: Run) -> dict[str, Any]:
    """A range with its choices as a checked spec has them (`[audio, text]` becomes `[text, audio]`), so that the
    settings of earlier runs are found among them again."""
    if "choice" not in choice:
        return choice
    stored: list[Any] = []
    for given in choice["choice"]:
        value: Any = trial(template, {field: given}).spec.model_dump(mode="json")
        for part in field.split("."):
            if part not in value:
                raise SpecError(f"search.space.{field}: no such field in the run's spec")
            value = value[part]
        if value not in stored:
            stored.append(value)
    return {"choice": stored}
