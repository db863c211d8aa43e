"""The training loop: tensors only. It knows neither Ray nor files, so it runs on a bare GPU machine.

A step is a list of passes; the loss of a step is the mean over its clips, however they are cut into passes.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from raymsa.causes import NO_MEMORY
from raymsa.clip import Batch
from raymsa.errors import NonFiniteLoss, OutOfMemory, Stopped
from raymsa.spec import TrainSpec
from raymsa.training.student import Student
from raymsa.words import duration

STEPS_IN_A_RATE = 20  # steps differ in length (buckets), so one alone says little


@dataclass(frozen=True)
class Position:
    """Where a run is: enough, with the weights and the optimizer, to go on as if it had never stopped."""

    epoch: int = 0  # epochs finished
    step: int = 0  # optimizer steps done in all
    step_in_epoch: int = 0
    best_epoch: int = 0  # counted from 1; 0 is the model before training
    best_valid_error: float = math.inf  # MAE, or 1 - weighted F1 of classes: lower is better
    trained_s: float = field(default=0.0, compare=False)  # time in all steps so far, over all attempts
    waited_s: float = field(default=0.0, compare=False)  # the part of it that was spent waiting for clips

    def data_wait(self) -> float | None:
        """Share of the training time that was spent waiting for clips; None before the first step."""
        return self.waited_s / self.trained_s if self.trained_s else None

    def stale(self) -> int:
        """Epochs since the best one."""
        return self.epoch - self.best_epoch


@dataclass(frozen=True)
class Progress:
    """What one step did; rates are means over the last few steps."""

    position: Position
    epochs: int
    steps: int
    loss: float
    grad_norm: float
    clips_per_s: float
    tokens_per_s: float
    data_wait: float  # share of the time spent waiting for the next step's clips
    memory_bytes: int
    left_s: float

    def line(self) -> str:
        """One line a person can read."""
        p = self.position
        return (
            f"epoch {p.epoch + 1}/{self.epochs}  step {p.step}/{self.steps}  loss {self.loss:.4f}  "
            f"{self.clips_per_s:.1f} clips/s  {self.tokens_per_s:.0f} tokens/s  data wait {self.data_wait:.0%}  "
            f"{self.memory_bytes / 2**30:.2f} GiB  {duration(self.left_s)} left"
        )


class Watch(Protocol):
    """Who is told what happens; the worker's side of a run."""

    def step(self, progress: Progress) -> None:
        """After every optimizer step."""

    def epoch(self, position: Position, optimizer: torch.optim.Optimizer, valid_error: float, best: bool) -> None:
        """After every epoch, once valid has been scored."""

    def pause(self, position: Position, optimizer: torch.optim.Optimizer) -> None:
        """Inside an epoch, when a resume point is due."""

    def stopping(self) -> bool:
        """Somebody wants the run to end: asked after every step, and while valid is scored."""


@dataclass(frozen=True)
class Feed:
    """Where the loop's clips come from. Epochs are asked for in order, each followed by one valid pass."""

    steps: Callable[[int, int], Iterator[list[Batch]]]  # (epoch, steps to leave out) -> optimizer steps
    steps_per_epoch: int
    valid_error: Callable[[], float]


def fit(
    student: Student, train: TrainSpec, feed: Feed, watch: Watch, seed: int, start: Start | None = None
) -> Position:
    """Train until the last epoch, or until the valid error has not fallen for `patience` epochs.

    Raises NonFiniteLoss and OutOfMemory, each naming the step, and Stopped after a resume point was written.
    """
    position = Position()
    if train.epochs == 0:  # zero-shot: there is nothing to train, and AdamW takes no empty list
        return position
    optimizer = make_optimizer(student, train)
    if start is not None:
        position = start.position
        start.restore(optimizer)
    while position.epoch < train.epochs and position.stale() < train.patience:
        position = _epoch(student, train, feed, watch, seed, optimizer, position)
    return position


@dataclass(frozen=True)
class Start:
    """A checkpoint's position, and how its optimizer state is put back."""

    position: Position
    restore: Callable[[torch.optim.Optimizer], None]


def make_optimizer(student: Student, train: TrainSpec) -> torch.optim.Optimizer:
    """AdamW with separate rates for adapters and head; each group remembers its peak rate."""
    groups = student.groups(train)
    if train.optimizer == "adamw":
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(groups, weight_decay=train.weight_decay, fused=True)
    else:
        from bitsandbytes.optim import PagedAdamW8bit

        optimizer = PagedAdamW8bit(groups, weight_decay=train.weight_decay)
    for group in optimizer.param_groups:
        group["peak"] = group["lr"]
    return optimizer


def rate(step: int, steps: int, warmup: float) -> float:
    """Share of the peak learning rate at a step (from 0): linear warm-up, then half a cosine down to 0."""
    rising = math.ceil(steps * warmup)
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def _epoch(
    student: Student, train: TrainSpec, feed: Feed, watch: Watch, seed: int, optimizer: Any, position: Position
) -> Position:
    student.train_mode(True, train.checkpointing)
    meter = Meter(train.epochs * feed.steps_per_epoch, train.epochs, student.thinker.device)
    paused = time.monotonic()
    for batches in meter.waiting(feed.steps(position.epoch, position.step_in_epoch)):
        loss, norm = step(
            student, train, optimizer, batches, rate(position.step, meter.steps, train.warmup), seed, position
        )
        position = replace(position, step=position.step + 1, step_in_epoch=position.step_in_epoch + 1)
        progress = meter.progress(position, loss, norm, batches)
        position = progress.position
        watch.step(progress)
        stopping = watch.stopping()
        if stopping or time.monotonic() - paused > train.checkpoint_every_s:
            watch.pause(position, optimizer)
            paused = time.monotonic()
        if stopping:
            raise Stopped(f"stopped at step {position.step}")
    student.train_mode(False)
    try:
        valid_error = feed.valid_error()
    except Stopped:  # no step is done twice: the run goes on with valid
        watch.pause(position, optimizer)
        raise
    position = replace(position, epoch=position.epoch + 1, step_in_epoch=0)
    best = valid_error < position.best_valid_error
    if best:
        position = replace(position, best_epoch=position.epoch, best_valid_error=valid_error)
    watch.epoch(position, optimizer, valid_error, best)
    return position


