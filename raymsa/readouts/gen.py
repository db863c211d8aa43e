"""Generative readout: the Thinker says the score, or the class word; greedy decoding, strict parser.

Trained on the answer tokens only. With `train.epochs: 0` it is the zero-shot baseline. Free decoding counts what cannot
be parsed; constrained decoding chooses among the target's answers alone, and is another setting, never a repair.

Axes: B clips, K tokens said at a time, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

from pydantic import Field

from raymsa.clip import Batch
from raymsa.errors import SpecError
from raymsa.readouts.base import Backbone, Embedded, Readout
from raymsa.target import Reading, Target

if TYPE_CHECKING:
    from torch import Tensor, nn

    from raymsa.readouts.grammar import Grammar

MOST_ANSWERS = 100_000  # a range from -500 to +500; the table takes some bytes for each


class Generative(Readout):
    """The model says the score as a signed number with two decimals, or a class by its name."""

    needs_lm_head: ClassVar[bool] = True
    decodes: ClassVar[bool] = True

    kind: Literal["gen"] = "gen"
    max_new_tokens: int = Field(8, ge=1, le=64, description="tokens decoded at most; a score has 5 or 6")
    constrained: bool = Field(
        False,
        description="choose only among tokens that lead to an answer: a score of the range as it is learned (`+1.40`), "
        "or a class's name; nothing is unparsable then, and tables name such rows",
    )

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
        if self.constrained and not 0 < target.answers_in_all <= MOST_ANSWERS:
            raise SpecError(
                f"readout.constrained: this target has {target.answers_in_all:,} answers, and 1 to {MOST_ANSWERS:,} "
                "can be told apart: leave it out"
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
        return [target.parse(text) for text in self._decode(head, thinker, batch, target)]

    def _decode(self, head: nn.Module | None, thinker: Backbone, batch: Batch, target: Target) -> list[str]:
        import torch

        if not bool(batch.mask_BT[:, -1].all()):
            raise ValueError("greedy decoding needs left padding")
        embedded = self.before(head, thinker.embed(batch), batch)
        position_3B1 = embedded.position_3BT.amax(dim=(0, 2), keepdim=True).expand(3, -1, 1)
        cache, mask_BT = thinker.new_cache(), embedded.mask_BT
        speaker = self._speaker(thinker, target, len(batch.ids))
        said: list[Tensor] = []
        with self.inside(head, thinker):
            hidden_BTD = thinker.hidden(embedded, cache)
            while True:
                token_BK = speaker(thinker.logits(hidden_BTD[:, -1]))
                said.append(token_BK)
                if speaker.over or sum(each.shape[1] for each in said) >= self.max_new_tokens:
                    break
                mask_BT = torch.cat([mask_BT, mask_BT.new_ones(token_BK.shape)], dim=1)
                position_3BK = position_3B1 + torch.arange(1, token_BK.shape[1] + 1, device=mask_BT.device)
                hidden_BTD = thinker.hidden(Embedded(thinker.embed_tokens(token_BK), mask_BT, position_3BK), cache)
                position_3B1 = position_3BK[..., -1:]
        stop = thinker.tokenizer.eos_token_id
        return [_until(row, stop, thinker) for row in torch.cat(said, dim=1).tolist()]

    def _speaker(self, thinker: Backbone, target: Target, clips: int) -> _Speaker:
        if not self.constrained:
            return _Free(thinker.tokenizer.eos_token_id)
        from raymsa.readouts.grammar import grammar

        return _Constrained(grammar(thinker.tokenizer, target).to(thinker.device), clips)


class _Speaker(Protocol):
    """What is said next, from the logits after what was said before; `over` once every answer has ended."""

    over: bool

    def __call__(self, logits_BV: Tensor) -> Tensor:
        """The next tokens [B, K]."""


class _Free:
    """The likeliest token of all."""

    def __init__(self, stop: int) -> None:
        self.over, self._stop = False, stop
        self._ended_B: Tensor | None = None

    def __call__(self, logits_BV: Tensor) -> Tensor:
        token_B = logits_BV.argmax(-1)
        ended_B = token_B == self._stop
        self._ended_B = ended_B if self._ended_B is None else self._ended_B | ended_B
        self.over = bool(self._ended_B.all())
        return token_B[:, None]


class _Constrained:
    """The likeliest token that leads to an answer, and those that must follow it in every clip: they cost no pass."""

    def __init__(self, grammar: Grammar, clips: int) -> None:
        self.over, self._grammar = False, grammar
        self._state_B = grammar.next_NA.new_zeros(clips)

    def __call__(self, logits_BV: Tensor) -> Tensor:
        import torch

        said = [self._say(self._grammar.best(logits_BV, self._state_B))]
        while not self.over and bool((only_B := self._grammar.only_N[self._state_B]).ge(0).all()):
            said.append(self._say(only_B))
        return torch.stack(said, dim=1)

    def _say(self, place_B: Tensor) -> Tensor:
        self._state_B = self._grammar.after(self._state_B, place_B)
        self.over = bool(self._grammar.ended_N[self._state_B].all())
        return self._grammar.token_A[place_B]


def _until(tokens: list[int], stop: int, thinker: Backbone) -> str:
    kept = tokens[: tokens.index(stop)] if stop in tokens else tokens
    return str(thinker.tokenizer.decode(kept, skip_special_tokens=False))
