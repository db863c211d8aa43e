"""The `inputs` block of a job."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal

from pydantic import Field, field_validator

from raymsa.clip import CONTEXT_MOST
from raymsa.plugins import Spec


class InputsSpec(Spec):
    """What of a clip reaches the Thinker, and in which words."""

    modalities: tuple[Literal["text", "audio", "video"], ...] = Field(
        ("text", "audio", "video"), min_length=1, description="streams used; a clip without one goes through without it"
    )
    system: str = Field("You are a helpful assistant.", description="system message of the chat template")
    prompt: str | None = Field(
        None,
        description="user message after the media, or a .txt file with it; null is the dataset's own. {text} is the "
        "transcript, {context} the words before it, {low} and {high} the range of a score, {classes} their names",
    )
    max_text_tokens: int = Field(512, ge=8, description="tokens of transcript kept per clip; the rest is cut off")
    context: int = Field(
        0,
        ge=0,
        le=CONTEXT_MOST,
        description="previous clips of the same video or dialogue whose words are given, too; they stand at {context}, "
        "or before {text} where the prompt has no {context}",
    )
    max_context_tokens: int = Field(
        512, ge=8, description="tokens of those previous words kept per clip; the oldest clips are left out first"
    )
    lowercase: bool = Field(
        False, description="lower-case all but the first letter of each transcript, as for MOSI's upper-case ones"
    )
    interleave: bool = Field(
        False,
        description="sound and picture in turns of 2 s, aligned in time, as in Qwen2.5-Omni's own use of a video's "
        "sound; a clip that lacks one of them keeps the plain form: picture, then sound",
    )
    denoise: Literal["noisereduce"] | None = Field(
        None,
        description="library that takes steady noise out of the sound, anew in each epoch: about 5 to 20 ms of one "
        "core per second of sound; needs pip install 'raymsa[denoise]'",
    )

    cache: Literal["none", "towers"] = Field(
        "none",
        description="towers: what the audio and vision towers make of each clip is computed once, kept under "
        "RAYMSA_HOME/towers and read in place of sound and picture; needs lora.scope: language_model",
    )

    @field_validator("modalities")
    @classmethod
    def _each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError("name each modality once")
        return tuple(m for m in ("text", "audio", "video") if m in value)

    @field_validator("denoise")
    @classmethod
    def _is_installed(cls, value: str | None) -> str | None:
        if value is not None and find_spec(value) is None:  # said when a job is submitted, not by a worker later
            raise ValueError(f"needs the package {value}; pip install 'raymsa[denoise]'")
        return value
