"""Real dimensions of published Thinkers, and parameter counts on the meta device: no download, no memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raymsa.errors import SpecError
from raymsa.spec import LoraSpec, ModelSpec
from raymsa.thinker.backbone import PARTS, Folder
from raymsa.thinker.load import TOWERS, adapt, open_folder, thinker_class
from raymsa.thinker.tiny import MEDIA_TOKENS


@dataclass(frozen=True)
class Counts:
    """Parameters of a Thinker: its own (`total`, lm_head counted), and the adapters' by part."""

    total: int
    lora_by_part: dict[str, int]

    @property
    def lora(self) -> int:
        """All adapter parameters; they are what is trained, the readout's head aside."""
        return sum(self.lora_by_part.values())

    @property
    def share(self) -> float:
        """Adapter parameters as a share of all parameters, adapters included (the paper's 1.14 %)."""
        return self.lora / (self.total + self.lora)


def parameter_counts(config: Any, lora: LoraSpec, modalities: tuple[str, ...]) -> Counts:
    """Counts for a `Qwen2_5OmniThinkerConfig`, by attaching the adapters for real on the meta device.

    Towers whose modality is off count neither in the total nor among the adapters: they are not loaded.
    """
    import torch

    absent = tuple(part for modality, part in TOWERS.items() if modality not in modalities)
    with torch.device("meta"):
        thinker = thinker_class(absent)(config)
        total = sum(p.numel() for p in thinker.parameters())
        adapted = adapt(thinker.requires_grad_(False), lora)
    trained = {name: p.numel() for name, p in adapted.named_parameters() if p.requires_grad}
    by_part = {part: sum(n for name, n in trained.items() if f".{part}." in name) for part in PARTS}
    return Counts(total, {part: count for part, count in by_part.items() if count})


def qwen2_5_omni_7b() -> Any:
    """The Thinker of Qwen/Qwen2.5-Omni-7B: 8,931,813,888 parameters.

    Source: `thinker_config` of its config.json. Only what differs from transformers' defaults is said here: those give
    the vision tower the text's width, tie the embeddings, and leave out the ids that M-RoPE looks for.
    """
    from transformers import Qwen2_5OmniThinkerConfig

    rope = {"rope_type": "default", "rope_theta": 1_000_000.0, "mrope_section": [16, 24, 24]}
    return Qwen2_5OmniThinkerConfig(
        text_config={"rope_parameters": rope, "tie_word_embeddings": False},
        vision_config={"hidden_size": 1_280, "out_hidden_size": 3_584},
        audio_config={},
        vision_start_token_id=151_652,
        vision_end_token_id=151_653,
        pad_token_id=151_643,
        tie_word_embeddings=False,
    )


# The 3B is not here: its config.json was not at hand to read, and a count from second-hand dimensions could be wrong.
# Its numbers come from its own folder or download, as for any other model.
GEOMETRY: dict[str, Callable[[], Any]] = {"Qwen/Qwen2.5-Omni-7B": qwen2_5_omni_7b}


def known_folder(spec: ModelSpec) -> Folder:
    """Tokenizer, sound features and config of a model as far as this disk has them: nothing is downloaded.

    Where only the geometry is known, words are cut by the tiny Thinker's tokenizer, into somewhat more tokens. Raises
    SpecError when not even that is known.
    """
    from huggingface_hub import snapshot_download
    from transformers import WhisperFeatureExtractor

    path = spec.path
    try:
        if path != "tiny" and not Path(path).expanduser().exists():
            path = snapshot_download(path, local_files_only=True)
        return open_folder(spec.model_copy(update={"path": path}))
    except (SpecError, OSError, ValueError):
        if spec.path not in GEOMETRY:
            raise SpecError(
                f"model.path: given '{spec.path}'; it is not on this disk, and its geometry is not known: "
                f"give a folder, or {' or '.join(GEOMETRY)}"
            ) from None
    tiny = open_folder(spec.model_copy(update={"path": "tiny"}))
    config = GEOMETRY[spec.path]()
    extractor = WhisperFeatureExtractor.from_pretrained(tiny.path, feature_size=config.audio_config.num_mel_bins)
    return Folder(spec.path, tiny.tokenizer, extractor, _with_ids_of(tiny.tokenizer, config))


def _with_ids_of(tokenizer: Any, config: Any) -> Any:
    """The config with the ids that a tokenizer gives to the marks of media."""
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in MEDIA_TOKENS.items()}
    for kind in ("audio", "image", "video"):
        setattr(config, f"{kind}_token_index", ids[f"{kind}_token"])
        setattr(config, f"{kind}_token_id", ids[f"{kind}_token"])
    config.audio_start_token_id, config.audio_end_token_id = ids["audio_bos_token"], ids["audio_eos_token"]
    config.vision_start_token_id, config.vision_end_token_id = ids["vision_bos_token"], ids["vision_eos_token"]
    config.pad_token_id = tokenizer.pad_token_id
    return config
