"""The tiny Thinker: a folder like a download, the same every time, and not deaf to its inputs."""

import hashlib
import random
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, Qwen2_5OmniThinkerForConditionalGeneration, WhisperFeatureExtractor

from raymsa.thinker.tiny import make_tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def thinker(folder: Path) -> Any:
    return Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(folder, use_safetensors=True).eval()


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def last_hidden(thinker: Any, tokenizer: Any, texts: list[str]) -> torch.Tensor:
    tokens = tokenizer(texts, padding=True, padding_side="left", return_tensors="pt")
    with torch.no_grad():
        return thinker.model(**tokens).last_hidden_state[:, -1]  # type: ignore[no-any-return]


def test_it_loads_like_a_download_with_no_weight_missing(folder: Path) -> None:
    _, report = Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())


def test_it_is_small_and_made_of_safetensors(folder: Path) -> None:
    assert sum(path.stat().st_size for path in folder.iterdir()) < 8_000_000
    assert {path.suffix for path in folder.iterdir()} == {".json", ".jinja", ".safetensors"}


def test_it_is_the_same_every_time_and_leaves_the_random_state_alone(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    assert digests(make_tiny(tmp_path / "again")) == digests(folder)
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_folder_that_is_there_is_kept(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("mine")
    assert [path.name for path in make_tiny(tmp_path / "mine").iterdir()] == ["config.json"]


def test_half_a_folder_is_an_error_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "model.safetensors").write_text("")
    with pytest.raises(OSError, match="half"):
        make_tiny(tmp_path / "half")
    assert [path.name for path in tmp_path.iterdir()] == ["half"]


def test_every_media_and_turn_token_is_known_to_tokenizer_and_config(tokenizer: Any, thinker: Any) -> None:
    config, token_id = thinker.config, tokenizer.convert_tokens_to_ids
    assert token_id(tokenizer.video_token) == config.video_token_id == config.video_token_index
    assert token_id(tokenizer.audio_token) == config.audio_token_id == config.audio_token_index
    assert token_id(tokenizer.vision_bos_token) == config.vision_start_token_id
    assert token_id(tokenizer.audio_bos_token) == config.audio_start_token_id
    assert tokenizer.tokenize("<|im_start|>user") == ["<|im_start|>", "user"]
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert thinker.generation_config.eos_token_id == [tokenizer.eos_token_id]


def test_the_chat_template_says_what_the_real_one_says(tokenizer: Any) -> None:
    media = [{"type": "video", "video": "v"}, {"type": "audio", "audio": "a"}, {"type": "text", "text": "So good."}]
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": media}]
    assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\n<|vision_bos|><|VIDEO|><|vision_eos|><|audio_bos|><|AUDIO|><|audio_eos|>So good.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


@given(st.text(max_size=60))
def test_any_text_survives_tokenisation(tokenizer: Any, text: str) -> None:
    plain = unicodedata.normalize("NFC", text)  # as Qwen's own tokenizer does
    assert tokenizer.decode(tokenizer(plain, split_special_tokens=True).input_ids) == plain


def test_digits_are_single_tokens_and_common_words_too(tokenizer: Any) -> None:
    assert tokenizer.tokenize("+1.40") == ["+", "1", ".", "4", "0"]
    assert tokenizer.tokenize(" terrible") == ["Ġterrible"]


def test_the_feature_extractor_matches_the_audio_tower(folder: Path, thinker: Any) -> None:
    extractor = WhisperFeatureExtractor.from_pretrained(folder)
    assert extractor.feature_size == thinker.config.audio_config.num_mel_bins
    assert extractor.sampling_rate == 16_000


def test_every_quantised_linear_is_made_of_whole_nf4_blocks(thinker: Any) -> None:
    linears = [m for m in thinker.model.language_model.modules() if isinstance(m, torch.nn.Linear)]
    assert linears
    assert all(side % 64 == 0 for linear in linears for side in linear.weight.shape)


def test_a_linear_probe_on_the_last_token_tells_good_from_bad(thinker: Any, tokenizer: Any) -> None:
    dice = random.Random(0)
    words = tokenizer.tokenize(" I think that the movie with the actors was a very long film they made in this place")
    texts, labels = [], []
    for index in range(400):
        sentence = dice.sample(words, 9)
        sentence[dice.randrange(9)] = ("Ġbad", "Ġgood")[index % 2]
        texts.append(tokenizer.convert_tokens_to_string(sentence) + "<|im_end|>\n<|im_start|>assistant\n")
        labels.append(2.0 * (index % 2) - 1)
    hidden_BD = last_hidden(thinker, tokenizer, texts)
    z_BD = (hidden_BD - hidden_BD.mean(0)) / hidden_BD.std(0)
    label_B = torch.tensor(labels)
    weight_D = torch.linalg.solve(z_BD[:300].T @ z_BD[:300] + torch.eye(z_BD.shape[1]), z_BD[:300].T @ label_B[:300])
    assert ((z_BD[300:] @ weight_D).sign() == label_B[300:]).float().mean() > 0.9


def test_sound_and_picture_change_what_the_towers_say(thinker: Any) -> None:
    draw = torch.Generator().manual_seed(0)
    mel_ML = torch.randn(80, 200, generator=draw)
    patch_PX = torch.randn(2 * 8 * 8, 3 * 2 * 14 * 14, generator=draw)
    grid_V3 = torch.tensor([[2, 8, 8]])
    with torch.no_grad():
        heard = [thinker.model.audio_tower(x, feature_lens=torch.tensor([200]))[0] for x in (mel_ML, -mel_ML)]
        seen = [thinker.model.visual(x, grid_thw=grid_V3).pooler_output for x in (patch_PX, -patch_PX)]
    for one, other in (heard, seen):
        assert one.shape[-1] == thinker.config.text_config.hidden_size
        assert 0.2 < one.std() < 5  # of the size of word vectors, so that neither drowns the other
        assert (one - other).std() > 0.3 * one.std()
