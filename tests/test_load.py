"""Loading the Thinker: NF4 for real, only the parts a job needs, the layout of the hub's full model, and refusals."""

import json
import shutil
from pathlib import Path

import bitsandbytes as bnb
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from raymsa.data.collate import Collate
from raymsa.errors import SpecError
from raymsa.readouts.disc import Discriminative
from raymsa.spec import InputsSpec, LoraSpec, ModelSpec
from raymsa.target import Scale
from raymsa.thinker.backbone import Thinker
from raymsa.thinker.inputs import Encoder
from raymsa.thinker.load import compute_type, load, open_folder
from tests.clips import MIXED

CPU = torch.device("cpu")
ALL = ("text", "audio", "video")
WEIGHTS = "model.safetensors"
# What Qwen/Qwen2.5-Omni-7B has beside the Thinker; none of it may be read into the Thinker.
OTHER_PARTS = (
    "talker.model.layers.0.self_attn.q_proj.weight",
    "talker.codec_head.weight",
    "talker.thinker_to_talker_proj.weight",
    "token2wav.code2wav_dit_model.text_embed.codec_embed.weight",
    "token2wav.code2wav_bigvgan_model.conv_pre.weight",
)


def load_tiny(path="tiny", modalities=ALL, lm_head=True, quantization="none", lora=None) -> Thinker:
    return load(ModelSpec(path=str(path), quantization=quantization), lora, modalities, lm_head, CPU)


def hidden(thinker: Thinker, clips=MIXED[:4]) -> torch.Tensor:
    """Hidden states of a small batch with sound and picture."""
    folder = thinker.folder
    inputs = InputsSpec(prompt="{text}\nHow?")
    encoder = Encoder(folder.tokenizer, folder.extractor, folder.config, inputs, inputs.prompt, Scale(-3, 3, 0, 1, 0))
    collate = Collate(encoder, Discriminative())
    with torch.no_grad():
        batch = collate([collate.measure(c) for c in clips])
        return thinker.hidden(thinker.embed(batch))[batch.mask_BT.bool()]


def linears(thinker: Thinker, part: str) -> list[nn.Linear]:
    """Every linear of one part; bitsandbytes' are a subclass."""
    named = thinker.model.named_modules()
    return [m for name, m in named if isinstance(m, nn.Linear) and name.startswith(part)]


def edited(source: str, target: Path, edit) -> Path:
    """A copy of a model folder with other weights."""
    shutil.copytree(source, target)
    save_file(edit(load_file(Path(source) / WEIGHTS)), target / WEIGHTS, metadata={"format": "pt"})
    return target


@pytest.fixture(scope="module")
def plain(home) -> Thinker:
    """The tiny Thinker as it is, in fp32."""
    return load_tiny()


@pytest.fixture(scope="module")
def quantised(home) -> Thinker:
    return load_tiny(quantization="nf4")


