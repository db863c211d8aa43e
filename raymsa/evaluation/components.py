"""Principal components: the directions in which hidden states differ most.

Axes: N clips, D numbers of a hidden state, C components.
"""

from __future__ import annotations

import numpy as np


def components(state_ND: np.ndarray, label_N: np.ndarray, count: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Places of the clips on the first components [N, C], and the shares of the variance that those explain [C].

    A component has no sign of its own: it is turned so that labels rise along it. Shares are NaN where nothing varies.
    """
    centred_ND = state_ND.astype(np.float64) - state_ND.mean(axis=0, dtype=np.float64)
    wide = centred_ND.shape[0] <= centred_ND.shape[1]
    product = centred_ND @ centred_ND.T if wide else centred_ND.T @ centred_ND  # the smaller of the two
    variance, direction = np.linalg.eigh(product)  # ascending
    first = slice(-1, -count - 1, -1)
    variance_C = variance[first].clip(min=0)
    place_NC = direction[:, first] * np.sqrt(variance_C) if wide else centred_ND @ direction[:, first]
    total = float((centred_ND**2).sum())
    share_C = variance_C / total if total else np.full(len(variance_C), np.nan)
    return place_NC * _turned(place_NC, label_N), share_C


def _turned(place_NC: np.ndarray, label_N: np.ndarray) -> np.ndarray:
    rising_C = (label_N.astype(np.float64) - label_N.mean(dtype=np.float64)) @ place_NC
    return np.where(rising_C < 0, -1.0, 1.0)
