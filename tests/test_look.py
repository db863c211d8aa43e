"""`raymsa data`: the numbers of a folder of shards, one clip as a page, and damage that is found and named."""

import base64
import hashlib
import io
import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from click.testing import CliRunner
from hypothesis import example, given
from hypothesis import strategies as st

from raymsa.cli import main
from raymsa.clip import SAMPLE_RATE, SHARD_SCHEMA, Clip, to_row
from raymsa.data import manifest as manifests
from raymsa.data.columns import find
from raymsa.data.stats import by_reason, label_summary, stats, tokenizer_of
from raymsa.data.verify import verify
from raymsa.errors import DataError, NotFound
from raymsa.jobfile import load_dataset
from raymsa.plan import shards_of
from raymsa.report.clip_page import heat, mel, page, png, wav, waveform
from raymsa.target import Classification, Labels, Regression
from tests.clips import clip

ROOT = Path(__file__).parent.parent
GROUP_ROWS = 4
NASTY = '<script>alert("1")</script> & \'x\' </p><img src="http://example.org/x.png">'
NAMED = [
    replace(clip("-3g5yACwYnA$_$1", "I DID NOT LIKE IT", 6, 1.0, label=-1.5), split="train"),
    replace(clip("-3g5yACwYnA$_$10", "", 2, 0.5, label=0.0), split="train"),
    replace(
        clip("video_0001$_$0001", "我不想嫁给李茶", 3, 0.7, label=1.0), split="train", previous=("早", "<b>好</b>")
    ),
    replace(clip("片段一", "words alone", 0, 0.0, label=3.0), split="train"),
    replace(clip('<i>"x"</i>', NASTY, 1, 0.3, label=2.0), split="train", targets={"label": "2", "<u>T</u>": '">'}),
]


def write_shards(folder: Path, clips: list[Clip], per_file: int = 10, checksums: bool = True, **settings) -> Path:
    """What `prepare` writes, of clips that are at hand: shards, rejects.csv, notes.csv and the manifest."""
    folder.mkdir(parents=True)
    files = []
    for split in ("train", "valid", "test"):
        mine = [c for c in clips if c.split == split]
        for number, start in enumerate(range(0, len(mine), per_file)):
            path = folder / f"{split}-{number:05d}.parquet"
            rows = [to_row(c) for c in mine[start : start + per_file]]
            table = pa.Table.from_pylist(rows, SHARD_SCHEMA)
            pq.write_table(
                table, path, row_group_size=GROUP_ROWS, compression="zstd", use_dictionary=False,
                write_page_checksum=checksums,
            )  # fmt: skip
            about = {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
            files.append(manifests.ShardFile(name=path.name, split=split, rows=len(rows), **about))
    (folder / "rejects.csv").write_text(
        "id,media,reason\nx,x.mp4,missing file\ny,,label 9 is outside\nz,,label 8 is outside\n"
    )
    (folder / "notes.csv").write_text("id,note\nc1,sound: 3 packets could not be decoded\n")
    counts = {split: sum(c.split == split for c in clips) for split in ("train", "valid", "test")}
    none = dict.fromkeys(counts, 0)
    about = {"name": "mine", "task": {"kind": "regression", "low": -3, "high": 3}, "language": "zh", **settings}
    beside = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in ("rejects.csv", "notes.csv")}
    manifest = manifests.Manifest(
        name="mine", digest=manifests.digest_of(tuple(files), manifests.shaping(about)), counts=counts,
        without_sound=none, without_picture=none, cut_sound=2, damaged=1, rejects=3, labels=Labels(0, 1, 0),
        versions=manifests.versions(), files=tuple(files), settings=about, beside=beside,
    )  # fmt: skip
    manifests.write(folder, manifest)
    return folder