@pytest.fixture(scope="module")
def hub(tiny_folder, tmp_path_factory) -> Path:
    """The tiny Thinker in the layout of the hub's full model: nested config, `thinker.` keys, talker and token2wav."""

    def nested(weights):
        thinker = {f"thinker.{name}": weight for name, weight in weights.items()}
        return thinker | {name: torch.ones(64, 64) for name in OTHER_PARTS}

    folder = edited(tiny_folder.path, tmp_path_factory.mktemp("hub") / "Qwen2.5-Omni", nested)
    config = {
        "architectures": ["Qwen2_5OmniModel"],
        "enable_audio_output": True,
        "enable_talker": True,
        "model_type": "qwen2_5_omni",
        "talker_config": {"model_type": "qwen2_5_omni_talker", "hidden_size": 64},
        "thinker_config": json.loads((Path(tiny_folder.path) / "config.json").read_text()),
        "token2wav_config": {"model_type": "qwen2_5_omni_token2wav"},
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def hub_in_shards(hub, tmp_path_factory) -> Path:
    """The same as two files and an index, which is how a model of 22 GB is stored."""
    folder = tmp_path_factory.mktemp("shards") / "Qwen2.5-Omni"
    shutil.copytree(hub, folder)
    weights = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = sorted(weights)
    where = {name: f"model-{1 + (i % 2):05d}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(where.values()):
        part = {name: weights[name] for name in names if where[name] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    size = sum(weight.nbytes for weight in weights.values())
    index = {"metadata": {"total_size": size}, "weight_map": where}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    return folder


def test_the_language_models_linears_are_nf4_with_double_quantisation(quantised):
    found = linears(quantised, "model.language_model")
    assert len(found) == 28  # 7 in each of 4 layers
    assert all(isinstance(m, bnb.nn.Linear4bit) for m in found)
    assert {m.weight.quant_type for m in found} == {"nf4"}
    assert all(m.weight.quant_state.nested for m in found)
    assert {m.weight.dtype for m in found} == {torch.uint8} and {m.compute_dtype for m in found} == {torch.float32}


@pytest.mark.parametrize("part", ["model.audio_tower", "model.visual", "lm_head"])
def test_the_towers_and_lm_head_keep_their_precision(quantised, part):
    found = linears(quantised, part)
    assert found and all(type(m) is nn.Linear and m.weight.dtype == torch.float32 for m in found)


def test_four_bits_change_the_hidden_states_a_little_and_not_more(quantised, plain):
    exact, rounded = hidden(plain), hidden(quantised)
    assert 0 < (exact - rounded).norm() / exact.norm() < 0.5


@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_a_tower_without_its_modality_is_absent_and_the_other_one_is_there(home, quantization):
    core = load_tiny(modalities=("text", "video"), lm_head=False, quantization=quantization).model.model
    assert core.audio_tower is None and core.visual is not None
    core = load_tiny(modalities=("audio",), lm_head=False, quantization=quantization).model.model
    assert core.visual is None and core.audio_tower is not None


def test_lm_head_is_absent_when_the_readout_has_no_use_for_it(home, plain):
    thinker = load_tiny(lm_head=False)
    assert thinker.model.lm_head is None
    assert not any("lm_head" in name for name, _ in thinker.model.named_parameters())
    assert torch.equal(hidden(thinker), hidden(plain))


@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_weights_of_absent_parts_are_not_read(tiny_folder, tmp_path, quantization):
    def without(weights):
        return {name: w for name, w in weights.items() if not name.startswith(("audio_tower", "visual", "lm_head"))}

    bare = edited(tiny_folder.path, tmp_path / "bare", without)
    assert load_tiny(bare, ("text",), lm_head=False, quantization=quantization).parameters() == []
    with pytest.raises(SpecError, match=r"weights are missing.*audio_tower"):
        load_tiny(bare, ("text", "audio"), lm_head=False, quantization=quantization)
    with pytest.raises(SpecError, match=r"1 weights are missing.*lm_head"):
        load_tiny(bare, ("text",), quantization=quantization)


@pytest.mark.parametrize("layout", ["hub", "hub_in_shards"])
def test_the_hubs_full_model_is_the_same_thinker(layout, plain, request):
    folder = request.getfixturevalue(layout)
    thinker = load_tiny(folder)
    assert thinker.folder.config.to_dict() == plain.folder.config.to_dict()
    assert torch.equal(hidden(thinker), hidden(plain))
    vectors = torch.ones(2, thinker.width)
    assert torch.equal(thinker.logits(vectors), plain.logits(vectors))


@pytest.mark.parametrize("layout", ["hub", "hub_in_shards"])
def test_the_hubs_full_model_loads_in_four_bits_without_what_a_job_does_not_need(layout, quantised, request):
    folder = request.getfixturevalue(layout)
    thinker = load_tiny(folder, ("text",), lm_head=False, quantization="nf4", lora=LoraSpec(rank=2))
    core = thinker.model.get_base_model().model
    assert core.audio_tower is None and core.visual is None
    texts = [c for c in MIXED if c.audio_S is None and c.frames_FHWC is None]
    assert torch.equal(hidden(thinker, texts), hidden(quantised, texts))  # fresh adapters change nothing


def test_every_weight_of_the_hubs_full_model_has_the_value_it_has_in_the_thinkers_own_folder(hub, plain):
    there, here = load_tiny(hub).model.state_dict(), plain.model.state_dict()
    assert there.keys() == here.keys()
    assert all(torch.equal(there[name], here[name]) for name in here)


def test_a_folder_that_lacks_some_weights_is_refused_and_not_filled_with_random_ones(tiny_folder, tmp_path):
    def holed(weights):
        return {name: w for name, w in weights.items() if not name.startswith("model.layers.1.")}

    folder = edited(tiny_folder.path, tmp_path / "holed", holed)
    with pytest.raises(SpecError, match=r"12 weights are missing.*language_model\.layers\.1\."):
        load_tiny(folder)


def no_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def only_a_pickle(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def half_a_download(folder: Path) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[: len(whole) // 2])


def other_shapes(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["vocab_size"] *= 2
    (folder / "config.json").write_text(json.dumps(config))


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def another_model(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "qwen3_omni_moe_thinker"
    (folder / "config.json").write_text(json.dumps(config))


def no_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


def nothing_at_all(folder: Path) -> None:
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (no_weights, "no file named model.safetensors"),
        (only_a_pickle, "no file named model.safetensors"),
        (half_a_download, "not fully covered"),
        (other_shapes, "have another shape"),
        (broken_config, "not a valid JSON"),
        (another_model, "is of type qwen3_omni_moe_thinker"),
        (no_tokenizer, "no Thinker could be opened"),
        (nothing_at_all, "no such folder"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_folder_that_is_no_whole_thinker_is_refused_in_one_line(tiny_folder, tmp_path, damage, reason):
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder.path, folder)
    damage(folder)
    with pytest.raises(SpecError, match=reason) as caught:
        load_tiny(folder)
    message = str(caught.value)
    assert message.startswith(f"model.path: given '{folder}'") and "\n" not in message


@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-Omni-7X", "qwen 2.5 omni", "./nowhere/at/all"])
def test_a_name_that_is_neither_here_nor_on_the_hub_is_refused_in_one_line(home, name):
    with pytest.raises(SpecError) as caught:
        open_folder(ModelSpec(path=name))
    message = str(caught.value)
    assert message.startswith(f"model.path: given '{name}'; ") and "\n" not in message


def test_adapters_of_the_whole_thinker_reach_into_both_towers(home):
    adapted = load_tiny(lora=LoraSpec(rank=2)).model
    names = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert {part for part in ("language_model", "audio_tower", "visual") if any(f".{part}." in n for n in names)} == {
        "language_model",
        "audio_tower",
        "visual",
    }


def test_adapters_of_the_language_model_leave_the_towers_alone(home):
    adapted = load_tiny(lora=LoraSpec(rank=2, scope="language_model")).model
    names = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert len(names) == 28 * 2
    assert all(".language_model." in name and "lora_" in name for name in names)


def test_without_lora_nothing_is_trained(plain):
    assert plain.parameters() == []


@pytest.mark.parametrize(
    ("compute", "device", "expected"),
    [
        ("auto", "cpu", torch.float32),
        ("auto", "cuda", torch.bfloat16),
        ("float32", "cuda", torch.float32),
        ("bfloat16", "cpu", torch.bfloat16),
    ],
)
def test_arithmetic_is_bf16_on_a_gpu_and_fp32_on_a_cpu_unless_told_otherwise(compute, device, expected):
    assert compute_type(ModelSpec(path="tiny", compute=compute), torch.device(device)) is expected


def test_bf16_is_what_the_weights_are_held_in_when_it_is_asked_for(home):
    model = load(ModelSpec(path="tiny", quantization="none", compute="bfloat16"), None, ("text",), True, CPU).model
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
