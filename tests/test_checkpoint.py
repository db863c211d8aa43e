"""Checkpoints: what plain peft makes of them, that half of one is never found, and that nothing in them is a pickle."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import Qwen2_5OmniThinkerForConditionalGeneration

from raymsa.data.collate import Collate
from raymsa.errors import DataError
from raymsa.readouts.disc import Discriminative
from raymsa.readouts.gen import Generative
from raymsa.spec import InputsSpec, LoraSpec, ModelSpec, TrainSpec
from raymsa.target import Scale
from raymsa.thinker.inputs import Encoder
from raymsa.thinker.load import load
from raymsa.training import checkpoint
from raymsa.training.loop import Position, make_optimizer
from raymsa.training.student import Student
from tests.clips import MIXED

SCALE = Scale(-3, 3, -0.1, 1.5, 0.0)
CPU = torch.device("cpu")
ALL = ("text", "audio", "video")
AT_5 = Position(epoch=1, step=5, step_in_epoch=2, best_epoch=1, best_valid_error=0.75)


def make_student(seed=0, readout=None, lora=True, modalities=ALL, adapter=None) -> Student:
    """A student in fp32, with its own random head; with `adapter`, on the adapters saved there."""
    torch.manual_seed(seed)
    readout = readout or Discriminative(head_width=16)
    model = ModelSpec(path="tiny", quantization="none")
    thinker = load(model, LoraSpec(rank=2) if lora else None, modalities, readout.needs_lm_head, CPU, adapter)
    student = Student(thinker, readout, readout.head(thinker.width, SCALE), SCALE, model)
    student.train_mode(False)
    return student


def trained(student: Student, seed=3) -> Student:
    """The student with every trained number moved, so that adapters do something."""
    draw = torch.Generator().manual_seed(seed)
    for group in student.groups(TrainSpec()):
        for weight in group["params"]:
            weight.data += 0.1 * torch.randn(weight.shape, generator=draw)
    return student


def batch_for(student: Student, clips=MIXED[:4]):
    folder, inputs = student.thinker.folder, InputsSpec(prompt="{text}\nHow?")
    collate = Collate(
        Encoder(folder.tokenizer, folder.extractor, folder.config, inputs, str(inputs.prompt), SCALE), student.readout
    )
    return collate([collate.measure(c) for c in clips], answers=True)


def weights(student: Student) -> list[torch.Tensor]:
    return [p.detach().clone() for group in student.groups(TrainSpec()) for p in group["params"]]


def same(one, other) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.fixture(scope="module")
def student(home) -> Student:
    return trained(make_student())


@pytest.fixture(scope="module")
def optimizer(student):
    """AdamW after a real step, without moving the student."""
    optimizer = make_optimizer(student, TrainSpec(weight_decay=0))
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    student.loss_B(batch_for(student)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    return optimizer


@pytest.fixture(scope="module")
def saved(student, optimizer, tmp_path_factory):
    """A run folder with one checkpoint."""
    run = tmp_path_factory.mktemp("run")
    return checkpoint.save(run, "last", student, AT_5, optimizer)


def test_plain_peft_puts_the_adapter_onto_transformers_own_class(student, saved, tiny_folder):
    stock = Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(tiny_folder.path, dtype=torch.float32)
    model = PeftModel.from_pretrained(stock, saved / "adapter").eval()
    names = {name for name, p in model.named_parameters() if "lora_" in name}
    assert names == {name for name, p in student.thinker.model.named_parameters() if "lora_" in name}
    text = [c for c in MIXED if c.audio_S is None and c.frames_FHWC is None]
    batch = batch_for(student, text)
    with torch.inference_mode():
        theirs = model.get_base_model().model(
            input_ids=batch.token_BT, attention_mask=batch.mask_BT, position_ids=batch.position_3BT
        )
        ours = student.thinker.hidden(student.thinker.embed(batch))
        with model.disable_adapter():
            without = model.get_base_model().model(input_ids=batch.token_BT).last_hidden_state
    assert torch.allclose(ours, theirs.last_hidden_state, atol=1e-5)
    assert not torch.allclose(ours, without, atol=1e-2)  # the adapter does something


def test_plain_peft_gives_the_same_for_sound_and_picture(student, saved, tiny_folder):
    stock = Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(tiny_folder.path, dtype=torch.float32)
    core = PeftModel.from_pretrained(stock, saved / "adapter").eval().get_base_model().model
    batch, ours = batch_for(student), student.thinker._core
    with torch.inference_mode():
        for model_hears, we_hear in zip(core.audio_tower.parameters(), ours.audio_tower.parameters(), strict=True):
            assert torch.equal(model_hears, we_hear)
        heard = [m.audio_tower(batch.mel_ML, feature_lens=batch.mel_length_A).last_hidden_state for m in (core, ours)]
        seen = [m.visual(batch.patch_PX, grid_thw=batch.grid_V3).pooler_output for m in (core, ours)]
    assert torch.allclose(*heard, atol=1e-5) and torch.allclose(*seen, atol=1e-5)


def test_a_checkpoint_is_made_of_safetensors_and_json_alone(saved):
    files = [path.relative_to(saved) for path in saved.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".md"}
    assert {"head.safetensors", "optimizer.safetensors", "state.json"} < {path.name for path in files}
    for path in files:
        whole = (saved / path).read_bytes()
        assert not whole.startswith((b"PK", b"\x80")), f"{path} is a pickle"
        if path.suffix == ".json":
            json.loads(whole)


def test_a_checkpoint_holds_the_adapters_and_not_the_thinker(saved, student):
    size = sum(path.stat().st_size for path in saved.rglob("*") if path.is_file())
    assert size < 3.2 * 4 * student.trainable() + 100_000  # the weights, and AdamW's two moments


def test_a_student_built_on_a_checkpoint_is_the_student_that_was_saved(student, saved):
    again = make_student(seed=9, adapter=checkpoint.adapter(saved))
    checkpoint.load_head(saved, again)
    assert same(weights(again), weights(student))
    batch = batch_for(student)
    assert again.read(batch) == student.read(batch)
    assert again.trainable() == student.trainable()


def test_weights_put_back_into_another_student_are_all_of_them(student, saved):
    other = trained(make_student(seed=8), seed=4)
    assert not same(weights(other), weights(student))
    checkpoint.load_weights(saved, other)
    assert same(weights(other), weights(student))


def test_position_and_scale_come_back_as_they_were(saved):
    assert checkpoint.position_of(saved) == AT_5
    assert checkpoint.target_of(saved) == SCALE


def test_a_run_that_never_had_a_best_epoch_comes_back_as_well(student, tmp_path):
    folder = checkpoint.save(tmp_path, "last", student, Position(step=1), None)
    assert checkpoint.position_of(folder) == Position(step=1)  # best_valid_error is infinite


@pytest.mark.parametrize("read", [checkpoint.position_of, checkpoint.target_of])
@pytest.mark.parametrize("key", ["scale", "target"])
def test_a_checkpoint_of_an_older_raymsa_is_one_line(tmp_path, read, key):
    scale = {"low": -3, "high": 3, "mean": 0, "sd": 1, "middle": 0}
    (tmp_path / "state.json").write_text(json.dumps({"position": {"best_valid_mae": 0.5}, key: scale}))
    with pytest.raises(DataError, match=r"was written by an older raymsa; train again$"):
        read(tmp_path)


def large_enough(seed=0):
    """Stands for a student whose parameters are large enough for bitsandbytes to keep their state in 8 bits."""
    draw = torch.Generator().manual_seed(seed)
    params = [torch.nn.Parameter(torch.randn(64, 128, generator=draw)) for _ in range(2)]
    return SimpleNamespace(params=params, groups=lambda train: [{"params": params, "lr": train.lora_lr}])


def stepped(optimizer, steps, seed) -> None:
    draw = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for group in optimizer.param_groups:
            for weight in group["params"]:
                weight.grad = torch.randn(weight.shape, generator=draw)
        optimizer.step()


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize("kind", ["adamw", "paged_adamw_8bit", "adamw of torch, not fused"])
def test_an_optimizer_that_is_put_back_takes_the_steps_the_first_one_takes(kind, tmp_path):
    train, one, other = TrainSpec(optimizer=kind.split()[0]), large_enough(), large_enough()
    before = make_optimizer(one, train) if kind == train.optimizer else torch.optim.AdamW(one.groups(train))
    stepped(before, 3, seed=1)
    save_file(checkpoint._tensors(before), tmp_path / "optimizer.safetensors")
    after = make_optimizer(other, train)
    for mine, theirs in zip(other.params, one.params, strict=True):
        mine.data.copy_(theirs.data)
    checkpoint._restore(after, load_file(tmp_path / "optimizer.safetensors"))
    for mine, theirs in zip(other.params, one.params, strict=True):  # bitsandbytes hands its count to C as it is
        assert type(after.state[mine]["step"]) is type(before.state[theirs]["step"])
    stepped(before, 2, seed=2)
    stepped(after, 2, seed=2)
    for mine, theirs in zip(other.params, one.params, strict=True):
        assert torch.equal(mine, theirs) if kind == train.optimizer else torch.allclose(mine, theirs, atol=1e-6)
    quantised = [state["state1"].dtype for state in after.state.values() if "state1" in state]
    assert quantised == [torch.uint8] * (2 if "8bit" in kind else 0)


def test_the_optimizer_goes_on_where_it_stopped(student, optimizer, saved):
    other = make_optimizer(student, TrainSpec(lora_lr=5e-5, weight_decay=0))
    start = checkpoint.start(saved)
    start.restore(other)
    assert start.position == AT_5
    before, after = optimizer.state_dict()["state"], other.state_dict()["state"]
    assert before.keys() == after.keys() and len(before) == sum(len(g["params"]) for g in other.param_groups)
    for index, state in before.items():
        assert {name: value.tolist() for name, value in state.items()} == {
            name: value.tolist() for name, value in after[index].items()
        }
        assert {value.dtype for value in after[index].values()} == {torch.float32}
    assert [group["peak"] for group in other.param_groups] == [5e-5, 1e-3]  # rates come from the spec, not the file


def test_half_a_checkpoint_is_never_found(student, saved, tmp_path):
    assert checkpoint.find(tmp_path, "last") is None
    shutil.copytree(saved, tmp_path / ".last-000009.4711.part")
    assert checkpoint.find(tmp_path, "last") is None
    whole = checkpoint.save(tmp_path, "last", student, AT_5, None)
    assert checkpoint.find(tmp_path, "last") == whole == tmp_path / "last-000005"
    assert [path.name for path in tmp_path.iterdir()] == ["last-000005"]  # nor does it stay on the disk
    (tmp_path / "last-000007").mkdir()  # not ours: nothing of ours has a final name before it is whole
    assert checkpoint.find(tmp_path, "last") == whole


def test_the_older_checkpoint_goes_when_the_newer_one_is_whole(student, tmp_path):
    first = checkpoint.save(tmp_path, "last", student, AT_5, None)
    best = checkpoint.save(tmp_path, "best", student, AT_5, None)
    second = checkpoint.save(tmp_path, "last", student, Position(step=12), None)
    assert checkpoint.find(tmp_path, "last") == second and not first.exists()
    assert checkpoint.find(tmp_path, "best") == best and best.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best-000005", "last-000012"]


def test_the_older_checkpoint_stays_when_the_newer_one_cannot_be_written(student, tmp_path, monkeypatch):
    first = checkpoint.save(tmp_path, "last", student, AT_5, None)

    def disk_is_full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr("os.fsync", disk_is_full)
        checkpoint.save(tmp_path, "last", student, Position(step=12), None)
    assert checkpoint.find(tmp_path, "last") == first
    assert checkpoint.position_of(first) == AT_5


def test_a_step_that_is_saved_again_replaces_what_was_there(student, tmp_path):
    checkpoint.save(tmp_path, "best", student, AT_5, None)
    again = checkpoint.save(tmp_path, "best", student, Position(step=5, epoch=2), None)
    assert checkpoint.position_of(again).epoch == 2


def test_a_zero_shot_run_has_nothing_but_its_state(home, tmp_path):
    bare = make_student(readout=Generative(), lora=False, modalities=("text",))
    folder = checkpoint.save(tmp_path, "best", bare, Position(), None)
    assert [path.name for path in folder.iterdir()] == ["state.json"]
    assert checkpoint.adapter(folder) is None
    checkpoint.load_weights(folder, bare)  # there is nothing to put back, and that is no error
