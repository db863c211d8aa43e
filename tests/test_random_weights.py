"""A Thinker of random 4-bit weights: laid out as the loaded one, and never whole in full precision."""

from copy import deepcopy

import pytest
import torch
from bitsandbytes.nn import Linear4bit

from raymsa.bench.machine import CLEAR, forget_peaks, peaks
from raymsa.errors import SpecError
from raymsa.readouts.gen import Generative
from raymsa.spec import LoraSpec, ModelSpec
from raymsa.target import Scale
from raymsa.thinker.backbone import Folder
from raymsa.thinker.geometry import known_folder
from raymsa.thinker.inputs import Encoder
from raymsa.thinker.load import absent_parts, load, with_adapters
from raymsa.thinker.random_weights import random_thinker
from raymsa.training.student import Student
from tests.clips import MIXED

CPU = torch.device("cpu")
ALL = ("text", "audio", "video")


def layout(model):
    """Every weight's class, shape and number type, and how the 4-bit ones are packed."""
    found = {}
    for name, weight in model.named_parameters():
        state = getattr(weight, "quant_state", None)
        packed = state and (
            state.shape,
            state.dtype,
            state.blocksize,
            state.quant_type,
            state.nested,
            state.absmax.shape,
        )
        found[name] = (type(weight).__name__, weight.shape, weight.dtype, weight.requires_grad, packed)
    return found


@pytest.mark.parametrize("lm_head", [True, False])
@pytest.mark.parametrize("modalities", [ALL, ("text",)], ids="-".join)
@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_it_is_laid_out_as_the_loaded_one(tiny_folder, quantization, modalities, lm_head):
    spec = ModelSpec(path="tiny", quantization=quantization)
    loaded = load(spec, None, modalities, lm_head, CPU).model
    made = random_thinker(spec, tiny_folder, absent_parts(modalities, lm_head), CPU)
    assert layout(made) == layout(loaded)
    tables = dict(loaded.named_buffers())
    assert {name: table.dtype for name, table in made.named_buffers()} == {n: t.dtype for n, t in tables.items()}
    for name, table in made.named_buffers():
        torch.testing.assert_close(table, tables[name])


def test_adapters_and_readouts_work_on_it(tiny_folder):
    from raymsa.data.collate import Collate

    spec = ModelSpec(path="tiny")
    thinker = with_adapters(random_thinker(spec, tiny_folder, (), CPU), tiny_folder, LoraSpec(rank=2), CPU)
    target, inputs = Scale(-3, 3, 0, 1, 0), _inputs()
    encoder = Encoder(tiny_folder.tokenizer, tiny_folder.extractor, tiny_folder.config, inputs, "{text}", target)
    student = Student(thinker, Generative(), None, target, spec)
    collate = Collate(encoder, student.readout)
    loss_B = student.loss_B(collate([collate.measure(one) for one in MIXED[:3]], answers=True))
    loss_B.sum().backward()
    assert torch.isfinite(loss_B).all()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in thinker.parameters())


def _inputs():
    from raymsa.spec import InputsSpec

    return InputsSpec(prompt="{text}")


def test_a_weight_is_the_same_whichever_other_parts_there_are(tiny_folder):
    whole, words = (random_thinker(ModelSpec(path="tiny"), tiny_folder, absent, CPU) for absent in ((), ("visual",)))
    weights = dict(whole.named_parameters())
    assert all(torch.equal(weight, weights[name]) for name, weight in words.named_parameters())
    assert len({int(w.double().sum() * 1e6) for n, w in weights.items() if "down_proj.weight" in n}) > 1


@pytest.mark.skipif(not CLEAR.exists(), reason="needs Linux: peaks are reset through /proc")
def test_the_full_weights_are_never_in_memory(tiny_folder):
    config = deepcopy(tiny_folder.config)
    text = config.text_config
    text.hidden_size = config.audio_config.output_dim = config.vision_config.out_hidden_size = 1024
    text.intermediate_size, text.num_attention_heads, text.head_dim, text.num_hidden_layers = 4096, 32, 32, 4
    folder = Folder("made up", tiny_folder.tokenizer, tiny_folder.extractor, config)
    random_thinker(ModelSpec(path="tiny"), tiny_folder, (), CPU)  # what is loaded at the first use counts not
    forget_peaks(CPU)
    before = peaks(CPU)["host_bytes"]
    model = random_thinker(ModelSpec(path="tiny"), folder, (), CPU)
    grown = peaks(CPU)["host_bytes"] - before
    linears = [module for module in model.modules() if isinstance(module, Linear4bit)]
    full = sum(4 * module.in_features * module.out_features for module in linears)
    assert len(linears) == 4 * 7 and full > 200_000_000
    assert grown < full / 2


def test_the_7b_is_known_without_its_files():
    folder = known_folder(ModelSpec(path="Qwen/Qwen2.5-Omni-7B"))
    assert folder.config.text_config.hidden_size == 3584
    assert folder.extractor.feature_size == folder.config.audio_config.num_mel_bins == 128
    token_id = folder.tokenizer.convert_tokens_to_ids
    assert (
        folder.config.audio_token_id == token_id("<|AUDIO|>") != folder.config.video_token_id == token_id("<|VIDEO|>")
    )
    assert folder.config.vision_start_token_id == token_id("<|vision_bos|>")


def test_packed_weights_are_spread_like_those_of_a_normal_one(tiny_folder):
    from bitsandbytes.functional import dequantize_4bit

    made = random_thinker(ModelSpec(path="tiny"), tiny_folder, (), CPU)
    weight = made.model.language_model.layers[0].mlp.up_proj.weight
    full = dequantize_4bit(weight.data, weight.quant_state)
    assert full.shape == (256, 128)
    assert abs(full.mean()) < 0.01
    assert 0.01 < full.std() < 0.04


def test_a_model_of_unknown_geometry_is_refused():
    with pytest.raises(SpecError, match=r"nobody/nothing"):
        known_folder(ModelSpec(path="nobody/nothing"))
