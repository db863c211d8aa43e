"""Loading the Thinker: 4-bit NF4 weights, LoRA by peft, and only the parts a job needs.

A local folder, a download and the tiny Thinker all come through here. Safetensors only, no remote code.

Axes: B clips, T tokens, D width, N positions, V vocabulary.
"""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from safetensors import SafetensorError

from raymsa.errors import SpecError
from raymsa.home import models_dir
from raymsa.place import ADDRESS
from raymsa.spec import LoraSpec, ModelSpec
from raymsa.thinker.adapters import lean
from raymsa.thinker.backbone import PARTS, Folder, Thinker
from raymsa.thinker.kept import forget, is_kept, keep, kept_folder
from raymsa.thinker.products import by_onednn

if TYPE_CHECKING:
    from collections.abc import Iterator

STOCK = "Qwen2_5OmniThinkerForConditionalGeneration"
THINKER_TYPES = ("qwen2_5_omni_thinker", "qwen2_5_omni")  # the Thinker alone, or the hub's full model around it
TOWERS = {"audio": "audio_tower", "video": "visual"}  # modality -> the part that is needed for it alone


def open_folder(spec: ModelSpec) -> Folder:
    """Tokenizer, feature extractor and config of a model. Raises SpecError when it is neither here nor on the hub."""
    from transformers import AutoTokenizer, Qwen2_5OmniThinkerConfig, WhisperFeatureExtractor

    path = resolve(spec.path)
    try:
        with _quiet():
            _check_type(Qwen2_5OmniThinkerConfig, path)
            tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
            extractor = WhisperFeatureExtractor.from_pretrained(path)
            config = Qwen2_5OmniThinkerConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise SpecError(f"model.path: given '{spec.path}'; no Thinker could be opened there: {reason}") from None
    return Folder(path, tokenizer, extractor, config)


def _check_type(config_class: Any, path: str) -> None:
    """transformers would take another model's config with a warning, and fill it up with the 7B's sizes."""
    if ADDRESS.match(path) or (path.startswith(("/", ".", "~")) and not Path(path).is_dir()):
        raise ValueError("there is no such folder")  # transformers would take it for a hub id, or download it
    given = config_class.get_config_dict(path)[0].get("model_type")
    if given not in THINKER_TYPES:
        raise ValueError(f"its config.json is of type {given}, not of {' or '.join(THINKER_TYPES)}")


def resolve(path: str) -> str:
    """The folder or hub id behind `model.path`; makes the tiny Thinker when it is asked for."""
    from raymsa.thinker.tiny import NAME, make_tiny

    if path == "tiny":
        return str(make_tiny(models_dir() / NAME))
    local = Path(path).expanduser()
    return str(local.absolute()) if local.exists() else path


def load(
    spec: ModelSpec,
    lora: LoraSpec | None,
    modalities: tuple[str, ...],
    lm_head: bool,
    device: torch.device,
    adapter: Path | None = None,
    language_model: bool = True,
) -> Thinker:
    """A Thinker on `device` with new adapters (`lora`), or with saved ones (`adapter`).

    Towers whose modality is off are not loaded at all; nor is lm_head when the readout does not use it. Without its
    language model, a Thinker can `hear` and `see` only.
    Raises SpecError when the weights cannot be loaded.
    """
    folder = open_folder(spec)
    absent = absent_parts(modalities, lm_head, language_model)
    return with_adapters(_load_base(spec, folder, absent, device), folder, lora, device, adapter)


def absent_parts(modalities: tuple[str, ...], lm_head: bool, language_model: bool = True) -> tuple[str, ...]:
    """The parts of the Thinker that a job does not need."""
    towers = (part for modality, part in TOWERS.items() if modality not in modalities)
    return (*towers, *(() if lm_head else ("lm_head",)), *(() if language_model else ("language_model",)))


def with_adapters(
    model: Any, folder: Folder, lora: LoraSpec | None, device: torch.device, adapter: Path | None = None
) -> Thinker:
    """A frozen Thinker of the bare model, with adapters on it where `lora` is given."""
    if device.type == "cpu":
        by_onednn()
    model.requires_grad_(False)
    if lora is not None:
        model = adapt(model, lora, adapter)
        if device.type == "cpu":
            lean(model)
    trained = tuple(
        part for part in PARTS if any(p.requires_grad and f".{part}." in n for n, p in model.named_parameters())
    )
    return Thinker(model, folder, trained, device)


def adapt(model: Any, lora: LoraSpec, adapter: Path | None = None) -> Any:
    """The model with LoRA adapters, fresh ones or those saved in `adapter`."""
    from peft import LoraConfig, PeftModel, get_peft_model

    if adapter is not None:
        where = str(model.device)  # else peft takes the GPU wherever there is one
        return PeftModel.from_pretrained(model, adapter, is_trainable=True, torch_device=where)
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets(lora))
    return get_peft_model(model, config)


