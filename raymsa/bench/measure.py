"""One side measured in this process: loading, training, scoring, and what it said of the same clips."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from raymsa.bench.clips import First, Prepared, Source, source
from raymsa.bench.machine import forget_peaks, matrix_rate, name_of, operations, peaks
from raymsa.bench.request import Request
from raymsa.bench.sides import Side, side_of
from raymsa.bench.split import PARTS, Split
from raymsa.causes import NO_MEMORY
from raymsa.clip import Clip
from raymsa.spec import JobSpec
from raymsa.thinker.load import compute_type
from raymsa.training.towers import cached

COMPARED = 4  # clips whose losses and scores are kept, to be held against the other side's
BATCHES = (1, 4, 16, 64)  # clips at a time, in scoring

Say = Callable[[str], None]


def measure(request: Request, say: Say) -> dict[str, Any]:
    """Everything that is printed of one side, as plain data: seconds, bytes, operations, clips."""
    spec: Any = JobSpec.model_validate(request.spec)
    device = torch.device("cuda" if spec.resources.gpus and torch.cuda.is_available() else "cpu")
    if spec.resources.gpus and device.type == "cpu":
        say(f"{request.side}: there is no GPU here; this is the CPU")
    if device.type == "cpu":
        torch.set_num_threads(spec.resources.cpus)
    most = spec.train.batch_clips * max(1, request.steps)
    clips = First(_source(request, spec, most, device, say), most)
    scored = clips.scored(request.clips)
    forget_peaks(device)
    say(f"{request.side}: loading {request.weights} weights")
    begun = time.perf_counter()
    side = side_of(request, clips.target, device)
    _synchronise(device)
    found: dict[str, Any] = {
        "side": request.side,
        "device": name_of(device),
        "weights": request.weights,
        "load": {"seconds": time.perf_counter() - begun, **peaks(device)},
        "matrix_rate": matrix_rate(device, compute_type(spec.model, device)),
        "losses": side.losses(scored[:COMPARED]),
        "scores": [reading.score for reading in side.score(scored[:COMPARED], COMPARED)],
    }
    if spec.train.epochs and request.steps:
        say(f"{request.side}: training for {request.warm_up} + {request.steps} steps")
        found["training"] = _training(request, side, clips, device)
    if scored:
        say(f"{request.side}: scoring {len(scored)} clips")
        found["scoring"] = _scoring(side, scored, device)
    return found


def _source(request: Request, spec: Any, most: int, device: torch.device, say: Say) -> Source:
    """The clips; with the towers' outputs in place of media where raymsa reads them (`inputs.cache`)."""
    clips = source(spec, request.shards, request.made_up, most)
    if request.side != "raymsa" or spec.inputs.cache == "none" or not isinstance(clips, Prepared):
        return clips
    return replace(clips, shards=cached(spec, clips.manifest, clips.shards, device, say, lambda: False))


def _training(request: Request, side: Side, clips: Source, device: torch.device) -> dict[str, Any]:
    split = Split(device)
    told: list[tuple[float, int, int]] = []
    side.train(clips, request.warm_up, Split(device), lambda *_: None)
    forget_peaks(device)
    with split.watching(side.model):
        split.begin()
        side.train(clips, request.steps, split, lambda *figures: told.append(figures))
    most = peaks(device)
    seconds, tokens = sum(split.seconds), sum(figures[2] for figures in told)
    per_token = _operations_per_token(side)
    return {
        "steps": len(told),
        "clips": sum(figures[1] for figures in told),
        "tokens": tokens,
        "clips_per_s": sum(figures[1] for figures in told) / seconds,
        "tokens_per_s": tokens / seconds,
        "step_s": seconds / len(told),
        "split": {part: statistics.mean(row[part] for row in split.rows) for part in PARTS},
        "operations_per_token": per_token,
        "operations_per_s": per_token * tokens / seconds,
        "losses": [figures[0] for figures in told],
        **most,
    }


def _operations_per_token(side: Side) -> float:
    tokens = 0

    def last_step() -> None:
        nonlocal tokens
        tokens = side.again()

    return operations(last_step) / tokens


def _scoring(side: Side, clips: list[Clip], device: torch.device) -> dict[str, Any]:
    side.score(clips[:1], 1)
    latencies = [_timed(partial(side.score, [clip], 1), device) for clip in clips[:16]]
    rates, most = _rates(side, clips, device)
    best = max(rates, key=rates.__getitem__)
    return {
        "clips": len(clips),
        "latency_s": statistics.median(latencies),
        "clips_per_s": rates[best],
        "best_batch": best,
        "clips_per_s_by_batch": {str(batch): rate for batch, rate in rates.items()},
        **most[best],
    }


def _rates(side: Side, clips: list[Clip], device: torch.device) -> tuple[dict[int, float], dict[int, dict[str, int]]]:
    """Clips per second and peaks for every number of clips at a time, until more are slower or do not fit."""
    rates: dict[int, float] = {}
    most: dict[int, dict[str, int]] = {}
    for batch in BATCHES:
        if batch > len(clips) or (rates and rates[max(rates)] < 0.9 * max(rates.values())):
            break
        forget_peaks(device)
        try:
            rates[batch] = len(clips) / _timed(partial(side.score, clips, batch), device)
        except RuntimeError as error:
            if batch == 1 or not any(words in str(error) for words in NO_MEMORY):
                raise
            break
        most[batch] = peaks(device)
    return rates, most


def _timed(work: Callable[[], Any], device: torch.device) -> float:
    begun = time.perf_counter()
    work()
    _synchronise(device)
    return time.perf_counter() - begun


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
