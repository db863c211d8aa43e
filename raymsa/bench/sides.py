"""The two sides of a bench behind one interface: raymsa's own loop, and the plain recipe."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import islice
from typing import Any, Protocol, TypeVar

import torch

from raymsa.bench.clips import Source
from raymsa.bench.request import Request, checked
from raymsa.bench.split import Split
from raymsa.clip import Batch, Clip
from raymsa.errors import Stopped
from raymsa.spec import JobSpec
from raymsa.target import Reading, Target
from raymsa.thinker.geometry import known_folder
from raymsa.thinker.load import absent_parts, compute_type, load, open_folder, with_adapters
from raymsa.thinker.random_weights import random_thinker
from raymsa.training.loop import Feed, Position, Progress, fit
from raymsa.training.run import collate_for, student_of, training_steps

T = TypeVar("T")
OnStep = Callable[[float, int, int], None]  # mean loss, clips, tokens without padding


class Side(Protocol):
    """A loaded model that can be trained and can score."""

    model: torch.nn.Module

    def losses(self, clips: list[Clip]) -> list[float]:
        """The loss of each clip, without dropout."""

    def train(self, source: Source, steps: int, split: Split, on_step: OnStep) -> None:
        """Train for a number of optimizer steps."""

    def again(self) -> int:
        """Forward and backward passes of the last step once more; returns their tokens, padding not counted."""

    def score(self, clips: list[Clip], batch: int) -> list[Reading]:
        """Readings of the clips, `batch` of them at a time."""


class Ours:
    """raymsa: the loop, batches and scoring of a run."""

    def __init__(self, request: Request, target: Target, device: torch.device) -> None:
        spec: Any = JobSpec.model_validate(request.spec)
        lora = spec.lora if spec.train.epochs else None
        modalities = spec.inputs.modalities if spec.inputs.cache == "none" else ("text",)
        absent = absent_parts(modalities, spec.readout.needs_lm_head)
        torch.manual_seed(spec.seeds[0])
        if request.weights == "random":
            folder = known_folder(spec.model)
            thinker = with_adapters(random_thinker(spec.model, folder, absent, device), folder, lora, device)
        else:
            thinker = load(spec.model, lora, modalities, spec.readout.needs_lm_head, device)
        torch.manual_seed(spec.seeds[0])
        self._student = student_of(thinker, spec, target)
        self._collate = collate_for(self._student, spec)
        self._spec, self._last = spec, list[Batch]()
        self.model = thinker.model

    def losses(self, clips: list[Clip]) -> list[float]:
        """See Side."""
        self._student.train_mode(False)
        with torch.no_grad():
            batch = self._collate([self._collate.measure(clip) for clip in clips], answers=True)
            found: list[float] = self._student.loss_B(batch).tolist()
        return found

    def train(self, source: Source, steps: int, split: Split, on_step: OnStep) -> None:
        """See Side."""
        if not steps:
            return
        # As many epochs as steps: the loop must not end before it is told to.
        train = self._spec.train.model_copy(update={"epochs": steps, "patience": steps})

        def epoch_steps(epoch: int, skip: int) -> Iterator[list[Batch]]:
            steps = training_steps(self._spec, self._student, self._collate, source.epoch(epoch), epoch, skip)
            for batches in split.waiting(steps):
                self._last = batches
                yield batches

        falling = itertools.count(0, -1)
        feed = Feed(epoch_steps, steps, lambda: float(next(falling)))
        with suppress(Stopped):
            fit(self._student, train, feed, _Watch(self, steps, split, on_step), self._spec.seeds[0])

    def again(self) -> int:
        """See Side."""
        for batch in self._last:
            self._student.loss_B(batch).sum().backward()  # type: ignore[no-untyped-call]
        return sum(batch.tokens for batch in self._last)

    def score(self, clips: list[Clip], batch: int) -> list[Reading]:
        """See Side."""
        self._student.train_mode(False)
        measured = [self._collate.measure(clip) for clip in clips]
        # As `score` does a window, but for the passes: into a budget of tokens more short clips than `batch` may fit.
        order = sorted(range(len(clips)), key=lambda at: -len(measured[at].token_T))
        passes = self._collate.ahead(self._collate([measured[at] for at in some]) for some in _cut(order, batch))
        made = [reading for one in passes for reading in self._student.read(one)]
        found = dict(zip(order, made, strict=True))
        return [found[at] for at in range(len(clips))]


class _Watch:
    """Ends the loop after some steps."""

    def __init__(self, side: Ours, steps: int, split: Split, on_step: OnStep) -> None:
        self._side, self._steps, self._split, self._on_step = side, steps, split, on_step
        self._done = 0

    def step(self, progress: Progress) -> None:
        self._split.end_step()
        batches = self._side._last
        self._on_step(progress.loss, sum(len(b.ids) for b in batches), sum(b.tokens for b in batches))
        self._done += 1

    def epoch(self, position: Position, optimizer: torch.optim.Optimizer, valid_error: float, best: bool) -> None:
        """Nothing is kept."""

    def pause(self, position: Position, optimizer: torch.optim.Optimizer) -> None:
        """Nothing is kept."""

    def stopping(self) -> bool:
        return self._done >= self._steps


class Peer:
    """The plain recipe: as many clips in each pass, in the order in which they come, the processor in the loop."""

    def __init__(self, request: Request, target: Target, device: torch.device) -> None:
        assert request.recipe is not None
        spec: Any = JobSpec.model_validate(request.spec)
        recipe = checked(request.recipe, spec)
        dtype = compute_type(spec.model, device)
        if request.weights == "random":
            folder = known_folder(spec.model)
            model = random_thinker(spec.model, folder, (), device)
        else:
            folder = open_folder(spec.model)
            quantised = spec.model.quantization == "nf4"
            model = recipe.load_model(folder.path, dtype, device, quantised, spec.model.attention)
        self._plain = recipe.Plain(spec, target, model, folder, device, dtype)
        self._spec, self._folder = spec, folder
        self._batch = request.plain_batch
        self._last = list[Clip]()
        self.model = self._plain.model

    def losses(self, clips: list[Clip]) -> list[float]:
        """See Side."""
        self._plain.model.eval()
        if self._plain.head is not None:
            self._plain.head.eval()
        with torch.no_grad():
            found: list[float] = self._plain.loss_B(clips, self._plain.inputs(clips, answers=True)).tolist()
        return found

    def train(self, source: Source, steps: int, split: Split, on_step: OnStep) -> None:
        """See Side."""
        original = self._plain.inputs

        def timed(*arguments: Any, **options: Any) -> Any:
            with split.wait():
                return original(*arguments, **options)

        self._plain.inputs = timed
        self._batch = self._batch or self._fitting(source)
        for clips in islice(split.waiting(self._groups(source)), steps):
            tokens: list[int] = []
            loss = self._plain.step(clips, self._batch, tokens.append)
            split.end_step()
            self._last = clips
            on_step(loss, len(clips), sum(tokens))
        self._plain.inputs = original

    def again(self) -> int:
        """See Side."""
        assert self._batch is not None
        tokens = 0
        for some in _cut(self._last, self._batch):
            inputs = self._plain.inputs(some, answers=True)
            tokens += int(inputs["attention_mask"].sum())
            self._plain.loss_B(some, inputs).sum().backward()
        return tokens

    def score(self, clips: list[Clip], batch: int) -> list[Reading]:
        """See Side."""
        return [reading for some in _cut(clips, batch) for reading in self._plain.read(some)]

    def _groups(self, source: Source) -> Iterator[list[Clip]]:
        for epoch in itertools.count():
            yield from _cut(source.epoch(epoch), self._spec.train.batch_clips)

    def _fitting(self, source: Source) -> int:
        """As many clips as fit the job's token budget when all are as long as the longest of one step's."""
        lengths = [self._plain.inputs([clip])["input_ids"].shape[1] for clip in next(self._groups(source))]
        return int(max(1, self._spec.train.batch_tokens // max(lengths)))


def side_of(request: Request, target: Target, device: torch.device) -> Side:
    """The loaded side that a request names."""
    return Ours(request, target, device) if request.side == "raymsa" else Peer(request, target, device)


def _cut(items: Iterable[T], size: int) -> Iterator[list[T]]:
    source = iter(items)
    while some := list(islice(source, size)):
        yield some
