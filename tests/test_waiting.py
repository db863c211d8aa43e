"""A pass asks the device for nothing: it is run on torch's `meta` device, which has no numbers to tell.

What that device does in silence, and a GPU would not, is noted by `waits`. Axes as in `raymsa.clip.Batch`.
"""

from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from raymsa.data.collate import Collate
from raymsa.readouts.disc import Discriminative
from raymsa.readouts.gen import Generative
from raymsa.spec import InputsSpec, LoraSpec, ModelSpec
from raymsa.target import Classes, Scale
from raymsa.thinker import packed
from raymsa.thinker.backbone import filled
from raymsa.thinker.inputs import Encoder
from raymsa.thinker.load import load
from raymsa.training.student import Student
from tests.clips import MIXED

SCALE = Scale(-3, 3, -0.1, 1.5, 0.0)
BALANCED = Classes(("sad", "glad", "neither"), (8, 1, 3), balanced=True)
META, CPU = torch.device("meta"), torch.device("cpu")
ALL = ("text", "audio", "video")
SOME = [("text",), ("text", "audio"), ("text", "video"), ALL]
READOUTS = [Discriminative(), Generative()]
aten = torch.ops.aten
ASKING = {aten.nonzero, aten.masked_select, aten.masked_scatter_backward, aten._local_scalar_dense, aten.equal}
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}  # a mask among the indices is counted
COPYING = {aten._to_copy, aten.copy_}
MAKING = {torch.tensor, torch.as_tensor, torch.asarray, torch.Tensor.new_tensor}  # of numbers on the host


class Operations(TorchDispatchMode):
    """Notes operations that wait for `device`, those of a backward pass too."""

    def __init__(self, device, found):
        super().__init__()
        self.device, self.found = device, found

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        operation = func.overloadpacket
        if self.there(*args) and (operation in ASKING or (operation in INDEXING and self.counts(args[1]))):
            self.found.append(str(func))
        if operation in COPYING and self.there(made) and self.held(func, args, kwargs or {}):
            self.found.append(str(func))
        return made

    def there(self, *args):
        return any(isinstance(arg, torch.Tensor) and arg.device.type == self.device.type for arg in args)

    @staticmethod
    def counts(indices):
        return any(index is not None and index.dtype is torch.bool for index in indices)

    def held(self, func, args, kwargs):
        """A copy from the host, of more than a number, for which the host does not go on."""
        source = args[-1] if func is aten.copy_.default else args[0]
        if source.device.type != "cpu" or source.dim() == 0:
            return False
        return not kwargs.get("non_blocking") or (self.device.type == "cuda" and not source.is_pinned())


class Constructions(TorchFunctionMode):
    """Notes tensors made on `device` out of the host's numbers."""

    def __init__(self, device, found):
        super().__init__()
        self.device, self.found = device, found

    def __torch_function__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if func in MAKING and made.device.type == self.device.type:
            self.found.append(func.__name__)
        return made


@contextmanager
def waits(device):
    """A list of what makes the host wait for `device` meanwhile."""
    found = []
    with Constructions(device, found), Operations(device, found):
        yield found


def kernel(query_NHX, key_NHX, value_NHX, edge_E, _, longest, __, *, scale, window_size, enable_gqa):
    """In place of flash attention, which exists on GPUs alone: its results have the shape of the queries."""
    assert edge_E.dtype == torch.int32 and edge_E.device == query_NHX.device
    return query_NHX + key_NHX.mean() + value_NHX.mean()


@pytest.fixture(scope="module", params=[True, False], ids=["packed", "padded"])
def absent(request, home):
    """The tiny Thinker, all its weights on `meta`."""
    thinker = load(ModelSpec(path="tiny", quantization="none"), LoraSpec(rank=2), ALL, True, CPU)
    if request.param:
        thinker.pack()
    thinker.model.to(META)
    thinker.device = META
    return thinker


def batch_for(thinker, readout, clips=MIXED, modalities=ALL, side="left", for_gpu=False):
    folder, inputs = thinker.folder, InputsSpec(prompt="{text}\nHow?", modalities=modalities)
    encoder = Encoder(folder.tokenizer, folder.extractor, folder.config, inputs, str(inputs.prompt), SCALE)
    collate = Collate(encoder, readout, side, for_gpu)
    return collate([collate.measure(one) for one in clips], answers=True)


@pytest.mark.parametrize(
    ("modalities", "clips"),
    [*((some, MIXED) for some in SOME), (ALL, MIXED[:1])],
    ids=[*map("+".join, SOME), "one clip"],
)
@pytest.mark.parametrize("readout", READOUTS, ids=["disc", "gen"])
def test_neither_training_nor_scoring_waits_for_the_device(readout, modalities, clips, absent, monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())  # `meta` has none
    monkeypatch.setattr(packed, "_kernel", lambda *_: kernel)
    head = readout.head(absent.width, SCALE)
    head = head.to(META) if head is not None else None
    params = [*absent.parameters(), *(head.parameters() if head is not None else [])]
    batch = batch_for(absent, readout, clips, modalities)
    absent.train_mode(True, True)
    with waits(META) as found:
        loss_B = readout.loss_B(head, absent, batch.to(META), SCALE)
        loss_B.sum().backward()
        norm = torch.nn.utils.clip_grad_norm_(params, 1.0)
    absent.train_mode(False, False)
    with waits(META) as also, torch.inference_mode():
        state_BD = readout.state_BD(head, absent, batch.to(META))
    assert found == also == []
    assert loss_B.device == norm.device == state_BD.device == META and loss_B.shape == (len(clips),)
    assert modalities != ALL or all(p.grad is not None for p in params)


