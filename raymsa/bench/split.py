"""Where the time of a training step goes, measured from outside: by hooks on the model, not by code in the loop.

On a GPU the marks are events on its stream, read once a step is over; nothing waits inside a step because of them.
What is recomputed in the backward pass (checkpointing) counts as backward.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

T = TypeVar("T")
PARTS = ("data wait", "towers", "Thinker forward", "backward", "optimizer", "rest")
MODULES = {  # last word of a module's name -> the part it belongs to
    "audio_tower": "towers",
    "visual": "towers",
    "language_model": "Thinker forward",
    "lm_head": "Thinker forward",
}


class Split:
    """Seconds of each part of the steps so far; one row per step."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._spans: list[tuple[str, Any, Any]] = []
        self._waited = 0.0
        self._after_backward: Any = None
        self._begun = time.perf_counter()
        self.rows: list[dict[str, float]] = []

    @property
    def seconds(self) -> list[float]:
        """Of each step, everything counted."""
        return [sum(row.values()) for row in self.rows]

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What happens meanwhile belongs to the part `name`."""
        start = self._mark()
        yield
        self._spans.append((name, start, self._mark()))

    @contextmanager
    def wait(self) -> Iterator[None]:
        """Meanwhile the host makes or waits for inputs."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    def waiting(self, source: Iterable[T]) -> Iterator[T]:
        """The same items; the time that each one takes to come is data wait."""
        items = iter(source)
        while True:
            with self.wait():
                item = next(items, None)
            if item is None:
                return
            yield item

    def end_step(self) -> None:
        """A step is over; the next one begins."""
        if self._cuda:
            torch.cuda.synchronize()
        now = time.perf_counter()
        row: dict[str, float] = defaultdict(float)
        row["data wait"] = self._waited
        for name, start, end in self._spans:
            row[name] += start.elapsed_time(end) / 1000 if self._cuda else end - start
        row["rest"] = max(0.0, now - self._begun - sum(row.values()))
        self.rows.append({name: row[name] for name in PARTS})
        self.begin()

    def begin(self) -> None:
        """Time is counted from now on; what was measured of an unfinished step is left out."""
        self._spans, self._waited, self._after_backward = [], 0.0, None
        self._begun = time.perf_counter()

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Meanwhile the model's parts, every backward pass and every optimizer step are timed."""
        named = {name: module for name, module in model.named_modules() if name.rsplit(".", 1)[-1] in MODULES}
        hooks = [hook for name, module in named.items() for hook in self._on(module, MODULES[name.rsplit(".", 1)[-1]])]
        hooks.append(register_optimizer_step_post_hook(self._after_optimizer))
        original = torch.Tensor.backward

        def backward(tensor: torch.Tensor, *arguments: Any, **options: Any) -> None:
            with self.part("backward"):
                original(tensor, *arguments, **options)  # type: ignore[no-untyped-call]
            self._after_backward = self._mark()

        torch.Tensor.backward = backward  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            torch.Tensor.backward = original  # type: ignore[method-assign]
            for hook in hooks:
                hook.remove()

    def _on(self, module: nn.Module, name: str) -> list[Any]:
        started: list[Any] = []

        def before(*_: Any) -> None:
            started.append(self._mark())

        def after(*_: Any) -> None:
            self._spans.append((name, started.pop(), self._mark()))

        return [module.register_forward_pre_hook(before), module.register_forward_hook(after)]

    def _after_optimizer(self, *_: Any) -> None:
        if self._after_backward is not None:  # gradients are clipped in between: that is part of it
            self._spans.append(("optimizer", self._after_backward, self._mark()))

    def _mark(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event
