"""JobSpec: what a person writes, checked; its runs, and the digest they are known by.

A file, its `base:`, `--set`, a variant and a search trial all go through `merge` and are validated again.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, Field, TypeAdapter, ValidationError, create_model, field_validator, model_validator

from raymsa.datasets.base import Layout
from raymsa.errors import SpecError
from raymsa.plugins import Spec, kinds, union
from raymsa.problems import lines_for
from raymsa.readouts.base import Readout
from raymsa.yamlfile import read_mapping

PUBLISHED_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LAYOUTS = kinds("raymsa.datasets", Layout)
READOUTS = kinds("raymsa.readouts", Readout)


class ModelSpec(Spec):
    """The Thinker: which weights, and how they are held in memory."""

    path: str = Field(description="local folder, hub id, or `tiny`: a small random Thinker made on the spot")
    quantization: Literal["nf4", "none"] = Field("nf4", description="language model's linears: 4-bit NF4, or as loaded")
    compute: Literal["auto", "bfloat16", "float32"] = Field(
        "auto", description="number type of the arithmetic; auto is bfloat16 on a GPU and float32 on a CPU"
    )
    attention: Literal["sdpa", "eager", "flash_attention_2"] = Field("sdpa", description="attention implementation")


class InputsSpec(Spec):
    """What of a clip reaches the Thinker, and in which words."""

    modalities: tuple[Literal["text", "audio", "video"], ...] = Field(
        ("text", "audio", "video"), min_length=1, description="streams used; a clip without one goes through without it"
    )
    system: str = Field("You are a helpful assistant.", description="system message of the chat template")
    prompt: str = Field(
        "{text}\nHow does the speaker feel about the subject, from {low} (very negative) to {high} (very positive)? "
        "Answer with one signed number with two decimals.",
        description="user message after the media; {text} is the transcript, {low} and {high} the label range",
    )
    max_text_tokens: int = Field(512, ge=8, description="tokens of transcript kept per clip; the rest is cut off")

    @field_validator("modalities")
    @classmethod
    def _each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError("name each modality once")
        return tuple(m for m in ("text", "audio", "video") if m in value)

    @field_validator("prompt")
    @classmethod
    def _known_placeholders(cls, value: str) -> str:
        try:
            value.format(text="", low="", high="")
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(f"cannot fill in {error}; known are {{text}}, {{low}} and {{high}}") from None
        return value


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
    batch_tokens: int = Field(8192, ge=1, description="tokens, padding counted, per forward pass; more is accumulated")
    lora_lr: float = Field(2e-4, gt=0, description="peak learning rate of the adapters")
    head_lr: float = Field(1e-3, gt=0, description="peak learning rate of the readout's head")
    weight_decay: float = Field(0.01, ge=0, description="AdamW weight decay")
    warmup: float = Field(0.05, ge=0, lt=1, description="share of all steps in which the rate rises from 0")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are scaled down to this norm")
    patience: int = Field(3, ge=1, description="epochs without a better valid MAE before a run stops")
    checkpointing: bool = Field(True, description="recompute activations in the backward pass to save memory")
    checkpoint_every_s: float = Field(600, gt=0, description="seconds between resume points inside an epoch")
    window_clips: int = Field(256, ge=1, description="clips held in host memory to shuffle and sort by length")


class SearchSpec(Spec):
    """A search over any field of this file; Optuna proposes, valid MAE decides."""

    space: dict[str, dict[str, Any]] = Field(
        min_length=1,
        description="dotted field -> {choice: [...]}, {int: [low, high]}, {uniform: [low, high]} or {loguniform: ...}",
    )
    trials: int = Field(ge=1, description="settings to try")
    algorithm: Literal["tpe", "random"] = Field("tpe", description="how settings are proposed")

    @field_validator("space")
    @classmethod
    def _known_ranges(cls, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name, choice in value.items():
            _check_range(name, choice)
        return value


class ResourcesSpec(Spec):
    """What one run needs."""

    gpus: int = Field(1, ge=0, le=1, description="GPUs per run; 0 trains on the CPU")
    cpus: int = Field(1, ge=1, description="CPU cores per run")


class EvaluateSpec(Spec):
    """What is scored after training, with the weights that were best on valid."""

    splits: tuple[Literal["train", "valid", "test"], ...] = Field(
        ("valid", "test"), min_length=1, description="splits scored"
    )


class _JobBase(Spec):
    name: str = Field(description="short name of the job", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    model: ModelSpec = Field(description="the Thinker")
    inputs: InputsSpec = Field(default_factory=InputsSpec, description="what reaches the Thinker")
    lora: LoraSpec = Field(default_factory=LoraSpec, description="adapters")
    train: TrainSpec = Field(default_factory=TrainSpec, description="training")
    seeds: tuple[int, ...] = Field((1111, 2222, 3333, 4444), min_length=1, description="one run for each")
    variants: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="named sets of overrides; each is run with every seed, all else equal"
    )
    search: SearchSpec | None = Field(None, description="search over fields; null runs the file as it is")
    resources: ResourcesSpec = Field(default_factory=ResourcesSpec, description="what one run needs")
    evaluate: EvaluateSpec = Field(default_factory=EvaluateSpec, description="what is scored at the end")

    @field_validator("seeds")
    @classmethod
    def _different_seeds(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(value)) != len(value):
            raise ValueError("each seed once")
        return value

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
    raw = read_job(path)
    for text in overrides or []:
        raw = merge(raw, parse_override(text))
    return check(raw, str(path))


def read_job(path: Path) -> dict[str, Any]:
    """A job file as a mapping: `base:` and sections that name a file are read in; paths are relative to the file."""
    raw = read_mapping(path)
    base = raw.pop("base", None)
    if base is not None:
        if not isinstance(base, str):
            raise SpecError(f"{path}: base: given {base!r}; give the path of one file")
        raw = merge(read_job(path.parent / base), raw)
    for section in ("dataset", "model", "readout"):
        if isinstance(raw.get(section), str):
            raw[section] = read_mapping(path.parent / raw[section])
    return raw


def load_dataset(path: Path, overrides: list[str] | None = None) -> Layout:
    """The checked dataset config of a file such as configs/datasets/mosi.yaml."""
    raw = read_mapping(path)
    for text in overrides or []:
        raw = merge(raw, parse_override(text))
    return validate(_dataset_type(), raw, str(path))  # type: ignore[no-any-return]


def check(raw: dict[str, Any], where: str) -> Any:
    """A checked JobSpec, every variant and search field included."""
    job = validate(JobSpec, raw, where)
    for name, override in job.variants.items():
        _without_forks(override, f"{where}: variants.{name}")
        validate(JobSpec, merge(_forkless(job), override), f"{where}: variants.{name}")
    for field, choice in job.search.space.items() if job.search else ():
        for value in _ends(choice):
            validate(JobSpec, merge(_forkless(job), _nest(field, value)), f"{where}: search.space.{field}")
    return job


def validate(model: Any, raw: Any, where: str) -> Any:
    """`raw` as an instance of a Spec class, or a SpecError with one line per problem."""
    try:
        return TypeAdapter(model).validate_python(raw)
    except ValidationError as error:
        raise SpecError("\n".join(f"{where}: {line}" for line in lines_for(error, model, raw))) from None


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
    raw = run.spec.model_dump(mode="json")
    for field, value in values.items():
        raw = merge(raw, _nest(field, value))
    return run._replace(spec=check(raw, "search trial"))


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` laid on `base`, mapping by mapping; dotted keys reach inside. A section that changes its `kind` is
    replaced whole, because the fields of another kind would be unknown keys."""
    result = dict(base)
    for key, value in over.items():
        if "." in key and isinstance(key, str):
            result = merge(result, _nest(key, value))
            continue
        old = result.get(key)
        same_kind = (
            isinstance(old, dict) and isinstance(value, dict) and old.get("kind") == value.get("kind", old.get("kind"))
        )
        result[key] = merge(old, value) if same_kind else _undotted(value)  # type: ignore[arg-type]
    return result


