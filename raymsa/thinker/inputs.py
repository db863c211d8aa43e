"""From a clip to what the Thinker reads: prompt, placeholders, patches, mel features, M-RoPE positions.

Everything here is plain arithmetic on the CPU and equals transformers' own Qwen2_5OmniProcessor and get_rope_index
(tests/test_parity.py), but without padding sound to 300 s and without a loop over tokens.

Axes: T tokens, F frames, H height, W width, C colours, P patches, X numbers in a patch, M mel bins, L mel frames,
S audio samples, N vectors of a tower, D width of the language model.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raymsa.clip import LEAST_SAMPLES, SAMPLE_RATE, Clip, Vectors, mel_frames
from raymsa.inputs import InputsSpec
from raymsa.target import Language, Target
from raymsa.thinker.denoise import denoised
from raymsa.thinker.positions import Picture, interleaved, interleaved_positions, plain_positions
from raymsa.thinker.prompt import Prompt

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
    heard_ND: Tensor | None = None  # what the towers made of the clip, when that is known already
    seen_ND: Tensor | None = None


@dataclass(frozen=True)
class Encoder:
    """Turns clips into `Encoded`, by the tokenizer, feature extractor and config of one model folder."""

    tokenizer: Any
    extractor: Any  # WhisperFeatureExtractor
    config: Any  # Qwen2_5OmniThinkerConfig
    inputs: InputsSpec
    prompt: str
    target: Target
    language: Language = "en"  # of the words that mark previous clips' words

    def tokens(self, clip: Clip) -> list[int]:
        """The prompt's token ids, with one placeholder token for each vector that a tower will put there."""
        text = self.tokenizer.apply_chat_template(self.messages(clip), tokenize=False, add_generation_prompt=True)
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        places = self._places(clip)
        return [i for token in ids for i in places.get(token, [token])]

    def encode(self, clip: Clip, token_T: list[int], answer_T: list[int]) -> Encoded:
        """Everything a batch needs of a clip; `token_T` comes from `tokens`, `answer_T` is appended to it."""
        picture = self._picture(clip)
        whole_T = token_T + answer_T
        return Encoded(
            clip=clip,
            token_T=whole_T,
            position_3T=self._positions(whole_T, clip, picture),
            answer=len(answer_T),
            grid_3=picture.grid_3 if picture else None,
            **(self._raw(clip) if clip.vectors is None else self._known(clip, clip.vectors)),
        )

    def _raw(self, clip: Clip) -> dict[str, Tensor | None]:
        """What the towers read."""
        seen = clip.frames_FHWC if self._sees(clip) else None
        return {
            "mel_ML": self._mel(clip) if self._hears(clip) else None,
            "patch_PX": None if seen is None else patchify(seen, self._vision),
        }

    def _known(self, clip: Clip, vectors: Vectors) -> dict[str, Tensor | None]:
        """What they made of it."""

        def numbers(there: np.ndarray | None) -> Tensor | None:
            if there is None:
                return None
            flat = torch.from_numpy(np.array(there)).view(getattr(torch, vectors.dtype))
            return flat.view(-1, self.config.text_config.hidden_size)

        return {
            "mel_ML": None,
            "patch_PX": None,
            "heard_ND": numbers(vectors.heard) if self._hears(clip) else None,
            "seen_ND": numbers(vectors.seen) if self._sees(clip) else None,
        }

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
        media = [{"type": "video"}] * self._sees(clip)
        if not self._interleaves(clip):  # else the sound is part of the video
            media += [{"type": "audio"}] * self._hears(clip)
        return [
            {"role": "system", "content": self.inputs.system},
            {"role": "user", "content": [*media, {"type": "text", "text": self._prompt.words(clip)}]},
        ]

    @cached_property
    def _prompt(self) -> Prompt:
        return Prompt(self.tokenizer, self.inputs, self.prompt, self.target.blanks(), self.language)

    def _interleaves(self, clip: Clip) -> bool:
        return self.inputs.interleave and self._hears(clip) and self._sees(clip)

    def _places(self, clip: Clip) -> dict[int, list[int]]:
        """What stands for the mark of a medium: a placeholder for each of its vectors; nothing where it is off."""
        audio, video = self.config.audio_token_id, self.config.video_token_id
        picture = self._picture(clip)
        if picture and self._interleaves(clip):
            return {video: self._turns(picture, clip.audio_tokens)}
        return {
            audio: [audio] * (clip.audio_tokens * self._hears(clip)),
            video: [video] * (picture.tokens if picture else 0),
        }

    def _turns(self, picture: Picture, sound: int) -> list[int]:
        """Placeholders of picture and sound in turns, between the marks of a sound."""
        config = self.config
        per_second, per_chunk = self._time_steps
        order = np.concatenate(interleaved(picture.time_V(per_second), sound, per_chunk))
        kinds = np.where(order < picture.tokens, config.video_token_id, config.audio_token_id)
        return [config.audio_start_token_id, *kinds.tolist(), config.audio_end_token_id]

    def _picture(self, clip: Clip) -> Picture | None:
        if not self._sees(clip) or clip.frames_FHWC is None:
            return None
        frames, height, width, _ = clip.frames_FHWC.shape
        pair, size = self._vision.temporal_patch_size, self._vision.patch_size
        span_s = pair / (frames / clip.seconds) if clip.seconds else SECONDS_PER_GRID_UNKNOWN  # by the rate, as there
        grid_3 = (-(-frames // pair), height // size, width // size)
        return Picture(grid_3, span_s, self._vision.spatial_merge_size)

    @property
    def _time_steps(self) -> tuple[float, int]:
        """Steps of M-RoPE's time per second, and per turn of picture and sound."""
        per_second = self.config.position_id_per_seconds
        return per_second, int(per_second * self.config.seconds_per_chunk)

    def _mel(self, clip: Clip) -> Tensor:
        assert clip.audio_S is not None
        sound_S = clip.audio_S.astype(np.float32) / 32768
        samples = np.zeros(max(len(sound_S), LEAST_SAMPLES), np.float32)
        samples[: len(sound_S)] = denoised(sound_S) if self.inputs.denoise else sound_S
        frames = mel_frames(len(clip.audio_S))
        # one window of silence behind the sound, as in a clip that is padded to 300 s, and cut off again
        padded = np.pad(samples, (0, frames * self.extractor.hop_length - len(samples) + self.extractor.n_fft))
        out = self.extractor(
            padded, sampling_rate=SAMPLE_RATE, padding=False, truncation=False, return_tensors="pt", device="cpu"
        )
        mel_ML: Tensor = out["input_features"][0][:, :frames]
        return mel_ML

    def _positions(self, token_T: list[int], clip: Clip, picture: Picture | None) -> np.ndarray:
        per_second, per_chunk = self._time_steps
        start = token_T.index(self.config.video_token_id) if picture else 0
        if picture and self._interleaves(clip):
            return interleaved_positions(len(token_T), picture, clip.audio_tokens, start, per_second, per_chunk)
        return plain_positions(len(token_T), picture, start, per_second)


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
