"""A training pass asks the device for nothing: it is run on torch's `meta` device, which has no numbers to tell.

Axes as in `raymsa.clip.Batch`.
"""

from contextlib import nullcontext

import pytest
import torch

from raymsa.data.collate import Collate
from raymsa.readouts.disc import Discriminative
from raymsa.readouts.gen import Generative
from raymsa.spec import InputsSpec, LoraSpec, ModelSpec
from raymsa.target import Scale
from raymsa.thinker.inputs import Encoder
from raymsa.thinker.load import load
from tests.clips import MIXED

SCALE = Scale(-3, 3, -0.1, 1.5, 0.0)
META = torch.device("meta")


@pytest.fixture(scope="module")
def absent(home):
    """The tiny Thinker with packing, all its weights on `meta`."""
    modalities = ("text", "audio", "video")
    thinker = load(ModelSpec(path="tiny", quantization="none"), LoraSpec(rank=2), modalities, True, torch.device("cpu"))
    thinker.pack()
    thinker.model.to(META)
    thinker.device = META
    return thinker


def batch_for(thinker, readout):
    folder, inputs = thinker.folder, InputsSpec(prompt="{text}\nHow?")
    encoder = Encoder(folder.tokenizer, folder.extractor, folder.config, inputs, str(inputs.prompt), SCALE)
    collate = Collate(encoder, readout)
    return collate([collate.measure(one) for one in MIXED], answers=True)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("readout", [Discriminative(), Generative()], ids=["disc", "gen"])
def test_a_packed_pass_never_waits_for_the_device(readout, checkpointing, absent, monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())  # `meta` has none
    head = readout.head(absent.width, SCALE)
    head = head.to(META) if head is not None else None
    absent.train_mode(True, checkpointing)
    loss_B = readout.loss_B(head, absent, batch_for(absent, readout).to(META), SCALE)
    loss_B.sum().backward()
    params = [*absent.parameters(), *(head.parameters() if head is not None else [])]
    norm = torch.nn.utils.clip_grad_norm_(params, 1.0)
    assert loss_B.device == norm.device == META and loss_B.shape == (len(MIXED),)
    assert all(p.grad is not None for p in params)


def test_the_meta_device_tells_when_it_is_asked(absent):
    """Else the test above would say nothing."""
    batch = batch_for(absent, Discriminative()).to(META)
    with pytest.raises((RuntimeError, NotImplementedError)):
        batch.mask_BT.nonzero()
    with pytest.raises((RuntimeError, NotImplementedError)):
        batch.mask_BT.sum().item()


def test_sizes_that_the_host_reads_stay_on_the_host(absent):
    batch = batch_for(absent, Discriminative()).to(META)
    assert batch.mel_length_A.device == batch.grid_V3.device == torch.device("cpu")
    assert batch.mel_ML.device == batch.patch_PX.device == batch.token_BT.device == batch.real_N.device == META
