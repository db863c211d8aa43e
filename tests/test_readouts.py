"""The readouts on the tiny Thinker: the contract every kind keeps, what reaches lm_head, how answers are said and read.

Axes as in `raymsa.clip.Batch`.
"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raymsa.data.collate import Collate
from raymsa.readouts.base import last_token
from raymsa.readouts.disc import Discriminative
from raymsa.readouts.gen import Generative
from raymsa.spec import READOUTS, InputsSpec, ModelSpec
from raymsa.target import Scale
from raymsa.thinker.inputs import Encoder
from raymsa.thinker.load import load
from tests.clips import MIXED

MOSI = Scale(-3, 3, -0.1, 1.5, 0.0)
SIMS = Scale(-1, 1, 0.0, 0.5, 0.0)
CPU = torch.device("cpu")
ALL = ("text", "audio", "video")
SPLITS = [[5], [1, 4], [4, 1], [2, 3], [1, 1, 1, 1, 1]]  # clips per batch


@pytest.fixture(scope="module")
def collate_for(tiny_folder):
    def make(readout, side="left", scale=MOSI, **inputs) -> Collate:
        spec = InputsSpec(prompt="{text}\nHow, {low} to {high}?", **inputs)
        folder = tiny_folder
        encoder = Encoder(folder.tokenizer, folder.extractor, folder.config, spec, str(spec.prompt), scale)
        return Collate(encoder, readout, side)

    return make


def batches(collate, sizes, answers=False):
    """The mixed clips, in their order, in batches of the given sizes."""
    clips = iter(MIXED)
    return [collate([collate.measure(next(clips)) for _ in range(size)], answers) for size in sizes]


def head_of(readout, thinker):
    """The readout's own trained part, the same every time, without dropout."""
    torch.manual_seed(1)
    head = readout.head(thinker.width, MOSI)
    return head.eval() if head is not None else None


def readings(readout, thinker, collate, sizes, scale=MOSI):
    head = head_of(readout, thinker)
    with torch.inference_mode():
        return [r for batch in batches(collate, sizes) for r in readout.read(head, thinker, batch, scale)]


def losses(readout, thinker, collate, sizes):
    head = head_of(readout, thinker)
    with torch.no_grad():
        return torch.cat([readout.loss_B(head, thinker, b, MOSI) for b in batches(collate, sizes, answers=True)])


@pytest.fixture
def lm_head_rows(tiny_thinker):
    """Rows that went through lm_head, one number per call."""
    rows = []
    lm_head = tiny_thinker.model.get_base_model().lm_head
    hook = lm_head.register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0][..., 0].numel()))
    yield rows
    hook.remove()


# The contract of every kind


@pytest.mark.parametrize("kind", READOUTS)
def test_every_readout_learns_from_a_mixed_batch_one_finite_loss_per_clip(kind, tiny_thinker, collate_for):
    readout = READOUTS[kind]()
    head = head_of(readout, tiny_thinker)
    (batch,) = batches(collate_for(readout), [5], answers=True)
    loss_B = readout.loss_B(head, tiny_thinker, batch, MOSI)
    assert loss_B.shape == (5,) and torch.isfinite(loss_B).all()
    trained = tiny_thinker.parameters() + (list(head.parameters()) if head is not None else [])
    gradients = torch.autograd.grad(loss_B.sum(), trained, allow_unused=True)
    reached = [g is not None and bool(g.any()) for g in gradients]
    adapters = dict(
        zip([n for n, p in tiny_thinker.model.named_parameters() if p.requires_grad], reached, strict=False)
    )
    for part in ("language_model", "audio_tower", "visual"):  # lora_A waits for lora_B, which starts at zero
        assert any(on for name, on in adapters.items() if part in name and "lora_B" in name)
    if head is not None:
        assert all(reached[-len(list(head.parameters())) :])


