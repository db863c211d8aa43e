"""The plain recipe of tests/benchmarks is a fair peer: the same losses and scores on the same clips."""

import hashlib
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from raymsa.readouts.base import Readout
from raymsa.spec import check
from raymsa.target import Classes, Scale
from raymsa.training.run import build, collate_for
from tests.benchmarks.plain_recipe import Plain, Processor, load_model
from tests.benchmarks.plain_recipe import check as check_plain
from tests.clips import MIXED, clip

CPU = torch.device("cpu")
SCALE = Scale(-3, 3, 0.1, 1.5, 0.0)
CLIPS = [*MIXED, clip("quiet", "no sound", 4, 2.0, sound_s=0.0, label=-0.4)]


def spec_of(readout: str, quantization: str, **sections):
    raw = {
        "name": "x",
        "dataset": {"kind": "synthetic", "name": "synthetic"},
        "model": {"path": "tiny", "quantization": quantization},
        "readout": {"kind": readout},
        "lora": {"rank": 4, "alpha": 8},
        "seeds": [1],
        "resources": {"gpus": 0},
    }
    return check({**raw, **sections}, "test")


def both(spec, target=SCALE):
    """The same job twice: ours with its collate, and the plain recipe, with equal adapters and heads."""
    student = build(spec, target, CPU, None)
    folder = student.thinker.folder
    # 300 s of padding take a second for every clip, and 10 s give the same: what is padding never reaches the tower.
    short = type(folder.extractor).from_pretrained(folder.path, chunk_length=10)
    folder = replace(folder, extractor=short)
    model = load_model(folder.path, torch.float32, CPU, spec.model.quantization == "nf4", spec.model.attention)
    plain = Plain(spec, target, model, folder, CPU, torch.float32)
    for module in (student.thinker.model, plain.model):
        fill(module)
    if student.head is not None:
        plain.head.load_state_dict(student.head.state_dict())
    return student, collate_for(student, spec), plain


def fill(model) -> None:
    """Adapters that do something, the same for the same name."""
    for name, weight in model.named_parameters():
        if "lora_" in name:
            seed = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16)
            weight.data.normal_(0, 0.05, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("modalities", [["text", "audio", "video"], ["text"], ["text", "audio"]], ids="-".join)
@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize("readout", ["disc", "gen"])
def test_losses_and_scores_are_ours(readout, quantization, modalities):
    spec = spec_of(readout, quantization, inputs={"modalities": modalities})
    student, collate, plain = both(spec)
    batch = collate([collate.measure(one) for one in CLIPS], answers=True)
    plain._mode(False)

    theirs = plain.loss_B(CLIPS, plain.inputs(CLIPS, answers=True))
    torch.testing.assert_close(theirs, student.loss_B(batch), atol=1e-3, rtol=0)

    ours = student.read(collate([collate.measure(one) for one in CLIPS]))
    for mine, their in zip(ours, plain.read(CLIPS), strict=True):
        assert mine.text == their.text
        assert mine.score == pytest.approx(their.score, abs=1e-3)


def test_sound_is_padded_to_300_s_as_by_transformers(tiny_folder):
    processor = Processor(tiny_folder.tokenizer, tiny_folder.extractor, tiny_folder.config)
    said = [{"role": "user", "content": [{"type": "audio"}]}]
    made = processor([said], [clip("a", "", 0, 1.0)])
    assert made["input_features"].shape == (1, 80, 30_000)
    assert made["feature_attention_mask"].sum() == 100
    assert (made["input_ids"] == tiny_folder.tokenizer.audio_token_id).sum() == 25


def test_a_class_is_learned_and_read_alike():
    target = Classes(("bad", "good"), (3, 5), balanced=True)
    task = {"kind": "classification", "target": "annotation", "classes": ["bad", "good"], "class_weights": "balanced"}
    spec = spec_of("disc", "nf4", dataset={"kind": "synthetic", "name": "synthetic", "task": task})
    student, collate, plain = both(spec, target)
    clips = [clip("a", "bad film", 2, 1.0, label=0.0), clip("b", "good film", 0, 0.0, label=1.0)]
    plain._mode(False)
    ours = student.loss_B(collate([collate.measure(one) for one in clips], answers=True))
    torch.testing.assert_close(plain.loss_B(clips, plain.inputs(clips, True)), ours, atol=1e-3, rtol=0)


@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("readout", ["disc", "gen"])
def test_it_learns(readout, checkpointing):
    spec = spec_of(
        readout, "nf4", train={"lora_lr": 2e-3, "checkpointing": checkpointing}, inputs={"modalities": ["text"]}
    )
    torch.manual_seed(0)
    _, _, plain = both(spec)
    torch.manual_seed(0)
    losses = [plain.step(CLIPS, batch=4) for _ in range(8)]
    assert losses[-1] < losses[0]


def fused() -> type[Readout]:
    """A readout with hooks before the Thinker and inside it."""

    class Fused(Readout):
        kind: str = "fused"

        def before(self, head, embedded, batch):
            return embedded

        def inside(self, head, thinker):
            return nullcontext()

        def loss_B(self, head, thinker, batch, target):
            raise NotImplementedError

        def read(self, head, thinker, batch, target):
            raise NotImplementedError

    return Fused


def test_what_it_cannot_do_is_said():
    with pytest.raises(ValueError, match=r"^the plain recipe does not know inputs\.interleave$"):
        check_plain(spec_of("disc", "nf4", inputs={"interleave": True}))
    spec = spec_of("gen", "nf4")
    constrained = spec.readout.model_copy(update={"constrained": True})
    with pytest.raises(ValueError, match=r"^the plain recipe does not know readout\.constrained$"):
        check_plain(spec.model_copy(update={"readout": constrained}))


def test_hooks_that_it_does_not_have_are_said():
    spec = spec_of("disc", "nf4").model_copy(update={"readout": fused()()})
    with pytest.raises(ValueError, match="what fused puts before the Thinker nor what fused puts inside"):
        check_plain(spec)
