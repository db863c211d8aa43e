"""Generative readout: the Thinker says the score, or the class word; greedy decoding, strict parser.

Trained on the answer tokens only. With `train.epochs: 0` it is the zero-shot baseline.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from raymsa.clip import Batch
from raymsa.errors import SpecError
from raymsa.readouts.base import Backbone, Embedded, Readout
from raymsa.target import Reading, Target

if TYPE_CHECKING:
    from torch import Tensor, nn


class Generative(Readout):
    """The model says the score as a signed number with two decimals, or a class by its name."""

    needs_lm_head: ClassVar[bool] = True
    decodes: ClassVar[bool] = True

    kind: Literal["gen"] = "gen"
    max_new_tokens: int = Field(8, ge=1, le=64, description="tokens decoded at most; a score has 5 or 6")

    def answer(self, label: float, target: Target) -> str:
        """`+1.40`, or the class's name."""
        return target.say(label)

    def check(self, tokens: Callable[[str], list[int]], target: Target) -> None:
        """An answer that is cut off could never be right."""
        longest = max(target.answers(), key=lambda answer: len(tokens(answer)))
        if len(tokens(longest)) > self.max_new_tokens:
            raise SpecError(
                f"readout.max_new_tokens: given {self.max_new_tokens}; the answer {longest!r} has "
                f"{len(tokens(longest))} tokens with its end: give that many or more"
            )

    def loss_B(self, head: nn.Module | None, thinker: Backbone, batch: Batch, target: Target) -> Tensor:
        """Mean cross-entropy over each clip's answer tokens; only their positions reach lm_head."""
        import torch
        from torch.nn.functional import cross_entropy

        if batch.learned_2K is None:
            raise ValueError("the batch was collated without answers")
        hidden_BTD, _ = self.run(head, thinker, batch)
        # `before` may have lengthened the sequence in front: answers are counted from its end
        hidden_BTD = hidden_BTD[:, -batch.token_BT.shape[1] :]
        row_K, column_K = batch.learned_2K  # indices and no mask: how many there are is known without asking the device
        logits_KV = thinker.logits(hidden_BTD[row_K, column_K - 1]).float()  # position t says token t + 1
        loss_K = cross_entropy(logits_KV, batch.token_BT[row_K, column_K], reduction="none")
        zero_B = loss_K.new_zeros(len(batch.ids))
        said_B = zero_B.index_add(0, row_K, torch.ones_like(loss_K))
        return zero_B.index_add(0, row_K, loss_K) / said_B * target.weight_B(batch.label_B)

    def read(self, head: nn.Module | None, thinker: Backbone, batch: Batch, target: Target) -> list[Reading]:
        """Decode greedily (left-padded batch) and parse."""
        return [target.parse(text) for text in self._decode(head, thinker, batch)]

    def _decode(self, head: nn.Module | None, thinker: Backbone, batch: Batch) -> list[str]:
        import torch

        if not bool(batch.mask_BT[:, -1].all()):
            raise ValueError("greedy decoding needs left padding")
        embedded = self.before(head, thinker.embed(batch), batch)
        position_3B1 = embedded.position_3BT.amax(dim=(0, 2), keepdim=True).expand(3, -1, 1)
        cache, mask_BT = thinker.new_cache(), embedded.mask_BT
        stop = thinker.tokenizer.eos_token_id
        said: list[Tensor] = []
        with self.inside(head, thinker):
            hidden_BTD = thinker.hidden(embedded, cache)
            for step in range(self.max_new_tokens):
                token_B = thinker.logits(hidden_BTD[:, -1]).argmax(-1)
                said.append(token_B)
                ended_B = (torch.stack(said) == stop).any(0)
                if step + 1 == self.max_new_tokens or bool(ended_B.all()):
                    break
                mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(token_B), 1)], dim=1)
                position_3B1 = position_3B1 + 1
                one = Embedded(thinker.embed_tokens(token_B[:, None]), mask_BT, position_3B1)
                hidden_BTD = thinker.hidden(one, cache)
        return [_until(row, stop, thinker) for row in torch.stack(said, dim=1).tolist()]


def _until(tokens: list[int], stop: int, thinker: Backbone) -> str:
    kept = tokens[: tokens.index(stop)] if stop in tokens else tokens
    return str(thinker.tokenizer.decode(kept, skip_special_tokens=False))
