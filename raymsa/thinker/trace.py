"""From a few layers of each part to all of them: what a pass would take at its peak.

Layers of a part are alike, so whatever a middle one leaves behind (its weights, what it keeps for the backward pass,
its gradients), each of those left out would leave behind, too, from the same moment on. The peak is the highest of all
moments, each with what the missing layers would hold in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from raymsa.thinker.live import Live

FORWARD, BACKWARD = "forward", "backward"


@dataclass
class Moment:
    """The time from one layer's beginning to the next one's; `forward`, `backward`: parts whose middle is through."""

    where: str
    way: str
    forward: frozenset[str]
    backward: frozenset[str]
    peak: int = 0


class Trace:
    """Listens to a Thinker's layers during one pass."""

    def __init__(self, live: Live, layers: dict[str, list[nn.Module]], left_out: dict[str, int]) -> None:
        self._live, self._left_out = live, left_out
        self._first: dict[tuple[str, str, int], int] = {}  # bytes when a layer first began, by part, phase and layer
        self._way = FORWARD
        self._moments: list[Moment] = []
        self._through: dict[str, set[str]] = {FORWARD: set(), BACKWARD: set()}
        self._handles: list[Any] = []
        self._begin("before the first layer")
        for part, modules in layers.items():
            for index, module in enumerate(modules):
                self._listen(part, index, len(modules), module)

    def backward(self) -> None:
        """From now on it is the backward pass; layers that begin are computed again."""
        self._way = BACKWARD
        self._begin("between forward and backward")

    def end(self) -> None:
        """Stop listening."""
        self._close()
        for handle in self._handles:
            handle.remove()

    def peak(self, layer: dict[str, int], gradients: dict[str, int]) -> tuple[int, str]:
        """Bytes at the peak with all layers, and where that is.

        `layer` has the lasting bytes of one layer, `gradients` what its backward pass adds to them, by part.
        """
        return max((moment.peak + self._missing(moment, layer, gradients), moment.where) for moment in self._moments)

    def _missing(self, moment: Moment, layer: dict[str, int], gradients: dict[str, int]) -> int:
        each = {part: layer[part] + self._left_by(part, moment, gradients[part]) for part in self._left_out}
        return sum(count * each[part] for part, count in self._left_out.items())

    def _left_by(self, part: str, moment: Moment, gradients: int) -> int:
        """What a middle layer holds at a moment beside its weights: nothing, what it kept, its gradients."""
        if part not in moment.forward or not self._left_out[part]:
            return 0
        if moment.way == FORWARD:
            return self._first[part, FORWARD, 2] - self._first[part, FORWARD, 1]
        if part in moment.backward:
            return gradients
        if (part, BACKWARD, 0) not in self._first:  # it is frozen
            return 0
        # not what was kept in the forward pass: autocast lets go of its copies of the adapters in between
        return gradients + self._first[part, BACKWARD, 1] - self._first[part, BACKWARD, 0]

    def _listen(self, part: str, index: int, of: int, module: nn.Module) -> None:
        def begins(*_: Any) -> None:
            self._enter(part, index, of)

        def ends(_module: nn.Module, _given: Any, out: Any) -> None:
            hidden: Tensor = out[0] if isinstance(out, tuple) else out
            if hidden.requires_grad and self._way == FORWARD:
                hidden.register_hook(begins)  # type: ignore[no-untyped-call]

        self._handles += [module.register_forward_pre_hook(begins), module.register_forward_hook(ends)]

    def _enter(self, part: str, index: int, of: int) -> None:
        self._close()
        self._first.setdefault((part, self._way, index), self._live.now)
        if index == (of - 1 if self._way == FORWARD else 0):
            self._through[self._way].add(part)
        place = "first" if index == 0 else "last" if index == of - 1 else "middle"
        self._begin(f"{self._way} of the {part.replace('_', ' ')}, {place} layer")

    def _begin(self, where: str) -> None:
        if self._moments:
            self._close()
        self._live.peak = self._live.now
        forward, backward = frozenset(self._through[FORWARD]), frozenset(self._through[BACKWARD])
        self._moments.append(Moment(where, self._way, forward, backward))

    def _close(self) -> None:
        self._moments[-1].peak = max(self._moments[-1].peak, self._live.peak)
