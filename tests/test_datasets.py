"""Label files to clips: what is a clip, what is rejected and in which words; tables of one's own, synthetic clips."""

import csv
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymsa.clip import RawClip, Reject
from raymsa.data.media import decode
from raymsa.datasets.cmu import Cmu
from raymsa.datasets.synthetic import Synthetic
from raymsa.datasets.table import Columns, Table
from raymsa.errors import DataError, SpecError
from raymsa.jobfile import load_dataset

MOSI = Cmu(name="mosi")
HEADER = ["video_id", "clip_id", "text", "label", "mode"]
GOOD = ["vid", "1", "GOOD", "1.5", "train"]


def write_labels(folder, rows, header=HEADER, encoding="utf-8"):
    with (folder / "label.csv").open("w", newline="", encoding=encoding) as file:
        csv.writer(file).writerows([header, *rows])
    return folder


def rows_of(folder, rows, dataset=MOSI):
    return list(dataset.clips(write_labels(folder, rows)))


def only(folder, row, dataset=MOSI):
    (result,) = rows_of(folder, [row], dataset)
    return result


def test_a_row_is_a_clip_with_the_fields_id(tmp_path):
    clip = only(tmp_path, ["03bSnISJMiM", "11", "IT WAS GOOD", "2.4", "train"])
    assert clip.id == "03bSnISJMiM$_$11" and clip.video_id == "03bSnISJMiM"
    assert (clip.text, clip.label, clip.split) == ("IT WAS GOOD", 2.4, "train")
    assert clip.media.as_posix() == "Raw/03bSnISJMiM/11.mp4"


def test_ids_stay_text_with_leading_dash_and_zeros(tmp_path):
    clip = only(tmp_path, ["-3g5yACwYnA", "0007", "x", "0", "test"])
    assert clip.id == "-3g5yACwYnA$_$0007" and clip.media.name == "0007.mp4"


@pytest.mark.parametrize(
    ("written", "split"),
    [("valid", "valid"), ("val", "valid"), ("dev", "valid"), ("Test", "test"), (" train ", "train")],
)
def test_splits_may_be_spelled_as_people_do(tmp_path, written, split):
    assert only(tmp_path, ["v", "1", "x", "0", written]).split == split


def test_a_byte_order_mark_of_excel_is_no_part_of_the_header(tmp_path):
    assert isinstance(next(MOSI.clips(write_labels(tmp_path, [GOOD], encoding="utf-8-sig"))), RawClip)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (["v", "1", "x", "good", "train"], "label 'good' is not a number"),
        (["v", "1", "x", "", "train"], "label '' is not a number"),
        (["v", "1", "x", "nan", "train"], "not a finite number"),
        (["v", "1", "x", "-inf", "train"], "not a finite number"),
        (["v", "1", "x", "3.5", "train"], r"label 3.5 is outside \[-3, 3\]"),
        (["v", "1", "x", "1", "training set"], "split 'training set' is none of train, valid, test"),
        (["..", "1", "x", "1", "train"], "the path leaves the raw folder"),
        (["v", "../../../etc/passwd", "x", "1", "train"], "the path leaves the raw folder"),
        (["/etc", "1", "x", "1", "train"], "the path leaves the raw folder"),
        (["v", "/etc/passwd", "x", "1", "train"], "the path leaves the raw folder"),
        (["", "1", "x", "1", "train"], "video_id or clip_id is empty"),
        (["v", "1", "so, an unquoted comma", "1", "train", "surplus"], "more fields"),
        (["v", "1", "x"], "fewer fields"),
    ],
)
def test_a_wrong_row_is_rejected_with_its_reason(tmp_path, row, reason):
    reject = only(tmp_path, row)
    assert isinstance(reject, Reject)
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(reject.reason)


def test_the_second_of_two_equal_ids_is_rejected(tmp_path):
    first, second = rows_of(tmp_path, [GOOD, GOOD])
    assert isinstance(first, RawClip) and "twice" in second.reason


