"""4-bit weights that are quantised once: the same bits from the kept folder, and never those of another model."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from raymsa.errors import SpecError
from raymsa.home import models_dir
from raymsa.readouts.base import Embedded
from raymsa.spec import LoraSpec, ModelSpec
from raymsa.thinker import kept, load

CPU = torch.device("cpu")
WEIGHTS = "model.safetensors"


@pytest.fixture
def model(tiny_folder, tmp_path, monkeypatch) -> Path:
    """A model folder of the test's own, in a home of its own, where even the tiny Thinker counts as large."""
    monkeypatch.setenv("RAYMSA_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(kept, "KEPT_FROM_BYTES", 0)
    return Path(shutil.copytree(tiny_folder.path, tmp_path / "model"))


def loaded(model, modalities=("text", "audio", "video"), lm_head=True, lora=None, **more):
    return load.load(ModelSpec(path=str(model), **more), lora, modalities, lm_head, CPU)


def folders() -> list[Path]:
    return sorted(models_dir().glob("*")) if models_dir().exists() else []


def bits(thinker):
    return {name: value.clone() for name, value in thinker.model.state_dict().items()}


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


def says(thinker):
    token_BT = torch.arange(20).view(2, 10)
    position_3BT = torch.arange(10).expand(3, 2, 10)
    embedded = Embedded(thinker.embed_tokens(token_BT), torch.ones(2, 10), position_3BT)
    with torch.no_grad():
        return thinker.hidden(embedded)


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
@pytest.mark.parametrize(("modalities", "lm_head"), [(("text",), False), (("text", "audio", "video"), True)])
def test_the_kept_folder_loads_the_same_bits_without_quantising(model, modalities, lm_head, compute, monkeypatch):
    first = loaded(model, modalities, lm_head, compute=compute)
    assert len(folders()) == 1
    monkeypatch.setattr(load, "nf4", lambda dtype: dtype)  # with it, quantising would fail
    again = loaded(model, modalities, lm_head, compute=compute)
    assert same(bits(first), bits(again)) and torch.equal(says(first), says(again))
    assert folders() == folders() and len(folders()) == 1
    layers = [m for m in again.model.modules() if hasattr(m, "compute_dtype")]
    assert layers and {m.compute_dtype for m in layers} == {getattr(torch, compute)}
    assert not any(m.support_avx512bf16_for_cpu for m in layers)


def test_adapters_on_kept_weights_train_as_on_weights_quantised_now(model):
    losses = []
    for _ in range(2):
        torch.manual_seed(0)
        thinker = loaded(model, ("text",), False, LoraSpec(rank=2))
        for weight in thinker.parameters():
            weight.data += 0.01
        thinker.hidden(
            Embedded(thinker.embed_tokens(torch.arange(8)[None]), torch.ones(1, 8), torch.arange(8).expand(3, 1, 8))
        ).sum().backward()
        losses.append([p.grad.clone() for p in thinker.parameters()])
    assert len(folders()) == 1
    assert all(torch.equal(one, other) for one, other in zip(*losses, strict=True))


def test_other_weights_parts_or_number_types_have_a_folder_of_their_own(model):
    first = loaded(model, ("text",), False)
    loaded(model, ("text",), True)
    loaded(model, ("text",), False, compute="bfloat16")
    assert len(folders()) == 3
    weights = load_file(model / WEIGHTS)
    save_file({name: value * 2 for name, value in weights.items()}, model / WEIGHTS, metadata={"format": "pt"})
    changed = loaded(model, ("text",), False)
    assert len(folders()) == 4 and not same(bits(first), bits(changed))


def cut(folder: Path) -> None:
    file = folder / WEIGHTS
    os.truncate(file, file.stat().st_size // 2)


def without_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


@pytest.mark.parametrize("damage", [cut, without_weights, broken_config])
def test_a_damaged_folder_is_made_again(model, damage):
    first = bits(loaded(model, ("text",), False))
    (folder,) = folders()
    damage(folder)
    assert same(bits(loaded(model, ("text",), False)), first)
    assert folders() == [folder] and (folder / WEIGHTS).stat().st_size > 10**5
    assert same(bits(loaded(model, ("text",), False)), first)


def test_an_error_that_is_not_the_folders_leaves_it(model, monkeypatch):
    loaded(model, ("text",), False)
    (folder,) = folders()
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    with pytest.raises(SpecError, match="FlashAttention"):
        loaded(model, ("text",), False, attention="flash_attention_2")  # the package is not installed
    monkeypatch.setattr(load, "_refuse_gaps", out_of_memory)
    with pytest.raises(RuntimeError, match="out of memory"):
        loaded(model, ("text",), False)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def out_of_memory(*_):
    raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")


def test_nothing_is_kept_of_a_small_model_an_unquantised_one_or_against_ones_will(model, monkeypatch):
    loaded(model, ("text",), False, quantization="none")
    loaded(model, ("text",), False, keep_quantized=False)
    monkeypatch.undo()  # the size that counts as large, too
    monkeypatch.setenv("RAYMSA_HOME", str(model.parent / "home"))
    loaded(model, ("text",), False)
    assert folders() == []


def test_a_disk_that_is_full_harms_nothing(model, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(load.thinker_class(()).__mro__[1], "save_pretrained", full)
    assert loaded(model, ("text",), False).width == 128
    assert folders() == []
