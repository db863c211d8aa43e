"""What the kernels of a simulated Thinker take: their tensors' shapes and types, and no arithmetic.

Axes: B clips, H heads, S places, X numbers in a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import bitsandbytes
import torch
from torch import Tensor, nn

from raymsa.thinker.packed import NAME, packed_attention

ONE_CALL = "raymsa_simulated_flash"  # a name with `flash` in it makes the towers attend in one call, not one per window


class Linear4bit(bitsandbytes.nn.Linear4bit):  # type: ignore[misc]
    """As bitsandbytes' own: the weight is unpacked for the length of a product, the input is not kept."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = _Product.apply(x.to(self.packed_dtype), self)  # type: ignore[no-untyped-call]
        return out.to(x.dtype)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, module: Any) -> Tensor:
        ctx.module = module
        return nn.functional.linear(x, x.new_empty(module.out_features, module.in_features), module.bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad @ grad.new_empty(ctx.module.out_features, ctx.module.in_features), None


class Dropout(nn.Dropout):
    """As on a GPU: what is kept for the backward pass is a byte per number, not the number's own size."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.native_dropout(x, self.p, True)[0] if self.training and self.p else x


class _Attended(torch.autograd.Function):
    """What flash attention takes: its result [B, H, S, X] and a number per row; queries, keys and values are kept."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        clips, heads, places, size = query.shape
        out = query.new_empty(clips, places, heads, size).transpose(1, 2)
        rows = query.new_empty(clips, heads, places, dtype=torch.float32)
        ctx.save_for_backward(query, key, value, bias, out, rows)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        query, key, value, *_ = ctx.saved_tensors
        return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape), None


def at_once(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **_: Any
) -> tuple[Tensor, None]:
    """All windows of a tower at once; what attends window by window puts its results together in the end."""
    return _Attended.apply(query, key, value, None).transpose(1, 2).clone(), None  # type: ignore[no-untyped-call]


@contextmanager
def fused_attention() -> Iterator[None]:
    """torch's attention takes memory as the fused kernels of a GPU: the choice of a kernel knows real devices only."""
    from transformers import AttentionInterface

    own = nn.functional.scaled_dot_product_attention
    nn.functional.scaled_dot_product_attention = _fused  # type: ignore[assignment]
    AttentionInterface.register(NAME, _packed)
    try:
        yield
    finally:
        nn.functional.scaled_dot_product_attention = own
        AttentionInterface.register(NAME, packed_attention)


def _packed(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
) -> tuple[Tensor, None]:
    """As on a card that attends within all segments in one kernel; there is no mask then, and no copy."""
    if kwargs.get("segments") is None:
        return packed_attention(module, query, key, value, attention_mask, **kwargs)
    return _Attended.apply(query, key, value, None).transpose(1, 2), None  # type: ignore[no-untyped-call]


def _fused(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **_: Any) -> Tensor:
    made = attn_mask is not None and attn_mask.dtype is torch.bool  # kernels take a bias, made anew in every layer
    bias = query.new_empty(attn_mask.shape) if made and attn_mask is not None else attn_mask
    attended: Tensor = _Attended.apply(query, key, value, bias)  # type: ignore[no-untyped-call]
    return attended
