"""`raymsa prepare FILE --check-only`: a raw folder held against its label file, without decoding or writing."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from raymsa.cli import main
from raymsa.data.check import check, media_files
from raymsa.data.prepare import prepare
from raymsa.datasets.cmu import Cmu
from raymsa.datasets.folder import ENDINGS
from raymsa.datasets.synthetic import Synthetic
from raymsa.datasets.table import Columns, Table
from raymsa.errors import DataError
from raymsa.target import Classification

ROOT = Path(__file__).parent.parent
MINE = Table(name="mine", columns=Columns(media="file", video="talk"), published={"train": 4, "valid": 1, "test": 1})
HEADER = ("id", "text", "score", "split", "file", "talk")
ROWS = [
    ("a1", "well said", "1.5", "train", "a/1.mp4", "a"),
    ("a2", "", "-2", "train", "a/2.mp4", "a"),
    ("a3", "gone", "0", "train", "a/3.mp4", "a"),
    ("b1", "empty", "3", "valid", "b/1.mp4", "b"),
    ("b2", "words alone", "-0.5", "test", "", "b"),
    ("a1", "again", "1", "train", "a/1.mp4", "a"),
    ("c1", "loud", "9", "test", "c/1.mp4", "c"),
    ("c2", "louder", "12.5", "test", "c/2.mp4", "c"),
    ("c3", "lost", "1", "tset", "c/3.mp4", "c"),
]


@pytest.fixture
def raw(tmp_path):
    """A folder with good clips and every sort of bad one; the files hold no media: nothing may decode them."""
    for name in ("a/1.mp4", "a/2.mp4", "b/1.mp4", "b/9.mp4", "c/1.mp4", "c/._1.mp4", "spare/x.WAV", "notes.txt"):
        (tmp_path / "raw" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "raw" / name).write_bytes(b"" if name == "b/1.mp4" else b"no medium")
    write_table(tmp_path / "raw", ROWS)
    return tmp_path / "raw"


def write_table(folder, rows):
    with (folder / "clips.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([HEADER, *rows])


def call(file, *words):
    result = CliRunner().invoke(main, ["prepare", str(file), "--check-only", *map(str, words)], prog_name="raymsa")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result


@pytest.fixture
def file(tmp_path, monkeypatch):
    """A dataset file for that folder, and a home that must stay away."""
    monkeypatch.setenv("RAYMSA_HOME", str(tmp_path / "home"))
    path = tmp_path / "mine.yaml"
    path.write_text("kind: table\nname: mine\ncolumns: {media: file, video: talk}\npublished: {train: 4}\n")
    return path


def test_rows_are_counted_per_split_with_and_without_their_files(raw):
    splits = check(MINE, raw).splits
    assert [(s.rows, s.clips, s.published, s.missing, s.empty, s.without_words) for s in splits.values()] == [
        (3, 2, 4, 1, 0, 1),
        (1, 0, 1, 0, 1, 0),
        (1, 1, 1, 0, 0, 0),
    ]


def test_missing_empty_and_surplus_files_are_named(raw):
    found = check(MINE, raw)
    assert (found.missing, found.empty) == (["a/3.mp4"], ["b/1.mp4"])
    assert found.surplus == ["b/9.mp4", "spare/x.WAV"]  # not c/1.mp4: a row names it, though the row is left out
    assert found.duplicates == ["a1"] and found.without_words == ["a2"]
    assert (found.rows, found.clips) == (9, 3)


def test_rows_left_out_are_counted_by_reason_whatever_their_numbers(raw):
    reasons = check(MINE, raw).rejects_by_reason
    assert reasons["label … is outside [-3, 3]"] == 2
    assert reasons["split 'tset' is none of train, valid, test"] == 1
    assert sum(reasons.values()) == len(check(MINE, raw).rejects) == 4


def test_videos_in_more_than_one_split_are_a_warning(raw):
    found = check(MINE, raw)
    assert found.shared_videos == {"b": ["valid", "test"]} and found.videos == 2
    (line,) = [line for line in found.warnings if "more than one split" in line]
    assert line.startswith("1 of 2 videos have clips in more than one split (valid+test 1)")


def test_labels_are_summed_up_per_split(raw):
    labels = check(MINE, raw).splits["train"].labels
    assert (labels["min"], labels["max"], labels["mean"]) == (-2, 1.5, pytest.approx(-1 / 6))
    assert (labels["negative"], labels["zero"], labels["positive"]) == (1, 1, 1)
    assert [b["low"] for b in labels["bins"] if b["clips"]] == [-2, 0, 1.5] and len(labels["bins"]) == 12


def test_classes_are_counted_and_one_without_training_clips_is_a_warning(tmp_path):
    rows = [("a", "x", "joy", "train", "", ""), ("b", "x", "Joy", "train", "", ""), ("c", "x", "anger", "test", "", "")]
    write_table(tmp_path, rows)
    task = Classification(classes=("joy", "anger", "fear"))
    found = check(Table(name="mine", task=task), tmp_path)
    assert found.splits["train"].labels == {"classes": {"joy": 2, "anger": 0, "fear": 0}}
    assert "no training clip is of the class anger, fear" in found.warnings


def test_labels_that_use_little_of_the_range_are_a_warning(tmp_path):
    write_table(tmp_path, [(f"c{i}", "x", str(i % 3 - 1), "train", "", "") for i in range(150)])
    assert "labels reach from -1 to 1 only; task.low is -3, task.high 3" in check(Table(name="m"), tmp_path).warnings


def test_words_alone_need_no_files_and_none_is_surplus(tmp_path):
    (tmp_path / "label.csv").write_text("video_id,clip_id,text,label,mode\nv,0001,x,1,train\n")
    (tmp_path / "Raw").mkdir()
    (tmp_path / "Raw" / "x.mp4").touch()
    found = check(Cmu(name="mosi", media_dir=None), tmp_path)
    assert (found.clips, found.missing, found.surplus) == (1, [], [])


def test_a_link_that_leads_round_in_circles_is_followed_once(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.mp4").touch()
    (tmp_path / "a" / "up").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "b").symlink_to(tmp_path / "a", target_is_directory=True)
    assert {"a/1.mp4", "b/1.mp4"} <= media_files(tmp_path) and len(media_files(tmp_path)) < 10


def test_a_named_file_without_an_ending_is_found(tmp_path):
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "one").touch()
    assert media_files(tmp_path, ["clips/one", "clips"]) == {"clips/one"}


def test_a_usable_folder_exits_with_0_and_warns_on_stderr(file, raw):
    result = call(file, "--raw", raw)
    assert result.exit_code == 0, result.stderr
    assert "train     3        1             2          4         1" in result.stdout and "warning" not in result.stdout
    assert "warning: train has 2 clips, published are 4 (2 fewer)" in result.stderr
    assert "warning: 1 media file named in the label file is missing: a/3.mp4" in result.stderr
    assert "warning: 2 media files are named by no row: b/9.mp4, spare/x.WAV" in result.stderr
    assert "3 of 9 rows can be prepared" in result.stderr


def test_json_has_every_name_and_the_warnings(file, raw):
    found = json.loads(call(file, "--raw", raw, "--json").stdout)
    assert found["usable"] is True and found["surplus"] == ["b/9.mp4", "spare/x.WAV"]
    assert found["splits"]["train"]["missing"] == 1 and len(found["rejects"]) == 4
    assert any("published" in line for line in found["warnings"])


def test_a_folder_of_which_nothing_would_be_left_exits_with_1(file, tmp_path):
    (tmp_path / "none").mkdir()
    write_table(tmp_path / "none", [("a", "x", "1", "test", "a.mp4", "v"), ("b", "x", "9", "test", "b.mp4", "v")])
    result = call(file, "--raw", tmp_path / "none")
    assert result.exit_code == 1 and "no clip would be left of 2 rows" in result.stderr
    assert json.loads(call(file, "--raw", tmp_path / "none", "--json").stdout)["usable"] is False


def test_an_unusable_folder_is_one_line_as_for_prepare(file, tmp_path):
    result = call(file, "--raw", tmp_path / "nowhere")
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert "no such folder" in result.stderr and "your table" in result.stderr


def test_both_commands_say_in_the_same_words_how_to_name_another_folder(raw):
    said = []
    for prepared in (check, lambda dataset, raw: prepare(dataset, raw, raw / "out", print)):
        with pytest.raises(DataError) as caught:
            prepared(MINE, raw / "nowhere")
        said.append(str(caught.value))
    assert said[0] == said[1] and said[0].endswith("; give it with --raw DIR (or dataset.raw in a job)")


def test_every_media_ending_that_a_layout_finds_is_known_here_too(tmp_path):
    for ending in ENDINGS:
        (tmp_path / f"x{ending}").touch()
    assert media_files(tmp_path) == {f"x{ending}" for ending in ENDINGS} >= {"x.ts", "x.3gp", "x.aiff"}


def test_nothing_is_written(file, raw, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    call(file, "--raw", raw)
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(DataError, match="makes its own clips"):
        check(Synthetic(name="tiny"), tmp_path / "synthetic")
    assert sorted(tmp_path.rglob("*")) == before


def test_neither_ray_nor_torch_is_imported(file, raw):
    source = (
        "import sys; from raymsa.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as end: assert not end.code\n"
        "print({'ray', 'torch'} & {*sys.modules}, file=sys.stderr)"
    )
    words = ["prepare", file, "--raw", raw, "--check-only"]
    done = subprocess.run([sys.executable, "-c", source, *words], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stderr.splitlines()[-1] == "set()"
