"""LoRA's layers on a CPU in float32: peft's arithmetic with fewer passes over memory.

peft copies a layer's output, scales the adapter's and adds the two, a pass each, and draws dropout number by number.
Here the adapter's product is added to the output as it is computed, dropout is drawn four numbers at a time and kept as
bits of its own, and where nothing is learned and there are many tokens, the adapter is added to the weight in their
place: the weight is unpacked for the length of a product anyway.

Axes: N tokens, I inputs and O outputs of a layer, R rank.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

DRAWN = 2**16  # values of a draw for dropout: 0.1 is 6,554 of them, which is 0.10001


def lean(model: nn.Module) -> None:
    """Let every LoRA layer of a model compute so, wherever it is fed float32 on a CPU, outside of autocast."""
    from peft.tuners.lora import LoraLayer

    for module in model.modules():
        if isinstance(module, LoraLayer) and isinstance(module.get_base_layer(), nn.Linear):
            module.forward = partial(_forward, module, module.forward)


def _forward(layer: Any, original: Any, x: Tensor) -> Tensor:
    (name,) = layer.active_adapters
    elsewhere = x.device.type != "cpu" or x.dtype is not torch.float32 or torch.is_autocast_enabled("cpu")
    if elsewhere or layer.disable_adapters:
        out: Tensor = original(x)
        return out
    x_NI = x.reshape(-1, x.shape[-1])
    base = layer.get_base_layer()
    down_RI, up_OR, scale = layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name]
    if not torch.is_grad_enabled() and not layer.training and _fewer(x_NI, up_OR, down_RI):
        weight_OI = _unpacked(base)
        if weight_OI is not None:
            return linear(x, torch.addmm(weight_OI, up_OR, down_RI, alpha=scale), base.bias)
    share = layer.lora_dropout[name].p if layer.training and isinstance(layer.lora_dropout[name], nn.Dropout) else 0.0
    if share:
        x_NI, kept = dropped(x_NI, share)
        scale /= kept
    base_NO = base(x).reshape(-1, up_OR.shape[0])
    return torch.addmm(base_NO, linear(x_NI, down_RI), up_OR.T, alpha=scale).view(*x.shape[:-1], -1)


def dropped(x_NI: Tensor, share: float) -> tuple[Tensor, float]:
    """The input with a random share of its numbers at zero, and the share that is kept: nothing is scaled up yet."""
    gone = round(share * DRAWN)
    count = x_NI.numel()
    draws = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    mask_NI = (draws[:count] < gone - DRAWN // 2).view_as(x_NI)
    return x_NI.masked_fill(mask_NI, 0.0), 1 - gone / DRAWN


def _fewer(x_NI: Tensor, up_OR: Tensor, down_RI: Tensor) -> bool:
    """Whether adding the adapter to the weight takes fewer operations than applying it to every token."""
    outputs, inputs = up_OR.shape[0], down_RI.shape[1]
    return x_NI.shape[0] * (inputs + outputs) > inputs * outputs


def _unpacked(base: Any) -> Tensor | None:
    """A layer's weight in float32; None where it is not known how."""
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit

    if type(base) is nn.Linear:
        return base.weight
    if type(base) is Linear4bit and base.compute_dtype is torch.float32:
        weight_OI: Tensor = dequantize_4bit(base.weight, base.weight.quant_state)
        return weight_OI.to(torch.float32)
    return None
