"""The published parameter counts, by attaching peft's LoRA to the 7B's real dimensions on the meta device."""

import pytest

from raymsa.spec import LoraSpec
from raymsa.thinker.geometry import GEOMETRY, Counts, parameter_counts

ALL = ("text", "audio", "video")


@pytest.fixture(scope="module")
def published() -> Counts:
    return parameter_counts(GEOMETRY["Qwen/Qwen2.5-Omni-7B"](), LoraSpec(), ALL)


def test_the_7b_thinker_has_its_published_size(published: Counts) -> None:
    assert published.total == 8_931_813_888


def test_the_papers_adapters_are_103_million_and_reach_into_both_towers(published: Counts) -> None:
    assert published.lora_by_part == {"language_model": 80_740_352, "audio_tower": 7_864_320, "visual": 14_438_400}
    assert published.lora == 103_043_072


def test_the_papers_adapters_are_1_14_percent_of_all_parameters(published: Counts) -> None:
    assert round(100 * published.share, 2) == 1.14


def test_the_language_models_adapters_alone_are_81_million() -> None:
    counts = parameter_counts(GEOMETRY["Qwen/Qwen2.5-Omni-7B"](), LoraSpec(scope="language_model"), ALL)
    assert counts.lora_by_part == {"language_model": 80_740_352}


def test_towers_without_their_modality_are_not_counted(published: Counts) -> None:
    text_only = parameter_counts(GEOMETRY["Qwen/Qwen2.5-Omni-7B"](), LoraSpec(), ("text",))
    assert text_only.lora_by_part == {"language_model": 80_740_352}
    assert text_only.total < published.total


def test_the_adapters_grow_with_their_rank(published: Counts) -> None:
    half = parameter_counts(GEOMETRY["Qwen/Qwen2.5-Omni-7B"](), LoraSpec(rank=16), ALL)
    assert 2 * half.lora == published.lora