@pytest.mark.parametrize("kind", READOUTS)
def test_every_readout_reads_one_score_in_range_per_clip(kind, tiny_thinker, collate_for):
    readout = READOUTS[kind]()
    for scale in (MOSI, SIMS):
        found = readings(readout, tiny_thinker, collate_for(readout, scale=scale), [5], scale)
        assert len(found) == len(MIXED)
        assert all(scale.low <= r.score <= scale.high for r in found)


@pytest.mark.parametrize("kind", READOUTS)
def test_every_readout_works_for_clips_of_words_alone(kind, tiny_thinker, collate_for):
    readout = READOUTS[kind]()
    collate = collate_for(readout, modalities=("text",))
    assert torch.isfinite(losses(readout, tiny_thinker, collate, [5])).all()
    assert len(readings(readout, tiny_thinker, collate, [5])) == len(MIXED)


# Padding and companions


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("sizes", SPLITS, ids=str)
def test_a_discriminative_score_does_not_depend_on_padding_or_companions(sizes, side, tiny_thinker, collate_for):
    readout = Discriminative()
    expected = [r.score for r in readings(readout, tiny_thinker, collate_for(readout), [1] * 5)]
    found = [r.score for r in readings(readout, tiny_thinker, collate_for(readout, side), sizes)]
    assert found == pytest.approx(expected, abs=1e-4)
    assert len(set(expected)) == len(expected)  # else the test would say nothing


@pytest.mark.parametrize("sizes", SPLITS, ids=str)
def test_what_is_said_of_a_clip_does_not_depend_on_companions(sizes, tiny_thinker, collate_for):
    readout = Generative()
    alone = [r.text for r in readings(readout, tiny_thinker, collate_for(readout), [1] * 5)]
    assert [r.text for r in readings(readout, tiny_thinker, collate_for(readout), sizes)] == alone
    assert len(set(alone)) > 1


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", READOUTS)
def test_a_loss_does_not_depend_on_padding_or_companions(kind, side, tiny_thinker, collate_for):
    readout = READOUTS[kind]()
    alone = losses(readout, tiny_thinker, collate_for(readout), [1] * 5)
    for sizes in SPLITS[:-1]:
        found = losses(readout, tiny_thinker, collate_for(readout, side), sizes)
        assert torch.allclose(found, alone, atol=1e-4)


@given(st.integers(1, 6).flatmap(lambda n: st.lists(st.lists(st.booleans(), min_size=n, max_size=n), min_size=1)))
def test_the_last_token_is_the_last_index_where_the_mask_is_1(rows):
    rows = [row if any(row) else [*row[:-1], True] for row in rows]  # every clip has a token
    mask_BT = torch.tensor(rows).long()
    hidden_BTD = torch.arange(mask_BT.numel(), dtype=torch.float32).view(*mask_BT.shape, 1)
    last = [max(i for i, on in enumerate(row) if on) for row in rows]
    expected = [[float(row * mask_BT.shape[1] + i)] for row, i in enumerate(last)]
    assert last_token(hidden_BTD, mask_BT).tolist() == expected


# lm_head


def test_the_discriminative_readout_never_calls_lm_head(tiny_thinker, collate_for, lm_head_rows):
    readout = Discriminative()
    losses(readout, tiny_thinker, collate_for(readout), [5])
    readings(readout, tiny_thinker, collate_for(readout), [5])
    assert lm_head_rows == []


def test_the_discriminative_readout_works_on_a_thinker_without_lm_head(tiny_thinker, collate_for):
    readout = Discriminative()
    assert not readout.needs_lm_head
    bare = load(ModelSpec(path="tiny"), None, ALL, readout.needs_lm_head, CPU)
    collate = collate_for(readout)
    expected = [r.score for r in readings(readout, tiny_thinker, collate, [5])]  # fresh adapters change nothing
    assert [r.score for r in readings(readout, bare, collate, [5])] == pytest.approx(expected, abs=1e-5)


def test_only_answer_positions_go_through_lm_head_in_generative_training(tiny_thinker, collate_for, lm_head_rows):
    readout = Generative()
    (batch,) = batches(collate_for(readout), [5], answers=True)
    readout.loss_B(None, tiny_thinker, batch, MOSI)
    assert lm_head_rows == [int(batch.answer_BT.sum())] == [5 * 6]  # `+`, three digits, a point, the turn's end