def parse_override(text: str) -> dict[str, Any]:
    """`a.b=c` as a nested mapping; c is YAML."""
    from raymsa.yamlfile import parse_value

    field, equals, value = text.partition("=")
    if not equals or not all(field.split(".")):
        raise SpecError(f"--set {text}: write it as field=value, for example train.lora_lr=1e-4")
    return _nest(field.strip(), parse_value(value, f"--set {text}"))


def digest(spec: BaseModel) -> str:
    """sha256 (16 hex digits) of a resolved spec, the same for the same settings."""
    text = json.dumps(spec.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _forkless(job: Any) -> dict[str, Any]:
    raw: dict[str, Any] = job.model_dump(mode="json")
    return {**raw, "variants": {}, "search": None}


def _without_forks(override: dict[str, Any], where: str) -> None:
    for key in override:
        if key.split(".")[0] in ("variants", "search", "seeds", "name"):
            raise SpecError(f"{where}.{key}: a variant cannot change this; name settings of one run")


def _nest(field: str, value: Any) -> dict[str, Any]:
    for part in reversed(field.split(".")):
        value = {part: value}
    return value  # type: ignore[no-any-return]


def _undotted(value: Any) -> Any:
    return merge({}, value) if isinstance(value, dict) else value


def _check_range(name: str, choice: dict[str, Any]) -> None:
    if len(choice) != 1 or next(iter(choice)) not in ("choice", "int", "uniform", "loguniform"):
        raise ValueError(f"{name}: given {choice}; give one of choice, int, uniform, loguniform")
    kind, values = next(iter(choice.items()))
    if not isinstance(values, list) or not values:
        raise ValueError(f"{name}.{kind}: given {values!r}; give a list")
    if kind == "choice":
        return
    number = int if kind == "int" else (int, float)
    ends = [float(v) if isinstance(v, str) else v for v in values]  # YAML 1.1 reads 1e-4 as a string
    if len(ends) != 2 or not all(isinstance(v, number) for v in ends) or not ends[0] < ends[1]:
        raise ValueError(f"{name}.{kind}: given {values}; give [low, high] with low below high")
    if kind == "loguniform" and ends[0] <= 0:
        raise ValueError(f"{name}.{kind}: given {values}; low must be above 0")
    choice[kind] = ends


def _ends(choice: dict[str, Any]) -> list[Any]:
    return list(next(iter(choice.values())))


@cache
def _dataset_type() -> Any:
    return union(LAYOUTS)
