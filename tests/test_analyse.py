"""`raymsa analyse`: hidden states of a run, tuned and before, as a table, data and a picture. Without Ray."""

import json
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner, Result

from raymsa.analyse import Hidden, hidden, latent
from raymsa.cli import main
from raymsa.clip import SHARD_SCHEMA, to_row
from raymsa.data import manifest as manifests
from raymsa.evaluation.neighbours import Neighbourhood, neighbourhoods
from raymsa.home import run_dir, shards_dir, store_url
from raymsa.jobfile import load_job
from raymsa.report.latent import Latent, Space, draw
from raymsa.spec import runs
from raymsa.store import Store, records
from raymsa.target import Labels
from raymsa.training import checkpoint
from raymsa.training.loop import Position
from raymsa.training.run import build, collate_for
from tests import stores
from tests.clips import clip
from tests.jobs import job_file

CPU = torch.device("cpu")
NASTY = ["<script>alert(1)</script>", '"=cmd|x', "\u202eback", "😀" * 3, "\x1b[31mred", "a" * 10_000]
CLIPS = [clip(name, "so good " * (1 + i), 2 * (i % 2), 0.4 * (i % 3), label=i - 3.0) for i, name in enumerate(NASTY)]
CLIPS += [clip(f"c{i}", "bad " * (i % 5), 0, 0.0, label=i % 7 - 3.0) for i in range(12)]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """One shard of test clips, and one of a single valid clip, with their manifest."""
    folder = tmp_path_factory.mktemp("shards")
    files = []
    for split, clips in {"test": CLIPS, "valid": CLIPS[:1]}.items():
        path = folder / f"{split}-00000.parquet"
        pq.write_table(pa.Table.from_pylist([to_row(c) for c in clips], SHARD_SCHEMA), path, row_group_size=5)
        size = path.stat().st_size
        files.append(manifests.ShardFile(name=path.name, split=split, rows=len(clips), bytes=size, sha256=""))
    none = dict.fromkeys(("train", "valid", "test"), 0)
    manifests.write(
        folder,
        manifests.Manifest(
            name="few", digest="d1", counts=none, without_sound=none, without_picture=none, cut_sound=0, damaged=0,
            rejects=0, labels=Labels(mean=0.0, sd=2.0, median=0.0), settings={}, versions={}, files=tuple(files),
        ),
    )  # fmt: skip
    return folder


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYMSA_HOME", str(tmp_path / "home"))
    with Store.open(store_url()) as opened:
        yield opened


def run_of(store: Store, folder: Path, shards: Path, trained: bool = True, **sections: Any) -> Any:
    """A run `r1` whose adapters were moved away from where they began; its spec."""
    shutil.copytree(shards, shards_dir() / "few-0123")
    dataset = {"kind": "synthetic", "name": "synthetic", **sections.pop("dataset", {})}
    spec = runs(load_job(job_file(folder, dataset=dataset, **sections)))[0].spec
    torch.manual_seed(1)
    student = build(spec, spec.dataset.task.with_labels(Labels(mean=0.0, sd=2.0, counts={"sad": 1})), CPU, None)
    for name, p in student.thinker.model.named_parameters():
        if trained and "lora_B" in name:
            torch.nn.init.normal_(p, std=0.2)
    about = {"job_id": stores.put(store), "task_id": None, "variant": "disc", "seed": 1, "group_key": "g"}
    records.create_runs(store, [{"id": "r1", **about, "spec": spec.model_dump(mode="json"), "spec_digest": "d"}])
    records.update_run(store, "r1", data_digest="d1")
    checkpoint.save(run_dir("r1"), "best", student, Position(), None)
    return spec


def call(*words: str) -> Result:
    """The real entry point, in this process; anything but an exit is a traceback and fails the test."""
    result = CliRunner().invoke(main, ["analyse", *words], prog_name="raymsa")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result


