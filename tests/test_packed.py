"""Packing: clips of a pass in one row score, and learn, as in padded rows.

Axes as in `raymsa.clip.Batch`.
"""

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from raymsa.data.collate import Collate, within_budget
from raymsa.readouts.base import Embedded
from raymsa.readouts.disc import Discriminative
from raymsa.readouts.gen import Generative
from raymsa.spec import InputsSpec, LoraSpec, ModelSpec, TrainSpec
from raymsa.target import Scale
from raymsa.thinker import packed
from raymsa.thinker.inputs import Encoder
from raymsa.thinker.load import load
from raymsa.thinker.packed import Segments, _at_once, packed_attention
from raymsa.training.evaluate import score
from raymsa.training.run import build
from raymsa.training.student import Student
from tests.clips import MIXED, clip

SCALE = Scale(-3, 3, -0.1, 1.5, 0.0)
CPU = torch.device("cpu")
STILL = {"disc": Discriminative(head_width=16, head_dropout=0), "gen": Generative(max_new_tokens=6)}


class Prefixed(Discriminative):
    """Two pseudo tokens before each clip, so that rows are longer than the batch says."""

    def before(self, head, embedded, batch):
        """Constant vectors in front; their positions are those of the first token."""
        first = embedded.hidden_BTD.new_full((len(batch.ids), 2, embedded.hidden_BTD.shape[2]), 0.5)
        return Embedded(
            torch.cat([first, embedded.hidden_BTD], 1),
            torch.cat([embedded.mask_BT.new_ones(len(batch.ids), 2), embedded.mask_BT], 1),
            torch.cat([embedded.position_3BT[:, :, :1].expand(-1, -1, 2), embedded.position_3BT], 2),
        )


class Inserted(Discriminative):
    """A readout with blocks between the layers."""

    def inside(self, head, thinker):
        """As any that overrides the hook."""
        return super().inside(head, thinker)


def make_student(readout, packing, attention="sdpa", quantization="none"):
    """A student whose adapters do something, the same every time."""
    torch.manual_seed(0)
    model = ModelSpec(path="tiny", attention=attention, quantization=quantization)
    thinker = load(model, LoraSpec(rank=2, dropout=0), ("text", "audio", "video"), readout.needs_lm_head, CPU)
    student = Student(thinker, readout, readout.head(thinker.width, SCALE), SCALE, model)
    draw = torch.Generator().manual_seed(0)
    for weight in thinker.parameters():
        weight.data += 0.02 * torch.randn(weight.shape, generator=draw)
    if packing:
        thinker.pack()
    return student


def collate_for(student, side="left"):
    folder, inputs = student.thinker.folder, InputsSpec(prompt="{text}\nHow?")
    encoder = Encoder(folder.tokenizer, folder.extractor, folder.config, inputs, str(inputs.prompt), SCALE)
    return Collate(encoder, student.readout, side)


def one_batch(student, side="left", answers=True):
    collate = collate_for(student, side)
    return collate([collate.measure(one) for one in MIXED], answers)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", STILL)
def test_packed_losses_and_gradients_are_those_of_padded_rows(kind, attention):
    found = []
    for packing in (False, True):
        student = make_student(STILL[kind], packing, attention, "nf4")
        student.train_mode(True, True)
        loss_B = student.loss_B(one_batch(student))
        loss_B.sum().backward()
        found.append((loss_B, [p.grad for group in student.groups(TrainSpec()) for p in group["params"]]))
    (padded_B, padded), (packed_B, packed) = found
    assert len(set(padded_B.tolist())) == len(MIXED)  # else the test would say nothing
    assert torch.allclose(padded_B, packed_B, atol=1e-5)
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(padded, packed, strict=True))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("readout", [STILL["disc"], Prefixed(head_dropout=0)], ids=["disc", "before"])
def test_packed_scores_are_those_of_padded_rows(readout, side):
    read = []
    for packing in (False, True):
        student = make_student(readout, packing)
        student.train_mode(False)
        read.append([reading.score for reading in student.read(one_batch(student, side, answers=False))])
    assert len(set(read[0])) == len(MIXED)
    assert read[1] == pytest.approx(read[0], abs=1e-5)


def test_decoding_stays_padded_and_says_the_same():
    said = []
    for packing in (False, True):
        student = make_student(STILL["gen"], packing)
        student.train_mode(False)
        said.append([reading.text for reading in student.read(one_batch(student, answers=False))])
    assert said[0] == said[1] and len(set(said[0])) > 1


def flash(query, key, value, edges, edges_of_keys, longest, longest_key, *, scale, window_size, enable_gqa):
    """torch's flash attention exists on GPUs only; this has its documented arguments and takes its place."""
    assert edges is edges_of_keys and edges.dtype == torch.int32 and longest == longest_key == edges.diff().max()
    parts = []
    for first, last in pairwise(edges.tolist()):
        one = [tensor[first:last].transpose(0, 1)[None] for tensor in (query, key, value)]
        causal = {(-1, 0): True, (-1, -1): False}[window_size]
        attended = torch.nn.functional.scaled_dot_product_attention
        parts.append(attended(*one, is_causal=causal, scale=scale, enable_gqa=enable_gqa))
    return torch.cat(parts, 2)[0].transpose(0, 1)