def many(count: int) -> list[Clip]:
    """Small clips that no compression makes smaller: a byte that is turned over is a byte of theirs."""
    return [replace(clip(f"c{i:02d}", f"words {i}", 2, 0.2, label=i % 7 - 3), split="train") for i in range(count)]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Five named clips to train on, and three to test on."""
    tests = [clip(f"t{i}", "one two", 2 * i, 2.0 * i, (28, 56), label=i) for i in range(3)]
    return write_shards(tmp_path_factory.mktemp("look") / "shards", [*NAMED, *tests], published={"train": 6})


@pytest.fixture
def shard(tmp_path):
    """One shard of 22 clips in six row groups."""
    return write_shards(tmp_path / "shards", many(22), per_file=100)


def call(*words):
    result = CliRunner().invoke(main, ["data", *map(str, words)], prog_name="raymsa")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result


# stats


def test_clips_hours_and_tokens_are_summed_per_split(shards):
    parts = stats(shards).parts
    assert list(parts) == ["train", "test", "all"]
    train, test, whole = parts["train"], parts["test"], parts["all"]
    assert (train.clips, test.clips, whole.clips) == (5, 3, 8)
    assert train.hours == pytest.approx(2.5 / 3600) and whole.hours == pytest.approx(8.5 / 3600)
    assert train.audio_tokens == sum(c.audio_tokens for c in NAMED)
    assert train.video_tokens == sum(c.video_tokens for c in NAMED) == 6 * (3 + 1 + 2 + 1)
    assert (test.words, test.characters) == (6, 21)
    assert (train.without_words, train.without_sound, train.without_picture, test.without_sound) == (1, 1, 1, 1)


def test_lengths_are_percentiles_of_the_clips_with_media(shards):
    test = stats(shards).parts["test"]
    assert (test.seconds["p50"], test.seconds["max"]) == (3.0, 4.0)  # of 2 s and 4 s; words alone have no length
    assert test.tokens["max"] == clip("t2", "", 4, 4.0, (28, 56)).audio_tokens + 4


def test_scores_have_a_histogram_and_classes_are_counted(shards):
    labels = stats(shards).parts["train"].labels
    assert {b["low"]: b["clips"] for b in labels["bins"] if b["clips"]} == {-1.5: 1, 0.0: 1, 1.0: 1, 2.0: 1, 2.5: 1}
    assert (labels["negative"], labels["zero"], labels["positive"]) == (1, 1, 3)
    assert label_summary(Classification(classes=("no", "yes")), [1, 1, 0]) == {"classes": {"no": 1, "yes": 2}}
    sims = label_summary(Regression(low=-1, high=1), [0.6, 0.6, -0.2])
    assert {b["low"]: b["clips"] for b in sims["bins"] if b["clips"]} == {0.6: 2, -0.2: 1}


def test_reasons_that_differ_in_numbers_and_names_only_are_one():
    reasons = ["label 9 is outside [-3, 3]", "missing file", "label -8.5 is outside [-3, 3]", "split 'x' is none"]
    assert by_reason(reasons) == {"label … is outside [-3, 3]": 2, "missing file": 1, "split 'x' is none": 1}


PARTS = st.sampled_from(["x ", "…", "5", "-1.5", "'a'", "'…'", '"', "'", "\0", " is"])


@given(st.lists(st.lists(PARTS, max_size=5).map("".join)))
@example(["x 5", "x …"])
@example(["x 5", "x 6", "x …", "x \0"])
def test_no_reason_is_lost_whatever_stands_in_it(reasons):
    counts = by_reason(reasons)
    assert sum(counts.values()) == len(reasons)
    assert list(counts.values()) == sorted(counts.values(), reverse=True)
    for reason in reasons:
        assert by_reason([reason]) == {reason: 1}


def test_what_was_left_out_or_kept_with_less_is_counted_by_reason(shards):
    found = stats(shards)
    assert (found.rejects, found.damaged, found.cut_sound) == (3, 1, 2)
    assert found.rejects_by_reason == {"label … is outside": 2, "missing file": 1}
    assert found.notes_by_reason == {"sound: 3 packets could not be decoded": 1}


def test_words_are_counted_in_tokens_only_with_a_model(shards, home):
    assert stats(shards).parts["all"].text_tokens is None
    tokenizer = tokenizer_of("tiny")
    part = stats(shards, tokenizer).parts["all"]
    texts = [*(c.text for c in NAMED), *["one two"] * 3]
    assert part.text_tokens == sum(len(tokenizer(t, add_special_tokens=False)["input_ids"]) for t in texts)
    assert part.tokens["max"] > stats(shards).parts["all"].tokens["max"]


def test_stats_are_tables_for_people_and_data_for_programs(shards):
    shown = call("stats", shards)
    assert shown.exit_code == 0 and "--model FOLDER counts those of the words too" in shown.stderr
    assert re.search(r"^train +5 +6 +0\.00", shown.stdout, re.M) and "[2.5, 3]" in shown.stdout
    assert "left out: 3 (rejects.csv)\n  2 x label … is outside" in shown.stdout
    found = json.loads(call("stats", shards, "--json").stdout)
    assert found["parts"]["train"]["clips"] == 5 and found["rejects_by_reason"]["missing file"] == 1


def test_a_dataset_file_stands_for_its_shards(shards, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(f"kind: table\nname: mine\nshards: {shards}\n")
    assert json.loads(call("stats", file, "--json").stdout)["folder"] == str(shards)


def test_a_dataset_or_job_file_finds_its_shards_by_the_same_words_as_prepare(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYMSA_HOME", str(tmp_path / "home"))
    file, raw = tmp_path / "mine.yaml", tmp_path / "raw"
    file.write_text("kind: table\nname: mine\nraw: elsewhere\n")
    there = shards_of(load_dataset(file, [f"raw={raw}", "media.max_frames=8"]))
    write_shards(there, many(2))
    for words in (
        ["--raw", raw, "--set", "media.max_frames=8"],
        ["--set", f"raw={raw}", "--set", "media.max_frames=8"],
    ):
        assert json.loads(call("stats", file, "--json", *words).stdout)["folder"] == str(there)
        assert call("verify", file, *words).exit_code == 0
        assert call("show", file, "c01", "--out", tmp_path / "x.html", *words).exit_code == 0
    assert call("stats", file).exit_code == 2
    job = tmp_path / "job.yaml"
    job.write_text("name: j\ndataset: mine.yaml\nmodel: {path: tiny}\nreadout: {kind: disc}\n")
    words = ["--raw", raw, "--set", "dataset.media.max_frames=8"]
    assert json.loads(call("stats", job, "--json", *words).stdout)["folder"] == str(there)
    refused = call("verify", there, "--raw", raw)
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1) and "is taken for a folder" in refused.stderr


def test_stats_read_no_frames(shards, tmp_path):
    """Bytes in the middle of the frames are destroyed, and nothing is noticed."""
    folder = write_shards(tmp_path / "shards", many(8))
    at = place_of("frames", folder / "train-00000.parquet", 1)
    flip(folder / "train-00000.parquet", at, 100)
    assert stats(folder).parts["all"].clips == 8


# show


class Seen(HTMLParser):
    """The tags, the attributes and the text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += f"{data}\n"

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


