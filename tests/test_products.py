"""float32 products on a CPU: oneDNN is taken where it is as exact as MKL, and only there."""

import pytest
import torch

from raymsa.thinker.products import by_onednn

SETTINGS = torch.backends.mkldnn.matmul


@pytest.fixture(autouse=True)
def as_torch_has_it():
    before, SETTINGS.fp32_precision = SETTINGS.fp32_precision, "none"
    yield
    SETTINGS.fp32_precision = before


@pytest.mark.parametrize("shape", [(1, 64, 48), (300, 576, 1536), (2, 1536, 32)])
def test_products_and_their_gradients_stay_exact(shape):
    rows, width, out = shape
    x, weight = torch.randn(rows, width, requires_grad=True), torch.randn(out, width)
    by_onednn()
    y = torch.nn.functional.linear(x, weight)
    y.sum().backward()
    exact = x.double() @ weight.double().T
    assert float((y - exact).detach().abs().max()) < 1e-5 * float(exact.abs().max())
    slope = weight.double().sum(0).expand(rows, -1)
    assert float((x.grad - slope).abs().max()) < 1e-5 * float(slope.abs().max())


def test_where_rounding_shows_everything_stays_as_it_was():
    assert not by_onednn(most=0.0)
    assert SETTINGS.fp32_precision == "none"


def test_where_it_does_not_products_are_left_to_onednn():
    if by_onednn():
        assert SETTINGS.fp32_precision == "bf16"
    else:
        assert torch.cpu._is_amx_tile_supported()
