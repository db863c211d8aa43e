"""Published results beside which ours may stand: files such as configs/literature/mosi.yaml, checked.

What a published number is called says little: Acc-2 and F1 have several rules, and the number may be the luckiest of
several seeds. Both are fields here, so that a table can say it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field, ValidationError, field_validator, model_validator

import raymsa
from raymsa.errors import SpecError, UsageError
from raymsa.plugins import Spec
from raymsa.problems import lines_for
from raymsa.report.spread import Spread
from raymsa.yamlfile import read_mapping

FOLDER = Path("configs/literature")
CHECKOUT = Path(raymsa.__file__).parent.parent / FOLDER  # of a clone, wherever it is used from
Rule = Literal["has0", "nonzero", "sims", "other", "unknown"]
RULES = {  # a profile's own rules: the rule -> the ending of our metric's name
    "mosi": {"has0": "_has0", "nonzero": "_nonzero"},
    "sims": {"sims": ""},
}
SCORES = {"mosi": ("mae", "corr", "acc7", "acc5"), "sims": ("mae", "corr", "acc5", "acc3")}
RULED = {"acc2": "Acc-2", "f1": "F1"}
FOREIGN = {  # footnotes of either by a rule that is none of ours
    "unknown": "the source does not say by which rule",
    "has0": "negative against non-negative, which is not this dataset's rule",
    "nonzero": "negative against positive without the zeros, which is not this dataset's rule",
    "sims": "by the rule of CH-SIMS, where 0 is negative, which is not this dataset's",
    "other": "by another rule than ours",
}


class Figure(Spec):
    """A published number, with its sd where there is one."""

    mean: float = Field(description="the number as printed")
    sd: float | None = Field(None, ge=0, description="standard deviation over seeds")

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, raw: Any) -> Any:
        if isinstance(raw, (dict, Figure)):
            return raw
        if isinstance(raw, bool) or not isinstance(raw, (int, float)):
            raise ValueError(f"given {raw!r}; give a number, or {{mean: ..., sd: ...}}")
        return {"mean": raw}


class Percent(Figure):
    """The same of a share."""

    @field_validator("mean")
    @classmethod
    def _in_percent(cls, value: float) -> float:
        if not 1 < value <= 100:
            raise ValueError(f"given {value:g}; give percent, from 1 to 100")
        return value


class PublishedRow(Spec):
    """One published result."""

    method: str = Field(min_length=1, description="name of the method, as the table shows it")
    source: str = Field(min_length=1, description="where the numbers were read: a key of `sources`")
    paper: str | None = Field(None, min_length=1, description="the paper, with the year where it is known")
    chosen: Literal["best seed", "mean", "mean ± sd", "unknown"] = Field(
        "unknown", description="how the printed number came from several seeds"
    )
    seeds: int | None = Field(None, ge=1, description="number of seeds, where the source says")
    mae: Figure | None = Field(None, description="mean absolute error, in points of the label scale")
    corr: Figure | None = Field(None, description="Pearson correlation")
    acc7: Percent | None = Field(None, description="accuracy over seven classes, in percent")
    acc5: Percent | None = Field(None, description="accuracy over five classes, in percent")
    acc3: Percent | None = Field(None, description="accuracy over three classes, in percent")
    acc2: dict[Rule, Percent] = Field(
        default_factory=dict, description="accuracy over two classes, in percent, by rule"
    )
    f1: dict[Rule, Percent] = Field(default_factory=dict, description="weighted F1, in percent, by rule")
    note: str | None = Field(None, min_length=1, description="what a reader has to know besides")

    @field_validator("mae")
    @classmethod
    def _is_an_error(cls, value: Figure | None) -> Figure | None:
        if value is not None and value.mean < 0:
            raise ValueError(f"given {value.mean:g}; give a mean absolute error, from 0")
        return value

    @field_validator("corr")
    @classmethod
    def _is_a_correlation(cls, value: Figure | None) -> Figure | None:
        if value is not None and abs(value.mean) > 1:
            raise ValueError(f"given {value.mean:g}; give a correlation, from -1 to 1")
        return value

    @model_validator(mode="after")
    def _whole(self) -> PublishedRow:
        if not any((self.mae, self.corr, self.acc7, self.acc5, self.acc3, self.acc2, self.f1)):
            raise ValueError(f"{self.method}: has no number; give mae, corr, acc7, ...")
        figures = (self.mae, self.corr, self.acc7, self.acc5, self.acc3, *self.acc2.values(), *self.f1.values())
        if self.chosen != "mean ± sd" and any(one is not None and one.sd is not None for one in figures):
            raise ValueError(f"{self.method}: has an sd, but chosen is {self.chosen!r}; it is 'mean ± sd'")
        if "other" in (*self.acc2, *self.f1) and not self.note:
            raise ValueError(f"{self.method}: acc2 or f1 by another rule; say in `note` which")
        return self


class Literature(Spec):
    """Published results on one dataset."""

    dataset: str = Field(min_length=1, description="name of the dataset, as in the config that ours were made with")
    metrics: Literal["mosi", "sims"] = Field(description="the metric rules of our table")
    test_clips: int | None = Field(None, ge=1, description="clips of the published test split")
    sources: dict[str, str] = Field(min_length=1, description="where numbers were read: key -> words")
    rows: tuple[PublishedRow, ...] = Field(min_length=1, description="the published results")
    notes: tuple[str, ...] = Field((), description="lines under the table")

    @model_validator(mode="after")
    def _consistent(self) -> Literature:
        for row in self.rows:
            if row.source not in self.sources:
                raise ValueError(f"{row.method}: source: unknown {row.source!r} (known: {', '.join(self.sources)})")
            foreign = [n for n in ("acc7", "acc5", "acc3") if getattr(row, n) and n not in SCORES[self.metrics]]
            if foreign:
                raise ValueError(f"{row.method}: {foreign[0]} is no metric of {self.metrics!r}")
            for name in RULED:
                if len(getattr(row, name).keys() - RULES[self.metrics]) > 1:
                    raise ValueError(f"{row.method}: {name}: more than one rule that is not ours; make it two rows")
        return self


class Shown(NamedTuple):
    """A published row in the units of our tables: shares from 0 to 1. `foreign` are Acc-2 and F1 by a rule that is none
    of ours, under the names `acc2` and `f1`, each with its rule as a footnote."""

    test: dict[str, Spread]
    foreign: dict[str, tuple[Spread, str]]


def load(name_or_path: str) -> Literature:
    """A file, or one of configs/literature by its name. Raises SpecError, one line per problem, and UsageError."""
    path = _path(name_or_path)
    try:
        return Literature.model_validate(read_mapping(path))
    except ValidationError as error:
        raise SpecError("\n".join(f"{path}: {line}" for line in lines_for(error, Literature))) from None


def known() -> list[str]:
    """The names that `load` takes."""
    return sorted({path.stem for folder in (FOLDER, CHECKOUT) for path in folder.glob("*.yaml")})


def in_our_units(row: PublishedRow, profile: str) -> Shown:
    """What of a row belongs in which column."""
    scores = {name: figure for name in SCORES[profile] if (figure := getattr(row, name)) is not None}
    test = {name: _spread(figure) for name, figure in scores.items()}
    foreign = {}
    for name, words in RULED.items():
        for by, figure in getattr(row, name).items():
            if by in RULES[profile]:
                test[name + RULES[profile][by]] = _spread(figure)
            else:
                foreign[name] = _spread(figure), f"{words}: {FOREIGN[by]}"
    return Shown(test, foreign)


def chosen_words(row: PublishedRow) -> str:
    """How the number came from several seeds."""
    if row.chosen == "unknown":
        return "unknown" if row.seeds is None else f"unknown ({row.seeds} seeds)"
    of = "" if row.seeds is None else f" of {row.seeds}"
    return row.chosen + of + ("" if row.chosen == "best seed" or not of else " seeds")


def notes_of(row: PublishedRow, literature: Literature) -> Iterator[str]:
    """A row's footnotes, but for that of its rule."""
    source = literature.sources[row.source]
    paper = f" ({row.paper})" if row.paper and row.paper not in source else ""
    yield f"published, not measured here: {source}{paper}"
    if row.note:
        yield row.note


def _path(name: str) -> Path:
    if Path(name).suffix in (".yaml", ".yml") or "/" in name:
        return Path(name).expanduser()
    for folder in (FOLDER, CHECKOUT):
        if (path := folder / f"{name}.yaml").is_file():
            return path
    there = f"known: {', '.join(known())}" if known() else f"no {FOLDER} here"
    raise UsageError(f"--literature: given {name!r}; give the path of a YAML file, or a name of {FOLDER} ({there})")


def _spread(figure: Figure) -> Spread:
    scale = 100 if isinstance(figure, Percent) else 1
    return Spread(figure.mean / scale, None if figure.sd is None else figure.sd / scale, 0)