def three_segments(device=CPU):
    return Segments([3, 5, 1], torch.tensor([0, 3, 8, 9], dtype=torch.int32, device=device))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("groups", [1, 2])
def test_flash_attention_is_asked_for_what_the_segments_alone_would_give(causal, groups):
    query, key, value = torch.randn(1, 4, 9, 8), *torch.randn(2, 1, 4 // groups, 9, 8)
    module = SimpleNamespace(num_key_value_groups=groups, is_causal=causal)
    expected, _ = packed_attention(module, query, key, value, None, segments=three_segments(), scaling=0.3)
    found = _at_once(flash, query, key, value, three_segments(), 0.3, causal)
    assert found.shape == expected.shape == (1, 9, 4, 8) and torch.allclose(found, expected, atol=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("causal", [True, False])
def test_flash_attention_gives_what_the_segments_alone_give(causal):
    device = torch.device("cuda")
    query, key, value = torch.randn(1, 4, 9, 80), *torch.randn(2, 1, 4, 9, 80)
    module = SimpleNamespace(num_key_value_groups=1, is_causal=causal)
    expected, _ = packed_attention(module, query, key, value, None, segments=three_segments(), scaling=0.3)
    moved = [tensor.to(device, torch.bfloat16) for tensor in (query, key, value)]
    found, _ = packed_attention(module, *moved, None, segments=three_segments(device), scaling=0.3)
    assert torch.allclose(found.float().cpu(), expected, atol=0.05)


def test_with_flash_attention_every_layer_attends_once_and_learns_the_same(monkeypatch):
    """The towers too, whose windows and parts attended one by one."""
    found, windows = [], []

    def counted(*args, window_size, **kwargs):
        windows.append(window_size)
        return flash(*args, window_size=window_size, **kwargs)

    for packing in (False, True):
        monkeypatch.setattr(packed, "_kernel", lambda *_: counted)
        student = make_student(STILL["disc"], packing)
        student.train_mode(True)
        loss_B = student.loss_B(one_batch(student))
        loss_B.sum().backward()
        found.append((loss_B, [p.grad for group in student.groups(TrainSpec()) for p in group["params"]]))
    core = student.thinker._core
    in_towers = len(core.audio_tower.layers) + len(core.visual.blocks)
    assert windows.count((-1, 0)) == len(core.language_model.layers) and windows.count((-1, -1)) == in_towers
    (padded_B, before), (packed_B, after) = found
    assert torch.allclose(padded_B, packed_B, atol=1e-5)
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(before, after, strict=True))


def test_no_padding_reaches_the_layers_of_a_packed_pass():
    student = make_student(STILL["disc"], packing=True)
    shapes = []
    layer = student.thinker._core.language_model.layers[0]
    layer.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape[:2])))
    batch = one_batch(student)
    student.loss_B(batch)
    assert shapes == [(1, batch.tokens)] and batch.tokens < batch.token_BT.numel()


def test_the_token_budget_of_packed_passes_counts_real_tokens_alone():
    some = [SimpleNamespace(clip=i, token_T=[0] * length) for i, length in enumerate([10, 40, 10, 10, 90, 10])]
    passes = {packed: [[m.clip for m in p] for p in within_budget(some, 80, packed)] for packed in (False, True)}
    assert passes == {False: [[0, 1], [2, 3], [4], [5]], True: [[0, 1, 2, 3], [4], [5]]}


def test_what_decodes_is_scored_in_passes_whose_padding_counts(monkeypatch):
    clips = [clip(str(i), "good " * length, 0, 0.0) for i, length in enumerate([1, 30, 1, 30])]
    for kind, passes in (("disc", [4]), ("gen", [2, 2])):
        student = make_student(STILL[kind], packing=True)
        student.train_mode(False)
        collate, sizes = collate_for(student), []
        read = Student.read
        monkeypatch.setattr(
            Student, "read", lambda self, b, read=read, sizes=sizes: (sizes.append(len(b.ids)), read(self, b))[1]
        )
        widest = max(len(collate.measure(one).token_T) for one in clips)
        assert len(list(score(student, collate, clips, TrainSpec(batch_tokens=3 * widest - 1)))) == 4
        monkeypatch.undo()
        assert sizes == passes


@pytest.mark.parametrize(
    ("readout", "wanted", "packed"),
    [(STILL["disc"], True, True), (STILL["disc"], False, False), (Prefixed(), True, True), (Inserted(), True, False)],
    ids=["disc", "switched off", "before", "inside"],
)
def test_a_readout_with_blocks_between_the_layers_is_not_packed(readout, wanted, packed):
    spec = SimpleNamespace(
        model=ModelSpec(path="tiny"),
        lora=LoraSpec(rank=2),
        train=TrainSpec(packing=wanted),
        inputs=InputsSpec(modalities=("text",)),
        readout=readout,
    )
    assert build(spec, SCALE, CPU, None).thinker.packing is packed
