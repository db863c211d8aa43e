"""JobSpec: what a person writes, checked; its runs, and the digest they are known by.

A file, its `base:`, `--set`, a variant and a search trial all go through `merge` and are validated again.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from functools import cache, reduce
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import BaseModel, Field, TypeAdapter, ValidationError, create_model, field_validator, model_validator

from raymsa.clip import SPLITS
from raymsa.datasets.base import Layout
from raymsa.errors import SpecError
from raymsa.inputs import InputsSpec as InputsSpec
from raymsa.merge import merge, nested, parse_override
from raymsa.plugins import Spec, kinds, union
from raymsa.problems import lines_for
from raymsa.prompts import prompt_problem, with_prompts
from raymsa.ranges import combinations, samples
from raymsa.readouts.base import Readout
from raymsa.searchspec import SEEDS, SearchSpec, different
from raymsa.searchspec import problems as search_problems
from raymsa.yamlfile import read_mapping

PUBLISHED_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LAYOUTS = kinds("raymsa.datasets", Layout)  # type: ignore[type-abstract]
READOUTS = kinds("raymsa.readouts", Readout)  # type: ignore[type-abstract]
CHECKPOINTING = {"none": False, "false": False, "true": True, "towers": "towers"}  # words for train.checkpointing
NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"  # of jobs and variants: they become parts of file names
SECTION_FILES = ("dataset", "model", "readout")  # sections that may be the path of a file
OF_THE_JOB = {  # what all runs of a job share, and what to do instead
    "name": "it belongs to the whole job; name settings of one run",
    "seeds": "seeds are the job's own, so that all else is equal",
    "variants": "variants do not nest; write one more",
    "search": "it belongs to the whole job; name settings of one run",
    "queue": "it belongs to the whole job",
    "dataset": "all runs of a job read the same clips; write one job for each dataset",
}


class ModelSpec(Spec):
    """The Thinker: which weights, and how they are held in memory."""

    path: str = Field(
        min_length=1, description="local folder, hub id, or `tiny`: a small random Thinker made on the spot"
    )
    quantization: Literal["nf4", "none"] = Field("nf4", description="language model's linears: 4-bit NF4, or as loaded")
    keep_quantized: bool = Field(
        True,
        description="keep the 4-bit weights of a large model (from 256 MB) under RAYMSA_HOME/models, so that later "
        "runs load in seconds",
    )
    compute: Literal["auto", "bfloat16", "float32"] = Field(
        "auto", description="number type of the arithmetic; auto is bfloat16 on a GPU and float32 on a CPU"
    )
    attention: Literal["sdpa", "eager", "flash_attention_2"] = Field("sdpa", description="attention implementation")


class LoraSpec(Spec):
    """Low-rank adapters (peft)."""

    rank: int = Field(32, ge=1, description="rank of the adapters")
    alpha: float = Field(32, gt=0, description="scaling; the update is multiplied by alpha / rank")
    dropout: float = Field(0.1, ge=0, lt=1, description="share of adapter inputs dropped in training")
    scope: Literal["thinker", "language_model"] = Field(
        "thinker", description="thinker: every matching linear, both towers too; language_model: that part alone"
    )
    targets: tuple[str, ...] = Field(PUBLISHED_TARGETS, min_length=1, description="name endings of adapted linears")


class TrainSpec(Spec):
    """One run's training."""

    epochs: int = Field(10, ge=0, description="passes over the training clips; 0 evaluates only (zero-shot)")
    batch_clips: int = Field(16, ge=1, description="clips per optimizer step")
    batch_tokens: int = Field(
        8192, ge=1, description="tokens per forward pass, padding counted where there is any; more is accumulated"
    )
    packing: bool = Field(
        True,
        description="a pass's clips one after another in one row, without padding; gen decodes padded all the same",
    )
    lora_lr: float = Field(2e-4, gt=0, description="peak learning rate of the adapters")
    head_lr: float = Field(1e-3, gt=0, description="peak learning rate of the readout's head")
    optimizer: Literal["adamw", "paged_adamw_8bit"] = Field(
        "adamw",
        description="adamw: torch's, its state in float32; paged_adamw_8bit: bitsandbytes', a quarter of that state, "
        "which may move to host memory; needs a GPU, and its results are a little different",
    )
    weight_decay: float = Field(0.01, ge=0, description="AdamW weight decay")
    warmup: float = Field(0.05, ge=0, lt=1, description="share of all steps in which the rate rises from 0")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are scaled down to this norm")
    patience: int = Field(3, ge=1, description="epochs without a better valid MAE (or weighted F1) before a run stops")
    checkpointing: bool | int | Literal["towers"] = Field(
        True,
        description="activations recomputed in the backward pass to save memory: true of every layer, false (none) of "
        "none, a number n of every n-th layer, towers of the two towers alone",
    )
    checkpoint_every_s: float = Field(600, gt=0, description="seconds between resume points inside an epoch")
    window_clips: int = Field(256, ge=1, description="clips held in host memory to shuffle and sort by length")

    @field_validator("checkpointing", mode="before")
    @classmethod
    def _one_policy(cls, value: Any) -> Any:
        if isinstance(value, str) and value.strip().lower() in CHECKPOINTING:
            return CHECKPOINTING[value.strip().lower()]
        if isinstance(value, bool) or (isinstance(value, int) and value > 1):
            return value
        if value == 1:
            return True
        raise ValueError(f"given {value!r}; give true (every layer), false, n (every n-th layer, from 1) or towers")


