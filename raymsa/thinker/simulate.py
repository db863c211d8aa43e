"""A Thinker without memory or arithmetic, that runs through the same code: to count what a real one would take.

Its weights are fake tensors (shape, type, no bytes); integers, such as token ids and the bounds of a picture's
windows, are real, because the model's own code reads them. Of each part only a few layers are built: `Trace` says what
all of them would take.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import bitsandbytes
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_map_only

from raymsa.spec import LoraSpec, ModelSpec
from raymsa.thinker.adapters import lean
from raymsa.thinker.backbone import PARTS, Folder, Thinker
from raymsa.thinker.kernels import ONE_CALL, Dropout, Linear4bit, at_once, fused_attention
from raymsa.thinker.live import Counting, Live, size_of
from raymsa.thinker.load import absent_parts, adapt, compute_type, nf4, thinker_class

KEPT = 3  # layers of each part: the first and the last one are special, the middle one stands for all others
LAYERS = {"language_model": "layers", "audio_tower": "layers", "visual": "blocks"}
NF4_BLOCK, SCALE_BLOCK = 64, 256  # weights per scale, scales per scale of scales: bitsandbytes' defaults
aten = torch.ops.aten


@dataclass(frozen=True)
class Simulation:
    """A simulated Thinker, what is counted of it, and the layers of each part that were left out."""

    thinker: Thinker
    live: Live
    fake: FakeTensorMode
    gpu: bool
    left_out: dict[str, int]
    layers: dict[str, list[nn.Module]]  # those that are there
    weights: dict[str, int]  # bytes of all layers, by what they are
    layer: dict[str, int]  # bytes of one layer of a part, adapters included
    layer_trained: dict[str, int]  # bytes of its adapters alone

    @contextmanager
    def running(self) -> Iterator[None]:
        """What is computed here takes no memory, and is counted."""
        with fused_attention() if self.gpu else nullcontext(), Simulated(self.live, self.fake):
            yield

    def empty(self, tensor: Tensor) -> Tensor:
        """A fake tensor of the same shape and type, counted."""
        with self.fake:
            made = torch.empty_like(tensor, device="cpu")
        self.live.see(made)
        return made


def simulate(
    spec: ModelSpec,
    folder: Folder,
    lora: LoraSpec | None,
    modalities: tuple[str, ...],
    lm_head: bool,
    gpu: bool,
    whole: bool = False,
) -> Simulation:
    """As `load`, with nothing on disk or in memory. `whole`: with all layers, because they are not alike."""
    config, left_out = _few_layers(folder.config, whole)
    absent = absent_parts(modalities, lm_head)
    left_out = {part: count for part, count in left_out.items() if part not in absent}
    config._attn_implementation = "sdpa" if spec.attention == "flash_attention_2" else spec.attention
    dtype = compute_type(spec, torch.device("cpu"))
    with torch.device("meta"):
        model = thinker_class(absent)(config)
        if spec.quantization == "nf4":
            _quantise(model, dtype)
        model.requires_grad_(False)
        if lora is not None:
            model = adapt(model, lora)
            if not gpu:
                lean(model)
    live, fake = Live(), FakeTensorMode(allow_non_fake_inputs=True)
    _materialise(model, fake, dtype, gpu)
    trained = tuple(part for part in PARTS if any(p.requires_grad for p in _named(model, f".{part}.").values()))
    thinker = Thinker(
        model, Folder(folder.path, folder.tokenizer, folder.extractor, config), trained, torch.device("cpu")
    )
    core = thinker._core
    if spec.attention != "eager":
        from transformers import AttentionInterface

        AttentionInterface.register(ONE_CALL, at_once)
        for part in set(left_out) - {"language_model"}:
            getattr(core, part).config._attn_implementation = ONE_CALL
    live.see(*_tensors(model))
    layers = {part: list(getattr(getattr(core, part), LAYERS[part])) for part in left_out}
    layer = {part: size_of(_tensors(some[-1])) for part, some in layers.items()}
    layer_trained = {part: _adapters(some[-1]) for part, some in layers.items()}
    weights = _by_part(model, core, layers, left_out)
    return Simulation(thinker, live, fake, gpu, left_out, layers, weights, layer, layer_trained)


def _few_layers(complete: Any, whole: bool) -> tuple[Any, dict[str, int]]:
    config = deepcopy(complete)
    text, audio, vision = config.text_config, config.audio_config, config.vision_config
    counts = {"language_model": text.num_hidden_layers, "audio_tower": audio.encoder_layers, "visual": vision.depth}
    left_out = {part: 0 if whole else max(0, count - KEPT) for part, count in counts.items()}
    text.num_hidden_layers -= left_out["language_model"]
    text.layer_types = text.layer_types[: text.num_hidden_layers]
    audio.encoder_layers -= left_out["audio_tower"]
    vision.depth -= left_out["visual"]
    if left_out["visual"]:
        vision.fullatt_block_indexes = [vision.depth - 1]
    return config, left_out


def _quantise(model: Any, dtype: torch.dtype) -> None:
    from transformers.integrations.bitsandbytes import replace_with_bnb_linear

    settings = nf4(dtype)
    replace_with_bnb_linear(model, settings.llm_int8_skip_modules, settings)
    model.is_loaded_in_4bit = True  # peft asks


def _materialise(model: Any, fake: FakeTensorMode, dtype: torch.dtype, gpu: bool) -> None:
    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            _pack(module, fake, dtype)
        for name, p in module._parameters.items():
            if p is not None:
                # peft keeps the adapters in fp32
                kept = _fake(p, torch.float32 if p.requires_grad else dtype, fake)
                module._parameters[name] = nn.Parameter(kept, requires_grad=p.requires_grad)
        for name, table in module._buffers.items():
            if table is not None and table.is_meta:
                real = torch.zeros(table.shape, dtype=table.dtype)
                module._buffers[name] = _fake(table, table.dtype, fake) if table.is_floating_point() else real
        if gpu and type(module) is nn.Dropout:
            module.__class__ = Dropout


def _fake(like: Tensor, dtype: torch.dtype, fake: FakeTensorMode) -> Tensor:
    with fake:
        return torch.empty(like.shape, dtype=dtype)


def _pack(module: Any, fake: FakeTensorMode, dtype: torch.dtype) -> None:
    """The tensors of an NF4 weight with double quantisation, in the place of the weight."""
    count = module.out_features * module.in_features
    scales = -(-count // NF4_BLOCK)
    with fake:
        module.packed = (
            torch.empty(-(-count // 2), dtype=torch.uint8),
            torch.empty(scales, dtype=torch.uint8),
            torch.empty(-(-scales // SCALE_BLOCK)),
            torch.empty(16),  # the values of NF4
            torch.empty(256),  # the values of a scale
            torch.empty(1),  # their offset
        )
    del module._parameters["weight"]
    module.weight = None
    module.packed_dtype = dtype
    module.__class__ = Linear4bit


class Simulated(Counting):  # type: ignore[no-untyped-call]
    """Integers for real, the rest without memory or arithmetic."""

    def __init__(self, live: Live, fake: FakeTensorMode) -> None:
        super().__init__(live)
        self._fake = fake

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:  # asked more often than all else together
            return args[0].fake_device
        return super().__torch_dispatch__(func, types, args, kwargs)

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """One operation, for real where it is about integers alone."""
        tensors = list(_given(args, kwargs))
        if not any(isinstance(tensor, FakeTensor) for tensor in tensors):
            if tensors or not _makes_numbers(func, kwargs):
                return func(*args, **kwargs)
        elif func is aten._local_scalar_dense.default:
            return 0  # nothing is known of a fake tensor's numbers: false, class 0, token 0
        elif func in INDEXED:
            args = (args[0], _indices(args[1]), *args[2:])
            tensors = list(_given(args, kwargs))
        if not all(isinstance(tensor, FakeTensor) for tensor in tensors):
            args, kwargs = tree_map_only(Tensor, self._faked, (args, kwargs))
        with self._fake:
            return func(*args, **kwargs)

    def _faked(self, tensor: Tensor) -> Tensor:
        return tensor if isinstance(tensor, FakeTensor) else self._fake.from_tensor(tensor)


INDEXED = {
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
    aten._unsafe_index_put.default,
}


def _given(args: Any, kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """The tensors among an operation's arguments, some of which are lists."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from (each for each in value if isinstance(each, Tensor))


