"""Our inputs against transformers' own Qwen2_5OmniProcessor, which needs torchvision (raymsa does not).

Collected only where torchvision is installed; `.ci/run` installs it for this file. Run on the tiny Thinker's
tokenizer, and on the real one where RAYMSA_PROCESSOR (or ../shared) has its files.
"""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

try:
    import torchvision  # noqa: F401
except RuntimeError:  # a CUDA build beside a CPU torch: two schemas are all that transformers' import misses
    library = torch.library.Library("torchvision", "FRAGMENT")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from raymsa.clip import Clip
from raymsa.spec import InputsSpec
from raymsa.target import Scale
from raymsa.thinker.inputs import Encoder
from raymsa.thinker.positions import Picture
from raymsa.thinker.tiny import make_tiny
from tests.benchmarks.plain_recipe import Processor
from tests.clips import MIXED, clip

TOKENS = {
    "audio_token_id": "<|AUDIO|>",
    "video_token_id": "<|VIDEO|>",
    "audio_start_token_id": "<|audio_bos|>",
    "audio_end_token_id": "<|audio_eos|>",
    "vision_start_token_id": "<|vision_bos|>",
}
REAL = Path(os.environ.get("RAYMSA_PROCESSOR", Path(__file__).parents[2] / "shared/assets/qwen2_5_omni_processor"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module", params=["tiny", *(["real"] if REAL.exists() else [])])
def processor(request, tiny):
    folder = tiny if request.param == "tiny" else REAL
    from transformers import AutoTokenizer, Qwen2_5OmniProcessor, WhisperFeatureExtractor
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    return Qwen2_5OmniProcessor(
        image_processor=Qwen2VLImageProcessor(),
        video_processor=Qwen2VLVideoProcessor(),
        feature_extractor=WhisperFeatureExtractor.from_pretrained(folder),
        tokenizer=AutoTokenizer.from_pretrained(folder),
        chat_template=(folder / "chat_template.jinja").read_text(),
    )


@pytest.fixture(scope="module")
def encoder(processor, tiny) -> Encoder:
    return encoder_like(processor, tiny)


@pytest.fixture(scope="module")
def interleaving(processor, tiny) -> Encoder:
    return encoder_like(processor, tiny, interleave=True)


def encoder_like(processor, tiny, **inputs) -> Encoder:
    from transformers import Qwen2_5OmniThinkerConfig

    config = Qwen2_5OmniThinkerConfig.from_pretrained(tiny)
    for field, token in TOKENS.items():
        setattr(config, field, processor.tokenizer.convert_tokens_to_ids(token))
    spec = InputsSpec(prompt="{text}\nHow does the speaker feel, {low} to {high}?", **inputs)
    return Encoder(processor.tokenizer, processor.feature_extractor, config, spec, spec.prompt, Scale(-3, 3, 0, 1, 0))


def theirs(processor, encoder: Encoder, one: Clip):
    text = processor.apply_chat_template(encoder.messages(one), add_generation_prompt=True, tokenize=False)
    media = {}
    if one.audio_S is not None:
        media["audio"] = [one.audio_S.astype(np.float32) / 32768]
    if one.frames_FHWC is not None:
        media["videos"] = [torch.from_numpy(one.frames_FHWC).permute(0, 3, 1, 2)]
        media["videos_kwargs"] = {"do_resize": False, "do_sample_frames": False}
        if one.seconds:
            media["videos_kwargs"]["fps"] = len(one.frames_FHWC) / one.seconds
    if encoder.inputs.interleave and one.audio_S is not None and one.frames_FHWC is not None:
        media |= {"load_audio_from_video": True, "audio_from_video_indices": [0]}
    return processor(text=[text], return_tensors="pt", **media)


@pytest.mark.parametrize("one", MIXED, ids=[c.id for c in MIXED])
def test_a_clip_is_encoded_as_transformers_own_processor_does(processor, encoder, one):
    expected = theirs(processor, encoder, one)
    ours = encoder.encode(one, encoder.tokens(one), [])

    assert ours.token_T == expected["input_ids"][0].tolist()
    if one.frames_FHWC is not None:
        torch.testing.assert_close(ours.patch_PX, expected["pixel_values_videos"], atol=1e-3, rtol=0)
        assert list(ours.grid_3) == expected["video_grid_thw"][0].tolist()
    if one.audio_S is not None:
        mel_length = int(expected["feature_attention_mask"].sum())
        assert ours.mel_ML.shape[1] == mel_length
        torch.testing.assert_close(ours.mel_ML, expected["input_features"][0, :, :mel_length], atol=1e-3, rtol=0)


def test_the_plain_recipes_processor_does_what_transformers_does(processor, encoder):
    plain = Processor(processor.tokenizer, processor.feature_extractor, encoder.config)
    for one in MIXED:
        expected = theirs(processor, encoder, one)
        made = plain([encoder.messages(one)], [one])
        assert set(made) <= set(expected)
        for name, values in made.items():
            torch.testing.assert_close(values.double(), torch.as_tensor(expected[name]).double(), atol=1e-3, rtol=0)


LENGTHS = [  # frames, seconds of picture, seconds of sound
    *(
        (1 + k % 16, s, s)
        for k, s in enumerate([0.1, 0.37, 0.9, 1.99, 2.0, 2.4, 4.0, 7.001, 11.2, 19.9, 24.2, 33.8, 40])
    ),
    *((12, s, s) for s in (2.4, 4.8, 9.6)),  # a frame on a turn's edge, where float32 and float64 differ
    *((11 + k, s, s) for k, s in enumerate([24.2, 38.4, 33.8, 5.6])),
    *((16, s, s) for s in (0.1, 2.01, 16.0, 40.0)),
    *((1, s, s) for s in (0.1, 3.0, 40.0)),
    *((frames, 8.0, sound) for frames in (3, 7, 15) for sound in (0.1, 1.9, 5.0, 8.04, 12.0, 30.0)),
    *((frames, 40.0, sound) for frames in (2, 5, 16) for sound in (0.1, 3.0, 39.0)),
]


@pytest.mark.parametrize("length", LENGTHS, ids=lambda length: "-".join(map(str, length)))
def test_an_interleaved_clip_is_encoded_as_transformers_does_with_the_sound_of_a_video(
    processor, interleaving, stock_thinker, monkeypatch, length
):
    frames, picture_s, sound_s = length
    one = clip("both", "I liked it", frames, picture_s, (56, 28), sound_s=sound_s)
    expected = theirs(processor, interleaving, one)
    ours = interleaving.encode(one, interleaving.tokens(one), [])

    assert ours.token_T == expected["input_ids"][0].tolist()
    monkeypatch.setattr(stock_thinker, "config", interleaving.config)
    position_3BT, _ = stock_thinker.get_rope_index(
        expected["input_ids"],
        video_grid_thw=expected["video_grid_thw"],
        attention_mask=expected["attention_mask"],
        use_audio_in_video=True,
        audio_seqlens=expected["feature_attention_mask"].sum(1),
        second_per_grids=torch.as_tensor(expected["video_second_per_grid"]),
    )
    assert np.array_equal(ours.position_3T, position_3BT[:, 0].numpy())


@pytest.mark.parametrize("one", MIXED, ids=[c.id for c in MIXED])
def test_every_clip_of_a_mixed_batch_is_interleaved_or_plain_by_itself(processor, encoder, interleaving, one):
    whole = one.audio_S is not None and one.frames_FHWC is not None
    assert interleaving.tokens(one) == theirs(processor, interleaving, one)["input_ids"][0].tolist()
    assert (interleaving.tokens(one) != encoder.tokens(one)) == whole
    for lacking in (replace(one, audio_S=None), replace(one, frames_FHWC=None)):
        assert interleaving.tokens(lacking) == encoder.tokens(lacking)
        ours, plain = (e.encode(lacking, e.tokens(lacking), []).position_3T for e in (interleaving, encoder))
        assert np.array_equal(ours, plain)


@given(frames=st.integers(1, 16), ms=st.integers(100, 40_000), sound=st.integers(2, 1_100), sides=st.integers(1, 3))
def test_turns_of_picture_and_sound_are_the_processors(processor, interleaving, frames, ms, sound, sides):
    grid_3 = (-(-frames // 2), 2 * sides, 4)
    fps = frames / (ms / 1000)
    said = processor.replace_video_with_audio_token(
        {"video_grid_thw": torch.tensor([grid_3]), "video_second_per_grid": [2 / fps]},
        0,
        {"num_audio_tokens": torch.tensor([sound])},
        0,
        position_id_per_seconds=processor.position_id_per_seconds,
        seconds_per_chunk=processor.seconds_per_chunk,
    )
    picture = Picture(grid_3, 2 / fps, 2)
    assert interleaving._turns(picture, sound) == processor.tokenizer.convert_tokens_to_ids(
        processor.tokenizer.tokenize(said)
    )


def test_resizing_to_the_vision_grid_equals_the_video_processors(processor):
    from transformers.image_utils import SizeDict

    from raymsa.data.picture import grid, resize

    frames = np.random.default_rng(0).integers(0, 255, (2, 120, 200, 3), dtype=np.uint8)
    budget = 28 * 28 * 20
    expected = processor.video_processor.resize(
        torch.from_numpy(frames).permute(0, 3, 1, 2)[None],
        size=SizeDict(shortest_edge=28 * 28, longest_edge=budget),
        resample=processor.video_processor.resample,
        factor=28,
    )[0]
    size = grid(120, 200, budget)
    assert size == tuple(expected.shape[-2:])
    ours = torch.stack([torch.from_numpy(resize(frame, size)) for frame in frames]).permute(0, 3, 1, 2)
    assert (ours.int() - expected.int()).abs().max() <= 1