def test_the_generative_loss_is_the_cross_entropy_of_each_answer_token_given_those_before(tiny_thinker, collate_for):
    readout = Generative()
    (batch,) = batches(collate_for(readout), [5], answers=True)
    with torch.no_grad():
        loss_B = readout.loss_B(None, tiny_thinker, batch, MOSI)
        says_BTV = tiny_thinker.logits(tiny_thinker.hidden(tiny_thinker.embed(batch))).log_softmax(-1)
    for row in range(5):
        learned = [t for t in range(batch.token_BT.shape[1]) if batch.answer_BT[row, t]]
        expected = [-float(says_BTV[row, t - 1, batch.token_BT[row, t]]) for t in learned]
        assert float(loss_B[row]) == pytest.approx(sum(expected) / len(expected), abs=1e-5)


def test_the_generative_loss_needs_answers(tiny_thinker, collate_for):
    readout = Generative()
    (batch,) = batches(collate_for(readout), [5])
    with pytest.raises(ValueError, match="without answers"):
        readout.loss_B(None, tiny_thinker, batch, MOSI)


# What is said


@pytest.mark.parametrize(
    ("label", "answer"),
    [
        (1.4, "+1.40"),
        (-0.8, "-0.80"),
        (0.0, "+0.00"),
        (-0.0, "+0.00"),
        (-0.001, "+0.00"),
        (0.004, "+0.00"),
        (-0.006, "-0.01"),
        (3, "+3.00"),
        (-3.0, "-3.00"),
        (2.3333333, "+2.33"),
    ],
)
def test_an_answer_is_signed_and_has_two_decimals(label, answer):
    assert Generative().answer(label, MOSI) == answer


@given(st.floats(-3, 3))
def test_an_answer_is_read_as_the_label_it_was_made_of(label):
    reading = MOSI.parse(Generative().answer(label, MOSI))
    assert reading.parsed and reading.in_range
    assert abs(reading.score - label) <= 0.005 + 1e-9


JUNK = [
    *("", "1.5 stars", "--1", "+", "-", "+ 1.5", "1.", ".5", "1,5", "1.5.2", "+1.40\n+1.40", "good", "1.5<|im_end|>"),
    *("NaN", "inf", "-Infinity", "1e3", "0x1", "1_0", "１.５", "²", "٣"),
]


@pytest.mark.parametrize("text", JUNK)
def test_anything_but_one_plain_number_is_unparsable_and_counted_as_the_middle(text):
    for scale, middle in ((MOSI, 0.0), (Scale(0, 6, 3, 1, 2.5), 3.0)):
        reading = scale.parse(text)
        assert (reading.score, reading.text, reading.parsed, reading.in_range) == (middle, text, False, False)


@given(st.text(max_size=12))
def test_whatever_is_said_gives_a_score_in_range_and_keeps_the_words(text):
    reading = MOSI.parse(text)
    assert math.isfinite(reading.score) and -3 <= reading.score <= 3
    assert reading.text == text
    assert reading.parsed or not reading.in_range


@pytest.mark.parametrize(("text", "score"), [("+1.40", 1.4), ("-3", -3.0), ("2", 2.0), (" 0.5\n", 0.5), ("+0.00", 0.0)])
def test_one_number_is_read_with_or_without_sign_and_decimals(text, score):
    reading = MOSI.parse(text)
    assert (reading.score, reading.parsed, reading.in_range) == (score, True, True)


@pytest.mark.parametrize(("text", "score"), [("+3.01", 3.0), ("-17", -3.0), ("9" * 400, 3.0), ("-" + "9" * 400, -3.0)])
def test_a_number_out_of_range_is_clipped_and_marked(text, score):
    reading = MOSI.parse(text)
    assert (reading.score, reading.parsed, reading.in_range) == (score, True, False)


