"""The sections of a job file that have no kinds: model, adapters, training, queue, resources, evaluation."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from raymsa.clip import SPLITS
from raymsa.plugins import Spec

PUBLISHED_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
CHECKPOINTING = {"none": False, "false": False, "true": True, "towers": "towers"}  # words for train.checkpointing


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