def targets(lora: LoraSpec) -> Any:
    """peft's `target_modules`: name endings for the whole Thinker, a pattern for the language model alone."""
    if lora.scope == "thinker":
        return list(lora.targets)
    return rf".*language_model\..*\.({'|'.join(lora.targets)})"


def compute_type(spec: ModelSpec, device: torch.device) -> torch.dtype:
    """Number type of the arithmetic: bfloat16 on a GPU, float32 on a CPU, where bf16 moved scores by up to 0.05."""
    if spec.compute == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return torch.bfloat16 if spec.compute == "bfloat16" else torch.float32


def autocast(spec: ModelSpec, device: torch.device) -> AbstractContextManager[None]:
    """bf16 arithmetic where `compute_type` says so."""
    dtype = compute_type(spec, device)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is torch.bfloat16)


def _load_base(spec: ModelSpec, folder: Folder, absent: tuple[str, ...], device: torch.device) -> Any:
    dtype = compute_type(spec, device)
    quantised = nf4(dtype) if spec.quantization == "nf4" else None
    if quantised is None or not spec.keep_quantized:
        return _read(spec, folder, absent, device, quantised)
    kept = kept_folder(folder.path, absent, dtype, device)
    if there := is_kept(kept):
        with suppress(SpecError):  # damaged, or what fails with the model's own folder, too
            return _read(spec, replace(folder, path=str(kept), config=None), absent, device, None)
    model = _read(spec, folder, absent, device, quantised)
    if there:  # not before: where the error is not the folder's, it is as good as it was
        forget(kept)
    with _quiet():
        keep(model, kept)
    return model


def _read(spec: ModelSpec, folder: Folder, absent: tuple[str, ...], device: torch.device, quantised: Any) -> Any:
    """The weights of a folder; its own config is taken where `folder.config` is None."""
    try:
        with _quiet():
            model, report = thinker_class(absent).from_pretrained(
                folder.path,
                config=folder.config,
                dtype=compute_type(spec, device),
                quantization_config=quantised,
                device_map={"": str(device)},
                attn_implementation=spec.attention,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused below, in one line
            )
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise SpecError(f"model.path: given '{spec.path}'; the weights cannot be loaded: {reason}") from None
    _refuse_gaps(spec, report)
    keep_unpacked(model)
    return model


def keep_unpacked(model: Any) -> None:
    """Keep bitsandbytes from packing 4-bit weights for good in the first eval pass on a CPU that has AVX512-BF16.

    Its packed kernel has no backward pass, so training after a valid pass would lose gradients without a word; and it
    computes in bf16, whatever `compute` says.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _refuse_gaps(spec: ModelSpec, report: Any) -> None:
    """transformers fills weights that are missing, or of another shape, with random numbers, and only warns."""
    gaps = sorted({*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])})
    if gaps:
        raise SpecError(
            f"model.path: given '{spec.path}'; {len(gaps)} weights are missing there or have another shape than its "
            f"config.json says, the first is {gaps[0]}"
        )


def nf4(dtype: torch.dtype) -> Any:
    """NF4 with double quantisation for the language model's linears; the towers stay as they are (as published)."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=["model.audio_tower", "model.visual", "lm_head"],  # matched from a name's start
    )


def thinker_class(absent: tuple[str, ...]) -> Any:
    """transformers' Thinker class without the parts named: they are never built, so never read from disk."""
    from transformers import Qwen2_5OmniThinkerForConditionalGeneration as Stock
    from transformers.conversion_mapping import (
        get_checkpoint_conversion_mapping,
        register_checkpoint_conversion_mapping,
    )

    class RaymsaThinker(Stock):  # type: ignore[misc]
        _keys_to_ignore_on_load_unexpected: ClassVar = [rf"(^|\.){part}\." for part in (*absent, "talker", "token2wav")]
        _tied_weights_keys: ClassVar = {} if "lm_head" in absent else Stock._tied_weights_keys

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            for part in absent:
                setattr(self if part == "lm_head" else self.model, part, None)

        def get_output_embeddings(self) -> Any:
            return self.lm_head

    # transformers renames checkpoint keys by class name, and knows the stock class only
    register_checkpoint_conversion_mapping(
        RaymsaThinker.__name__, get_checkpoint_conversion_mapping(STOCK), overwrite=True
    )
    return RaymsaThinker


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers' progress bars and notes would land in the middle of our own progress lines."""
    from transformers.utils import logging as theirs

    level = theirs.get_verbosity()
    theirs.set_verbosity_error()
    theirs.disable_progress_bar()
    for name in ("accelerate", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        theirs.set_verbosity(level)
