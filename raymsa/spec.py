"""JobSpec: what a person writes, checked; its runs, and the digest they are known by.

A file (`jobfile`), a variant and a search trial all go through `merge` and are validated again.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

from pydantic import BaseModel, Field, TypeAdapter, ValidationError, create_model, field_validator, model_validator

from raymsa.datasets.base import Layout
from raymsa.errors import SpecError
from raymsa.inputs import InputsSpec as InputsSpec
from raymsa.merge import merge, nested
from raymsa.plugins import Spec, kinds, union
from raymsa.problems import lines_for
from raymsa.prompts import prompt_problem
from raymsa.ranges import combinations, samples
from raymsa.readouts.base import Readout
from raymsa.searchspec import SEEDS, SearchSpec, different
from raymsa.searchspec import problems as search_problems
from raymsa.sections import EvaluateSpec as EvaluateSpec
from raymsa.sections import LoraSpec as LoraSpec
from raymsa.sections import ModelSpec as ModelSpec
from raymsa.sections import QueueSpec as QueueSpec
from raymsa.sections import ResourcesSpec as ResourcesSpec
from raymsa.sections import TrainSpec as TrainSpec

LAYOUTS = kinds("raymsa.datasets", Layout)  # type: ignore[type-abstract]
READOUTS = kinds("raymsa.readouts", Readout)  # type: ignore[type-abstract]
NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"  # of jobs and variants: they become parts of file names
OF_THE_JOB = {  # what all runs of a job share, and what to do instead
    "name": "it belongs to the whole job; name settings of one run",
    "seeds": "seeds are the job's own, so that all else is equal",
    "variants": "variants do not nest; write one more",
    "search": "it belongs to the whole job; name settings of one run",
    "queue": "it belongs to the whole job",
    "dataset": "all runs of a job read the same clips; write one job for each dataset",
}


class _JobBase(Spec):
    beside_fields: ClassVar[tuple[str, ...]] = ("base",)  # read before the fields are checked; for `did you mean`

    name: str = Field(description="short name of the job", pattern=NAME)
    model: ModelSpec = Field(description="the Thinker")
    inputs: InputsSpec = Field(default_factory=InputsSpec, description="what reaches the Thinker")
    lora: LoraSpec = Field(default_factory=LoraSpec, description="adapters")
    train: TrainSpec = Field(default_factory=TrainSpec, description="training")
    seeds: tuple[int, ...] = Field(SEEDS, min_length=1, description="one run for each; a search takes the first")
    variants: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="named sets of overrides; each is run with every seed, all else equal"
    )
    search: SearchSpec | None = Field(None, description="search over fields; null runs the file as it is")
    resources: ResourcesSpec = Field(default_factory=ResourcesSpec, description="what one run needs")
    evaluate: EvaluateSpec = Field(default_factory=EvaluateSpec, description="what is scored at the end")
    queue: QueueSpec = Field(default_factory=QueueSpec, description="priority, dependencies, retries")

    @field_validator("seeds")
    @classmethod
    def _different_seeds(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        return different(value)

    @field_validator("variants")
    @classmethod
    def _names_for_files(cls, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name in value:
            if not re.fullmatch(NAME, name):
                raise ValueError(f"given {name!r}; a variant's name has letters, digits, '_', '.' and '-' only")
        return value

    @model_validator(mode="after")
    def _fillable_prompt(self) -> _JobBase:
        if problem := prompt_problem(self):
            raise ValueError(problem)
        return self

    @model_validator(mode="after")
    def _optimizer_fits(self) -> _JobBase:
        if self.train.optimizer == "paged_adamw_8bit" and not self.resources.gpus:
            raise ValueError("train.optimizer: paged_adamw_8bit needs a GPU, and resources.gpus is 0; take adamw")
        return self

    @model_validator(mode="after")
    def _only_frozen_towers_are_cached(self) -> _JobBase:
        if self.inputs.cache == "towers" and self.lora.scope != "language_model":
            raise ValueError(
                f"inputs.cache: towers needs towers that are not trained, but lora.scope is {self.lora.scope}; "
                "set lora.scope to language_model, or inputs.cache to none"
            )
        return self

    @model_validator(mode="after")
    def _search_or_variants(self) -> _JobBase:
        if self.search and self.variants:
            raise ValueError("a job has variants or a search, not both")
        return self


# The two unions grow with their folders, so the fields are added here instead of being written out.
JobSpec = create_model(
    "JobSpec",
    __base__=_JobBase,
    __doc__="One job: a dataset, a Thinker, a readout, and the runs to make.",
    dataset=(union(LAYOUTS), Field(description="the clips")),
    readout=(union(READOUTS), Field(description="how a score is read out of the Thinker")),
)


class Run(NamedTuple):
    """One training: a spec with exactly one seed, no variants and no search."""

    variant: str
    seed: int
    spec: Any  # JobSpec

    @property
    def group(self) -> str:
        """Digest of everything but the seed: runs of one group differ by seed only."""
        return digest(self.spec.model_copy(update={"seeds": (0,), "name": ""}))


def check(raw: dict[str, Any], where: str) -> Any:
    """A checked JobSpec, every variant and search field included."""
    job = validate(JobSpec, nested(raw), where)
    found = [f"{where}: {line}" for line in (*_variant_problems(job), *_search_problems(job))]
    if found:
        raise SpecError("\n".join(found))
    return job


def validate(model: Any, raw: Any, where: str) -> Any:
    """`raw` as an instance of a Spec class, or a SpecError with one line per problem."""
    try:
        return TypeAdapter(model).validate_python(raw)
    except ValidationError as error:
        raise SpecError("\n".join(f"{where}: {line}" for line in lines_for(error, model))) from None


def runs(job: Any) -> list[Run]:
    """Every run of a job: each variant with each seed. A search job has one run here, the template of its trials."""
    variants = job.variants or {job.readout.kind: {}}
    seeds = job.seeds[:1] if job.search else job.seeds
    made = {name: merge(_forkless(job), override) for name, override in variants.items()}
    return [
        Run(name, seed, JobSpec.model_validate({**raw, "seeds": [seed]}))
        for name, raw in made.items()
        for seed in seeds
    ]


def trial(run: Run, values: dict[str, Any]) -> Run:
    """The run a search trial stands for: the template with the proposed values merged in and checked again."""
    return run._replace(spec=check(merge(run.spec.model_dump(mode="json"), values), "search trial"))


def digest(spec: BaseModel) -> str:
    """sha256 (16 hex digits) of a resolved spec, the same for the same settings."""
    return digest_of_plain(spec.model_dump(mode="json"))


def digest_of_plain(value: Any) -> str:
    """The same of plain data."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _forkless(job: Any) -> dict[str, Any]:
    raw: dict[str, Any] = job.model_dump(mode="json")
    return {**raw, "variants": {}, "search": None, "queue": {}}


