"""LoRA's layers on a CPU: peft's results and gradients, and dropout of the stated share."""

import pytest
import torch

from raymsa.spec import LoraSpec, ModelSpec
from raymsa.thinker import adapters
from raymsa.thinker.load import load

CPU = torch.device("cpu")


def layers_of(quantization, dropout=0.0):
    """Two LoRA layers, one of the language model and one of a tower, with adapters that do something."""
    spec = ModelSpec(path="tiny", quantization=quantization)
    model = load(spec, LoraSpec(rank=4, alpha=6, dropout=dropout), ("text", "video"), False, CPU).model
    draw = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = 0.1 * torch.randn(weight.shape, generator=draw)
    core = model.get_base_model().model
    return core.language_model.layers[0].mlp.up_proj, core.visual.blocks[0].mlp.up_proj


@pytest.mark.parametrize("rows", [(3,), (2, 5), (1, 400)], ids=str)
@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_outputs_and_gradients_are_those_of_peft(quantization, rows):
    for layer in layers_of(quantization):
        ours = layer.forward
        x = torch.randn(*rows, layer.in_features, requires_grad=True)
        found = []
        for forward in (ours, ours.args[1]):
            y = forward(x)
            grads = torch.autograd.grad(y.square().sum(), [x, *(p for p in layer.parameters() if p.requires_grad)])
            layer.eval()
            with torch.no_grad():
                found.append([y, forward(x), *grads])
            layer.train()
        assert (
            float((found[0][0] - layer.base_layer(x)).detach().abs().max()) > 0.01
        )  # else the adapter would do nothing
        for one, other in zip(*found, strict=True):
            assert float((one - other).detach().abs().max()) < 1e-5 * float(other.detach().abs().max())


def test_the_adapter_goes_into_the_weight_where_there_are_many_tokens(monkeypatch):
    layer, _ = layers_of("nf4")
    layer.eval()
    asked = []
    unpacked = adapters._unpacked
    monkeypatch.setattr(adapters, "_unpacked", lambda base: (asked.append(1), unpacked(base))[1])
    with torch.no_grad():
        for rows, times in ((2, 0), (4_000, 1)):
            layer(torch.randn(rows, layer.in_features))
            assert len(asked) == times


def test_dropout_takes_the_stated_share_and_is_the_same_for_the_same_seed():
    x = torch.ones(301, 997)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        out, kept = adapters.dropped(x, 0.1)
        drawn.append(out)
        assert kept == pytest.approx(0.9, abs=1e-4)
        assert float(out.mean()) == pytest.approx(0.9, abs=0.005)
        assert set(out.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_what_is_dropped_is_made_up_for():
    layer, _ = layers_of("nf4", dropout=0.5)
    x = torch.randn(1, layer.in_features)
    torch.manual_seed(0)
    many = layer(x.expand(20_000, -1)).mean(0)
    layer.eval()
    torch.testing.assert_close(many, layer(x)[0], atol=0.05, rtol=0)


def test_autocast_keeps_pefts_own_forward():
    layer, _ = layers_of("none")
    x = torch.randn(3, layer.in_features)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer(x), layer.forward.args[1](x))
