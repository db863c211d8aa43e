"""The readout interface: hooks before, inside and after the Thinker.

A run goes   batch -> thinker.embed -> readout.before -> thinker.hidden (within readout.inside) -> readout.loss / read.
A readout holds settings only; what it trains is the module that `head` returns, handed back to each hook.

Axes: B clips, T tokens, D width of the Thinker, V vocabulary.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

from raymsa.clip import Batch
from raymsa.plugins import Spec
from raymsa.target import Reading, Target

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


class Embedded(NamedTuple):
    """A batch as the language model takes it: words, sound and picture in one sequence per clip."""

    hidden_BTD: Tensor
    mask_BT: Tensor
    position_3BT: Tensor


class Backbone(Protocol):
    """What a readout may ask of the Thinker."""

    width: int
    device: torch.device
    tokenizer: Any

    def embed(self, batch: Batch) -> Embedded:
        """Tokens, sound and picture to one sequence of vectors per clip."""

    def embed_tokens(self, token_BT: Tensor) -> Tensor:
        """Word vectors alone."""

    def hidden(self, embedded: Embedded, cache: Any = None) -> Tensor:
        """Final-layer hidden states [B, T, D], after the last norm; grows `cache` when one is given."""

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """lm_head of the given positions [N, V]."""

    def new_cache(self) -> Any:
        """An empty key-value cache for `hidden`."""


class Readout(Spec):
    """How a score or a class is read out of the Thinker; the `Target` knows which, and its losses, words and parser."""

    needs_lm_head: ClassVar[bool] = False
    decodes: ClassVar[bool] = False  # `read` grows a cache token by token; those passes stay padded

    @classmethod
    def packs(cls) -> bool:
        """Whether clips may stand in one row inside the language model (`train.packing`).

        `before`, `loss_B` and `read` see one padded row per clip all the same. Blocks of `inside` would see one row for
        all clips: a readout that has any says here when that is all the same to them.
        """
        return cls.inside is Readout.inside

    def answer(self, label: float, target: Target) -> str | None:
        """The words to be learned for a label, or None when the readout learns no words."""
        return None

    def check(self, tokens: Callable[[str], list[int]], target: Target) -> None:
        """Called with the model's tokenizer before a run begins. Raises SpecError when this readout cannot work."""

    def head(self, width: int, target: Target) -> nn.Module | None:
        """The readout's own trainable parts, in fp32, or None."""
        return None

    def before(self, head: nn.Module | None, embedded: Embedded, batch: Batch) -> Embedded:
        """Hook before the Thinker: change or lengthen the sequence (pseudo tokens)."""
        return embedded

    def inside(self, head: nn.Module | None, thinker: Backbone) -> AbstractContextManager[None]:
        """Hook inside the Thinker: install blocks between its layers for the length of one pass."""
        return nullcontext()

    @abstractmethod
    def loss_B(self, head: nn.Module | None, thinker: Backbone, batch: Batch, target: Target) -> Tensor:
        """Hook after the Thinker, training: one loss per clip."""

    @abstractmethod
    def read(self, head: nn.Module | None, thinker: Backbone, batch: Batch, target: Target) -> list[Reading]:
        """Hook after the Thinker, evaluation: one reading per clip."""

    def state_BD(self, head: nn.Module | None, thinker: Backbone, batch: Batch) -> Tensor:
        """The final-layer hidden state that the answer is read from [B, D]: that of each clip's last token.

        A head reads all of the answer there, lm_head its first token.
        """
        hidden_BTD, embedded = self.run(head, thinker, batch)
        return last_token(hidden_BTD, embedded.mask_BT)

    def run(self, head: nn.Module | None, thinker: Backbone, batch: Batch) -> tuple[Tensor, Embedded]:
        """One pass with the hooks in place: hidden states and the sequence they belong to."""
        embedded = self.before(head, thinker.embed(batch), batch)
        with self.inside(head, thinker):
            return thinker.hidden(embedded), embedded


def last_token(hidden_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    """Hidden state [B, D] of each row's last real token, wherever the padding is.

    The paper's `sum(mask) - 1` (its Eq. 2) holds for right padding only; this is the last index where the mask is 1.
    """
    steps_T = mask_BT.new_ones(mask_BT.shape[1]).cumsum(0) - 1
    last_B = (mask_BT * steps_T).argmax(dim=1)
    return hidden_BTD[last_B.new_ones(len(last_B)).cumsum(0) - 1, last_B]
