"""ms-swift's JSON lines: read, written, and read back."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymsa.clip import SPLITS, RawClip, Reject
from raymsa.datasets.meld import EMOTIONS
from raymsa.datasets.swift import Swift, export
from raymsa.errors import DataError
from raymsa.target import Classification, Regression
from tests.layout_folders import lines

plain = st.text(st.characters(exclude_categories=["Cs"])).map(str.strip)
raw_clips = st.builds(
    RawClip,
    id=plain.filter(bool),
    video_id=plain.filter(bool),
    text=plain.filter(bool) | st.just("<video>said"),
    label=st.sampled_from([0.0, 1.0, 2.0]),
    split=st.sampled_from(SPLITS),
    media=st.none() | st.sampled_from(["a/1.mp4", "b.wav"]).map(Path),
    order=st.integers(0, 1000).map(float),
)


def with_target(clip, task, name):
    text = task.classes[int(clip.label)] if isinstance(task, Classification) else f"{clip.label:.2f}"
    return RawClip(**{**vars(clip), "targets": {name: text, "speaker": "Ann"}})


@pytest.mark.parametrize(
    ("task", "target"),
    [(Regression(), "label"), (Classification(target="emotion", classes=EMOTIONS), "emotion")],
    ids=["score", "class"],
)
@given(clips=st.lists(raw_clips, max_size=5, unique_by=lambda clip: clip.id), absolute=st.booleans())
def test_what_is_exported_for_ms_swift_reads_back_as_it_was(tmp_path_factory, task, target, clips, absolute):
    raw = tmp_path_factory.mktemp("raw")
    clips = [with_target(clip, task, target) for clip in clips]
    counts = export([*clips, Reject("x", "", "bad")], task, raw, raw / "swift", absolute)
    files = [f"swift/{path.name}" for path in (raw / "swift").iterdir()]
    if files:
        read = {clip.id: clip for clip in Swift(name="s", files=files, task=task).clips(raw)}
        assert read == {clip.id: clip for clip in clips}
    assert sum(counts.values()) == len(clips)


def test_an_exported_line_is_what_ms_swift_reads(tmp_path):
    clip = RawClip("1", "v", "I like it.", 2.0, "valid", Path("c/1.wav"))
    export([clip], Classification(classes=("a", "b", "c")), tmp_path / "raw", tmp_path / "out")
    text = (tmp_path / "out/val.jsonl").read_text()
    line = json.loads(text)
    assert line["messages"] == [{"role": "user", "content": "<audio>I like it."}]
    assert line["audios"] == [str(tmp_path / "raw/c/1.wav")] and '"label": 2,' in text
    with pytest.raises(DataError, match=r"val\.jsonl: there already"):
        export([clip], Regression(), tmp_path / "raw", tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"label": [1, 2]}, "neither a number nor the name of a class"),
        ({"label": True}, "neither a number"),
        ({"label": None}, "label '' is not a number"),
        ({"label": 9}, "outside"),
        ({"videos": ["a.mp4", "b.mp4"]}, "2 videos; a clip has one file"),
        ({"videos": ["a.mp4"], "audios": ["b.wav"]}, "sound and picture are two files"),
        ({"videos": [{"path": "a.mp4"}]}, "videos is not a list of paths"),
        ({"videos": ["../a.mp4"]}, "leaves the raw folder"),
        ({"messages": "hello"}, "no field messages"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "not text"),
        ({"messages": [{"role": "user", "content": "half \ud83d"}]}, "half a character (U+D83D)"),
        ({"split": "holdout"}, "split 'holdout' is none of"),
    ],
)
def test_a_line_that_is_no_clip_says_why(tmp_path, change, reason):
    line = {"messages": [{"role": "user", "content": "x"}], "label": 1, **change}
    lines(tmp_path / "train.jsonl", line)
    (reject,) = Swift(name="s").clips(tmp_path)
    assert reason in reject.reason and reject.id == "train.jsonl line 1"


def test_a_file_of_another_name_needs_a_split_in_each_line(tmp_path):
    line = {"messages": [{"role": "system", "content": "sys"}, {"role": "user", "content": "x"}], "label": 1}
    lines(tmp_path / "all.jsonl", {**line, "split": "dev"}, line)
    with pytest.raises(DataError, match=r"no train.jsonl, val.jsonl, test.jsonl"):
        Swift(name="s").clips(tmp_path)
    clip, reject = Swift(name="s", files=["all.jsonl"]).clips(tmp_path)
    assert (clip.split, clip.text) == ("valid", "x") and "split '' is none of" in reject.reason


def test_what_the_user_says_is_the_text_without_the_places_of_the_media(tmp_path):
    said = [("system", "Be brief."), ("user", "<audio><video>It was\nfine."), ("assistant", "1")]
    messages = [{"role": role, "content": content} for role, content in said]
    lines(tmp_path / "train.jsonl", {"messages": messages, "label": 1, "videos": ["a.mp4"]})
    (clip,) = Swift(name="s").clips(tmp_path)
    assert clip.text == "It was\nfine."


def test_a_class_is_counted_from_0_or_named(tmp_path):
    messages = [{"role": "user", "content": "x"}]
    lines(tmp_path / "train.jsonl", *({"messages": messages, "label": label} for label in (1, 1.0, "happy", 2, -1)))
    rows = list(Swift(name="s", task=Classification(classes=("sad", "happy"))).clips(tmp_path))
    assert [row.label for row in rows[:3]] == [1, 1, 1]
    assert [row.reason for row in rows[3:]] == ["label '2' is none of sad, happy", "label '-1' is none of sad, happy"]
