"""From a clip to what the Thinker reads: prompt, placeholders, patches, mel features, M-RoPE positions.

Everything here is plain arithmetic on the CPU and equals transformers' own Qwen2_5OmniProcessor and get_rope_index
(tests/test_parity.py), but without padding sound to 300 s and without a loop over tokens.

Axes: T tokens, F frames, H height, W width, C colours, P patches, X numbers in a patch, M mel bins, L mel frames,
S audio samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raymsa.clip import LEAST_SAMPLES, SAMPLE_RATE, Clip, mel_frames
from raymsa.spec import InputsSpec
from raymsa.target import Target

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # image_mean and image_std of the model's preprocessor_config.json
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
SECONDS_PER_GRID_UNKNOWN = 1.0  # transformers' default: 2 frames per second, 2 frames per patch


@dataclass(frozen=True)
class Encoded:
    """One clip, ready to be put into a batch; `answer` is the number of tokens at the end that are to be learned."""

    clip: Clip
    token_T: list[int]
    position_3T: np.ndarray
    answer: int
    mel_ML: Tensor | None
    patch_PX: Tensor | None
    grid_3: tuple[int, int, int] | None


@dataclass(frozen=True)
class Encoder:
    """Turns clips into `Encoded`, by the tokenizer, feature extractor and config of one model folder."""

    tokenizer: Any
    extractor: Any  # WhisperFeatureExtractor
    config: Any  # Qwen2_5OmniThinkerConfig
    inputs: InputsSpec
    prompt: str
    target: Target

    def tokens(self, clip: Clip) -> list[int]:
        """The prompt's token ids, with one placeholder token for each vector that a tower will put there."""
        text = self.tokenizer.apply_chat_template(self.messages(clip), tokenize=False, add_generation_prompt=True)
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        heard, seen = clip.audio_tokens * self._hears(clip), clip.video_tokens * self._sees(clip)
        counts = {self.config.audio_token_id: heard, self.config.video_token_id: seen}
        return [i for token in ids for i in [token] * counts.get(token, 1)]

    def encode(self, clip: Clip, token_T: list[int], answer_T: list[int]) -> Encoded:
        """Everything a batch needs of a clip; `token_T` comes from `tokens`, `answer_T` is appended to it."""
        grid_3 = self._grid(clip)
        whole_T = token_T + answer_T
        return Encoded(
            clip=clip,
            token_T=whole_T,
            position_3T=self._positions(whole_T, clip, grid_3),
            answer=len(answer_T),
            mel_ML=self._mel(clip) if self._hears(clip) else None,
            patch_PX=patchify(clip.frames_FHWC, self._vision) if grid_3 and clip.frames_FHWC is not None else None,
            grid_3=grid_3,
        )

    def answer_tokens(self, answer: str | None) -> list[int]:
        """Token ids of an answer and the end of the turn; none for a readout that says nothing."""
        if answer is None:
            return []
        ids: list[int] = self.tokenizer(answer, add_special_tokens=False)["input_ids"]
        return [*ids, self.tokenizer.eos_token_id]

    @property
    def _vision(self) -> Any:
        return self.config.vision_config

    def _hears(self, clip: Clip) -> bool:
        return "audio" in self.inputs.modalities and clip.audio_S is not None

    def _sees(self, clip: Clip) -> bool:
        return "video" in self.inputs.modalities and clip.frames_FHWC is not None

    def messages(self, clip: Clip) -> list[dict[str, Any]]:
        """The conversation the chat template renders: system, then picture, sound and words of the user."""
        media = [{"type": "video"}] * self._sees(clip) + [{"type": "audio"}] * self._hears(clip)
        text = self._transcript(clip) if "text" in self.inputs.modalities else ""
        words = self.prompt.format(text=text, **self.target.blanks()).strip()
        return [
            {"role": "system", "content": self.inputs.system},
            {"role": "user", "content": [*media, {"type": "text", "text": words}]},
        ]

    def _transcript(self, clip: Clip) -> str:
        text = clip.text
        for special in self._specials:  # words of a speaker must never open a turn or stand for a picture
            text = text.replace(special, special.replace("<|", "< |"))
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) <= self.inputs.max_text_tokens:
            return text
        return str(self.tokenizer.decode(ids[: self.inputs.max_text_tokens]))

    @cached_property
    def _specials(self) -> list[str]:
        return [t for t in self.tokenizer.get_added_vocab() if t.startswith("<|")]

    def _grid(self, clip: Clip) -> tuple[int, int, int] | None:
        if not self._sees(clip) or clip.frames_FHWC is None:
            return None
        frames, height, width, _ = clip.frames_FHWC.shape
        steps = -(-frames // self._vision.temporal_patch_size)
        return steps, height // self._vision.patch_size, width // self._vision.patch_size

    def _mel(self, clip: Clip) -> Tensor:
        assert clip.audio_S is not None
        samples = np.zeros(max(len(clip.audio_S), LEAST_SAMPLES), np.float32)
        samples[: len(clip.audio_S)] = clip.audio_S.astype(np.float32) / 32768
        frames = mel_frames(len(clip.audio_S))
        # one window of silence behind the sound, as in a clip that is padded to 300 s, and cut off again
        padded = np.pad(samples, (0, frames * self.extractor.hop_length - len(samples) + self.extractor.n_fft))
        out = self.extractor(
            padded, sampling_rate=SAMPLE_RATE, padding=False, truncation=False, return_tensors="pt", device="cpu"
        )
        mel_ML: Tensor = out["input_features"][0][:, :frames]
        return mel_ML

    def _positions(self, token_T: list[int], clip: Clip, grid_3: tuple[int, int, int] | None) -> np.ndarray:
        if grid_3 is None or clip.frames_FHWC is None:
            return np.broadcast_to(np.arange(len(token_T)), (3, len(token_T)))
        frames = len(clip.frames_FHWC)
        span_s = clip.seconds * self._vision.temporal_patch_size / frames if clip.seconds else SECONDS_PER_GRID_UNKNOWN
        seen_3V = vision_positions(grid_3, span_s, self._vision.spatial_merge_size, self.config.position_id_per_seconds)
        start = token_T.index(self.config.video_token_id)
        stop = start + seen_3V.shape[1]
        after = start + int(seen_3V.max()) + 1
        position_3T = np.empty((3, len(token_T)), np.int64)
        position_3T[:, :start] = np.arange(start)
        position_3T[:, start:stop] = seen_3V + start
        position_3T[:, stop:] = np.arange(len(token_T) - stop) + after
        return position_3T


def vision_positions(grid_3: tuple[int, int, int], span_s: float, merge: int, per_second: float) -> np.ndarray:
    """M-RoPE ids [3, tokens] of one video, counted from 0: time in 1/25 s, then row, then column of merged patches.

    `span_s` is the time one temporal patch covers. Source: get_rope_index of Qwen2.5-Omni (float32 as there).
    """
    steps, rows, columns = grid_3[0], grid_3[1] // merge, grid_3[2] // merge
    time = (torch.arange(steps) * torch.tensor(span_s).float() * per_second).long().numpy()
    return np.stack([axis.ravel() for axis in np.meshgrid(time, np.arange(rows), np.arange(columns), indexing="ij")])


def patchify(frames_FHWC: np.ndarray, vision: Any) -> Tensor:
    """Frames to the vision tower's patches [P, X]: rescaled, normalised, pairs of frames, merged groups together.

    Source: Qwen2VLVideoProcessor. An odd last frame is repeated.
    """
    size, merge, pair = vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size
    frames = torch.from_numpy(np.array(frames_FHWC)).permute(0, 3, 1, 2).float()
    if missing := -len(frames) % pair:
        frames = torch.cat([frames, frames[-1:].expand(missing, -1, -1, -1)])
    mean, sd = (torch.tensor(v).view(1, 3, 1, 1) * 255 for v in (CLIP_MEAN, CLIP_STD))
    frames = (frames - mean) / sd
    count, colours, height, width = frames.shape
    rows, columns = height // size, width // size
    patches = frames.view(
        count // pair, pair, colours, rows // merge, merge, size, columns // merge, merge, size
    ).permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
    return patches.reshape(count // pair * rows * columns, colours * pair * size * size)