class QueueSpec(Spec):
    """How the queue treats the job; nothing here changes a result."""

    priority: int = Field(0, description="higher goes first; equal ones in the order of submission")
    after: tuple[str, ...] = Field((), description="jobs (name or id) that must be done first; JOB/prepare: that task")
    deadline_h: float | None = Field(None, gt=0, description="hours after submission when it counts as failed")
    retries: int = Field(4, ge=0, description="times that a run or task is tried again (see raymsa/causes.py)")
    backoff_s: float = Field(30, ge=0, description="seconds before the first retry; doubled each time, 600 at most")
    runs_at_once: int | None = Field(None, ge=1, description="runs at a time; null: as many as there are devices")


class ResourcesSpec(Spec):
    """What one run needs."""

    gpus: int = Field(1, ge=0, le=1, description="GPUs per run; 0 trains on the CPU")
    cpus: int = Field(1, ge=1, description="CPU cores per run")
    custom: dict[str, float] = Field(
        default_factory=dict, description="amounts of a cluster's own resources, as its nodes declare them"
    )


class EvaluateSpec(Spec):
    """What is scored after training, with the weights that were best on valid."""

    splits: tuple[Literal["train", "valid", "test"], ...] = Field(
        ("valid", "test"), min_length=1, description="splits scored"
    )

    @field_validator("splits")
    @classmethod
    def _in_order(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(split for split in SPLITS if split in value)


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
            if not re.match(NAME, name):
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


def load_job(path: Path, overrides: list[str] | None = None) -> Any:
    """The resolved JobSpec of a file, its base and `a.b=c` overrides. Raises SpecError, one line per problem."""
    over = _overrides(overrides or [])
    return check(merge(read_job(path), over), f"{path} with --set" if over else str(path))


def read_job(path: Path, where: str = "", above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A job file as a mapping: `base:` and sections that name a file are read in; paths are relative to the file.

    `above` are the files that led here by their `base:`.
    """
    raw = read_mapping(path, where)
    base = raw.pop("base", None)
    raw = nested(_with_files(raw, path.parent, str(path)))
    if base is None:
        return raw
    if not isinstance(base, str):
        raise SpecError(f"{path}: base: given {base!r}; give the path of one file")
    below = (*above, path.resolve())
    target = path.parent / Path(base.replace("\0", "")).expanduser()
    if target.resolve() in below:
        chain = " -> ".join(str(file) for file in (*below, target.resolve()))
        raise SpecError(f"{path}: base: given '{base}', which leads back to itself ({chain}); leave one out")
    return merge(read_job(target, f"{path}: base: ", below), raw)


def load_dataset(path: Path, overrides: list[str] | None = None) -> Layout:
    """The checked dataset config of a file such as configs/datasets/mosi.yaml."""
    over: dict[str, Any] = reduce(merge, map(parse_override, overrides or []), {})
    where = f"{path} with --set" if over else str(path)
    raw = merge(_read_section("dataset", path), with_prompts(over, Path(), "--set", ("dataset",)))
    return validate(_dataset_type(), raw, where)  # type: ignore[no-any-return]


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


def _overrides(texts: list[str]) -> dict[str, Any]:
    """All `--set` as one mapping, so that their order does not matter; paths in them are relative to the person."""
    parsed = [_with_files(parse_override(text), Path(), "--set") for text in texts]
    over: dict[str, Any] = reduce(merge, parsed, {})
    if "base" in over:
        raise SpecError(f"--set base={over['base']}: a base is named in the file, because it is read first")
    return over


def _with_files(raw: dict[str, Any], folder: Path, where: str) -> dict[str, Any]:
    """Prompts and sections that are the path of a file, read in."""
    return _with_sections(with_prompts(raw, folder, where), folder, where)


def _with_sections(raw: dict[str, Any], folder: Path, where: str) -> dict[str, Any]:
    """Sections that are the path of a file, read in; those of variants too."""
    named = {section: raw[section] for section in SECTION_FILES if isinstance(raw.get(section), str)}
    read = {
        section: _read_section(section, folder / Path(text).expanduser(), f"{where}: {section}: given '{text}': ")
        for section, text in named.items()
    }
    variants = raw.get("variants")
    if isinstance(variants, dict):
        read["variants"] = {
            name: _with_sections(over, folder, f"{where}: variants.{name}") if isinstance(over, dict) else over
            for name, over in variants.items()
        }
    return {**raw, **read}


def _read_section(section: str, path: Path, where: str = "") -> dict[str, Any]:
    """A section's file; a prompt that it names is relative to it."""
    return with_prompts(read_mapping(path, where), path.parent, f"{where}{path}", (section,))


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


@cache
def _dataset_type() -> Any:
    return union(LAYOUTS)
