"""The loaded Thinker as readouts see it: word vectors, hidden states, logits, and its two towers.

Axes: B clips, T tokens, D width, N positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from raymsa.clip import Batch
from raymsa.readouts.base import Embedded
from raymsa.thinker.packed import NAME, TOWERS, Row, Segments, offer
from raymsa.thinker.sizes import of_picture, of_sound

PARTS = ("language_model", "audio_tower", "visual")


@dataclass(frozen=True)
class Folder:
    """What of a model is not weights: tokenizer, sound features, config."""

    path: str
    tokenizer: Any
    extractor: Any
    config: Any


class Thinker:
    """A loaded Thinker behind the `Backbone` interface of the readouts."""

    def __init__(self, model: Any, folder: Folder, trained: tuple[str, ...], device: torch.device) -> None:
        self.model = model  # a PeftModel, or the bare model when nothing is adapted
        self.folder = folder
        self.tokenizer = folder.tokenizer
        self.width: int = folder.config.text_config.hidden_size
        self.device = device
        self.packing = False
        self._trained = trained  # the parts with adapters: only they need a backward pass
        self._base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._core = self._base.model
        self._known: tuple[Tensor, Row] | None = None  # the latest batch's mask, and the row made of it

    def embed(self, batch: Batch) -> Embedded:
        """Word vectors, with the towers' outputs in the places of their placeholders."""
        hidden_BTD = self.embed_tokens(batch.token_BT)
        for at_N, vectors_ND in ((batch.heard_at_N, self._heard(batch)), (batch.seen_at_N, self._seen(batch))):
            if at_N is not None and vectors_ND is not None:
                hidden_BTD = filled(hidden_BTD, at_N, vectors_ND)
        self._known = batch.mask_BT, Row(Segments(batch.lengths, batch.edge_E), batch.real_N)
        return Embedded(hidden_BTD, batch.mask_BT, batch.position_3BT)

    def embed_tokens(self, token_BT: Tensor) -> Tensor:
        """Word vectors [B, T, D]."""
        vectors: Tensor = self._core.language_model.embed_tokens(token_BT)
        return vectors

    def hidden(self, embedded: Embedded, cache: Any = None) -> Tensor:
        """Final-layer hidden states [B, T, D]; lm_head is not touched."""
        if self.packing and cache is None:
            return self._in_one_row(embedded)
        out = self._core.language_model(
            inputs_embeds=embedded.hidden_BTD,
            attention_mask=self._mask(embedded) if cache is None else embedded.mask_BT,
            position_ids=embedded.position_3BT,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        hidden_BTD: Tensor = out.last_hidden_state
        return hidden_BTD

    def pack(self) -> None:
        """From now on passes without a cache put all clips in one row; see `raymsa.thinker.packed`."""
        self.packing = True
        if self._core.language_model.config._attn_implementation == "sdpa":
            offer()
            self._core.language_model.set_attn_implementation(NAME)
            for tower in (getattr(self._core, part, None) for part in ("audio_tower", "visual")):
                if tower is not None and tower.config._attn_implementation == "sdpa":
                    tower.config._attn_implementation = TOWERS

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """lm_head [N, V]."""
        logits_NV: Tensor = self._base.lm_head(hidden_ND)
        return logits_NV

    def new_cache(self) -> Any:
        """An empty key-value cache."""
        from transformers import DynamicCache

        return DynamicCache(config=self.folder.config.text_config)

    def parameters(self) -> list[nn.Parameter]:
        """The adapters' trainable parameters."""
        return [p for p in self.model.parameters() if p.requires_grad]

    @property
    def adapted(self) -> bool:
        """Whether it has adapters."""
        return hasattr(self.model, "peft_config")

    @contextmanager
    def without_adapters(self) -> Iterator[None]:
        """Here it computes as the model did before it was tuned."""
        with self.model.disable_adapter() if self.adapted else nullcontext():
            yield

    def train_mode(self, on: bool, checkpointing: bool | int | str) -> None:
        """Switch dropout and recomputation of activations (non-reentrant) on or off; see `train.checkpointing`."""
        self.model.train(on)
        if not (on and checkpointing):
            self._base.activation_checkpointing_disable()
            return
        self._base.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        # hooks that make all inputs need gradients, more with every call: only reentrant recomputation wants them
        self._base.disable_input_require_grads()
        for part in (part for part in PARTS if getattr(self._core, part, None) is not None):
            for index, layer in enumerate(layers(getattr(self._core, part))):
                layer.gradient_checkpointing = _recomputed(part, index, checkpointing)

    def _row(self, embedded: Embedded) -> Row | None:
        """Of the latest batch; None where a readout has lengthened the sequence: then the mask is another one."""
        return self._known[1] if self._known and self._known[0] is embedded.mask_BT else None

    def _mask(self, embedded: Embedded) -> Any:
        """As transformers makes it of the padding, without asking the device whether there is any."""
        from transformers.masking_utils import create_causal_mask

        row, config = self._row(embedded), self._core.language_model.config
        if row is None or config._attn_implementation != "sdpa":
            return embedded.mask_BT
        if min(row.segments.lengths) == embedded.mask_BT.shape[1]:
            return {"full_attention": None}  # SDPA's own causal attention
        made = create_causal_mask(config, embedded.hidden_BTD, embedded.mask_BT, None, allow_is_causal_skip=False)
        return {"full_attention": made}

    def _in_one_row(self, embedded: Embedded) -> Tensor:
        row = self._row(embedded) or Row.of(embedded.mask_BT)
        language = self._core.language_model
        inputs = row.inputs(embedded, language.config._attn_implementation)
        return row.apart(language(**inputs, use_cache=False).last_hidden_state, embedded.hidden_BTD)

    def hear(self, mel_ML: Tensor, mel_length_A: Tensor) -> Tensor:
        """The audio tower's vectors of all sounds, one after another [N, D]; the lengths are on the host."""
        sizes = of_sound(self._core.audio_tower, mel_ML, mel_length_A)
        with torch.set_grad_enabled(torch.is_grad_enabled() and "audio_tower" in self._trained):
            out = self._core.audio_tower(mel_ML, feature_lens=mel_length_A, **sizes)
        heard_ND: Tensor = out.last_hidden_state
        return heard_ND

    def see(self, patch_PX: Tensor, grid_V3: Tensor) -> Tensor:
        """The vision tower's vectors of all pictures, one after another [N, D]; the grid is on the host."""
        sizes = of_picture(self._core.visual, patch_PX, grid_V3)
        with torch.set_grad_enabled(torch.is_grad_enabled() and "visual" in self._trained):
            out = self._core.visual(patch_PX, grid_thw=grid_V3, **sizes)
        seen_ND: Tensor = out.pooler_output
        return seen_ND

    def _heard(self, batch: Batch) -> Tensor | None:
        if batch.mel_ML is None or batch.mel_length_A is None:
            return batch.heard_ND
        return self.hear(batch.mel_ML, batch.mel_length_A)

    def _seen(self, batch: Batch) -> Tensor | None:
        if batch.patch_PX is None or batch.grid_V3 is None:
            return batch.seen_ND
        return self.see(batch.patch_PX, batch.grid_V3)


def filled(hidden_BTD: Tensor, at_N: Tensor, vectors_ND: Tensor) -> Tensor:
    """The same with vectors in N of its [B * T] places."""
    vectors_ND = vectors_ND.to(hidden_BTD.dtype)
    return hidden_BTD.flatten(0, 1).index_copy(0, at_N, vectors_ND).view_as(hidden_BTD)


def layers(part: Any) -> Any:
    """The repeated layers of the language model or of a tower."""
    return part.blocks if hasattr(part, "blocks") else part.layers


def _recomputed(part: str, index: int, checkpointing: bool | int | str) -> bool:
    if isinstance(checkpointing, str):  # towers
        return part != "language_model"
    return index % int(checkpointing) == 0
