"""The forms in which people have MOSI, MOSEI, CH-SIMS, MELD and CHERMA on their disks."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymsa.clip import RawClip
from raymsa.data.plan import row_changes, row_digests
from raymsa.data.stats import by_reason
from raymsa.datasets.base import with_previous
from raymsa.datasets.ch_sims import ChSims
from raymsa.datasets.cherma import Cherma
from raymsa.datasets.cmu import Cmu, parse_line
from raymsa.datasets.meld import Meld, parse_time, plain_words
from raymsa.datasets.mmsa import COLUMNS
from raymsa.errors import DataError
from raymsa.target import Classification
from tests.layout_folders import GOOD_TIMES, MELD_HEADER, lines, meld_row, mmsa_row, touch, write_csv

# MOSI, MOSEI


def write_labels(raw, *rows, columns=COLUMNS):
    keep = [COLUMNS.index(name) for name in columns]
    write_csv(raw / "label.csv", [columns, *([row[i] for i in keep] for row in rows)])


A1, A2 = mmsa_row("a", "1", "", "1.0", "train"), mmsa_row("a", "2", "", "2.0", "test")
WITHOUT_TEXT = tuple(name for name in COLUMNS if name != "text")


@pytest.mark.parametrize(
    ("files", "media"),
    [
        (["Raw/a/1.mp4"], "Raw/a/1.mp4"),
        (["raw/a/1.webm"], "raw/a/1.webm"),
        (["Raw/a_1.mp4"], "Raw/a_1.mp4"),
        (["Raw/Video/Segmented/a_1.mp4", "Raw/Audio/WAV_16000/Segmented/a_1.wav"], "Raw/Video/Segmented/a_1.mp4"),
        (["Video/Segmented/a_1.mp4", "Audio/WAV_16000/Segmented/a_1.wav"], "Video/Segmented/a_1.mp4"),
        (["Raw/Videos/Segmented/Combined/a_1.mp4"], "Raw/Videos/Segmented/Combined/a_1.mp4"),
        (["Audio/WAV_16000/Segmented/a_1.wav", "Video/Full/a.mp4"], "Audio/WAV_16000/Segmented/a_1.wav"),
        (["Raw/Audio/WAV_16000/Segmented/a_1.wav"], "Raw/Audio/WAV_16000/Segmented/a_1.wav"),
        (["raw/a/1.mp4", "wav/a/1.wav"], "raw/a/1.mp4"),
        (["wav/a/1.wav"], "wav/a/1.wav"),
        ([], "Raw/a/1.mp4"),
        (["Video/Segmented/b_1.mp4"], "Video/Segmented/a_1.mp4"),
    ],
)
def test_clips_are_found_in_the_folders_that_people_have(tmp_path, files, media):
    write_labels(tmp_path, mmsa_row("a", "1", "x", "1.0", "train"))
    touch(tmp_path, *files)
    (clip,) = Cmu(name="mosi").clips(tmp_path)
    assert clip.media.as_posix() == media


def test_a_folder_may_be_named_and_must_be_where_two_may_be_meant(tmp_path):
    write_labels(tmp_path, mmsa_row("a", "1", "x", "1.0", "train"))
    touch(tmp_path, "Raw/a/1.mp4", "Video/Segmented/a_1.mp4", "mine/deep/a/1.mov")
    with pytest.raises(DataError, match=r"media_dir: several folders may be meant \(Raw, Video/Segmented\)"):
        Cmu(name="mosi").clips(tmp_path)
    (clip,) = Cmu(name="mosi", media_dir="mine/deep").clips(tmp_path)
    assert clip.media.as_posix() == "mine/deep/a/1.mov"
    (clip,) = Cmu(name="mosi", media_dir=None).clips(tmp_path)
    assert clip.media is None


def test_words_come_from_the_official_transcripts_where_label_csv_has_none(tmp_path):
    write_labels(tmp_path, A1, A2, mmsa_row("b", "0", "", "0", "test"), columns=WITHOUT_TEXT)
    lines(tmp_path / "Raw/Transcript/Segmented/a.annotprocessed", "1_DELIM_I LIKE IT_DELIM_SO", "02_DELIM_ NO ", "junk")
    first, second, third = Cmu(name="mosi").clips(tmp_path)
    assert (first.text, second.text) == ("I LIKE IT_DELIM_SO", "NO")
    assert third.id == "b$_$0" and "no words" in third.reason


@pytest.mark.parametrize("clip", ["10", "0010", "82.7645", "82.76450"])
def test_a_clip_of_mosei_is_known_by_its_number_or_its_start(tmp_path, clip):
    write_labels(tmp_path, mmsa_row("-3g5y", clip, "", "1", "train"))
    transcript = ["-3g5y___9___10.0___82.7___other", "-3g5y___10___82.7645___90.1___it is___fine"]
    lines(tmp_path / "Transcript/Segmented/Combined/-3g5y.txt", *transcript)
    (row,) = Cmu(name="mosei").clips(tmp_path)
    assert row.text == "it is___fine"


def test_words_of_label_csv_come_before_those_of_a_transcript(tmp_path):
    write_labels(tmp_path, mmsa_row("a", "1", "MINE", "1", "train"), A2)
    lines(tmp_path / "Transcript/Segmented/a.annotprocessed", "1_DELIM_THEIRS", "2_DELIM_THEIRS")
    assert [clip.text for clip in Cmu(name="mosi").clips(tmp_path)] == ["MINE", "THEIRS"]
    own = [row.text if isinstance(row, RawClip) else "" for row in Cmu(name="m", transcripts=None).clips(tmp_path)]
    assert own == ["MINE", ""]


@given(st.text(st.characters(codec="utf-8")))
def test_any_line_of_a_transcript_is_read_or_left(line):
    parse_line(line)
    parse_line(f"a___1___{line}___2___x")


def test_a_video_with_one_clip_that_has_no_number_is_in_the_order_of_the_file(tmp_path):
    names = [("a", "9"), ("a", "intro"), ("a", "3"), ("a", "nan"), ("b", "2"), ("b", "1")]
    write_labels(tmp_path, *(mmsa_row(video, clip, "x", "1", "train") for video, clip in names))
    orders = [clip.order for clip in Cmu(name="mosi").clips(tmp_path)]
    assert orders == [0, 1, 2, 3, 2, 1]


def test_words_of_a_row_that_was_left_out_for_its_label_stand_before_the_next_clips(tmp_path):
    rows = [("1", "one", "1"), ("2", "two", "bad"), ("3", "three", "9"), ("4", "four", "0")]
    write_labels(tmp_path, *(mmsa_row("a", clip, text, label, "train") for clip, text, label in rows))
    first, bad, outside, last = with_previous(list(Cmu(name="mosi").clips(tmp_path)))
    assert (first.previous, last.previous) == ((), ("one", "two", "three"))
    assert [bad.reason, outside.reason] == ["label 'bad' is not a number", "label 9 is outside [-3, 3]"]


def test_other_words_of_a_row_that_was_left_out_for_its_label_are_a_change(tmp_path):
    digests = []
    for said in ("two", "2"):
        write_labels(tmp_path, mmsa_row("a", "1", said, "bad", "train"), mmsa_row("a", "2", "x", "1", "train"))
        digests.append(row_digests(list(Cmu(name="mosi").clips(tmp_path)), tmp_path)[0])
    assert row_changes(*digests) == "1 changed"


def test_rows_left_out_for_another_reason_say_nothing_to_the_next_clips(tmp_path):
    rows = [("1", "one", "bad", "tset"), ("2", "two", "bad", "valid"), ("3", "three", "1", "train")]
    write_labels(tmp_path, *(mmsa_row("a", *row) for row in rows))
    assert with_previous(list(Cmu(name="mosi").clips(tmp_path)))[-1].previous == ()


def test_rows_without_words_in_label_file_and_transcript_are_counted_as_one(tmp_path):
    write_labels(
        tmp_path, *(mmsa_row(v, c, "", "1", "train") for v, c in [("-a", "1"), ("b", "x2")]), columns=WITHOUT_TEXT
    )
    touch(tmp_path, "Raw/Transcript/Segmented/b.txt")
    reasons = [row.reason for row in Cmu(name="mosi").clips(tmp_path)]
    assert by_reason(reasons) == {"no words: neither label.csv nor the transcript of … has clip …": 2}


# CH-SIMS


@pytest.mark.parametrize("name", ["label.csv", "meta.csv"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gbk"])
@pytest.mark.parametrize("header", [[COLUMNS], []], ids=["header", "no header"])
def test_sims_is_read_as_it_is_handed_around(tmp_path, name, encoding, header):
    write_csv(tmp_path / name, [*header, mmsa_row("aqgy3_0001", "00000", "好吗？", "-0.4", "test")], encoding)
    (clip,) = ChSims(name="sims").clips(tmp_path)
    assert (clip.id, clip.text, clip.label, clip.split) == ("aqgy3_0001$_$00000", "好吗？", -0.4, "test")
    assert clip.targets == {"label": "-0.4", "annotation": "Positive"}


def test_a_score_of_one_modality_alone_can_be_the_task(tmp_path):
    write_labels(tmp_path, mmsa_row("v", "1", "好", "0.8", "train", "-0.6", "", "0.2"), A1)
    task = {"kind": "regression", "low": -1, "high": 1, "metrics": "sims", "target": "label_T"}
    clip, without = ChSims(name="sims", task=task).clips(tmp_path)
    assert clip.label == -0.6 and "label '' is not a number" in without.reason


@pytest.mark.parametrize("task", [{"target": "label_T"}, {}, {"metrics": "sims"}])
def test_a_task_that_says_less_still_has_the_scores_of_sims(task):
    full = ChSims(name="sims", task={"kind": "regression", **task}).task
    assert (full.low, full.high, full.metrics, full.target) == (-1, 1, "sims", task.get("target"))
    assert ChSims(name="sims", task={"kind": "regression", "low": 0}).task.low == 0
    assert ChSims(name="sims", task={"kind": "classification", "classes": ["a", "b"]}).task.classes == ("a", "b")


# MELD


def write_meld(raw, *rows, name="train_sent_emo.csv", encoding="utf-8"):
    return write_csv(raw / name, [MELD_HEADER, *rows], encoding)


@pytest.mark.parametrize(
    ("labels", "clip"),
    [
        ("train_sent_emo.csv", "train_splits/dia3_utt4.mp4"),
        ("MELD.Raw/train_sent_emo.csv", "MELD.Raw/train/train_splits/dia3_utt4.mp4"),
        ("train/train_sent_emo.csv", "train/dia3_utt4.mp4"),
        ("train_sent_emo.csv", "train/train/dia3_utt4.mkv"),
        ("csv/train_sent_emo.csv", "raw/train_splits/dia3_utt4.mp4"),
    ],
)
def test_meld_is_found_where_people_unpack_it(tmp_path, labels, clip):
    write_meld(tmp_path, meld_row("x", "joy", 3, 4), name=labels)
    touch(tmp_path, clip)
    (row,) = Meld(name="meld").clips(tmp_path)
    assert row.media.as_posix() == clip


@pytest.mark.parametrize(
    ("content", "encoding"),
    [
        ("“It’s”", "utf-8"),
        ("“It’s”", "cp1252"),
        ("\x93It\x92s\x94", "utf-8"),
        ("â€œItâ€™sâ€\x9d", "utf-8"),
        ("\xe2\x80\x9cIt\xe2\x80\x99s\xe2\x80\x9d", "utf-8"),
    ],
)
def test_quotes_are_plain_whatever_happened_to_them(tmp_path, content, encoding):
    write_meld(tmp_path, meld_row(content, "joy", 0, 0), encoding=encoding)
    (clip,) = Meld(name="meld").clips(tmp_path)
    assert clip.text == '"It\'s"'


@given(st.text())
def test_plain_words_have_no_curly_quotes_and_are_left_alone_the_second_time(text):
    plain = plain_words(text)
    assert not set(plain) & set("‘’“”\x91\x92\x93\x94\x85") and plain_words(plain) == plain


@given(st.integers(0, 86_399_999))
def test_a_time_is_read_as_it_was_written(milliseconds):
    seconds, rest = divmod(milliseconds, 1000)
    text = f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d},{rest:03d}"
    assert parse_time(text) == pytest.approx(milliseconds / 1000, abs=1e-6)


@given(st.text())
def test_no_time_can_lose_a_clip(text):
    assert parse_time(text) is None or parse_time(text) >= 0


def test_the_sentiment_of_an_utterance_can_be_the_task(tmp_path):
    write_meld(tmp_path, meld_row("x", "joy", 0, 0))
    task = Classification(target="sentiment", classes=("negative", "neutral", "positive"))
    (clip,) = Meld(name="meld", task=task).clips(tmp_path)
    assert clip.label == 2


def test_dialogues_of_two_splits_have_nothing_to_do_with_each_other(tmp_path):
    write_meld(tmp_path, meld_row("x", "joy", 0, 0), meld_row("y", "joy", 0, 1))
    write_meld(tmp_path, meld_row("z", "joy", 0, 2), name="dev_sent_emo.csv")
    clips = list(Meld(name="m").clips(tmp_path))
    assert [clip.video_id for clip in clips] == ["train_dia0", "train_dia0", "dev_dia0"]
    assert [clip.previous for clip in with_previous(clips)] == [(), ("x",), ()]


def test_two_copies_of_a_label_file_are_not_chosen_between(tmp_path):
    for folder in ("a", "b"):
        write_meld(tmp_path, meld_row("x", "joy", 0, 0), name=f"{folder}/train_sent_emo.csv")
    with pytest.raises(DataError, match=r"there twice \(a/train_sent_emo.csv, b/train_sent_emo.csv\)"):
        Meld(name="meld").clips(tmp_path)


def test_a_corrected_cut_is_taken_for_the_test_split_only(tmp_path):
    for name in ("train_sent_emo.csv", "test_sent_emo.csv"):
        write_meld(tmp_path, ["1", "x", "Ann", "joy", "positive", "0", "0", *GOOD_TIMES], name=name)
    for folder in ("train_splits", "output_repeated_splits_test"):
        touch(tmp_path, f"{folder}/dia0_utt0.mp4", f"{folder}/final_videos_testdia0_utt0.mp4")
    train, test = Meld(name="meld").clips(tmp_path)
    assert (train.media.name, test.media.name) == ("dia0_utt0.mp4", "final_videos_testdia0_utt0.mp4")


# CHERMA


def test_cherma_without_words_is_asked_for(tmp_path):
    (tmp_path / "dev.json").write_text(json.dumps([{"video_file": "a.b", "video_label": "平静"}]), encoding="utf-8")
    touch(tmp_path, "clips/a.b.mp4")
    (reject,) = Cherma(name="cherma").clips(tmp_path)
    assert "no field text with the words; name it with `text`, or give null" in reject.reason
    (clip,) = Cherma(name="cherma", text=None).clips(tmp_path)
    assert (clip.split, clip.label, clip.media.as_posix()) == ("valid", 4, "clips/a.b.mp4")


@pytest.mark.parametrize(
    ("content", "words"),
    [("[", "not valid JSON"), ("{}", "holds one dict; a list of objects")],
)
def test_a_json_file_that_is_unusable_is_one_line(tmp_path, content, words):
    (tmp_path / "train.json").write_text(content)
    with pytest.raises(DataError, match=words):
        list(Cherma(name="cherma").clips(tmp_path))


def test_two_label_files_of_one_split_are_not_chosen_between(tmp_path):
    for name in ("dev.json", "val.json"):
        (tmp_path / name).write_text("[]")
    with pytest.raises(DataError, match=r"dev\.json and val\.json are both the labels of valid"):
        Cherma(name="cherma").clips(tmp_path)
