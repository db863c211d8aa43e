"""Decoding within a target's answers: the table of answers, what is said, and that nothing is unparsable.

Axes as in `raymsa.clip.Batch`.
"""

import pytest
import torch

from raymsa.data.collate import Collate
from raymsa.errors import SpecError
from raymsa.readouts.base import Embedded
from raymsa.readouts.gen import Generative
from raymsa.readouts.grammar import NEVER, grammar, table
from raymsa.spec import InputsSpec
from raymsa.target import Classes, Scale
from raymsa.thinker.inputs import Encoder
from tests.clips import MIXED

MOSI = Scale(-3, 3, -0.1, 1.5, 0.0)
UNEVEN = Scale(-0.305, 11.5, 0.0, 1.0, 0.0)  # one or two digits before the point
MOODS = Classes(("happy", "happy and surprised", "sad", "很好"), (1, 1, 1, 1))
TARGETS = pytest.mark.parametrize("target", [MOSI, UNEVEN, MOODS], ids=["mosi", "uneven", "moods"])
FREE, BOUND = Generative(max_new_tokens=16), Generative(max_new_tokens=16, constrained=True)


@pytest.fixture(scope="module")
def batch_of(tiny_folder):
    def make(target, clips=MIXED, modalities=("text", "audio", "video")):
        spec = InputsSpec(prompt="{text}\nHow?", modalities=modalities)
        encoder = Encoder(tiny_folder.tokenizer, tiny_folder.extractor, tiny_folder.config, spec, spec.prompt, target)
        collate = Collate(encoder, BOUND)
        return collate([collate.measure(clip) for clip in clips])

    return make


def said(readout, thinker, batch, target):
    with torch.inference_mode():
        return [reading.text for reading in readout.read(None, thinker, batch, target)]


@pytest.fixture
def passes(tiny_thinker):
    """Tokens that each pass through the language model took, in order."""
    seen = []
    layer = tiny_thinker._core.language_model.layers[0]
    hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    yield seen
    hook.remove()


def test_every_answer_is_a_walk_through_the_table_and_no_other_walk_ends():
    answers = [[1, 5, 9], [1, 6, 9], [2, 9], [1, 5, 5, 9]]
    made = table(answers)
    walks, open_ones = [], [(0, [])]
    while open_ones:
        state, tokens = open_ones.pop()
        if made.ended_N[state]:
            walks.append(tokens)
            assert int(made.next_NA[state, int(made.only_N[state])]) == state  # what has ended stays so
            continue
        places = [at for at, after in enumerate(made.next_NA[state].tolist()) if after != NEVER]
        assert int(made.only_N[state]) == (places[0] if len(places) == 1 else NEVER)
        open_ones += [(int(made.next_NA[state, at]), [*tokens, int(made.token_A[at])]) for at in places]
    assert sorted(walks) == sorted(answers)


def test_the_answers_of_a_scale_are_the_hundredths_of_its_range_as_they_are_learned():
    answers = UNEVEN.all_answers()
    assert answers[:2] == ["-0.30", "-0.29"] and answers[-1] == "+11.50" and "+0.00" in answers
    assert "-0.00" not in answers and len(answers) == len(set(answers)) == UNEVEN.answers_in_all == 1181
    assert len(Scale(-2.3, 2.3, 0, 1, 0).all_answers()) == 461  # 2.3 * 100 is 229.99999999999997
    assert all(target.parse(text).in_range for target in (MOSI, UNEVEN) for text in target.all_answers())


@TARGETS
def test_nothing_is_unparsable_though_the_model_knows_nothing(target, tiny_thinker, batch_of):
    batch = batch_of(target)
    assert not any(target.parse(text).parsed for text in said(FREE, tiny_thinker, batch, target))
    found = said(BOUND, tiny_thinker, batch, target)
    assert all(text in target.all_answers() for text in found)


@TARGETS
def test_what_is_said_is_the_likeliest_answer_token_by_token_as_without_a_cache(target, tiny_thinker, batch_of):
    """Every step anew over the whole sequence, one clip at a time, among the answers that go on from what was said."""
    tokenizer = tiny_thinker.tokenizer
    ids = [[*tokenizer(a)["input_ids"], tokenizer.eos_token_id] for a in target.all_answers()]
    expected = []
    for one in MIXED:
        embedded = tiny_thinker.embed(batch_of(target, [one]))
        tokens: list[int] = []
        while tokens[-1:] != [tokenizer.eos_token_id]:
            follow = sorted({a[len(tokens)] for a in ids if a[: len(tokens)] == tokens})
            with torch.inference_mode():
                logits_V = tiny_thinker.logits(tiny_thinker.hidden(longer(tiny_thinker, embedded, tokens))[0, -1:])[0]
            tokens.append(max(follow, key=lambda token: float(logits_V[token])))
        expected.append(tokenizer.decode(tokens[:-1]))
    assert said(BOUND, tiny_thinker, batch_of(target), target) == expected
    assert len(set(expected)) > 1 or target is MOODS  # else the test would say little


def longer(thinker, embedded, tokens):
    """The sequence with what was said behind it."""
    if not tokens:
        return embedded
    hidden_BTD = torch.cat([embedded.hidden_BTD, thinker.embed_tokens(torch.tensor([tokens]))], 1)
    last = int(embedded.position_3BT.max())
    after = torch.arange(last + 1, last + 1 + len(tokens)).expand(3, 1, -1)
    mask_BT = torch.ones(1, hidden_BTD.shape[1], dtype=torch.long)
    return Embedded(hidden_BTD, mask_BT, torch.cat([embedded.position_3BT, after], -1))


@TARGETS
def test_a_constrained_answer_does_not_depend_on_companions(target, tiny_thinker, batch_of):
    alone = [said(BOUND, tiny_thinker, batch_of(target, [one]), target)[0] for one in MIXED]
    assert said(BOUND, tiny_thinker, batch_of(target), target) == alone


def test_what_must_follow_costs_no_pass_of_its_own(tiny_thinker, batch_of, passes):
    batch = batch_of(MOSI, modalities=("text",))
    said(BOUND, tiny_thinker, batch, MOSI)
    prompt = batch.token_BT.shape[1]
    # sign | digit | point with that digit, first decimal | second decimal, and the end of the turn without a pass
    assert passes == [prompt, 1, 2, 1]


def test_a_target_with_too_many_answers_or_none_is_refused_before_a_run(batch_of):
    for wrong in (Scale(0, 1e6, 0, 1, 0), Scale(0.001, 0.002, 0, 1, 0)):
        with pytest.raises(SpecError, match=r"^readout\.constrained: .* leave it out$"):
            Generative(max_new_tokens=16, constrained=True).check(lambda text: [0], wrong)
        Generative(max_new_tokens=16).check(lambda text: [0], wrong)


def test_the_table_is_made_once_for_a_tokenizer_and_a_target(tiny_thinker):
    assert grammar(tiny_thinker.tokenizer, MOSI) is grammar(tiny_thinker.tokenizer, MOSI)
    assert grammar(tiny_thinker.tokenizer, MOSI) is not grammar(tiny_thinker.tokenizer, UNEVEN)
