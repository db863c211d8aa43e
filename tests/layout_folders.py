"""A small raw folder for each layout, in the form that people have, with damaged rows in it."""

import csv
import json
from pathlib import Path
from typing import NamedTuple

from raymsa.datasets.base import Layout
from raymsa.datasets.ch_sims import ChSims
from raymsa.datasets.cherma import Cherma
from raymsa.datasets.cmu import Cmu
from raymsa.datasets.meld import Meld
from raymsa.datasets.mmsa import COLUMNS
from raymsa.datasets.swift import Swift
from raymsa.datasets.synthetic import Synthetic
from raymsa.datasets.table import Columns, Table

MELD_HEADER = ["Sr No.", "Utterance", "Speaker", "Emotion", "Sentiment", "Dialogue_ID", "Utterance_ID"]
MELD_HEADER += ["Season", "Episode", "StartTime", "EndTime"]
GOOD_TIMES = ["1", "2", "00:14:38,127", "00:14:40,9"]


class Example(NamedTuple):
    """What the layout must make of its folder: id -> (split, media), and the ids left out with words of the reason."""

    dataset: Layout
    good: dict[str, tuple[str, str | None]]
    bad: dict[str, str]
    targets: dict[str, dict[str, str]]  # of some of the clips
    in_order: tuple[str, ...] = ()  # ids of one video, first to last


def write_csv(path: Path, rows: list, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding=encoding) as file:
        csv.writer(file).writerows(rows)
    return path


def touch(raw: Path, *paths: str) -> None:
    """Files that are there, whatever is in them: a layout does not decode."""
    for path in paths:
        (raw / path).parent.mkdir(parents=True, exist_ok=True)
        (raw / path).write_bytes(b"clip")