def decoded(source: str) -> bytes:
    return base64.b64decode(source.split(",", 1)[1])


def picture(data: bytes, form: str = "rgb24") -> np.ndarray:
    with av.open(io.BytesIO(data)) as file:
        return next(file.decode(video=0)).to_ndarray(format=form)


@pytest.fixture(scope="module")
def nasty_page():
    return Seen(page(NAMED[4], "+2", mel(NAMED[4])))


def test_a_page_loads_nothing_and_runs_nothing(nasty_page):
    tags = {tag for tag, _ in nasty_page.tags}
    assert not tags & {"script", "link", "iframe", "object", "a", "form", "base"}
    for _, attributes in nasty_page.tags:
        assert all(not name.startswith("on") for name in attributes)
        assert (attributes.get("src") or "data:").startswith("data:") and "href" not in attributes
    (policy,) = [m["content"] for m in nasty_page.all("meta") if "http-equiv" in m]
    assert "default-src 'none'" in policy


def test_every_word_of_the_data_is_escaped(nasty_page):
    assert NASTY in nasty_page.text and '<i>"x"</i>' in nasty_page.text and "<u>T</u>" in nasty_page.text
    assert not nasty_page.all("u") and len(nasty_page.all("img")) == 3  # one frame, waveform, mel


def test_frames_are_in_the_page_as_the_model_sees_them(shards):
    found = find(shards, manifests.read(shards), NAMED[0].id)
    seen = Seen(page(found, "-1.5"))
    frames = [image for image in seen.all("img") if image["alt"].startswith("frame")]
    assert [image["alt"] for image in frames][:2] == ["frame 1 of 6, at about 0.08 s", "frame 2 of 6, at about 0.25 s"]
    for image, frame in zip(frames, NAMED[0].frames_FHWC, strict=True):
        assert np.array_equal(picture(decoded(image["src"])), frame)
    assert all(image["alt"] for image in seen.all("img"))


def test_sound_is_in_the_page_to_be_played():
    (audio,) = Seen(page(NAMED[0], "-1.5")).all("audio")
    sound, rate = soundfile.read(io.BytesIO(decoded(audio["src"])), dtype="int16")
    assert rate == SAMPLE_RATE and np.array_equal(sound, NAMED[0].audio_S) and "controls" in audio
    assert wav(np.zeros(0, np.int16))[:4] == b"RIFF"