def test_rows_come_in_the_order_of_the_file_and_none_is_lost(tmp_path):
    results = rows_of(tmp_path, [["v", str(i), "x", "0" if i % 3 else "bad", "train"] for i in range(9)])
    assert [r.id for r in results] == [f"v$_${i}" for i in range(9)]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "label.csv: cannot be read: No such file"),
        (b"", "column video_id, clip_id, text, label, mode is missing; given an empty file"),
        (b"video_id,clip_id,text,label\nv,1,x,0\n", "column mode is missing; given video_id, clip_id, text, label"),
        ("video_id,clip_id,text,label,mode\nv,1,很好,0,test\n".encode("gbk"), "not utf-8-sig text"),
        (b"video_id,clip_id,text,label,mode\nv,1," + b"x" * 200_000 + b",0,test\n", "not a CSV row"),
    ],
)
def test_a_label_file_that_is_unusable_is_one_line(tmp_path, content, words):
    if content is not None:
        (tmp_path / "label.csv").write_bytes(content)
    with pytest.raises(DataError) as caught:
        list(MOSI.clips(tmp_path))
    assert words in str(caught.value) and "\n" not in str(caught.value)


TABLE = Table(name="mine", file="t.csv", columns=Columns(text="said", media="file", video="from"))


def test_a_table_of_ones_own_has_columns_of_ones_own(tmp_path):
    (tmp_path / "t.csv").write_text(
        'id,said,score,split,file,from\n007,"yes, sir",1,dev,a/b.wav,talk\nb,no,-1,test,,\n'
    )
    first, second = TABLE.clips(tmp_path)
    assert (first.id, first.text, first.split, first.video_id) == ("007", "yes, sir", "valid", "talk")
    assert first.media.as_posix() == "a/b.wav"
    assert second.media is None and second.video_id == "b"  # a text-only row is a clip


def test_a_tsv_and_a_jsonl_say_the_same_as_a_csv(tmp_path):
    (tmp_path / "t.csv").write_text("id,text,score,split\n7,fine,1.0,train\n")
    (tmp_path / "t.tsv").write_text("id\ttext\tscore\tsplit\n7\tfine\t1.0\ttrain\n")
    (tmp_path / "t.jsonl").write_text('{"id": 7, "text": "fine", "score": 1.0, "split": "train"}\n\n')
    read = [list(Table(name="t", file=f"t.{end}").clips(tmp_path)) for end in ("csv", "tsv", "jsonl")]
    assert read[0] == read[1] == read[2]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not valid JSON"),
        ("[1]", "not a JSON object"),
        ('{"id": "a", "text": "x"}', "no field score, split"),
        ('{"id": null, "text": "x", "score": 1, "split": "test"}', "id is empty"),
        ('{"id": "a", "text": "x", "score": true, "split": "test"}', "not a number"),
        ('{"id": "a", "text": "x", "score": NaN, "split": "test"}', "not a finite number"),
        ('{"id": "a", "text": " ", "score": 1, "split": "test"}', "neither text nor media"),
    ],
)
def test_a_wrong_json_line_is_rejected_and_the_next_is_read(tmp_path, line, reason):
    good = {"id": "good", "text": "x", "score": 1, "split": "test"}
    (tmp_path / "t.jsonl").write_text(f"{line}\n{json.dumps(good)}\n")
    reject, clip = Table(name="t", file="t.jsonl").clips(tmp_path)
    assert reason in reject.reason and isinstance(clip, RawClip)


@pytest.mark.parametrize("place", ["second", "", "nan", "inf"])
def test_a_place_that_is_no_number_is_rejected(tmp_path, place):
    (tmp_path / "t.csv").write_text(f"id,text,score,split,turn\na,x,1,test,{place}\nb,y,1,test,2\n")
    reject, clip = Table(name="t", file="t.csv", columns=Columns(order="turn")).clips(tmp_path)
    assert reject.reason == f"turn {place!r} is not a number" and clip.order == 2


