"""What the towers' forward passes work out from sizes, worked out on the host, so that they need not ask the device.

transformers takes these tensors ready-made (`kwargs` of its `get_*` functions), and would ask a GPU for them, in every
layer again. Where attention runs over pieces one by one, their bounds are read by the host and stay there.

Axes as in `raymsa.clip.Batch`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def of_sound(tower: Any, mel_ML: Tensor, mel_length_A: Tensor) -> dict[str, Tensor]:
    """For the audio tower: sound in pieces of one length, and where their vectors stand."""
    from transformers.models.qwen2_5_omni import modeling_qwen2_5_omni as theirs

    padded, lengths = theirs.chunk_and_pad_features(mel_ML, mel_length_A, tower.n_window)
    moved = {
        "padded_feature": padded,
        "chunk_lengths": lengths,
        "valid_indices": theirs.get_valid_indices(lengths),
        "pool_indices": theirs.get_pool_indices(mel_length_A),
    }
    bounds = {"cu_seqlens": theirs.get_audio_cu_seqlens(lengths)}
    return _to(mel_ML.device, moved) | _where_read(tower, mel_ML.device, bounds)


def of_picture(tower: Any, patch_PX: Tensor, grid_V3: Tensor) -> dict[str, Tensor]:
    """For the vision tower: places of the patches, windows of attention and their bounds."""
    from transformers import vision_utils as theirs

    merge = tower.spatial_merge_size
    index, windows = theirs.get_vision_window_index(
        grid_V3, spatial_merge_size=merge, window_size=tower.window_size, patch_size=tower.patch_size
    )
    moved = {"window_index": index, "position_ids": theirs.get_vision_position_ids(grid_V3, merge)}
    bounds = {"cu_seqlens": theirs.get_vision_cu_seqlens(grid_V3), "cu_window_seqlens": windows}
    return _to(patch_PX.device, moved) | _where_read(tower, patch_PX.device, bounds)


def _where_read(tower: Any, device: torch.device, bounds: dict[str, Tensor]) -> dict[str, Tensor]:
    """Flash attention reads the bounds on the device, all else on the host."""
    return _to(device, bounds) if "flash" in tower.config._attn_implementation else bounds


def _to(device: torch.device, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}