def test_the_mel_is_what_the_audio_tower_gets():
    from transformers import WhisperFeatureExtractor

    stock = WhisperFeatureExtractor(feature_size=128, chunk_length=300)
    samples = NAMED[0].audio_S.astype(np.float32) / 32768
    whole = stock(samples, sampling_rate=SAMPLE_RATE, return_tensors="np")["input_features"][0]
    assert mel(NAMED[0]).shape == (128, 100) and np.allclose(mel(NAMED[0]), whole[:, :100], atol=1e-4)
    assert mel(NAMED[3]) is None


def test_a_high_tone_is_bright_at_the_top_of_the_mel_picture():
    tone = (9000 * np.sin(2 * np.pi * 6000 * np.arange(SAMPLE_RATE) / SAMPLE_RATE)).astype(np.int16)
    image = heat(mel(Clip("x", "v", "", 0, "test", 1.0, None, tone)))
    assert image.shape == (128, 100, 3)
    assert 8 <= image[:, 50].sum(-1).argmax() <= 16  # 6 of 8 kHz, on a scale that is logarithmic there


def test_a_waveform_reaches_as_far_as_the_sound_does():
    sound = np.concatenate([np.zeros(8000, np.int16), np.full(8000, 16384, np.int16)])
    drawn = waveform(sound)[..., 3] > 0
    assert drawn.shape == (120, 1200) and drawn[:, :500].sum(0).max() <= 2
    first = drawn[:, 900].argmax()
    assert 28 <= first <= 31  # half of full scale, upwards


@pytest.mark.parametrize("samples", [1, 5, 100, 300 * SAMPLE_RATE])
def test_short_and_long_sound_can_be_drawn(samples):
    sound = Clip("x", "v", "", 0, "test", 1.0, None, np.arange(samples).astype(np.int16))
    assert waveform(sound.audio_S).shape[1] == min(1200, samples)
    assert heat(mel(sound)).shape[1] <= 1200 and picture(png(waveform(sound.audio_S)), "rgba").shape[0] == 120


def test_words_labels_and_costs_are_said(shards):
    text = Seen(page(NAMED[2], "+1", None, 9, "zh")).text
    assert "我不想嫁给李茶" in text and "<b>好</b>" in text and "早" in text
    assert f"{NAMED[2].audio_tokens}\n" in text and f"{NAMED[2].video_tokens}\n" in text
    assert f"{9 + NAMED[2].audio_tokens + NAMED[2].video_tokens}\n" in text
    assert "This clip has no picture." in Seen(page(NAMED[3], "+3")).text


@pytest.mark.parametrize("name", ["-3g5yACwYnA$_$1", "video_0001", "片段", "video_0001$_$0001"])
def test_a_clip_is_named_by_its_id_or_a_beginning_that_no_other_has(shards, tmp_path, name):
    shown = call("show", shards, name, "--out", tmp_path / "x.html", "--json")
    assert shown.exit_code == 0, shown.stderr
    found = json.loads(shown.stdout)
    assert found["clip"].startswith(name) and found["bytes"] == (tmp_path / "x.html").stat().st_size
    assert call("show", "--out", tmp_path / "y.html", shards, "--", name).exit_code == 0
    assert (tmp_path / "x.html").read_bytes() == (tmp_path / "y.html").read_bytes()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("-3g", "2 clips of"),
        ("video_1", "no such clip"),
        ("video_0002$_$0001", "near: video_0001$_$0001"),
        ("0001$_$0", "near: video_0001$_$0001"),
        ("zzzzzzzz", "its first ids are -3g5yACwYnA$_$1,"),
        ("", "no such clip"),
    ],
)
def test_a_clip_that_is_not_there_is_one_line_with_what_is_near(shards, tmp_path, name, words):
    shown = call("show", shards, name, "--out", tmp_path / "x.html")
    assert shown.exit_code == 102 and shown.stderr.count("\n") == 1
    assert words in shown.stderr
    assert not (tmp_path / "x.html").exists()


def test_each_clip_is_found_in_its_row_group(tmp_path):
    folder = write_shards(tmp_path / "shards", many(11), per_file=6)
    manifest = manifests.read(folder)
    for number in (0, 3, 4, 5, 6, 10):
        assert find(folder, manifest, f"c{number:02d}").text == f"words {number}"
    with pytest.raises(NotFound):
        find(folder, manifest, "c1100")