def _makes_numbers(func: Any, kwargs: dict[str, Any]) -> bool:
    if func is aten.arange.default or func is aten.scalar_tensor.default:
        return False
    dtype = kwargs.get("dtype") or torch.get_default_dtype()
    return bool(dtype.is_floating_point)


def _indices(given: list[Tensor | None]) -> list[Tensor | None]:
    """A mask as the places where it is true: how many those are must be known."""
    found: list[Tensor | None] = []
    for index in given:
        known = index is not None and index.dtype is torch.bool and not isinstance(index, FakeTensor)
        found += torch.nonzero(index, as_tuple=True) if known and index is not None else [index]
    return found


def _tensors(module: nn.Module) -> list[Tensor]:
    own = [*module.parameters(), *module.buffers()]
    return own + [tensor for each in module.modules() for tensor in getattr(each, "packed", ())]


def _named(model: nn.Module, word: str) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if word in name}


def _by_part(
    model: nn.Module, core: Any, layers: dict[str, list[nn.Module]], left_out: dict[str, int]
) -> dict[str, int]:
    """Bytes of the whole model: each part without its adapters, word vectors, lm_head, adapters."""
    adapters = _adapters(model)
    sizes = {"word vectors": size_of(core.language_model.embed_tokens.parameters())}
    for part, count in left_out.items():
        last = layers[part][-1]
        trained = _adapters(last)
        own = _frozen(getattr(core, part)) - (sizes["word vectors"] if part == "language_model" else 0)
        sizes[part.replace("_", " ")] = own + count * (size_of(_tensors(last)) - trained)
        adapters += count * trained
    rest = _frozen(model) - sum(_frozen(getattr(core, part)) for part in left_out)
    return {**sizes, "lm_head": rest, "adapters": adapters}


def _adapters(module: nn.Module) -> int:
    return size_of(p for p in module.parameters() if p.requires_grad)


def _frozen(module: nn.Module) -> int:
    return size_of(tensor for tensor in _tensors(module) if not tensor.requires_grad)
