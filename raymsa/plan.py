"""What a job stands for: where its clips are, which tasks and runs it has, and what it would train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from raymsa.data.manifest import FORMAT, shaping
from raymsa.datasets.base import Layout
from raymsa.home import home, shards_dir
from raymsa.place import absolute, place
from raymsa.spec import ModelSpec, Run, digest_of_plain, runs
from raymsa.store.overview import planned_runs
from raymsa.target import Labels


def tasks_of(job: Any) -> tuple[str, ...]:
    """The kinds of a job's tasks, in their order."""
    return ("prepare", "train", *(["confirm"] if job.search and job.search.confirm else []))


def anchored(job: Any) -> Any:
    """The job with absolute paths: a driver in another folder must find the same clips and the same model."""
    paths = {name: getattr(job.dataset, name) for name in ("raw", "shards")}
    fixed = {name: absolute(path) for name, path in paths.items() if path}
    return job.model_copy(
        update={
            "dataset": job.dataset.model_copy(update=fixed),
            "model": job.model.model_copy(update={"path": _anchored_model(job.model.path)}),
            "variants": {name: _with_anchored_model(override) for name, override in job.variants.items()},
        }
    )


def _anchored_model(path: str) -> str:
    local = Path(path).expanduser()
    return str(local.absolute()) if path != "tiny" and local.exists() else path


def _with_anchored_model(override: dict[str, Any]) -> dict[str, Any]:
    model = override.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("path"), str):
        return override
    return {**override, "model": {**model, "path": _anchored_model(model["path"])}}


def shards_of(dataset: Layout) -> Path:
    """Where a dataset's shards are: as its config says, or a folder of raymsa's own for these clips and settings."""
    if dataset.shards:
        return place(dataset.shards)
    return shards_dir() / _name(dataset)


def raw_of(dataset: Layout) -> Path:
    """Where a dataset's raw clips are; a dataset that makes its own has a folder under RAYMSA_HOME."""
    return place(dataset.raw) if dataset.raw else home() / "raw" / _name(dataset)


def _name(dataset: Layout) -> str:
    """The same for the same clips: how they are judged later (published counts, metric rules) is no part of it."""
    raw = absolute(dataset.raw) if dataset.raw else None
    about = {**shaping(dataset.model_dump(mode="json")), "raw": raw, "format": FORMAT}
    return f"{dataset.name}-{digest_of_plain(about)}"


def run_id(job_id: str, run: Run) -> str:
    """A run's id: the same every time its job is taken up again."""
    return f"{job_id}-{run.variant}-{run.seed}"


def plan(job: Any) -> dict[str, Any]:
    """Runs, tasks, trainable parameters per variant, and where the shards are; writes nothing."""
    made = runs(job)
    shards = shards_of(job.dataset)
    there = (shards / "manifest.json").exists()
    return {
        "runs": planned_runs(job.model_dump(mode="json")),
        "tasks": len(tasks_of(job)),
        **{f"trainable parameters of {run.variant}": trainable(run.spec) for run in made if run.seed == job.seeds[0]},
        "raw clips": str(raw_of(job.dataset)),
        "shards": f"{shards} ({'there' if there else 'to be made'})",
    }


def trainable(spec: Any) -> int | str:
    """Parameters a run would train, adapters and head; words when the model's config is not at hand."""
    from raymsa.thinker.geometry import parameter_counts

    if not spec.train.epochs:
        return 0
    config = _config(spec.model)
    if isinstance(config, str):
        return config
    head = spec.readout.head(config.text_config.hidden_size, spec.dataset.task.with_labels(Labels()))
    own = sum(p.numel() for p in head.parameters()) if head is not None else 0
    return own + parameter_counts(config, spec.lora, spec.inputs.modalities).lora


def _config(model: ModelSpec) -> Any:
    from transformers import Qwen2_5OmniThinkerConfig

    from raymsa.thinker.geometry import GEOMETRY
    from raymsa.thinker.tiny import tiny_config

    known = {**GEOMETRY, "tiny": tiny_config}
    if model.path in known:
        return known[model.path]()
    path = Path(model.path).expanduser()
    try:
        return Qwen2_5OmniThinkerConfig.from_pretrained(path if path.exists() else model.path, local_files_only=True)
    except (OSError, ValueError):
        return f"not known before {model.path} is downloaded"