def test_the_states_are_what_the_head_reads_and_the_base_is_the_thinker_that_was_never_tuned(store, tmp_path, shards):
    spec = run_of(store, tmp_path, shards)
    found = hidden(store, "r1", "test", lambda line: None)
    assert found.clip_ids == [c.id for c in CLIPS] and found.label_N.tolist() == [c.label for c in CLIPS]
    untuned = spec.model_copy(update={"train": spec.train.model_copy(update={"epochs": 0})})
    for name, one, saved in (("tuned", spec, checkpoint.find(run_dir("r1"), "best")), ("base", untuned, None)):
        student = build(one, spec.dataset.task.with_labels(Labels(mean=0.0, sd=2.0)), CPU, saved)
        read = []
        student.head.register_forward_pre_hook(lambda _, given, read=read: read.append(given[0]))
        collate = collate_for(student, one)
        for each in CLIPS:
            student.read(collate([collate.measure(each)]))
        assert found.states[name] == pytest.approx(torch.cat(read).numpy(), abs=2e-4), name
    assert np.abs(found.states["tuned"] - found.states["base"]).max() > 0.1


def test_gen_is_read_where_its_first_token_is_said(store, tmp_path, shards):
    spec = run_of(store, tmp_path, shards, readout={"kind": "gen"})
    found = hidden(store, "r1", "test", lambda line: None)
    student = build(spec, spec.dataset.task.with_labels(Labels()), CPU, checkpoint.find(run_dir("r1"), "best"))
    said = []
    student.thinker._base.lm_head.register_forward_pre_hook(lambda _, given: said.append(given[0]))
    collate = collate_for(student, spec)
    for at, each in enumerate(CLIPS[:4]):
        said.clear()
        student.read(collate([collate.measure(each)]))
        assert found.states["tuned"][at] == pytest.approx(said[0][0].numpy(), abs=2e-4)


def test_a_run_becomes_a_table_a_picture_and_data(store, tmp_path, shards):
    run_of(store, tmp_path, shards)
    out = tmp_path / "out"
    words = ["r1", "--k", "3", "--k", "5", "--permutations", "50", "--seed", "4"]
    found = json.loads(call(*words, "--out", str(out), "--json").stdout)
    assert (found["clips"], found["split"], found["distance"], found["seed"]) == (18, "test", "euclidean", 4)
    assert found["files"] == [str(out / "hidden_test.parquet"), str(out / "latent_test.svg")]
    kept = pq.read_table(out / "hidden_test.parquet")
    assert kept["clip_id"].to_pylist() == [c.id for c in CLIPS]
    labels = np.array(kept["label"].to_pylist())
    for name in ("tuned", "base"):
        states = np.array(kept[name].to_pylist(), np.float32)
        near = neighbourhoods(states, labels, [3, 5], "euclidean", 50, 4)
        assert [one["difference"] for one in found["spaces"][name]["neighbours"]] == [n.difference for n in near]
        assert [one["permuted"] for one in found["spaces"][name]["neighbours"]] == [n.permuted for n in near]
    assert found["spaces"]["tuned"] != found["spaces"]["base"]
    text = " ".join(
        node.text or "" for node in ElementTree.parse(out / "latent_test.svg").iter() if node.tag.endswith("}text")
    )
    assert "script" not in text
    shown = call(*words).stdout
    for space, name in (("tuned", "after tuning"), ("base", "before tuning")):
        (line,) = (line for line in shown.splitlines() if line.startswith(name) and line.split()[2] == "3")
        assert f"{found['spaces'][space]['neighbours'][0]['difference']:.3f}" in line