def _variant_problems(job: Any) -> Iterator[str]:
    for name, override in job.variants.items():
        shared = [key for key in override if key in OF_THE_JOB]
        yield from (f"variants.{name}.{key}: a variant cannot change this: {OF_THE_JOB[key]}" for key in shared)
        if not shared:
            yield from (f"variants.{name}: {line}" for line in _problems(merge(_forkless(job), override)))


def _search_problems(job: Any) -> Iterator[str]:
    if not job.search:
        return
    found = [*search_problems(job), *_field_problems(job)]
    yield from found or _combination_problems(job)


def _field_problems(job: Any) -> Iterator[str]:
    for field, choice in job.search.space.items():
        section = field.split(".")[0]
        if section in OF_THE_JOB:
            yield f"search.space.{field}: a search cannot change this: {OF_THE_JOB[section]}"
            continue
        tried = (_problems(merge(_forkless(job), {field: value})) for value in samples(choice))
        yield from (f"search.space.{field}: {line}" for line in next(filter(None, tried), ()))


def _combination_problems(job: Any) -> Iterator[str]:
    """Fields that are right one by one and wrong together; the first such setting says it."""
    for values in combinations(job.search.space):
        if lines := _problems(merge(_forkless(job), values)):
            shown = ", ".join(f"{field}={value}" for field, value in values.items())
            yield from (f"search.space: with {shown}: {line}" for line in lines)
            return


def _problems(raw: dict[str, Any]) -> list[str]:
    try:
        JobSpec.model_validate(raw)
    except ValidationError as error:
        return lines_for(error, JobSpec)
    return []
