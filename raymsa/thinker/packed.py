"""The clips of a pass one after another in one row: no padding reaches the language model, and no clip sees another.

The row is made before the first layer and taken apart behind the last, so a readout's tensors are [B, T, D] either way.
The towers' rows hold pieces too, windows of pictures and parts of sounds, and attend in the same way.

Axes: B clips, T tokens, D width, N real tokens of all clips (or the places of a tower's row), E edges between the
segments of a row, H heads, X numbers in a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from raymsa.readouts.base import Embedded

NAME = "raymsa_packed"  # of our attention among those of transformers
TOWERS = "raymsa_packed_flash"  # the same; `flash` in a name has a tower hand over all pieces at once, not one by one
FLASH_TYPES = (torch.bfloat16, torch.float16)
FLASH_STEP = 8  # flash attention's numbers in a head are a multiple of it


@dataclass(frozen=True)
class Segments:
    """Pieces of a row, each attending within itself: their lengths on the host, their edges (int32) on the device."""

    lengths: list[int]
    edge_E: Tensor


@dataclass(frozen=True)
class Row:
    """Where the real tokens of a padded batch stand: `real_N` counts through its [B * T] places."""

    segments: Segments
    real_N: Tensor

    @classmethod
    def of(cls, mask_BT: Tensor) -> Row:
        """The same from a mask; waits for the device."""
        length_B = mask_BT.sum(1)
        edge_E = torch.nn.functional.pad(length_B.cumsum(0), (1, 0)).to(torch.int32)
        return cls(Segments(length_B.tolist(), edge_E), mask_BT.flatten().nonzero()[:, 0])

    def inputs(self, embedded: Embedded, attention: str) -> dict[str, Any]:
        """The arguments of transformers' language model: one row of N tokens, and where each clip begins."""
        hidden_ND = embedded.hidden_BTD.flatten(0, 1).index_select(0, self.real_N)
        position_3N = embedded.position_3BT.flatten(1).index_select(1, self.real_N)
        if attention == NAME:  # no mask is made at all
            how: dict[str, Any] = {"attention_mask": {"full_attention": None}, "segments": self.segments}
        else:  # transformers reads the bounds from a row of text positions above the three of M-RoPE
            lengths = self.segments.lengths
            text_N = torch.cat([torch.arange(length, device=position_3N.device) for length in lengths])
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
    AttentionInterface.register(TOWERS, packed_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def packed_attention(
    module: Any,
    query_1HNX: Tensor,
    key_1HNX: Tensor,
    value_1HNX: Tensor,
    attention_mask: Tensor | None,
    segments: Segments | None = None,
    cu_seq_lens_q: Segments | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention within each of the segments, whose lengths add up to N; SDPA as it is without segments.

    Causal in the language model. Towers hand theirs over as `cu_seq_lens_q`, as transformers calls the edges.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward as sdpa

    segments = segments or cu_seq_lens_q
    if segments is None:
        out: tuple[Tensor, None] = sdpa(module, query_1HNX, key_1HNX, value_1HNX, attention_mask, **kwargs)
        return out
    if flash := _kernel(query_1HNX, kwargs.get("dropout")):
        causal = kwargs.get("is_causal", module.is_causal)
        return _at_once(flash, query_1HNX, key_1HNX, value_1HNX, segments, kwargs["scaling"], causal), None
    cut = [torch.split(tensor, segments.lengths, dim=2) for tensor in (query_1HNX, key_1HNX, value_1HNX)]
    return torch.cat([sdpa(module, *part, None, **kwargs)[0] for part in zip(*cut, strict=True)], dim=1), None


def _kernel(query_1HNX: Tensor, dropout: float | None) -> Any:
    """Flash attention over segments; None where it does not work."""
    if not query_1HNX.is_cuda or query_1HNX.dtype not in FLASH_TYPES or query_1HNX.shape[-1] % FLASH_STEP or dropout:
        return None
    return _flash()


@cache
def _flash() -> Any:
    """torch's, which works on GPUs since Ampere alone."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    able = "enable_gqa" in signature(varlen_attn).parameters and torch.cuda.get_device_capability() >= (8, 0)
    return varlen_attn if able else None


def _at_once(
    flash: Any,
    query_1HNX: Tensor,
    key_1HNX: Tensor,
    value_1HNX: Tensor,
    segments: Segments,
    scale: float,
    causal: bool,
) -> Tensor:
    """Attention within all segments in one kernel, [1, N, H, X]."""
    query_NHX, key_NHX, value_NHX = (tensor[0].transpose(0, 1) for tensor in (query_1HNX, key_1HNX, value_1HNX))
    longest, gqa = max(segments.lengths), query_NHX.shape[1] != key_NHX.shape[1]
    out_NHX: Tensor = flash(
        query_NHX,
        key_NHX,
        value_NHX,
        segments.edge_E,
        segments.edge_E,
        longest,
        longest,
        scale=scale,
        window_size=(-1, 0) if causal else (-1, -1),
        enable_gqa=gqa,
    )
    return out_NHX[None]
