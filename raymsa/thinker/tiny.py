"""A small random Thinker as a folder on disk, loaded by the same code as a download.

It has every part of the real one (language model, audio and vision tower, chat tokens, feature settings), so that
demos and tests take the real path in seconds. It knows nothing: what a run scores, it has learned in that run.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raymsa.place import folder_at_once

if TYPE_CHECKING:
    import torch

NAME = "tiny-1"  # folder name; the number goes up when what is written here changes
SEED = 20_260_605
WIDTH = 128  # every linear's sides are multiples of 64, the block of NF4

# Names and meaning are Qwen2.5-Omni's; the ids are our own, behind the learned vocabulary.
TURN_TOKENS = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "unk_token": None}
MEDIA_TOKENS = {
    "image_token": "<|IMAGE|>",
    "audio_token": "<|AUDIO|>",
    "video_token": "<|VIDEO|>",
    "vision_bos_token": "<|vision_bos|>",
    "vision_eos_token": "<|vision_eos|>",
    "audio_bos_token": "<|audio_bos|>",
    "audio_eos_token": "<|audio_eos|>",
}

# ChatML with the media marks of Qwen2.5-Omni; renders the same text as the real template for what raymsa sends.
CHAT_TEMPLATE = """\
{%- set marks = {'video': '<|vision_bos|><|VIDEO|><|vision_eos|>', 'image': '<|vision_bos|><|IMAGE|><|vision_eos|>', \
'audio': '<|audio_bos|><|AUDIO|><|audio_eos|>'} -%}
{%- if messages[0].role != 'system' -%}
{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' -}}
{%- for part in ([{'type': 'text', 'text': message.content}] if message.content is string else message.content) -%}
{{- marks[part.type] if part.type in marks else part.text -}}
{%- endfor -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{{- '<|im_start|>assistant\\n' if add_generation_prompt else '' -}}
"""

# What the merges are learned from: these words become one token each, everything else is spelt in smaller pieces.
SENTENCES = """\
system
You are a helpful assistant.
user
assistant
How does the speaker feel about the subject, from -3 (very negative) to 3 (very positive)? \
Answer with one signed number with two decimals.
I really liked this movie and the acting was good, but the story was not great and I would not watch it again.
It is a very funny film with wonderful actors; they were amazing, and everyone who has seen it should be happy.
He said that there is nothing to love about it: boring, terrible, awful, the worst thing that I have ever seen.
She thinks it was okay, so so, neither bad nor good, just an average product for the money that you pay.
"""
WORDS = """\
a about absolutely acting actor actress after again all also always am amazing an and angry annoying any are as at
average awesome awful back bad be beautiful because been before being best better big bit book boring brilliant but
by came can cast character characters charming clear comedy completely cool could cry day decent definitely
delightful did different difficult disappointed disappointing disgusting do does down dreadful dull easy effects
either else end ending enjoy enjoyed entertaining even ever every everything excellent exciting expect fair
fantastic far feel felt few film fine first flat for friend friendly from fun funny gave get girl give go going good
got great guy had happen happy hard has hate hated have he hear her here him his hope horrible how i if in
interesting into is it joke just kid kids kind know lame laugh least less life like liked little long look looked
lot love loved lovely made make man many may maybe me mean mediocre mess middle mixed money more most movie movies
much music must my nasty need neutral never new nice no normal not nothing now of off ok okay old on one only or
ordinary other our out outstanding over painful people perfect perfectly person picture place plain play played
pleasant plot point poor pretty price probably quality quite rather read real really recommend review right ruined
sad said same saw say scary scene scenes script see seem seen she should show shows sick simple slow so solid some
something song sound stand star story strong stuff stunning stupid such superb sure surprise take talk terrible
terrific than that the their them then there these they thing things think this those thought three through time to
today together told too top totally tragic true try two ugly under up us use very wait want wanted was waste watch
watched way we weak week weird well went were what when where which while who why will wish with without woman
wonderful work worse worst worth would wrong year years yes yet you young your
"""


def make_tiny(folder: Path) -> Path:
    """Write the tiny Thinker to `folder` unless it is there; the same bytes every time, whole or not at all.

    About 6 MB. Leaves torch's global random state as it was.
    """
    if (folder / "config.json").exists():
        return folder
    with folder_at_once(folder, "config.json") as part:
        _write(part)
    return folder


def tiny_config() -> Any:
    """The tiny Thinker's config, without writing anything."""
    return _config(_tokenizer())


def _write(folder: Path) -> None:
    tokenizer = _tokenizer()
    tokenizer.save_pretrained(folder)
    with _no_progress_bar():
        _thinker(tokenizer).save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # safetensors makes it readable by its owner only
    (folder / "preprocessor_config.json").write_text(json.dumps(_features(), indent=2) + "\n")


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """transformers draws a bar even for one small file, and its switch is global."""
    from transformers.utils import logging

    was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            logging.enable_progress_bar()


def _tokenizer() -> Any:
    from tokenizers import AddedToken
    from transformers import Qwen2Tokenizer

    vocabulary, merges = _learned_merges()
    tokenizer = Qwen2Tokenizer(
        vocab=vocabulary,
        merges=merges,
        **TURN_TOKENS,
        extra_special_tokens=MEDIA_TOKENS,
        chat_template=CHAT_TEMPLATE,
        model_max_length=32_768,
        processor_class="Qwen2_5OmniProcessor",
    )
    tokenizer.add_tokens([AddedToken("<|im_start|>", special=True, normalized=False)])
    return tokenizer


def _learned_merges() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Byte-level BPE: all 256 bytes, so that every text can be written, and merges for the words above."""
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel
    from tokenizers.trainers import BpeTrainer
    from transformers import Qwen2Tokenizer

    learner = Tokenizer(BPE())
    learner.pre_tokenizer = Qwen2Tokenizer()._tokenizer.pre_tokenizer  # Qwen's own split: digits stand alone
    alphabet = sorted(ByteLevel.alphabet())
    trainer = BpeTrainer(vocab_size=2_000, min_frequency=1, initial_alphabet=alphabet, show_progress=False)
    learner.train_from_iterator([SENTENCES, " " + " ".join(WORDS.split())], trainer)
    model = json.loads(learner.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]


def _thinker(tokenizer: Any) -> Any:
    import torch
    from transformers import Qwen2_5OmniThinkerForConditionalGeneration

    with torch.random.fork_rng(devices=[]):  # building draws weights that are replaced below
        thinker = Qwen2_5OmniThinkerForConditionalGeneration(_config(tokenizer)).eval()
    generator = torch.Generator().manual_seed(SEED)
    for name, weight in thinker.named_parameters():
        _fill(name, weight, generator)
    thinker.generation_config.eos_token_id = [tokenizer.eos_token_id]
    thinker.generation_config.pad_token_id = tokenizer.pad_token_id
    return thinker


def _fill(name: str, weight: torch.nn.Parameter, generator: torch.Generator) -> None:
    """Variance-keeping weights: with transformers' 0.02 a narrow random model says the same to every input.

    Queries and keys at half of that: attention stays broad, so the last token hears all words. A linear probe on it
    tells six positive from six negative words in 98 % of sentences (93 % at full gain, 66 % at 1.7).
    """
    if weight.ndim == 1:
        weight.data.fill_(0.0 if name.endswith("bias") else 1.0)  # norms are ones
        return
    fan_in = 1 if "embed_tokens" in name else math.prod(weight.shape[1:])
    gain = 0.5 if "language_model" in name and ("q_proj" in name or "k_proj" in name) else 1.0
    weight.data.normal_(0, gain / math.sqrt(fan_in), generator=generator)


def _config(tokenizer: Any) -> Any:
    from transformers import Qwen2_5OmniThinkerConfig

    token_id = tokenizer.convert_tokens_to_ids
    marks = {name: token_id(token) for name, token in MEDIA_TOKENS.items()}
    return Qwen2_5OmniThinkerConfig(
        text_config=_text_config(tokenizer),
        vision_config=_vision_config(),
        audio_config=_audio_config(),
        # transformers 5 reads *_token_index and aliases *_token_id to it
        audio_token_index=marks["audio_token"],
        image_token_index=marks["image_token"],
        video_token_index=marks["video_token"],
        audio_start_token_id=marks["audio_bos_token"],
        audio_end_token_id=marks["audio_eos_token"],
        vision_start_token_id=marks["vision_bos_token"],
        vision_end_token_id=marks["vision_eos_token"],
        user_token_id=token_id("user"),
        pad_token_id=tokenizer.pad_token_id,
        position_id_per_seconds=25,
        seconds_per_chunk=2,
        tie_word_embeddings=False,
    )


def _text_config(tokenizer: Any) -> dict[str, Any]:
    return {
        "vocab_size": math.ceil(len(tokenizer) / 64) * 64,
        "hidden_size": WIDTH,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 32_768,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0, "mrope_section": [4, 6, 6]},
        "tie_word_embeddings": False,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


def _vision_config() -> dict[str, Any]:
    return {
        "depth": 2,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_heads": 2,
        "out_hidden_size": WIDTH,
        "window_size": 112,
        "fullatt_block_indexes": [1],
    }


def _audio_config() -> dict[str, Any]:
    return {
        "num_mel_bins": 80,
        "encoder_layers": 2,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 128,
        "d_model": 64,
        "output_dim": WIDTH,
        "n_window": 100,
        "max_source_positions": 1_500,
    }


def _features() -> dict[str, Any]:
    """What WhisperFeatureExtractor and the settings are read from; Qwen2.5-Omni's, with 80 mel bins."""
    return {
        "feature_extractor_type": "WhisperFeatureExtractor",
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5OmniProcessor",
        "feature_size": 80,
        "sampling_rate": 16_000,
        "hop_length": 160,
        "n_fft": 400,
        "chunk_length": 300,
        "n_samples": 4_800_000,
        "nb_max_frames": 30_000,
        "padding_side": "right",
        "padding_value": 0.0,
        "dither": 0.0,
        "return_attention_mask": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "min_pixels": 3_136,
        "max_pixels": 12_845_056,
    }
