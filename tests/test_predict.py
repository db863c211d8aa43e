"""`raymsa predict` on runs that were never trained: what each kind of answer looks like, and runs of another raymsa."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from raymsa.cli import main
from raymsa.data.manifest import Manifest
from raymsa.errors import DataError, SpecError
from raymsa.home import run_dir, store_url
from raymsa.jobfile import load_job
from raymsa.predict import best_of, predict, student_of
from raymsa.record import Recorder
from raymsa.spec import QueueSpec, runs
from raymsa.store import Store, queries, records
from raymsa.target import Labels
from raymsa.training import checkpoint
from raymsa.training.loop import Position
from raymsa.training.predictions import write_predictions
from raymsa.training.run import build
from tests import stores
from tests.jobs import job_file

TASKS = {"score": {"kind": "regression"}, "class": {"kind": "classification", "classes": ["sad", "happy"]}}


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYMSA_HOME", str(tmp_path / "home"))
    with Store.open(store_url()) as opened:
        yield opened


def spec_of(folder: Path, task: str, readout: str) -> Any:
    dataset = {"kind": "synthetic", "name": "synthetic", "task": TASKS[task]}
    return runs(load_job(job_file(folder, dataset=dataset, readout={"kind": readout})))[0].spec


def enter(store: Store, run_id: str, spec: dict[str, Any]) -> str:
    about = {"job_id": stores.put(store), "task_id": None, "variant": "disc", "seed": 1, "group_key": "g"}
    records.create_runs(store, [{"id": run_id, **about, "spec": spec, "spec_digest": "d"}])
    return run_id


def untrained(store: Store, folder: Path, task: str, readout: str) -> str:
    """A run with a checkpoint of a model that has learned nothing."""
    spec = spec_of(folder, task, readout)
    torch.manual_seed(1)
    student = build(spec, spec.dataset.task.with_labels(Labels(counts={"sad": 1})), torch.device("cpu"), None)
    run_id = enter(store, "r1", spec.model_dump(mode="json"))
    checkpoint.save(run_dir(run_id), "best", student, Position(), None)
    return run_id


def call(*words: str) -> Any:
    result = CliRunner().invoke(main, ["predict", *words], prog_name="raymsa")
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_class_is_said_by_its_name(store, tmp_path):
    run_id = untrained(store, tmp_path, "class", "disc")
    (row,) = json.loads(call(run_id, "-", "--text", "fine", "--json"))
    assert row["class"] == ["sad", "happy"][int(row["score"])]
    assert call(run_id, "-", "--text", "fine") == f"-\t{row['class']}\n"


def test_an_answer_that_names_no_class_is_no_class(store, tmp_path):
    run_id = untrained(store, tmp_path, "class", "gen")
    (row,) = json.loads(call(run_id, "-", "--text", "fine", "--json"))
    assert (row["class"], row["score"], row["parsed"]) == (None, -1, False)
    assert call(run_id, "-", "--text", "fine").startswith("-\tno class  said ")


def test_an_answer_that_is_no_number_is_marked(store, tmp_path):
    run_id = untrained(store, tmp_path, "score", "gen")
    (row,) = json.loads(call(run_id, "-", "--text", "fine", "--json"))
    assert (row["score"], row["parsed"]) == (0, False) and "class" not in row
    assert call(run_id, "-", "--text", "fine").startswith("-\t+0.0000 (unparsable)  said ")


def test_a_run_of_another_raymsa_is_one_line(store, tmp_path):
    spec = spec_of(tmp_path, "score", "disc").model_dump(mode="json")
    wrong = {**spec, "train": {**spec["train"], "epochs": "many"}}
    with pytest.raises(SpecError, match=r"^run wrong: train.epochs: given 'many'; give a whole number$"):
        predict(store, enter(store, "wrong", wrong), ["-"], ["fine"])
    del spec["dataset"]["task"]
    spec["dataset"] |= {"low": -3, "high": 3, "metrics": "mosi"}
    with pytest.raises(DataError, match=r"^run old: was made by an older raymsa, .*; train again$"):
        predict(store, enter(store, "old", spec), ["-"], ["fine"])


@pytest.mark.parametrize("task", TASKS)
def test_only_a_score_can_be_out_of_range(store, tmp_path, task):
    run_id = enter(store, "job-gen-1", spec_of(tmp_path, task, "gen").model_dump(mode="json"))
    run_dir(run_id).mkdir(parents=True)
    answer = {"score": 1.0, "text": "?", "parsed": False, "in_range": False}
    write_predictions(run_dir(run_id), [{"split": "test", "clip_id": "c", "label": 1.0, **answer}])
    none = dict.fromkeys(("train", "valid", "test"), 0)
    manifest = Manifest(
        name="m", digest="0", counts=none, without_sound=none, without_picture=none, cut_sound=0, damaged=0, rejects=0,
        labels=Labels(counts={"happy": 1}), settings={}, versions={}, files=(),
    )  # fmt: skip
    recorder = Recorder(store, manifest, QueueSpec(), {}, lambda line: None)
    recorder.report(run_id, {"seconds": 1.0, "best_epoch": 1, "data_wait": 0.0, "finished": True})
    finals = queries.finals(store, run_id)["test"]
    assert finals["unparsable"] == 1.0 and finals.get("out_of_range") == (None if task == "class" else 1.0)


def test_a_run_that_asked_for_no_gpu_is_loaded_on_the_cpu(store, tmp_path, monkeypatch):
    spec = spec_of(tmp_path, "score", "disc")
    best = best_of(queries.run(store, untrained(store, tmp_path, "score", "disc")))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert student_of(spec, best).thinker.device.type == "cpu"