def step(
    student: Student,
    train: TrainSpec,
    optimizer: torch.optim.Optimizer,
    batches: list[Batch],
    share: float,
    seed: int,
    position: Position,
) -> tuple[float, float]:
    """One optimizer step over all passes; returns the mean loss per clip and the gradient's norm before clipping."""
    torch.manual_seed(seed * 1_000_003 + position.step)  # dropout depends on the step alone: a resumed run is the same
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * share
    optimizer.zero_grad(set_to_none=True)
    clips = sum(len(batch.ids) for batch in batches)
    try:
        losses = [_backward(student, batch, clips) for batch in batches]
    except RuntimeError as error:  # torch's own class is for GPUs only
        if not any(words in str(error) for words in NO_MEMORY):
            raise
        raise OutOfMemory(_memory_advice(student, train, batches, position, error)) from None
    params = [p for group in optimizer.param_groups for p in group["params"]]
    norm = torch.nn.utils.clip_grad_norm_(params, train.max_grad_norm)
    # the step's only wait for the device
    *loss_of_clip, norm_before = torch.cat([*losses, norm.detach().float().view(1)]).tolist()
    _refuse_no_numbers(loss_of_clip, norm_before, [i for batch in batches for i in batch.ids], position)
    optimizer.step()
    return sum(loss_of_clip) / clips, norm_before


def _backward(student: Student, batch: Batch, clips: int) -> Tensor:
    """Gradients of a pass; its losses [B], still on the device."""
    loss_B = student.loss_B(batch)
    (loss_B.sum() / clips).backward()  # type: ignore[no-untyped-call]
    return loss_B.detach().float()


def _refuse_no_numbers(loss_of_clip: list[float], norm: float, ids: list[str], position: Position) -> None:
    bad = {i: loss for i, loss in zip(ids, loss_of_clip, strict=True) if not math.isfinite(loss)}
    if bad:
        raise NonFiniteLoss(_where("loss", sum(bad.values()), list(bad), position))
    if not math.isfinite(norm):
        raise NonFiniteLoss(_where("gradient", norm, ids, position))


def _where(what: str, value: float, ids: list[str], position: Position) -> str:
    shown = ", ".join(ids[:8]) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")
    return f"step {position.step + 1} (epoch {position.epoch + 1}): {what} is {value}; clips {shown}"


def _memory_advice(
    student: Student, train: TrainSpec, batches: list[Batch], position: Position, error: Exception
) -> str:
    widest = max(batch.tokens if student.thinker.packing else batch.mask_BT.numel() for batch in batches)
    return (
        f"step {position.step + 1}: out of memory in a pass of {widest} tokens; lower train.batch_tokens "
        f"(now {train.batch_tokens}) or set train.checkpointing=true ({str(error).splitlines()[0]})"
    )


class Meter:
    """Rates over the last few steps, and the time left at the mean pace of this epoch."""

    def __init__(self, steps: int, epochs: int, device: torch.device) -> None:
        self.steps, self.epochs, self._device = steps, epochs, device
        self._begun = self._last = time.monotonic()
        self._done = 0
        self._waited = 0.0
        self._recent: deque[tuple[float, float, int, int]] = deque(maxlen=STEPS_IN_A_RATE)

    def waiting(self, source: Iterable[list[Batch]]) -> Iterator[list[Batch]]:
        """The same steps, with the time spent waiting for each one counted."""
        items = iter(source)
        while True:
            asked = time.monotonic()
            batches = next(items, None)
            self._waited = time.monotonic() - asked
            if batches is None:
                return
            yield batches

    def progress(self, position: Position, loss: float, norm: float, batches: list[Batch]) -> Progress:
        """The step just done."""
        now = time.monotonic()
        took, self._last = now - self._last, now
        self._done += 1
        position = replace(position, trained_s=position.trained_s + took, waited_s=position.waited_s + self._waited)
        self._recent.append((took, self._waited, sum(len(b.ids) for b in batches), sum(b.tokens for b in batches)))
        seconds, waited, clips, tokens = (sum(column) for column in zip(*self._recent, strict=True))
        return Progress(
            position=position,
            epochs=self.epochs,
            steps=self.steps,
            loss=loss,
            grad_norm=norm,
            clips_per_s=clips / max(seconds, 1e-9),
            tokens_per_s=tokens / max(seconds, 1e-9),
            data_wait=min(1.0, waited / max(seconds, 1e-9)),
            memory_bytes=memory_bytes(self._device),
            left_s=(now - self._begun) / self._done * (self.steps - position.step),
        )


def memory_bytes(device: torch.device) -> int:
    """Peak memory so far: of the GPU when there is one, else of this process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