def test_weights_of_classes_are_made_without_the_host():
    with waits(META) as found:
        weight_B = BALANCED.weight_B(torch.zeros(4, device=META))
    assert found == [] and weight_B.shape == (4,)


SILENT = {
    "masked_scatter": lambda x: (
        (x * 1).masked_scatter(x > 0, torch.ones(3, device=META, requires_grad=True)).sum().backward()
    ),
    "mask": lambda x: x.__setitem__(x > 0, 1.0),
    "tensor": lambda x: torch.tensor([1, 2], device=META),
    "new_tensor": lambda x: x.new_tensor([1, 2]),
    "to": lambda x: torch.ones(3).to(META),
    "copy": lambda x: x.copy_(torch.ones(4)),
}


@pytest.mark.parametrize("what", SILENT)
def test_what_the_meta_device_does_in_silence_is_noted(what):
    """Else the tests above would say nothing."""
    with waits(META) as found:
        SILENT[what](torch.zeros(4, device=META))
    assert len(found) == 1


@pytest.mark.parametrize("ask", [torch.nonzero, torch.Tensor.tolist, lambda x: bool(x.all()), lambda x: x[x > 0]])
def test_the_meta_device_tells_when_it_is_asked(ask):
    with pytest.raises((RuntimeError, NotImplementedError)):
        ask(torch.zeros(4, device=META))


def test_sizes_that_the_host_reads_stay_on_the_host(absent):
    batch = batch_for(absent, Discriminative()).to(META)
    assert batch.mel_length_A.device == batch.grid_V3.device == CPU
    moved = ("mel_ML", "patch_PX", "token_BT", "real_N", "edge_E", "heard_at_N", "seen_at_N")
    assert {getattr(batch, name).device for name in moved} == {META}


@pytest.mark.parametrize("side", ["left", "right"])
def test_places_from_collate_fill_what_a_mask_would_and_give_the_same_gradients(side, tiny_thinker):
    batch, config = batch_for(tiny_thinker, Generative(), side=side), tiny_thinker.folder.config
    for at_N, placeholder in ((batch.heard_at_N, config.audio_token_id), (batch.seen_at_N, config.video_token_id)):
        hidden_BTD = torch.randn(*batch.token_BT.shape, 8, requires_grad=True)
        vectors_ND = torch.randn(len(at_N), 8, requires_grad=True)
        by_mask_BTD = hidden_BTD.masked_scatter((batch.token_BT == placeholder)[..., None], vectors_ND)
        by_place_BTD, grad_BTD = filled(hidden_BTD, at_N, vectors_ND), torch.randn_like(hidden_BTD)
        expected = torch.autograd.grad(by_mask_BTD, (vectors_ND, hidden_BTD), grad_BTD)
        found = torch.autograd.grad(by_place_BTD, (vectors_ND, hidden_BTD), grad_BTD)
        assert len(at_N) > 1 and torch.equal(by_place_BTD, by_mask_BTD)
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("clips", [MIXED, MIXED[:1]], ids=["padded", "whole"])
def test_padded_rows_are_masked_as_transformers_masks_them(clips, side, tiny_thinker):
    with torch.inference_mode():
        embedded = tiny_thinker.embed(batch_for(tiny_thinker, Generative(), clips, side=side))
        found_BTD = tiny_thinker.hidden(embedded)
        unmasked = tiny_thinker._mask(embedded)["full_attention"] is None
        theirs = tiny_thinker._core.language_model(
            inputs_embeds=embedded.hidden_BTD, attention_mask=embedded.mask_BT, position_ids=embedded.position_3BT
        )
    assert torch.equal(found_BTD, theirs.last_hidden_state)
    assert unmasked is (len(clips) == 1)  # SDPA's kernels are fastest without a mask


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("packing", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("readout", READOUTS, ids=["disc", "gen"])
def test_a_gpu_is_not_waited_for(readout, packing, home):
    device, model = torch.device("cuda"), ModelSpec(path="tiny")
    thinker = load(model, LoraSpec(rank=2), ALL, True, device)
    if packing:
        thinker.pack()
    head = readout.head(thinker.width, SCALE)
    student = Student(thinker, readout, head if head is None else head.to(device), SCALE, model)
    batch = batch_for(thinker, readout, for_gpu=True)
    student.train_mode(True, True)
    student.loss_B(batch).sum().backward()  # the first pass of a process sets libraries up
    torch.cuda.set_sync_debug_mode("error")
    try:
        with waits(device) as found:
            student.loss_B(batch).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert found == []