def lines(path: Path, *objects: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{o if isinstance(o, str) else json.dumps(o)}\n" for o in objects), encoding="utf-8")
    return path


def mmsa_row(video: str, clip: str, text: str, label: str, mode: str, *modal: str) -> list[str]:
    return [video, clip, text, label, *(modal or ("", "", "")), "Positive", mode]


def cmu(raw: Path) -> Example:
    rows = [
        mmsa_row("-3g5y", "2", "LATER", "-1.0", "train"),
        mmsa_row("-3g5y", "1", "FIRST", "2.4", "train"),
        mmsa_row("b", "0007", "x", "0", "test"),
        mmsa_row("b", "8", "x", "3.5", "test"),
    ]
    write_csv(raw / "label.csv", [COLUMNS, *rows])
    touch(raw, "Raw/-3g5y/1.mp4", "Raw/-3g5y/2.avi", "Raw/b/0007.MP4", "Raw/b/8.mp4")
    return Example(
        Cmu(name="mosi"),
        {
            "-3g5y$_$1": ("train", "Raw/-3g5y/1.mp4"),
            "-3g5y$_$2": ("train", "Raw/-3g5y/2.avi"),
            "b$_$0007": ("test", "Raw/b/0007.MP4"),
        },
        {"b$_$8": "outside [-3, 3]"},
        {"-3g5y$_$1": {"label": "2.4", "annotation": "Positive"}},
        ("-3g5y$_$1", "-3g5y$_$2"),
    )


def ch_sims(raw: Path) -> Example:
    rows = [
        mmsa_row("video_0001", "0002", "她说：“很好”", "0.8", "train", "0.6", "1.0", "0.8"),
        mmsa_row("video_0001", "0001", "不错", "-0.2", "valid"),
        mmsa_row("video_0002", "0001", "可以", "很好", "test"),
    ]
    write_csv(raw / "label.csv", [COLUMNS, *rows], "gbk")
    touch(raw, "Raw/video_0001/0001.mp4", "Raw/video_0001/0002.mp4", "Raw/video_0002/0001.mp4")
    return Example(
        ChSims(name="sims"),
        {
            "video_0001$_$0001": ("valid", "Raw/video_0001/0001.mp4"),
            "video_0001$_$0002": ("train", "Raw/video_0001/0002.mp4"),
        },
        {"video_0002$_$0001": "'很好' is not a number"},
        {
            "video_0001$_$0002": {
                "label": "0.8",
                "label_T": "0.6",
                "label_A": "1.0",
                "label_V": "0.8",
                "annotation": "Positive",
            }
        },
        ("video_0001$_$0001", "video_0001$_$0002"),
    )


def meld_row(text: str, emotion: str, dialogue: int, utterance: int, times: list[str] = GOOD_TIMES) -> list[str]:
    return ["1", text, "Ann", emotion, "positive", str(dialogue), str(utterance), *times]


def meld(raw: Path) -> Example:
    train = [meld_row("b", "joy", 0, 1), meld_row("a", "Anger", 0, 0), meld_row("c", "boredom", 1, 0)]
    test = [meld_row("d", "fear", 0, 0), meld_row("e", "fear", 0, 1, ["1", "2", "14 minutes", ""])]
    write_csv(raw / "train_sent_emo.csv", [MELD_HEADER, *train])
    write_csv(raw / "dev_sent_emo.csv", [MELD_HEADER, ["1", "cut off"]])
    write_csv(raw / "test_sent_emo.csv", [MELD_HEADER, *test])
    touch(raw, "train_splits/dia0_utt0.mp4", "train_splits/dia0_utt1.mp4", "train_splits/dia1_utt0.mp4")
    folder = "output_repeated_splits_test"
    touch(raw, f"{folder}/dia0_utt0.mp4", f"{folder}/final_videos_testdia0_utt0.mp4", f"{folder}/dia0_utt1.mp4")
    touch(raw, "dev_splits_complete/dia0_utt0.mp4")
    both = {"sentiment": "positive", "speaker": "Ann"}
    return Example(
        Meld(name="meld"),
        {
            "train_dia0_utt0": ("train", "train_splits/dia0_utt0.mp4"),
            "train_dia0_utt1": ("train", "train_splits/dia0_utt1.mp4"),
            "test_dia0_utt0": ("test", f"{folder}/final_videos_testdia0_utt0.mp4"),
            "test_dia0_utt1": ("test", f"{folder}/dia0_utt1.mp4"),
        },
        {"train_dia1_utt0": "'boredom' is none of neutral", "dev_sent_emo.csv line 2": "fewer fields"},
        {
            "train_dia0_utt0": {"emotion": "anger", **both, "start_s": "878.127", "end_s": "880.900"},
            "test_dia0_utt1": {"emotion": "fear", **both},
        },
        ("train_dia0_utt0", "train_dia0_utt1"),
    )


def cherma(raw: Path) -> Example:
    one = {"video_file": "a.mp4", "audio_file": "a.wav", "text": "好", "txt_label": "平静", "video_label": "高兴"}
    train = [
        one,
        {**one, "video_file": "b.mp4", "video_label": "无聊"},
        "nothing",
        {"text": "x", "video_label": "高兴"},
    ]
    (raw / "train.json").write_text(json.dumps(train, ensure_ascii=False), encoding="utf-8")
    write_csv(raw / "test.csv", [["audio_file", "text", "video_label"], ["a.wav", "好", "悲伤"]], "gb18030")
    touch(raw, "video/train/a.mp4", "video/train/b.mp4", "audio/test/a.wav")
    return Example(
        Cherma(name="cherma"),
        {"train_a": ("train", "video/train/a.mp4"), "test_a": ("test", "audio/test/a.wav")},
        {
            "train_b": "'无聊' is none of 愤怒",
            "train.json entry 3": "not a JSON object",
            "train.json 4": "neither video_file nor audio_file",
        },
        {"train_a": {"label": "高兴", "label_T": "平静"}},
    )


def table(raw: Path) -> Example:
    rows = [
        ["utterance", "words", "emotion", "valence", "part", "file", "dialogue", "turn"],
        ["F001", "b", "Happy", "4", "train", "Session1/F001.wav", "impro01", "2"],
        ["F000", "a", "angry", "", "train", "Session1/F000.wav", "impro01", "1"],
        ["F002", "c", "sad", "1", "test", "", "impro02", "last"],
    ]
    write_csv(raw / "iemocap.csv", rows)
    touch(raw, "Session1/F000.wav", "Session1/F001.wav")
    columns = Columns(
        id="utterance",
        text="words",
        score="emotion",
        split="part",
        media="file",
        video="dialogue",
        order="turn",
        targets=("valence",),
    )
    task = {"kind": "classification", "classes": ("angry", "happy", "sad")}
    return Example(
        Table(name="iemocap", file="iemocap.csv", columns=columns, task=task),
        {"F000": ("train", "Session1/F000.wav"), "F001": ("train", "Session1/F001.wav")},
        {"F002": "turn 'last' is not a number"},
        {"F001": {"label": "Happy", "valence": "4"}, "F000": {"label": "angry"}},
        ("F000", "F001"),
    )


def swift(raw: Path) -> Example:
    def line(words: str, label: object, **media: list[str]) -> dict:
        return {"messages": [{"role": "user", "content": words}], "label": label, **media}

    lines(
        raw / "train.jsonl",
        line("<video>fine", 1.5, videos=["clips/1.mp4"]),
        line("<video>fine", 1.5, videos=[str(raw / "clips/2.mp4")]),
        line("<video>fine", 1.5, videos=["/elsewhere/3.mp4"]),
        "{",
    )
    lines(raw / "val.jsonl", line("<audio><video>x", -1, videos=["clips/1.mp4"], audios=["sound/1.wav"]))
    lines(raw / "test.jsonl", line("words", 0))
    touch(raw, "clips/1.mp4", "clips/2.mp4", "sound/1.wav")
    return Example(
        Swift(name="swift"),
        {
            "train.jsonl line 1": ("train", "clips/1.mp4"),
            "train.jsonl line 2": ("train", "clips/2.mp4"),
            "val.jsonl line 1": ("valid", "clips/1.mp4"),
            "test.jsonl line 1": ("test", None),
        },
        {"train.jsonl line 3": "leaves the raw folder", "train.jsonl line 4": "not valid JSON"},
        {"train.jsonl line 1": {"label": "1.5"}},
    )


def synthetic(raw: Path) -> Example:
    dataset = Synthetic(name="small", counts={"train": 2, "valid": 1, "test": 1}, seconds=0.25)
    dataset.make(raw)
    clips = [("train", 0), ("train", 1), ("valid", 0), ("test", 0)]
    good = {f"-{s}0000$_${n:04d}": (s, f"Raw/-{s}0000/{n:04d}.mp4") for s, n in clips}
    return Example(dataset, good, {}, {}, ("-train0000$_$0000", "-train0000$_$0001"))


EXAMPLES = {
    "ch_sims": ch_sims,
    "cherma": cherma,
    "cmu": cmu,
    "meld": meld,
    "swift": swift,
    "synthetic": synthetic,
    "table": table,
}
