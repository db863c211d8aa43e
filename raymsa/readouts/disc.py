"""Discriminative readout: the last token's final hidden state -> a small regression head -> a score.

Source: arXiv 2606.05713, Eq. 2 and 3. One forward pass, no lm_head.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from raymsa.clip import Batch, Scale
from raymsa.readouts.base import Backbone, Reading, Readout, clip_to_range, last_token

if TYPE_CHECKING:
    from torch import Tensor, nn


class Discriminative(Readout):
    """A regression head on the hidden state of the last token."""

    kind: Literal["disc"] = "disc"
    head_width: int = Field(256, ge=1, description="units in the head's hidden layer")
    head_dropout: float = Field(0.2, ge=0, lt=1, description="share of head units dropped in training")

    def head(self, width: int) -> nn.Module:
        """Linear -> LayerNorm -> ReLU -> Dropout -> Linear, in fp32."""
        from torch import float32, nn

        return nn.Sequential(
            nn.Linear(width, self.head_width),
            nn.LayerNorm(self.head_width),
            nn.ReLU(),
            nn.Dropout(self.head_dropout),
            nn.Linear(self.head_width, 1),
        ).to(float32)

    def loss_B(self, head: nn.Module | None, thinker: Backbone, batch: Batch, scale: Scale) -> Tensor:
        """L1 between the head's output and the label z-scored with the training mean and sd."""
        target_B = (batch.label_B - scale.mean) / scale.sd
        return (self._z_B(head, thinker, batch) - target_B).abs()

    def read(self, head: nn.Module | None, thinker: Backbone, batch: Batch, scale: Scale) -> list[Reading]:
        """De-normalised scores, clipped to the label range; a score outside it is marked."""
        scores = (self._z_B(head, thinker, batch).double() * scale.sd + scale.mean).tolist()
        return [Reading(clip_to_range(s, scale), in_range=scale.low <= s <= scale.high) for s in scores]

    def _z_B(self, head: nn.Module | None, thinker: Backbone, batch: Batch) -> Tensor:
        import torch

        hidden_BTD, embedded = self.run(head, thinker, batch)
        assert head is not None
        with torch.autocast(hidden_BTD.device.type, enabled=False):  # the head stays in fp32 under bf16 autocast
            z_B: Tensor = head(last_token(hidden_BTD, embedded.mask_BT).float()).squeeze(-1)
        return z_B