def test_a_discriminative_score_out_of_range_is_clipped_and_marked(tiny_thinker, collate_for):
    readout, far = Discriminative(), Scale(-3, 3, 50.0, 1.5, 0.0)
    found = readings(readout, tiny_thinker, collate_for(readout), [5], far)
    assert [(r.score, r.parsed, r.in_range) for r in found] == [(3.0, True, False)] * 5


# Decoding


@pytest.mark.parametrize("modalities", [ALL, ("text",)], ids=["media", "words"])
def test_greedy_decoding_is_what_transformers_own_generate_says(modalities, tiny_thinker, collate_for):
    readout = Generative(max_new_tokens=5)
    collate = collate_for(Generative(), modalities=modalities)
    (batch,) = batches(collate, [5])
    tokenizer, stock = tiny_thinker.tokenizer, tiny_thinker.model.get_base_model()
    seconds = [2 * c.seconds / len(c.frames_FHWC) for c in MIXED if c.frames_FHWC is not None]
    media = {} if batch.mel_ML is None else _stock_media(batch, seconds)
    with torch.inference_mode():
        said = stock.generate(
            input_ids=batch.token_BT,
            attention_mask=batch.mask_BT,
            do_sample=False,
            max_new_tokens=5,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **media,
        )[:, batch.token_BT.shape[1] :]
        ours = [r.text for r in readout.read(None, tiny_thinker, batch, MOSI)]
    theirs = [tokenizer.decode(row[row != tokenizer.pad_token_id], skip_special_tokens=False) for row in said]
    assert ours == [text.removesuffix(tokenizer.eos_token) for text in theirs]


def _stock_media(batch, seconds):
    """Mel and patches as transformers takes them: mel padded to one length, with a mask."""
    lengths = batch.mel_length_A.tolist()
    mels = batch.mel_ML.split(lengths, dim=1)
    padded = [torch.nn.functional.pad(m, (0, max(lengths) - m.shape[1])) for m in mels]
    return {
        "input_features": torch.stack(padded),
        "feature_attention_mask": torch.stack([torch.arange(max(lengths)) < n for n in lengths]).long(),
        "pixel_values_videos": batch.patch_PX,
        "video_grid_thw": batch.grid_V3,
        "video_second_per_grid": torch.tensor(seconds),
    }


def test_decoding_stops_at_the_end_of_the_turn(tiny_thinker, collate_for, lm_head_rows):
    """With lm_head's row of the end token made to win, nothing is said, and only one token is decoded."""
    readout = Generative()
    (batch,) = batches(collate_for(readout), [5])
    weight = tiny_thinker.model.get_base_model().lm_head.weight
    with torch.inference_mode():
        last_BD = tiny_thinker.hidden(tiny_thinker.embed(batch))[:, -1]
    before = weight.data[tiny_thinker.tokenizer.eos_token_id].clone()
    try:
        weight.data[tiny_thinker.tokenizer.eos_token_id] = 1000 * last_BD.mean(0)
        found = readings(readout, tiny_thinker, collate_for(readout), [5])
    finally:
        weight.data[tiny_thinker.tokenizer.eos_token_id] = before
    assert [r.text for r in found] == [""] * 5 and not any(r.parsed for r in found)
    assert lm_head_rows == [5]


def test_decoding_says_no_more_tokens_than_allowed(tiny_thinker, collate_for, lm_head_rows):
    readout = Generative(max_new_tokens=2)
    readings(readout, tiny_thinker, collate_for(Generative()), [5])
    assert lm_head_rows in ([5], [5, 5])


def test_decoding_refuses_right_padding(tiny_thinker, collate_for):
    readout = Generative()
    with pytest.raises(ValueError, match="left padding"):
        readings(readout, tiny_thinker, collate_for(readout, "right"), [5])


def test_zero_shot_is_the_same_readout_on_a_thinker_without_adapters(tiny_thinker, collate_for):
    readout = Generative()
    bare = load(ModelSpec(path="tiny"), None, ALL, readout.needs_lm_head, CPU)
    collate = collate_for(readout)
    assert bare.parameters() == []
    assert readings(readout, bare, collate, [5]) == readings(readout, tiny_thinker, collate, [5])
