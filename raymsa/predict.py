"""Scores for new clips from a trained run: decode, one pass, read out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raymsa.clip import Clip
from raymsa.errors import DataError, NotFinished, UsageError
from raymsa.home import run_dir
from raymsa.store import Store, queries
from raymsa.target import NO_CLASS, Classes, Reading, Target

if TYPE_CHECKING:
    from raymsa.training.student import Student

WORDS_ALONE = "-"


def predict(
    store: Store, run_prefix: str, paths: list[str], texts: list[str], context: tuple[str, ...] = ()
) -> list[dict[str, Any]]:
    """One row per path, in order: clip, score, text, parsed, in_range. `texts` has one for all or one for each.

    Where classes are predicted, `class` is the name, or None when the answer named none. `context` is what was said
    before, oldest first, the same for every clip. Raises NotFinished when the run has no checkpoint, SpecError or
    DataError when another raymsa made it, UsageError when it was trained without context, MediaError when a file cannot
    be decoded.
    """
    run = queries.run(store, run_prefix)  # before torch: a misspelt run is answered at once
    spec = spec_of(run)
    if context and not spec.inputs.context:
        raise UsageError(f"run {run.id} was trained without context (inputs.context: 0); leave --context out")
    best = best_of(run)
    said = zip(paths, _each(texts, len(paths)), strict=True)
    clips = [replace(_clip(path, text, spec), previous=context) for path, text in said]
    from raymsa.training.evaluate import score
    from raymsa.training.run import collate_for

    student = student_of(spec, best)
    found = score(student, collate_for(student, spec), clips, spec.train)
    return [{"clip": path, **_answer(student.target, p.reading)} for path, p in zip(paths, found, strict=True)]


def best_of(run: queries.RunRow) -> Path:
    """The folder of a run's best checkpoint. Raises NotFinished when there is none."""
    from raymsa.training import checkpoint

    best = checkpoint.find(run_dir(run.id), "best")
    if best is None:
        raise NotFinished(f"run {run.id} is {run.state} and has no checkpoint to score with")
    return best


def student_of(spec: Any, saved: Path) -> Student:
    """A trained student as a checkpoint folder has it, on the GPU where there is one and its runs asked for one.

    Raises SpecError or DataError when another raymsa made it.
    """
    import torch

    from raymsa.training import checkpoint
    from raymsa.training.run import build

    device = torch.device("cuda" if spec.resources.gpus and torch.cuda.is_available() else "cpu")
    return build(spec, checkpoint.target_of(saved), device, saved)


def spec_of(run: queries.RunRow) -> Any:
    """The spec that a run was made with. Raises SpecError or DataError when another raymsa made it."""
    from raymsa.spec import check

    if "task" not in run.spec["dataset"]:
        raise DataError(f"run {run.id}: was made by an older raymsa, which had no `task`; train again")
    return check(run.spec, f"run {run.id}")


def _answer(target: Target, reading: Reading) -> dict[str, Any]:
    if not isinstance(target, Classes):
        return reading._asdict()
    return {**reading._asdict(), "class": None if reading.score == NO_CLASS else target.say(reading.score)}


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
