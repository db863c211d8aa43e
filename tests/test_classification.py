"""Classes instead of scores, through both readouts: losses, weights, a whole job and its table."""

import io
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from raymsa.data.collate import Collate
from raymsa.errors import SpecError
from raymsa.readouts.disc import Discriminative
from raymsa.readouts.gen import Generative
from raymsa.report.results import as_json, results
from raymsa.report.tables import render_rest
from raymsa.spec import READOUTS, InputsSpec
from raymsa.store import Store, queries
from raymsa.target import Classes
from raymsa.thinker.inputs import Encoder
from tests.clips import MIXED
from tests.jobs import job_file
from tests.test_job import do, state

PLAIN = Classes(("negative", "neutral", "positive"), (8, 1, 3))
BALANCED = replace(PLAIN, balanced=True)
LABELS = [2.0, 1.0, 0.0, 0.0, 1.0]
TASK = {"kind": "classification", "target": "annotation", "classes": ["Negative", "Neutral", "Positive"]}


@pytest.fixture(scope="module")
def batch_for(tiny_folder):
    """The mixed clips with classes for labels, as one batch."""

    def make(readout, target):
        spec = InputsSpec(prompt="{text}\nOne of {classes}?")
        folder = tiny_folder
        encoder = Encoder(folder.tokenizer, folder.extractor, folder.config, spec, str(spec.prompt), target)
        collate = Collate(encoder, readout)
        clips = [replace(clip, label=label) for clip, label in zip(MIXED, LABELS, strict=True)]
        return collate([collate.measure(clip) for clip in clips], answers=True)

    return make


def head_of(readout, thinker, target):
    torch.manual_seed(1)
    head = readout.head(thinker.width, target)
    return head.eval() if head is not None else None


@pytest.mark.parametrize("kind", READOUTS)
def test_every_readout_reads_a_class_or_none_for_each_clip(kind, tiny_thinker, batch_for):
    readout = READOUTS[kind]()
    head, batch = head_of(readout, tiny_thinker, PLAIN), batch_for(readout, PLAIN)
    with torch.inference_mode():
        found = readout.read(head, tiny_thinker, batch, PLAIN)
    assert len(found) == len(LABELS)
    assert all(reading.score in (0, 1, 2) if reading.parsed else reading.score == -1 for reading in found)


@pytest.mark.parametrize("kind", READOUTS)
def test_class_weights_multiply_the_loss_of_every_clip(kind, tiny_thinker, batch_for):
    readout = READOUTS[kind]()
    head = head_of(readout, tiny_thinker, PLAIN)
    with torch.no_grad():
        plain_B = readout.loss_B(head, tiny_thinker, batch_for(readout, PLAIN), PLAIN)
        balanced_B = readout.loss_B(head, tiny_thinker, batch_for(readout, BALANCED), BALANCED)
    weights = torch.tensor([12 / (3 * {0: 8, 1: 1, 2: 3}[int(label)]) for label in LABELS])
    assert torch.isfinite(plain_B).all()
    assert torch.allclose(balanced_B, plain_B * weights, atol=1e-6)


def test_the_discriminative_loss_is_the_cross_entropy_of_a_softmax_head(tiny_thinker, batch_for):
    readout = Discriminative()
    head, batch = head_of(readout, tiny_thinker, PLAIN), batch_for(readout, PLAIN)
    with torch.no_grad():
        hidden_BTD = tiny_thinker.hidden(tiny_thinker.embed(batch))
        log_BK = head(hidden_BTD[:, -1]).log_softmax(-1)  # padded on the left
        loss_B = readout.loss_B(head, tiny_thinker, batch, PLAIN)
    expected = [-float(log_BK[row, int(label)]) for row, label in enumerate(LABELS)]
    assert loss_B.tolist() == pytest.approx(expected, abs=1e-5)


def test_a_class_that_is_too_long_to_be_said_is_refused_before_training(batch_for):
    target = replace(PLAIN, names=("negative", "neutral", "overwhelmingly flabbergasted"))
    with pytest.raises(SpecError, match=r"max_new_tokens: given 2; the answer 'overwhelmingly flabbergasted' has \d+"):
        batch_for(Generative(max_new_tokens=2), target)


@pytest.mark.ray
def test_a_classification_job_ends_in_a_table_with_confusions(ray_session, tmp_path):
    counts = {"train": 32, "valid": 8, "test": 8}
    dataset = {"kind": "synthetic", "name": "synthetic", "counts": counts, "task": TASK}
    store = Store.open(f"sqlite:///{tmp_path}/store.db")
    both = {"disc": {}, "gen": {"readout.kind": "gen"}}
    inputs = {"prompt": "{text}\nOne of {classes}?"}
    train = {"epochs": 1, "batch_clips": 8, "checkpointing": False}
    job = do(store, job_file(tmp_path, dataset=dataset, variants=both, inputs=inputs, train=train))
    assert state(store, job.id) == "done", queries.runs(store, job.id)
    for run in queries.runs(store, job.id):
        finals = queries.finals(store, run.id)
        assert run.valid_error == pytest.approx(1 - finals["valid"]["f1"])
        assert {"acc", "f1", "f1_macro", "uar", "constant_acc"} <= finals["test"].keys()
        assert {step.name for step in queries.steps(store, run.id)} >= {"loss", "valid_f1"}
        assert {clip.score for clip in queries.predictions(store, run.id, "test")} <= {-1.0, 0.0, 1.0, 2.0}
    found = results(store, job.id)
    assert (found.decides, found.classes) == ("f1", tuple(TASK["classes"]))
    for row in found.rows:
        assert sum(map(sum, row.confusion)) == 8
    console = Console(file=io.StringIO(), width=160)
    render_rest(found, console)
    words = console.file.getvalue()
    assert "by true class" in words and "Positive" in words
    assert as_json(found)["rows"][0]["confusion"]
