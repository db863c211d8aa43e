"""Scores for new clips from a trained run: decode, one pass, read out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from raymsa.clip import Clip
from raymsa.errors import NotFinished, UsageError
from raymsa.home import run_dir
from raymsa.store import Store, queries

WORDS_ALONE = "-"


def predict(
    store: Store, run_prefix: str, paths: list[str], texts: list[str], context: tuple[str, ...] = ()
) -> list[dict[str, Any]]:
    """One row per path, in order: clip, score, text, parsed, in_range. `texts` has one for all or one for each.

    `context` is what was said before, oldest first, the same for every clip. Raises NotFinished when the run has no
    checkpoint, UsageError when it was trained without context, MediaError when a file cannot be decoded.
    """
    run = queries.run(store, run_prefix)  # before torch: a misspelt run is answered at once
    from raymsa.spec import JobSpec

    spec = JobSpec.model_validate(run.spec)
    if context and not spec.inputs.context:
        raise UsageError(f"run {run.id} was trained without context (inputs.context: 0); leave --context out")
    import torch

    from raymsa.training import checkpoint
    from raymsa.training.evaluate import score
    from raymsa.training.run import build, collate_for

    best = checkpoint.find(run_dir(run.id), "best")
    if best is None:
        raise NotFinished(f"run {run.id} is {run.state} and has no checkpoint to score with")
    said = zip(paths, _each(texts, len(paths)), strict=True)
    clips = [replace(_clip(path, text, spec), previous=context) for path, text in said]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    student = build(spec, checkpoint.target_of(best), device, best)
    found = score(student, collate_for(student, spec), clips, spec.train.batch_tokens)
    return [{"clip": path, **p.reading._asdict()} for path, p in zip(paths, found, strict=True)]


def _each(texts: list[str], count: int) -> list[str]:
    return texts * count if len(texts) == 1 else texts


def _clip(path: str, text: str, spec: Any) -> Clip:
    if path == WORDS_ALONE:
        if not text:
            raise UsageError("a clip of words alone (-) needs --text")
        return Clip(WORDS_ALONE, "", text, float("nan"), "test")
    from raymsa.data.media import decode

    media = decode(Path(path), spec.dataset.media)
    return Clip(path, "", text, float("nan"), "test", media.seconds, media.frames_FHWC, media.audio_S)
