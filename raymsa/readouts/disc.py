"""Discriminative readout: the last token's final hidden state -> a small head -> a score, or a softmax over classes.

Source: arXiv 2606.05713, Eq. 2 and 3. One forward pass, no lm_head.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from raymsa.clip import Batch
from raymsa.readouts.base import Backbone, Readout
from raymsa.target import Reading, Target

if TYPE_CHECKING:
    from torch import Tensor, nn


class Discriminative(Readout):
    """A small head on the hidden state of the last token."""

    kind: Literal["disc"] = "disc"
    head_width: int = Field(256, ge=1, description="units in the head's hidden layer")
    head_dropout: float = Field(0.2, ge=0, lt=1, description="share of head units dropped in training")

    def head(self, width: int, target: Target) -> nn.Module:
        """Linear -> LayerNorm -> ReLU -> Dropout -> Linear, in fp32."""
        from torch import float32, nn

        return nn.Sequential(
            nn.Linear(width, self.head_width),
            nn.LayerNorm(self.head_width),
            nn.ReLU(),
            nn.Dropout(self.head_dropout),
            nn.Linear(self.head_width, target.outputs),
        ).to(float32)

    def loss_B(self, head: nn.Module | None, thinker: Backbone, batch: Batch, target: Target) -> Tensor:
        """The target's loss of the head's outputs: L1 of a z-scored score, or cross-entropy of the classes."""
        return target.loss_B(self._out_BK(head, thinker, batch), batch.label_B) * target.weight_B(batch.label_B)

    def read(self, head: nn.Module | None, thinker: Backbone, batch: Batch, target: Target) -> list[Reading]:
        """One forward pass, one reading per clip."""
        return target.read(self._out_BK(head, thinker, batch))

    def _out_BK(self, head: nn.Module | None, thinker: Backbone, batch: Batch) -> Tensor:
        import torch

        state_BD = self.state_BD(head, thinker, batch)
        assert head is not None
        with torch.autocast(state_BD.device.type, enabled=False):  # the head stays in fp32 under bf16 autocast
            out_BK: Tensor = head(state_BD.float())
        return out_BK
