"""Our inputs against transformers' own Qwen2_5OmniProcessor, which needs torchvision (raymsa does not).

Collected only where torchvision is installed; `.ci/run` installs it for this file. Run on the tiny Thinker's
tokenizer, and on the real one where RAYMSA_PROCESSOR (or ../shared) has its files.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

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
from raymsa.thinker.tiny import make_tiny
from tests.clips import MIXED

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
    from transformers import Qwen2_5OmniThinkerConfig

    config = Qwen2_5OmniThinkerConfig.from_pretrained(tiny)
    for field, token in {"audio_token_id": "<|AUDIO|>", "video_token_id": "<|VIDEO|>"}.items():
        setattr(config, field, processor.tokenizer.convert_tokens_to_ids(token))
    inputs = InputsSpec(prompt="{text}\nHow does the speaker feel, {low} to {high}?")
    return Encoder(
        processor.tokenizer, processor.feature_extractor, config, inputs, inputs.prompt, Scale(-3, 3, 0, 1, 0)
    )


def theirs(processor, encoder: Encoder, one: Clip):
    text = processor.apply_chat_template(encoder.messages(one), add_generation_prompt=True, tokenize=False)
    media = {}
    if one.audio_S is not None:
        media["audio"] = [one.audio_S.astype(np.float32) / 32768]
    if one.frames_FHWC is not None:
        media["videos"] = [torch.from_numpy(one.frames_FHWC).permute(0, 3, 1, 2)]
        media["videos_kwargs"] = {"do_resize": False, "do_sample_frames": False}
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