def test_show_with_a_model_counts_the_words(shards, tmp_path, home):
    shown = call("show", shards, "video_0001", "--out", tmp_path / "x.html", "--model", "tiny", "--json")
    assert json.loads(shown.stdout)["text_tokens"] == len(
        tokenizer_of("tiny")(NAMED[2].text, add_special_tokens=False)["input_ids"]
    )


def test_wrong_folders_and_models_are_one_line(shards, tmp_path):
    for words, code, line in [
        (("stats", tmp_path), 2, "no prepared clips there"),
        (("stats", tmp_path / "no.yaml"), 2, "cannot be read"),
        (("stats", shards, "--model", tmp_path / "no"), 2, "there is no such folder"),
        (("stats", shards, "--model", shards), 2, "no tokenizer could be opened there"),
        (("show", shards, "t0", "--out", tmp_path / "no" / "x.html"), 2, "cannot be written"),
        (("verify", tmp_path), 2, "no prepared clips there"),
    ]:
        result = call(*words)
        assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (code, "", 1), result.stderr
        assert line in result.stderr


# export


@pytest.fixture
def dataset_file(tmp_path):
    """A dataset of four rows: one with its file, one of words alone, one without its file, one that breaks a rule."""
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "a.mp4").write_bytes(b"x")
    rows = "a,said,1.5,train,a.mp4\nb,alone,-1,test,\nc,gone,0,train,c.mp4\nd,loud,9,train,a.mp4\n"
    (raw / "clips.csv").write_text(f"id,text,score,split,file\n{rows}")
    (tmp_path / "mine.yaml").write_text("kind: table\nname: mine\ncolumns: {media: file}\n")
    return tmp_path / "mine.yaml"


def test_clips_that_can_be_used_are_exported_for_ms_swift(dataset_file, tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "out"
    result = call("export", dataset_file, "--raw", raw, "--to", out, "--json")
    assert json.loads(result.stdout)["clips"] == {"train": 1, "valid": 0, "test": 1}, result.stderr
    assert "2 of 4 rows were left out" in result.stderr
    (line,) = map(json.loads, (out / "train.jsonl").read_text().splitlines())
    assert line["videos"] == [str(raw / "a.mp4")] and line["label"] == 1.5 and line["id"] == "a"
    again = call("export", dataset_file, "--raw", raw, "--to", out)
    assert again.exit_code == 2 and "there already" in again.stderr


def test_an_export_can_change_a_field_of_its_file(dataset_file, tmp_path):
    words = (
        "--set",
        f"raw={tmp_path / 'raw'}",
        "--set",
        "task={kind: regression, low: 0}",
        "--to",
        tmp_path / "out",
        "--json",
    )
    result = call("export", dataset_file, *words)
    assert json.loads(result.stdout)["clips"] == {"train": 1, "valid": 0, "test": 0}, result.stderr


def test_an_export_of_nothing_or_to_nowhere_is_one_line(dataset_file, tmp_path):
    raw = tmp_path / "raw"
    result = call("export", dataset_file, "--raw", raw, "--to", raw / "a.mp4" / "out")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1) and "cannot be written" in result.stderr
    (raw / "clips.csv").write_text("id,text,score,split,file\nc,gone,0,train,c.mp4\n")
    result = call("export", dataset_file, "--raw", raw, "--to", tmp_path / "out")
    assert result.exit_code == 1 and "no clip would be left of 1 rows" in result.stderr
    assert not (tmp_path / "out").exists()


# verify


def place_of(column: str, path: Path, group: int) -> int:
    """A byte near the end of a column of a row group: of its data, not of the page's header before it."""
    meta = pq.read_metadata(path).row_group(group)
    chunk = next(meta.column(i) for i in range(meta.num_columns) if meta.column(i).path_in_schema == column)
    return int(chunk.data_page_offset + chunk.total_compressed_size - 3)


def flip(path: Path, at: int, count: int = 1) -> None:
    data = bytearray(path.read_bytes())
    data[at : at + count] = bytes(byte ^ 0x10 for byte in data[at : at + count])
    path.write_bytes(data)


def test_whole_shards_are_one_line_and_exit_0(shards):
    result = call("verify", shards)
    assert (result.exit_code, result.stderr, result.stdout.count("\n")) == (0, "", 1)
    assert "all as written: 2 shards, 8 clips" in result.stdout
    assert json.loads(call("verify", shards, "--json").stdout)["ok"] is True


