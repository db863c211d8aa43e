"""Which settings would let a run fit into a card: each is estimated as the run itself is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from raymsa.errors import SpecError
from raymsa.estimate import Estimate
from raymsa.merge import merge
from raymsa.spec import check

LEAST_RANK = 8


class Change(NamedTuple):
    """Settings that differ from the job's, as `--set` takes them, and the bytes that the run would take with them."""

    settings: dict[str, Any]
    bytes: int


def changes(spec: Any, found: Estimate, again: Callable[[Any], Estimate], room: int) -> Iterator[Change]:
    """Every change that needs less, by itself; then, where none of them fits alone, all together one after another.

    `again` estimates a changed spec, `room` is what the run may take.
    """
    alone = []
    for settings in alternatives(spec, found):
        change = _tried(spec, settings, again)
        if change is not None and change.bytes < found.peak:
            alone.append(change)
            yield change
    if any(change.bytes <= room for change in alone):
        return
    together: dict[str, Any] = {}
    for change in alone:
        before, together = together, {**together, **change.settings}
        if before and (tried := _tried(spec, together, again)) is not None:
            yield tried
            if tried.bytes <= room:
                return


def alternatives(spec: Any, found: Estimate) -> Iterator[dict[str, Any]]:
    """Settings that may need less, those first that change nothing but the time it takes."""
    train, lora, media = spec.train, spec.lora, spec.dataset.media
    if train.epochs and train.checkpointing is not True:
        yield {"train.checkpointing": True}
    if not train.packing and spec.readout.packs():
        yield {"train.packing": True}
    if spec.model.quantization == "none":
        yield {"model.quantization": "nf4"}
    longest = max(found.tokens[name] // found.clips[name] for name in found.tokens)
    yield from ({"train.batch_tokens": size} for size in _halves(max(found.tokens.values()), longest))
    if train.epochs and train.optimizer == "adamw" and spec.resources.gpus:
        yield {"train.optimizer": "paged_adamw_8bit"}
    frozen = {} if lora.scope == "language_model" else {"lora.scope": "language_model"}
    if train.epochs and frozen:
        yield frozen
    if spec.inputs.cache == "none" and set(spec.inputs.modalities) != {"text"}:
        yield {**frozen, "inputs.cache": "towers"}
    if train.epochs and lora.rank > LEAST_RANK:
        yield {"lora.rank": max(LEAST_RANK, lora.rank // 2)}
    if "video" in spec.inputs.modalities:
        yield {"dataset.media.max_frames": max(2, media.max_frames // 2)}
        yield {"dataset.media.max_pixels": media.max_pixels // 2}
    for modality in ("video", "audio"):
        left = [m for m in spec.inputs.modalities if m != modality]
        if left and len(left) < len(spec.inputs.modalities):
            yield {"inputs.modalities": left}


def _halves(now: int, least: int) -> Iterator[int]:
    size = now // 2
    while size > least:
        yield size
        size //= 2
    if now > least:
        yield least


def _tried(spec: Any, settings: dict[str, Any], again: Callable[[Any], Estimate]) -> Change | None:
    """None where the spec cannot be changed so: a smaller frame than there is, a prompt that needs words."""
    try:
        changed = check(merge(spec.model_dump(mode="json"), settings), "estimate")
    except SpecError:
        return None
    return Change(settings, again(changed).peak)
