"""All answers that a target has, as a table over tokens: what decoding may say next after what it has said.

Axes: A tokens that occur in an answer, N states (what was said so far), B clips, V vocabulary.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from raymsa.target import Target

if TYPE_CHECKING:
    import torch
    from torch import Tensor

START, NEVER = 0, -1


class Grammar(NamedTuple):
    """States and tokens of a trie; a state whose answer has ended is followed by itself."""

    token_A: Tensor
    next_NA: Tensor  # the state after a token, NEVER where no answer goes on so
    only_N: Tensor  # place in token_A of the one token that can follow, NEVER where there is a choice
    ended_N: Tensor

    def to(self, device: torch.device) -> Grammar:
        """The same on a device."""
        return Grammar(*(part.to(device) for part in self))

    def best(self, logits_BV: Tensor, state_B: Tensor) -> Tensor:
        """Place in token_A of the likeliest token that may follow [B]."""
        never_BA = self.next_NA[state_B] == NEVER
        return logits_BV[:, self.token_A].masked_fill(never_BA, float("-inf")).argmax(-1)

    def after(self, state_B: Tensor, place_B: Tensor) -> Tensor:
        """The states after those tokens [B]."""
        return self.next_NA[state_B, place_B]


@lru_cache(maxsize=4)  # a run asks for every batch
def grammar(tokenizer: Any, target: Target) -> Grammar:
    """The table of a target's answers as a tokenizer writes them, each with the end of the turn behind it."""
    written = tokenizer(target.all_answers(), add_special_tokens=False)["input_ids"]
    return table([[*ids, tokenizer.eos_token_id] for ids in written])


def table(answers: list[list[int]]) -> Grammar:
    """The trie of some token sequences, none of which is the beginning of another (all end alike)."""
    import torch

    states: list[dict[int, int]] = [{}]
    ends: list[int] = []
    for tokens in answers:
        at = START
        for token in tokens:
            if token not in states[at]:
                states.append({})
                states[at][token] = len(states) - 1
            at = states[at][token]
        states[at][tokens[-1]] = at
        ends.append(at)
    token_A = sorted({token for tokens in answers for token in tokens})
    place = {token: at for at, token in enumerate(token_A)}
    next_NA = torch.full((len(states), len(token_A)), NEVER)
    for state, follows in enumerate(states):
        for token, after in follows.items():
            next_NA[state, place[token]] = after
    only_N = torch.where((next_NA != NEVER).sum(1) == 1, (next_NA != NEVER).int().argmax(1), NEVER)
    ended_N = torch.zeros(len(states), dtype=torch.bool)
    ended_N[ends] = True
    return Grammar(torch.tensor(token_A), next_NA, only_N, ended_N)
