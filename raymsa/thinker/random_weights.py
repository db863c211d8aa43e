"""A Thinker of a known geometry with random weights, 4-bit from the start: for timing what cannot be downloaded.

Shapes and number types are those of the loaded one, what it computes means nothing. It is laid out on the meta device
and filled one weight at a time in the form in which it stays: nothing is ever there in full precision that does not
stay so.
"""

from __future__ import annotations

import zlib
from copy import deepcopy
from typing import Any

import torch
from torch import nn

from raymsa.spec import ModelSpec
from raymsa.thinker.backbone import Folder
from raymsa.thinker.load import compute_type, keep_unpacked, nf4, thinker_class

SD = 0.02  # of every weight with two axes or more: transformers' own default
LARGEST_OF_A_BLOCK = 2.4  # standard deviations: of 64 normal numbers, the largest in size


def random_thinker(
    spec: ModelSpec, folder: Folder, absent: tuple[str, ...], device: torch.device, seed: int = 0
) -> Any:
    """The bare model on `device`, as `load` would have it from a download, without the parts named `absent`."""
    from transformers.integrations.bitsandbytes import replace_with_bnb_linear

    dtype = compute_type(spec, device)
    config = deepcopy(folder.config)
    config._attn_implementation = spec.attention
    with torch.device("meta"):
        model = thinker_class(absent)(config)
    if spec.quantization == "nf4":
        settings = nf4(dtype)
        replace_with_bnb_linear(model, settings.llm_int8_skip_modules, settings)
        model.is_loaded_in_4bit = True  # peft asks
    for module_name, module in model.named_modules():
        for name, old in list(module.named_parameters(recurse=False)):
            setattr(module, name, _weight(module, name, old, dtype, device, f"{seed} {module_name}.{name}"))
        _compute_tables(model, module, device)
    model.tie_weights()
    keep_unpacked(model)
    return model.eval()


def _weight(
    module: nn.Module, name: str, old: nn.Parameter, dtype: torch.dtype, device: torch.device, seed: str
) -> nn.Parameter:
    """The same numbers for the same name, whichever other parts there are."""
    generator = torch.Generator(device).manual_seed(zlib.crc32(seed.encode()))
    if type(old).__name__ == "Params4bit":
        return _packed(module, old, dtype, device, generator)
    new = torch.empty(old.shape, dtype=dtype, device=device)
    if new.ndim == 1:
        new.fill_(0.0 if name == "bias" else 1.0)
    else:
        new.normal_(0, SD, generator=generator)
    return nn.Parameter(new, requires_grad=False)


def _packed(
    module: Any, old: Any, dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> nn.Parameter:
    """Random codes and scales, as `bitsandbytes.functional.quantize_4bit` would leave them of a normal weight.

    Quantising one would take 30 times its own memory on a CPU.
    """
    from bitsandbytes import functional
    from bitsandbytes.nn import Params4bit

    count = old.numel()
    codes = torch.randint(0, 256, (-(-count // 2), 1), dtype=torch.uint8, device=device, generator=generator)
    spread_N = torch.rand(-(-count // old.blocksize), device=device, generator=generator)
    scale_N = SD * (LARGEST_OF_A_BLOCK - 0.5 + spread_N)
    state = functional.QuantState(
        absmax=scale_N,
        shape=old.shape,
        dtype=dtype,
        blocksize=old.blocksize,
        code=functional.get_4bit_type(old.quant_type, device=device),
        quant_type=old.quant_type,
    )
    if old.compress_statistics:
        state.offset, state.nested = scale_N.mean(), True
        state.absmax, state.state2 = functional.quantize_blockwise(scale_N - state.offset, blocksize=256)
    module.quant_state = state
    about = {name: getattr(old, name) for name in ("blocksize", "compress_statistics", "quant_type", "quant_storage")}
    weight: nn.Parameter = Params4bit(codes, quant_state=state, module=module, bnb_quantized=True, **about)
    return weight


def _compute_tables(model: Any, module: nn.Module, device: torch.device) -> None:
    """Frequencies and positions, which are no weights."""
    tables = {name: table for name, table in module.named_buffers(recurse=False) if table is not None}
    for name, table in tables.items():
        module._buffers[name] = torch.empty_like(table, device=device)
    if tables:
        model._init_weights(module)
