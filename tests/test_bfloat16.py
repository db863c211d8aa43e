"""LoRA on weights that are held in bf16 and not quantised, as a large card has room for."""

import pytest
import torch

from raymsa.data.collate import Collate
from raymsa.readouts.disc import Discriminative
from raymsa.readouts.gen import Generative
from raymsa.spec import InputsSpec, LoraSpec, ModelSpec, TrainSpec
from raymsa.target import Scale
from raymsa.thinker.inputs import Encoder
from raymsa.thinker.load import load
from raymsa.training.loop import Position, make_optimizer, step
from raymsa.training.student import Student
from tests.clips import MIXED

CPU = torch.device("cpu")
SCALE = Scale(-3, 3, -0.1, 1.5, 0.0)
STILL = {"disc": Discriminative(head_width=16, head_dropout=0), "gen": Generative()}
LORA = LoraSpec(rank=2, dropout=0)
TRAIN = TrainSpec(lora_lr=1e-3, warmup=0, checkpointing=False)


def student_of(kind, compute, adapter=None):
    torch.manual_seed(0)
    model, readout = ModelSpec(path="tiny", quantization="none", compute=compute), STILL[kind]
    thinker = load(model, LORA, ("text", "audio", "video"), readout.needs_lm_head, CPU, adapter)
    student = Student(thinker, readout, readout.head(thinker.width, SCALE), SCALE, model)
    draw = torch.Generator().manual_seed(0)
    for weight in thinker.parameters() if adapter is None else ():
        weight.data += 0.02 * torch.randn(weight.shape, generator=draw)
    return student


def batch_of(student):
    folder = student.thinker.folder
    encoder = Encoder(folder.tokenizer, folder.extractor, folder.config, InputsSpec(), "{text}\nHow?", SCALE)
    collate = Collate(encoder, student.readout)
    return collate([collate.measure(clip) for clip in MIXED[:4]], answers=True)


@pytest.mark.parametrize("kind", STILL)
def test_the_weights_are_bf16_and_what_is_trained_is_fp32_also_when_it_is_loaded_again(kind, home, tmp_path):
    student = student_of(kind, "bfloat16")
    trained = {id(p) for group in student.groups(TRAIN) for p in group["params"]}
    params = [*student.thinker.model.parameters(), *(student.head.parameters() if student.head is not None else ())]
    assert {p.dtype for p in params if id(p) in trained} == {torch.float32}
    assert {p.dtype for p in params if id(p) not in trained} == {torch.bfloat16}
    student.thinker.model.save_pretrained(tmp_path)
    again = student_of(kind, "bfloat16", tmp_path).thinker.parameters()
    assert {p.dtype for p in again} == {torch.float32}
    assert all(torch.equal(one, other) for one, other in zip(student.thinker.parameters(), again, strict=True))


@pytest.mark.parametrize("kind", STILL)
def test_its_losses_are_close_to_those_in_fp32_while_it_trains(kind, home):
    losses = {}
    for compute in ("float32", "bfloat16"):
        student = student_of(kind, compute)
        batch, optimizer = batch_of(student), make_optimizer(student, TRAIN)
        student.train_mode(True)
        losses[compute] = [step(student, TRAIN, optimizer, [batch], 1.0, 1, Position())[0] for _ in range(6)]
        assert all(p.grad is not None and p.grad.dtype is torch.float32 for p in student.thinker.parameters())
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.03, abs=0.02)
    assert losses["bfloat16"] != losses["float32"] and losses["bfloat16"][-1] < losses["bfloat16"][0]
