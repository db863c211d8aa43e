"""float32 products on a CPU by oneDNN: 2.2 times as fast as MKL on an AMD EPYC (Zen 5).

torch takes oneDNN for them only where rounding to bfloat16 is allowed. That processor has no instructions with which it
would, and computes in float32 all the same. So it is allowed, and taken back where rounding shows.
"""

from __future__ import annotations

from typing import Any

import torch

SIDE = 256  # of the matrices that are tried
MOST = 1e-5  # error of a float32 product, as a share of its largest number; bfloat16 gives 2e-3


def by_onednn(most: float = MOST) -> bool:
    """From now on this process takes oneDNN for float32 products, if that is as exact; whether it does."""
    settings: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    if _error() <= most:
        return True
    settings.fp32_precision = before
    return False


def _error() -> float:
    """Of a product as torch computes it now."""
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.randn(SIDE, SIDE, generator=draw) for _ in range(2))
    exact = a.double() @ b.double()
    return float(((a @ b) - exact).abs().max() / exact.abs().max())
