"""What the towers' forward passes work out from sizes, worked out on the host, so that they need not ask the device.

transformers takes these tensors ready-made (`kwargs` of its `get_*` functions), and would ask a GPU for them, in every
layer again. Where attention runs over pieces one by one, their edges are read by the host and stay there.

Axes as in `raymsa.clip.Batch`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from raymsa.thinker.packed import TOWERS, Segments

LONGEST = {"cu_seqlens": "max_seqlen", "cu_window_seqlens": "max_window_seqlen"}  # by the edges that it belongs to


def of_sound(tower: Any, mel_ML: Tensor, mel_length_A: Tensor) -> dict[str, Any]:
    """For the audio tower: sound in pieces of one length, and where their vectors stand."""
    from transformers.models.qwen2_5_omni import modeling_qwen2_5_omni as theirs

    padded, lengths = theirs.chunk_and_pad_features(mel_ML, mel_length_A, tower.n_window)
    moved = {
        "padded_feature": padded,
        "chunk_lengths": lengths,
        "valid_indices": theirs.get_valid_indices(lengths),
        "pool_indices": theirs.get_pool_indices(mel_length_A),
    }
    edges = {"cu_seqlens": theirs.get_audio_cu_seqlens(lengths)}
    return _to(mel_ML.device, moved) | _pieces(tower, mel_ML.device, edges)


def of_picture(tower: Any, patch_PX: Tensor, grid_V3: Tensor) -> dict[str, Any]:
    """For the vision tower: places of the patches, windows of attention and their edges."""
    from transformers import vision_utils as theirs

    merge = tower.spatial_merge_size
    index, windows = theirs.get_vision_window_index(
        grid_V3, spatial_merge_size=merge, window_size=tower.window_size, patch_size=tower.patch_size
    )
    moved = {"window_index": index, "position_ids": theirs.get_vision_position_ids(grid_V3, merge)}
    edges = {"cu_seqlens": theirs.get_vision_cu_seqlens(grid_V3), "cu_window_seqlens": windows}
    return _to(patch_PX.device, moved) | _pieces(tower, patch_PX.device, edges)


def _pieces(tower: Any, device: torch.device, edges: dict[str, Tensor]) -> dict[str, Any]:
    """The pieces that attend within themselves, as the tower's attention reads them, and the longest one's length."""
    lengths = {name: edge_E.diff().tolist() for name, edge_E in edges.items()}
    how: str = tower.config._attn_implementation
    moved = _to(device, edges) if "flash" in how else edges  # all else reads them on the host
    pieces: dict[str, Any] = {
        name: Segments(lengths[name], edge_E) if how == TOWERS else edge_E for name, edge_E in moved.items()
    }
    return pieces | {LONGEST[name]: max(lengths[name]) for name in edges}


def _to(device: torch.device, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: _moved(device, tensor) for name, tensor in tensors.items()}


def _moved(device: torch.device, tensor: Tensor) -> Tensor:
    if device.type == "cuda" and not tensor.is_cuda:
        tensor = tensor.pin_memory()  # from other memory a copy waits for the work that stands before it
    return tensor.to(device, non_blocking=True)