@pytest.mark.parametrize("column", ["frames", "audio", "text", "label"])
def test_a_flipped_byte_is_found_and_its_clips_are_named(shard, column):
    flip(shard / "train-00000.parquet", place_of(column, shard / "train-00000.parquet", 2))
    (finding,) = verify(shard).findings
    assert finding.file == "train-00000.parquet" and finding.clips == ["c08", "c09", "c10", "c11"]
    assert finding.damage[0]["columns"] == [column] and finding.damage[0]["rows"] == [8, 11]
    result = call("verify", shard)
    assert result.exit_code == 1 and "1 file is not as written, of 1 shards, 22 clips" in result.stderr
    assert f"rows 8 to 11, {column}: c08, c09, c10, c11" in result.stdout


def test_clips_whose_ids_are_damaged_are_named_by_their_rows(shard):
    flip(shard / "train-00000.parquet", place_of("id", shard / "train-00000.parquet", 5))
    assert "rows 20 to 21, id: their ids are damaged too" in call("verify", shard).stdout


def test_without_page_checksums_only_the_file_may_be_known(tmp_path):
    folder = write_shards(tmp_path / "shards", many(6), checksums=False)
    flip(folder / "train-00000.parquet", place_of("label", folder / "train-00000.parquet", 0))
    (finding,) = verify(folder).findings
    assert finding.file == "train-00000.parquet" and "holds other bytes" in finding.problem
    assert finding.damage or "which of its 6 clips are damaged cannot be told" in finding.problem


@pytest.mark.parametrize("from_end", [1, 3, 6, 30, 200])
def test_damage_in_a_shards_end_is_found(shard, from_end):
    path = shard / "train-00000.parquet"
    flip(path, path.stat().st_size - from_end)
    assert [finding.file for finding in verify(shard).findings] == ["train-00000.parquet"]


def test_missing_truncated_and_surplus_files_are_named(tmp_path):
    folder = write_shards(tmp_path / "shards", many(12), per_file=4)
    (folder / "train-00000.parquet").unlink()
    (folder / "train-00001.parquet").write_bytes((folder / "train-00001.parquet").read_bytes()[:-100])
    (folder / "train-00009.parquet").write_bytes(b"stray")
    (folder / ".lock").touch()
    found = json.loads((result := call("verify", folder, "--json")).stdout)
    assert result.exit_code == 1 and found["ok"] is False
    problems = {finding["file"]: finding["problem"] for finding in found["findings"]}
    assert list(problems) == ["train-00000.parquet", "train-00001.parquet", "train-00009.parquet"]
    assert problems["train-00000.parquet"] == "is missing (4 clips)"
    assert re.fullmatch(r"has [\d,]+ bytes, [\d,]+ were written \(4 clips\)", problems["train-00001.parquet"])
    assert problems["train-00009.parquet"] == "manifest.json does not know it"


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('"rejects": 3', '"rejects": 2', "says other things than were written"),
        ('"high": 3', '"high": 4', "says other things than were written"),
        (r'"sha256": "\w+"\n}', '"rejects": 3\n}', None),
        (
            r'"digest": "\w+"((?s:.*)),\s*"sha256": "\w+"\n}',
            r'"digest": "0"\1}',
            "says data 0, but its files and settings",
        ),
    ],
    ids=["count", "setting", "an older one", "older, other digest"],
)
def test_a_manifest_that_was_changed_is_found(shard, old, new, problem):
    path = shard / "manifest.json"
    text, times = re.subn(old, new, path.read_text())
    assert times == 1
    path.write_text(text)
    assert [(f.file, problem and f.problem.startswith(problem)) for f in verify(shard).findings] == (
        [("manifest.json", True)] if problem else []
    )


def test_changed_and_missing_files_beside_the_shards_are_named(shard):
    (shard / "rejects.csv").write_text("id,media,reason\n")
    (shard / "notes.csv").unlink()
    problems = {finding.file: finding.problem for finding in verify(shard).findings}
    assert problems == {"rejects.csv": "holds other bytes than were written", "notes.csv": "is missing"}


def test_stats_of_a_damaged_shard_point_to_verify(shard):
    flip(shard / "train-00000.parquet", (shard / "train-00000.parquet").stat().st_size - 6, 2)
    with pytest.raises(DataError, match="raymsa data verify"):
        stats(shard)


def test_the_group_is_answered_without_ray_or_torch():
    source = (
        "import sys; from raymsa.cli import main\n"
        "try: main(['data', '--help'])\n"
        "except SystemExit: pass\n"
        "print({'ray', 'torch', 'pyarrow', 'transformers'} & {*sys.modules}, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stderr.splitlines()[-1] == "set()" and "verify" in done.stdout