def test_the_distance_asked_for_is_taken(store, tmp_path, shards):
    states = np.array([[1.0, 0.0], [1.0, 0.4], [5.0, 0.0]], np.float32)
    known = Hidden("r1", "disc", "test", (-3.0, 3.0), ["a", "b", "c"], np.array([0.0, 1.0, 3.0]), {"base": states})
    near = {name: latent(known, [1], name, 5, 0).spaces[0].neighbourhoods[0] for name in ("euclidean", "cosine")}
    assert near["euclidean"].difference == pytest.approx((1 + 1 + 3) / 3)
    assert near["cosine"].difference == pytest.approx((3 + 1 + 3) / 3)
    run_of(store, tmp_path, shards)  # its last norm makes all states equally long: both measures agree there
    said = call("r1", "--k", "3", "--distance", "cosine", "--permutations", "5").stdout
    assert "cosine distance" in " ".join(said.split())


def test_a_run_that_trained_nothing_has_one_space(store, tmp_path, shards):
    run_of(store, tmp_path, shards, train={"epochs": 0}, readout={"kind": "gen"})
    assert list(json.loads(call("r1", "--k", "3", "--json").stdout)["spaces"]) == ["base"]
    assert "trained no adapters" in call("r1", "--k", "3").stdout


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["r2"], 102, "no run"),
        (["r1", "--k", "18"], 2, "k is 18; of 18 clips each has 17 others"),
        (["r1", "--k", "0"], 2, "--k"),
        (["r1", "--split", "valid"], 2, "has 1 clips of it"),
        (["r1", "--split", "train"], 2, "has 0 clips of it"),
        (["r1", "--k", "3", "--out", "/proc/nowhere"], 2, "cannot be written"),
    ],
)
def test_what_is_wrong_is_one_line(store, tmp_path, shards, words, code, said):
    run_of(store, tmp_path, shards)
    result = call(*words)
    assert result.exit_code == code and said in result.stderr.splitlines()[-1], result.stderr


def test_classes_have_no_label_difference(store, tmp_path, shards):
    run_of(store, tmp_path, shards, dataset={"task": {"kind": "classification", "classes": ["sad", "happy"]}})
    result = call("r1")
    assert result.exit_code == 2 and "predicts classes" in result.stderr


def test_other_clips_than_those_of_the_run_are_refused(store, tmp_path, shards):
    run_of(store, tmp_path, shards)
    records.update_run(store, "r1", data_digest="d2")
    result = call("r1")
    assert result.exit_code == 2 and "run r1: no clips with data d2 under RAYMSA_HOME" in result.stderr
    named = call("r1", "--shards", str(shards))
    assert named.exit_code == 2 and "holds data d1, and the runs have seen data d2" in named.stderr


def test_clips_that_lie_elsewhere_are_named_by_a_person(store, tmp_path, shards):
    run_of(store, tmp_path, shards)
    shutil.rmtree(shards_dir())
    assert call("r1", "--k", "3", "--permutations", "5").exit_code == 2
    assert call("r1", "--k", "3", "--permutations", "5", "--shards", str(shards)).exit_code == 0


def test_a_run_without_a_checkpoint_is_not_finished(store, tmp_path, shards):
    run_of(store, tmp_path, shards)
    for path in sorted(run_dir("r1").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    assert call("r1").exit_code == 101


@pytest.mark.parametrize("run_id", ["$\\nope$<b>", "</title><script>", "😀 \u202eback", "r" * 300])
def test_any_name_can_stand_in_the_picture(tmp_path, run_id):
    near = [Neighbourhood(10, 0.95, 1.896, 1.8, 1.99, 0.001)]
    labels = np.array([-1.0, 0.0, 2.0])
    space = Space("tuned", near, np.array([[0.0, 1.0], [1.0, 0.0], [2.0, 2.0]]), np.array([0.5, 0.25]), 8)
    path = draw(Latent(run_id, "disc", "test", (-3.0, 3.0), labels, "euclidean", 1000, 0, [space]), tmp_path)
    again = path.read_bytes()
    assert b"<script" not in again and ElementTree.fromstring(again) is not None
    assert draw(Latent(run_id, "disc", "test", (-3.0, 3.0), labels, "euclidean", 1000, 0, [space]), tmp_path)
    assert path.read_bytes() == again
