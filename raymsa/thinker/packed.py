"""The clips of a pass one after another in one row: no padding reaches the language model, and no clip sees another.

The row is made before the first layer and taken apart behind the last, so a readout's tensors are [B, T, D] either way.

Axes: B clips, T tokens, D width, N real tokens of all clips, H heads, E numbers in a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from inspect import signature
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from raymsa.readouts.base import Embedded

NAME = "raymsa_packed"  # of our attention among those of transformers
FLASH_TYPES = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Row:
    """Where the real tokens of a padded batch stand: `real_N` counts through its [B * T] places."""

    lengths: list[int]
    real_N: Tensor

    @classmethod
    def of(cls, mask_BT: Tensor) -> Row:
        """The same from a mask; waits for the device."""
        return cls(mask_BT.sum(1).tolist(), mask_BT.flatten().nonzero()[:, 0])

    def inputs(self, embedded: Embedded, attention: str) -> dict[str, Any]:
        """The arguments of transformers' language model: one row of N tokens, and where each clip begins."""
        hidden_ND = embedded.hidden_BTD.flatten(0, 1).index_select(0, self.real_N)
        position_3N = embedded.position_3BT.flatten(1).index_select(1, self.real_N)
        if attention == NAME:  # no mask is made at all
            how: dict[str, Any] = {"attention_mask": {"full_attention": None}, "segments": self.lengths}
        else:  # transformers reads the bounds from a row of text positions above the three of M-RoPE
            text_N = torch.cat([torch.arange(length, device=position_3N.device) for length in self.lengths])
            how, position_3N = {"attention_mask": None}, torch.cat([text_N[None].to(position_3N.dtype), position_3N])
        return {"inputs_embeds": hidden_ND[None], "position_ids": position_3N[:, None], **how}

    def apart(self, hidden_1ND: Tensor, like_BTD: Tensor) -> Tensor:
        """The row's vectors in their places of the padded batch; zeros where there is padding."""
        empty = hidden_1ND.new_zeros(like_BTD.shape[0] * like_BTD.shape[1], hidden_1ND.shape[-1])
        return empty.index_copy(0, self.real_N, hidden_1ND[0]).view(*like_BTD.shape[:2], -1)


def offer() -> None:
    """Make `packed_attention` known to transformers; passes without `segments` get the masks and results of SDPA."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def packed_attention(
    module: Any,
    query_1HNE: Tensor,
    key_1HNE: Tensor,
    value_1HNE: Tensor,
    attention_mask: Tensor | None,
    segments: list[int] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each of the segments, whose lengths add up to N; SDPA as it is without segments."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward as sdpa

    if segments is None:
        out: tuple[Tensor, None] = sdpa(module, query_1HNE, key_1HNE, value_1HNE, attention_mask, **kwargs)
        return out
    if query_1HNE.is_cuda and query_1HNE.dtype in FLASH_TYPES and not kwargs.get("dropout") and (flash := _flash()):
        return _at_once(flash, query_1HNE, key_1HNE, value_1HNE, segments, kwargs["scaling"]), None
    cut = [torch.split(tensor, segments, dim=2) for tensor in (query_1HNE, key_1HNE, value_1HNE)]
    return torch.cat([sdpa(module, *part, None, **kwargs)[0] for part in zip(*cut, strict=True)], dim=1), None


@cache
def _flash() -> Any:
    """torch's flash attention over segments, which works on GPUs since Ampere alone; None where it does not."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    able = "enable_gqa" in signature(varlen_attn).parameters and torch.cuda.get_device_capability() >= (8, 0)
    return varlen_attn if able else None


def _at_once(
    flash: Any, query_1HNE: Tensor, key_1HNE: Tensor, value_1HNE: Tensor, segments: list[int], scale: float
) -> Tensor:
    """Causal attention within all segments in one kernel, [1, N, H, E]."""
    bounds = torch.tensor([0, *accumulate(segments)], dtype=torch.int32, device=query_1HNE.device)
    query_NHE, key_NHE, value_NHE = (tensor[0].transpose(0, 1) for tensor in (query_1HNE, key_1HNE, value_1HNE))
    longest, gqa = max(segments), query_NHE.shape[1] != key_NHE.shape[1]
    out_NHE: Tensor = flash(
        query_NHE,
        key_NHE,
        value_NHE,
        bounds,
        bounds,
        longest,
        longest,
        scale=scale,
        window_size=(-1, 0),  # causal
        enable_gqa=gqa,
    )
    return out_NHE[None]
