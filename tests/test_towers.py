"""Runs that read what the towers made of the clips: the same losses and scores, from files that are whole and theirs.

Axes: N vectors, D width of the language model.
"""

import json
import os
import shutil
import threading
from dataclasses import replace
from importlib.metadata import version

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import raymsa.execute
from raymsa.clip import SHARD_SCHEMA, to_row
from raymsa.data import manifest as manifests
from raymsa.data.groups import read, row_groups
from raymsa.errors import DataError, SpecError, Stopped
from raymsa.spec import ModelSpec, check
from raymsa.target import Labels
from raymsa.thinker.load import load
from raymsa.training import run, towers
from raymsa.training.predictions import read_predictions
from raymsa.training.run import Work, execute
from tests.clips import MIXED, clip

CPU = torch.device("cpu")
CLIPS = {
    "train": [clip(f"t{i}", "so good " * (1 + i % 4), i % 4, 0.3 * (i % 3), (28, 56), i % 7 - 3.0) for i in range(10)],
    "valid": MIXED,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Ten training clips in two shards and the five mixed ones in one, and their manifest."""
    folder = tmp_path_factory.mktemp("shards")
    files = []
    for split, some in CLIPS.items():
        for number, start in enumerate(range(0, len(some), 5)):
            path = folder / f"{split}-{number:05d}.parquet"
            rows = [to_row(replace(c, split=split)) for c in some[start : start + 5]]
            pq.write_table(pa.Table.from_pylist(rows, SHARD_SCHEMA), path, row_group_size=3)
            files.append(manifests.ShardFile(name=path.name, split=split, rows=len(rows), bytes=1, sha256=""))
    none: dict[str, int] = {}
    counts = {split: len(some) for split, some in CLIPS.items()}
    about = {"cut_sound": 0, "damaged": 0, "rejects": 0, "settings": {}, "versions": {}}
    labels = Labels(mean=0.0, sd=2.0, median=0.0)
    made = manifests.Manifest(
        name="few", digest="d", counts=counts, without_sound=none, without_picture=none, labels=labels,
        files=tuple(files), **about,
    )  # fmt: skip
    return folder, made


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch, home):
    """A towers folder of the test's own; the tiny Thinker is the session's."""
    monkeypatch.setattr(towers, "towers_dir", lambda: tmp_path / "towers")
    return tmp_path / "towers"


def spec_of(cache="towers", kind="disc", **sections):
    raw = {
        "name": "few",
        "model": {"path": "tiny"} | sections.pop("model", {}),
        "dataset": {"kind": "table", "name": "few"},
        "inputs": {"prompt": "{text}\nHow?", "cache": cache} | sections.pop("inputs", {}),
        "readout": {"kind": kind} | ({"constrained": True} if kind == "gen" else {}),  # else it says nothing of use
        "lora": {"rank": 2, "scope": "language_model", "dropout": 0},
        "train": {"epochs": 2, "batch_clips": 4, "batch_tokens": 120, "window_clips": 8, "lora_lr": 1e-3},
        "seeds": [7],
        "evaluate": {"splits": ["valid"]},
    }
    return check(raw | sections, "test")


def trained(data, folder, spec):
    execute(Work(spec, *data, folder), CPU, read, lambda values: None)
    steps = [json.loads(line)["values"] for line in (folder / "steps.jsonl").read_text().splitlines()]
    return [s["loss"] for s in steps if "loss" in s], [row["score"] for row in read_predictions(folder)]


def made_for(data, spec, say=lambda line: None, stopping=lambda: False):
    return towers.cached(spec, data[1], data[0], CPU, say, stopping)


def clips_in(folder, files):
    plan = [row_groups(folder, [file.name for file in files])]
    return list(read(plan).of(0))


@pytest.mark.parametrize("kind", ["disc", "gen"])
@pytest.mark.parametrize("interleave", [False, True])
def test_losses_and_scores_are_those_of_a_run_that_reads_pixels_and_sound(kind, interleave, data, tmp_path):
    inputs = {"interleave": interleave}
    losses, scores = trained(data, tmp_path / "plain", spec_of("none", kind, inputs=inputs))
    for name in ("computes", "reads"):
        again, scored = trained(data, tmp_path / name, spec_of("towers", kind, inputs=inputs))
        assert again == pytest.approx(losses, abs=1e-4) and scored == pytest.approx(scores, abs=1e-3)
    assert len(losses) > 4 and len(set(scores)) > 1


def test_a_second_run_neither_loads_the_towers_nor_reads_a_pixel(data, tmp_path, monkeypatch):
    trained(data, tmp_path / "one", spec_of())
    built = []
    old = run.load
    monkeypatch.setattr(run, "load", lambda *args, **more: built.append(old(*args, **more)) or built[0])
    monkeypatch.setattr(towers, "load", None)
    empty = tmp_path / "no shards here"
    trained((empty, data[1]), tmp_path / "two", spec_of())
    (thinker,) = built
    core = thinker.model.get_base_model().model
    assert core.audio_tower is None and core.visual is None
    assert "neither sound nor picture is" in (tmp_path / "two" / "log.txt").read_text()


def test_a_run_with_cached_towers_can_still_be_asked_about_new_media(data):
    student = run.build(spec_of(), data[1].labels and manifests.target(data[1], spec_of().dataset.task), CPU, None)
    core = student.thinker.model.get_base_model().model
    assert core.audio_tower is not None and core.visual is not None


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_what_is_kept_is_bit_for_bit_what_the_towers_say(compute, data):
    spec = spec_of(model={"compute": compute})
    folder = made_for(data, spec)
    thinker = load(ModelSpec(path="tiny", compute=compute), None, spec.inputs.modalities, False, CPU)
    thinker.train_mode(False, False)
    student = run.Student(thinker, spec.readout, None, manifests.target(data[1], spec.dataset.task), spec.model)
    collate = run.collate_for(student, spec)
    for raw, known in zip(MIXED, clips_in(folder, data[1].of("valid")), strict=True):
        assert (known.id, known.text, known.label, known.seconds) == (raw.id, raw.text, raw.label, raw.seconds)
        assert (known.audio_tokens, known.video_tokens) == (raw.audio_tokens, raw.video_tokens)
        one, other = (collate([collate.measure(c)]) for c in (raw, known))
        assert other.mel_ML is None and other.patch_PX is None
        assert torch.equal(one.token_BT, other.token_BT) and torch.equal(one.position_3BT, other.position_3BT)
        with torch.inference_mode(), run.Student._autocast(student):
            assert torch.equal(thinker.embed(one).hidden_BTD, thinker.embed(other).hidden_BTD)
        if other.heard_ND is not None:
            assert other.heard_ND.dtype is getattr(torch, compute)


def test_the_files_have_the_shards_rows_in_the_shards_row_groups(data):
    folder = made_for(data, spec_of())
    names = [file.name for file in data[1].files]
    there, here = row_groups(data[0], names), row_groups(folder, names)
    assert [(g.number, g.rows) for g in there] == [(g.number, g.rows) for g in here]
    known = clips_in(folder, data[1].files)
    assert [c.id for c in known] == [c.id for c in clips_in(data[0], data[1].files)]
    largest = max(sum(len(v) for v in (c.vectors.heard, c.vectors.seen) if v is not None) for c in known)
    assert max(group.largest for group in here) == largest  # what a run says of its memory follows from it
    assert not list(folder.glob("*.part"))


def test_a_modality_that_is_off_costs_nothing_and_words_alone_need_no_folder(data, own_home):
    folder = made_for(data, spec_of(inputs={"modalities": ["text", "audio"]}))
    assert all(c.vectors.seen is None for c in clips_in(folder, data[1].files))
    assert any(c.vectors.heard is not None for c in clips_in(folder, data[1].files))
    assert made_for(data, spec_of(inputs={"modalities": ["text"]})) == data[0]


def test_other_clips_weights_inputs_or_arithmetic_have_a_folder_of_their_own(data, tmp_path, tiny_folder):
    copy = shutil.copytree(tiny_folder.path, tmp_path / "other model")
    folder, made = data
    other_clips = made.model_copy(update={"digest": "e"})
    found = {
        made_for(data, spec_of()),
        made_for((folder, other_clips), spec_of()),
        made_for(data, spec_of(inputs={"modalities": ["text", "video"]})),
        made_for(data, spec_of(model={"compute": "bfloat16"})),
        made_for(data, spec_of(model={"path": str(copy)})),
    }
    os.utime(copy / "model.safetensors", ns=(1, 1))  # other weights in the same place
    found.add(made_for(data, spec_of(model={"path": str(copy)})))
    features = copy / "preprocessor_config.json"  # decides on the mel features
    features.write_text(features.read_text().replace('"dither": 0.0', '"dither": 0.1'))
    found.add(made_for(data, spec_of(model={"path": str(copy)})))
    assert len(found) == 7
    same = spec_of(inputs={"prompt": "{text}", "lowercase": True}, lora={"rank": 4, "scope": "language_model"})
    assert made_for(data, same) in found  # what reaches no tower makes no difference


def test_sound_denoised_by_another_release_is_another_folder(data, monkeypatch):
    pytest.importorskip("noisereduce")
    spec = spec_of(inputs={"denoise": "noisereduce"})
    before = towers._digest(spec, data[1], CPU)
    monkeypatch.setattr(towers, "version", lambda name: "0" if name == "noisereduce" else version(name))
    assert towers._digest(spec, data[1], CPU) != before


def test_a_file_that_is_cut_or_gone_is_made_again_and_the_others_stay(data):
    folder = made_for(data, spec_of())
    first, second, third = (folder / file.name for file in data[1].files)
    whole = {path: path.read_bytes() for path in (first, second, third)}
    os.truncate(first, 100)
    second.unlink()
    kept = third.stat().st_mtime_ns
    lines: list[str] = []
    assert made_for(data, spec_of(), lines.append) == folder
    assert {path: path.read_bytes() for path in whole} == whole and third.stat().st_mtime_ns == kept
    assert any("2 of 3 shards" in line for line in lines)


def test_a_byte_that_was_flipped_is_one_line_and_never_a_number(data):
    folder = made_for(data, spec_of())
    path = folder / data[1].of("valid")[0].name
    raw = bytearray(path.read_bytes())
    known = next(c for c in clips_in(folder, data[1].of("valid")) if c.vectors.seen is not None)
    raw[bytes(raw).find(known.vectors.seen.tobytes()[:64]) + 10] ^= 1
    path.write_bytes(raw)
    with pytest.raises(DataError, match=r"row group \d+ cannot be read") as caught:
        clips_in(folder, data[1].of("valid"))
    assert "\n" not in str(caught.value)


def test_of_two_runs_at_once_one_computes_and_the_other_waits(data, monkeypatch):
    written, lines = [], []
    old = towers._write
    monkeypatch.setattr(towers, "_write", lambda path, *rest: (written.append(path.name), old(path, *rest)))
    both = [threading.Thread(target=made_for, args=(data, spec_of(), lines.append)) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert sorted(written) == sorted(file.name for file in data[1].files)
    assert any("another run is writing there" in line for line in lines)


def test_a_run_that_is_stopped_keeps_the_finished_files_and_the_next_goes_on(data, own_home):
    asked = []

    def stopping():
        asked.append(1)
        return len(asked) == 8  # in the second file

    with pytest.raises(Stopped):
        made_for(data, spec_of(), stopping=stopping)
    (folder,) = own_home.iterdir()
    assert [path.name for path in folder.glob("*.parquet")] == [data[1].files[0].name]
    lines: list[str] = []
    made_for(data, spec_of(), lines.append)
    assert any("2 of 3 shards" in line for line in lines) and not list(folder.glob("*.part"))


def test_towers_that_are_trained_cannot_be_cached():
    with pytest.raises(SpecError, match=r"inputs\.cache: .*lora\.scope is thinker; set lora\.scope to language_model"):
        spec_of(lora={"rank": 2})
    assert spec_of("none", lora={"rank": 2}).inputs.cache == "none"


def test_clips_that_no_run_reads_are_not_put_into_the_object_store(data):
    lines: list[str] = []
    shared = raymsa.execute._shared(spec_of(), data[0], data[1], lines.append, lambda: False)
    assert shared is None and "sound and picture are not shared" in lines[0]


def test_hollow_media_hold_no_memory(data):
    folder = made_for(data, spec_of())
    for known in clips_in(folder, data[1].files):
        for array in (known.frames_FHWC, known.audio_S):
            first, last = (0, 0) if array is None else np.lib.array_utils.byte_bounds(array)
            assert last - first <= 2