def test_a_second_label_column_can_be_the_task(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"id": 1, "text": "x", "score": 1, "split": "test", "anger": "YES"}\n')
    task = {"kind": "classification", "classes": ("no", "yes"), "target": "anger"}
    (clip,) = Table(name="t", file="t.jsonl", columns=Columns(targets=("anger",)), task=task).clips(tmp_path)
    assert clip.label == 1 and clip.targets == {"label": "1", "anger": "YES"}


def test_no_other_column_can_stand_for_the_label(tmp_path):
    with pytest.raises(ValueError, match=r"`label` is the column that `score` names \(mood\)"):
        Columns(score="mood", targets=("label",))


def test_a_target_that_no_column_has_is_one_line(tmp_path):
    (tmp_path / "t.csv").write_text("id,text,score,split\na,x,1,test\n")
    with pytest.raises(DataError, match=r"t: task.target: given 'anger'; this label file has label"):
        list(Table(name="t", file="t.csv", task={"kind": "regression", "target": "anger"}).clips(tmp_path))


def test_a_table_cannot_reach_outside_its_folder(tmp_path):
    (tmp_path / "t.csv").write_text("id,said,score,split,file,from\na,x,1,test,../b.wav,\nb,x,1,test,/etc/passwd,\n")
    assert [reject.reason for reject in TABLE.clips(tmp_path)] == ["the path leaves the raw folder"] * 2


def test_a_table_of_an_unknown_kind_is_a_spec_error(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("kind: table\nname: t\nfile: clips.xlsx\n")
    with pytest.raises(SpecError, match=r"ends in .csv, .tsv or .jsonl"):
        load_dataset(config)


@given(cells=st.lists(st.lists(st.text(max_size=12), min_size=5, max_size=5), max_size=5))
def test_no_text_in_a_label_file_raises_or_gets_lost(tmp_path_factory, cells):
    folder = tmp_path_factory.mktemp("any")
    with (folder / "label.csv").open("w", newline="", encoding="utf-8", errors="replace") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([HEADER, *cells])
    results = list(MOSI.clips(folder))
    assert len(results) == len(cells)
    for result in results:
        inside = isinstance(result, Reject) or (folder / result.media).resolve().is_relative_to(folder.resolve())
        assert inside


SMALL = Synthetic(name="small", counts={"train": 3, "valid": 1, "test": 2})


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_synthetic_clips_have_words_sound_and_picture(tmp_path):
    SMALL.make(tmp_path / "raw")
    clips = list(SMALL.clips(tmp_path / "raw"))
    assert [clip.split for clip in clips] == ["train"] * 3 + ["valid"] + ["test"] * 2
    for clip in clips:
        media = decode(tmp_path / "raw" / clip.media, SMALL.media)
        assert clip.text and media.frames_FHWC.shape == (8, 56, 56, 3) and len(media.audio_S) >= 16_000
        assert media.frames_FHWC.std() > 5 and media.audio_S.std() > 500


def test_the_same_seed_makes_the_same_clips_and_another_seed_others(tmp_path):
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        SMALL.model_copy(update={"seed": seed}).make(tmp_path / name)
    a, b, c = (content(tmp_path / name) for name in "abc")
    assert a == b and a.keys() == c.keys()
    assert all(a[path] != c[path] for path in a if path.suffix in (".mp4", ".csv"))


def test_clips_that_are_there_are_not_made_again_nor_written_over(tmp_path):
    SMALL.make(tmp_path / "raw")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "raw").rglob("*")}
    SMALL.make(tmp_path / "raw")
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "raw").rglob("*")}
    with pytest.raises(DataError, match="was made with"):
        SMALL.model_copy(update={"seed": 8}).make(tmp_path / "raw")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="did not make"):
        SMALL.make(tmp_path / "mine")


def test_words_of_synthetic_clips_tell_the_score(tmp_path):
    many = Synthetic(name="many", counts={"train": 60}, seconds=0.25)
    many.make(tmp_path / "raw")
    by_label = sorted(many.clips(tmp_path / "raw"), key=lambda clip: clip.label)
    worst, best = (" ".join(clip.text for clip in part) for part in (by_label[:15], by_label[-15:]))
    assert "awful" in worst and "wonderful" in best
    assert "wonderful" not in worst and "awful" not in best
