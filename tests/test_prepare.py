"""Raw folder to shards: what comes out, what is left out and said, and that a kill at any moment changes nothing."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from raymsa.clip import SHARD_SCHEMA, RawClip, from_row
from raymsa.data import manifest as manifests
from raymsa.data.account import account
from raymsa.data.decoder import Decoder
from raymsa.data.media import decode
from raymsa.data.plan import SHARD_BYTES, most_bytes, plan_shards
from raymsa.data.prepare import prepare
from raymsa.data.shardfile import PARTS, kept, write_shard
from raymsa.data.verify import verify
from raymsa.datasets.base import MediaSettings
from raymsa.datasets.cmu import Cmu
from raymsa.datasets.synthetic import Synthetic
from raymsa.datasets.table import Columns, Table
from raymsa.errors import DataError
from raymsa.target import Labels, Regression, Scale
from tests.media_files import grey_ramp, tone, write_media

ray_test = pytest.mark.ray
ROOT = Path(__file__).parent.parent
MIXED = Table(name="mixed", columns=Columns(media="file"), published={"train": 4, "valid": 1})
ROWS = [
    ("whole", "all there", "1", "train", "whole.mp4"),
    ("silent", "no sound", "-1", "train", "silent.mp4"),
    ("heard", "no picture", "2", "train", "heard.wav"),
    ("text", "words only", "0.5", "test", ""),
    ("gone", "x", "0", "train", "gone.mp4"),
    ("empty", "x", "0", "train", "empty.mp4"),
    ("junk", "x", "0", "valid", "junk.mp4"),
    ("outside", "x", "0", "train", "../whole.mp4"),
    ("loud", "x", "9", "train", "whole.mp4"),
]


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """One clip of every sort, good and bad."""
    folder = tmp_path_factory.mktemp("raw")
    write_media(folder / "whole.mp4", grey_ramp(20), tone(2.0))
    write_media(folder / "silent.mp4", grey_ramp(5))
    write_media(folder / "heard.wav", sound=tone(1.0), sound_codec="pcm_s16le")
    (folder / "empty.mp4").touch()
    (folder / "junk.mp4").write_text("this is no video " * 100)
    with (folder / "clips.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("id", "text", "score", "split", "file"), *ROWS])
    return folder


@pytest.fixture(scope="module")
def mixed(raw, ray_session, tmp_path_factory):
    """The shards of that folder, and the lines that were said."""
    out, said = tmp_path_factory.mktemp("mixed") / "out", []
    return out, prepare(MIXED, raw, out, said.append), said


@pytest.fixture
def planned(raw, tmp_path):
    """The tasks of that folder, to be run here, without Ray."""
    return plan(raw, tmp_path / "out")


@pytest.fixture(scope="module")
def decoder():
    """One for all tests: starting it imports torch."""
    with Decoder(MediaSettings()) as there:
        yield there


def plan(raw, out, media=MIXED.media):
    (out / PARTS).mkdir(parents=True, exist_ok=True)
    return plan_shards(list(MIXED.clips(raw)), raw, out, media).tasks


def clips_in(out):
    rows = [row for path in sorted(out.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    return {row["id"]: from_row(row) for row in rows}


def files_in(out):
    return {path.name: path.read_bytes() for path in out.iterdir() if path.is_file() and path.name != ".lock"}


@ray_test
def test_shards_are_plain_parquet_with_the_decoded_clips(mixed, raw):
    out, _, _ = mixed
    assert pq.read_schema(out / "train-00000.parquet").equals(SHARD_SCHEMA)
    clips, media = clips_in(out), decode(raw / "whole.mp4", MediaSettings())
    assert np.array_equal(clips["whole"].frames_FHWC, media.frames_FHWC)
    assert np.array_equal(clips["whole"].audio_S, media.audio_S)
    assert clips["whole"].seconds == media.seconds and clips["whole"].label == 1.0


@ray_test
def test_a_clip_that_lacks_a_stream_is_kept_and_counted(mixed):
    out, manifest, _ = mixed
    clips = clips_in(out)
    assert list(clips) == ["text", "whole", "silent", "heard"]
    assert clips["silent"].audio_S is None and len(clips["silent"].frames_FHWC) == 5
    assert clips["heard"].frames_FHWC is None and clips["text"].frames_FHWC is clips["text"].audio_S is None
    assert manifest.counts == {"train": 3, "valid": 0, "test": 1}
    assert manifest.without_sound == {"train": 1, "valid": 0, "test": 1}
    assert manifest.without_picture == {"train": 1, "valid": 0, "test": 1}


@ray_test
def test_every_row_left_out_stands_in_rejects_with_its_reason(mixed):
    out, manifest, _ = mixed
    with (out / "rejects.csv").open() as file:
        rejects = {row["id"]: row["reason"] for row in csv.DictReader(file)}
    assert manifest.rejects == 5 and list(rejects) == ["gone", "empty", "junk", "outside", "loud"]
    assert rejects["gone"] == "missing file" and rejects["empty"] == "empty file (0 bytes)"
    assert "not a media file" in rejects["junk"] and "leaves the raw folder" in rejects["outside"]
    assert rejects["loud"] == "label 9 is outside [-3, 3]"


@ray_test
def test_counts_that_differ_from_the_published_are_said_with_numbers(mixed):
    _, _, said = mixed
    assert "warning: train has 3 clips, published are 4 (1 fewer; see rejects.csv)" in said
    assert "warning: valid has 0 clips, published are 1 (1 fewer; see rejects.csv)" in said


@ray_test
def test_the_manifest_says_what_is_there(mixed):
    out, manifest, _ = mixed
    assert manifests.read(out) == manifest
    assert manifest.labels.mean == pytest.approx(2 / 3) and manifest.labels.median == 1
    assert manifest.labels.sd == pytest.approx(np.std([1, -1, 2]))
    assert manifests.target(manifest, Regression()) == Scale(-3, 3, 2 / 3, manifest.labels.sd, 1)
    assert "raw" not in manifest.settings and manifest.settings["media"]["max_frames"] == 16
    assert {file.name for file in manifest.files} == {path.name for path in out.glob("*.parquet")}
    assert not (out / PARTS).exists()


@ray_test
def test_running_again_does_nothing_even_without_the_raw_folder(mixed, tmp_path):
    out, manifest, _ = mixed
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert prepare(MIXED, tmp_path / "gone", out, lambda line: None) == manifest
    assert before == {path: path.stat().st_mtime_ns for path in out.iterdir()}


@ray_test
def test_a_clip_kept_with_less_stands_in_notes_with_what_it_lacks(mixed):
    out, _, said = mixed
    assert (out / "notes.csv").read_text() == "id,note\nheard,has no picture\nsilent,has no sound\n"
    assert any("kept with less: 2 without sound, 2 without picture; see notes.csv" in line for line in said)


@ray_test
def test_the_manifest_counts_seconds_tokens_and_bytes(mixed):
    out, manifest, _ = mixed
    clips = clips_in(out).values()
    sizes = [sum(a.nbytes for a in (c.frames_FHWC, c.audio_S) if a is not None) for c in clips]
    assert manifest.seconds == {"train": pytest.approx(sum(c.seconds for c in clips)), "valid": 0, "test": 0}
    assert manifest.audio_tokens == sum(c.audio_tokens for c in clips) > 0
    assert manifest.video_tokens == sum(c.video_tokens for c in clips) > 0
    assert manifest.media_bytes == sum(sizes) and manifest.largest_clip_bytes == max(sizes)


def score_again(rows):
    rows[1][2] = "3"


def take_one_away(rows):
    del rows[2]


def add_one(rows):
    rows.append(["new", "words", "1", "test", ""])


def turn_around(rows):
    rows[1:] = rows[:0:-1]


@ray_test
@pytest.mark.parametrize(
    ("edit", "words"),
    [(score_again, "1 changed"), (take_one_away, "1 gone"), (add_one, "1 added"), (turn_around, "in another order")],
)
def test_labels_edited_after_a_prepare_are_noticed(mixed, raw, tmp_path, edit, words):
    shutil.copytree(raw, tmp_path / "raw")
    with (raw / "clips.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    edit(rows)
    with (tmp_path / "raw" / "clips.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    with pytest.raises(DataError, match=rf"prepared from other rows \({words}\); give another --out DIR"):
        prepare(MIXED, tmp_path / "raw", mixed[0], lambda line: None)


@ray_test
def test_a_label_file_that_is_gone_does_not_make_shards_useless(mixed, tmp_path):
    out, manifest, _ = mixed
    said = []
    assert prepare(MIXED, tmp_path, out, said.append) == manifest
    assert "not compared" in said[0] and "clips.csv" in said[0]


@ray_test
def test_a_file_that_came_later_is_noticed_and_a_plain_copy_is_the_same_data(mixed, raw, tmp_path):
    out, manifest, _ = mixed
    shutil.copytree(raw, tmp_path / "raw", copy_function=shutil.copy)
    assert prepare(MIXED, tmp_path / "raw", out, lambda line: None) == manifest
    shutil.copy(raw / "whole.mp4", tmp_path / "raw" / "gone.mp4")
    with pytest.raises(DataError, match="1 changed"):
        prepare(MIXED, tmp_path / "raw", out, lambda line: None)


@ray_test
def test_other_settings_in_the_same_folder_are_refused_by_name(mixed, raw):
    other = MIXED.model_copy(update={"media": MediaSettings(max_frames=8)})
    with pytest.raises(DataError, match=r"media\.max_frames: 16 there, 8 asked for"):
        prepare(other, raw, mixed[0], lambda line: None)


@ray_test
def test_settings_that_change_no_shard_are_no_other_settings(mixed, raw):
    out, manifest, _ = mixed
    assert prepare(MIXED.model_copy(update={"published": {}}), raw, out, lambda line: None) == manifest


@ray_test
def test_a_folder_of_which_nothing_is_left_is_an_error_that_says_why(raw, tmp_path, ray_session):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "clips.csv").write_text("id,text,score,split,file\na,x,1,test,a.mp4\nb,x,1,test,b.mp4\n")
    with pytest.raises(DataError, match=r"no clip is left of 2 rows; most frequent: missing file \(2\)"):
        prepare(MIXED, tmp_path / "raw", tmp_path / "out", lambda line: None)
    assert not (tmp_path / "out" / "manifest.json").exists()


@ray_test
def test_a_layout_that_makes_its_clips_is_prepared_from_nothing(tmp_path, ray_session):
    tiny = Synthetic(name="tiny", counts={"train": 2, "test": 1}, seconds=0.5)
    manifest = prepare(tiny, tmp_path / "raw", tmp_path / "out", lambda line: None)
    assert manifest.counts == {"train": 2, "valid": 0, "test": 1} and manifest.rejects == 0


def test_a_raw_folder_that_is_not_there_says_what_belongs_there(tmp_path):
    with pytest.raises(DataError) as caught:
        prepare(Cmu(name="mosi"), tmp_path / "no", tmp_path / "out", lambda line: None)
    assert "Raw/<video_id>/<clip_id>.mp4" in str(caught.value) and "--raw DIR" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_shards_of_somebody_else_are_not_written_over(raw, tmp_path):
    (tmp_path / "train-00000.parquet").write_bytes(b"precious")
    with pytest.raises(DataError, match="shards without a manifest"):
        prepare(MIXED, raw, tmp_path, lambda line: None)
    assert (tmp_path / "train-00000.parquet").read_bytes() == b"precious"


def test_a_shard_is_kept_only_as_long_as_nothing_it_was_made_from_has_changed(raw, tmp_path, decoder):
    copy = tmp_path / "raw"
    shutil.copytree(raw, copy)
    task, *_ = tasks = plan(copy, tmp_path / "out")
    written = write_shard(task, decoder)
    assert kept(tasks) == kept(plan(copy, tmp_path / "out")) == {task.name: written}
    assert kept(plan(copy, tmp_path / "out", MediaSettings(max_frames=4))) == {}
    os.utime(copy / "whole.mp4", ns=(1, 1))
    assert kept(plan(copy, tmp_path / "out")) == {}
    (tmp_path / "out" / task.name).write_bytes(b"short")
    assert kept(tasks) == {}


def test_all_that_a_prepare_leaves_is_held_against_its_manifest(raw, tmp_path, decoder):
    (tmp_path / PARTS).mkdir()
    planned = plan_shards(list(MIXED.clips(raw)), raw, tmp_path, MIXED.media)
    account(MIXED, raw, tmp_path, planned, [write_shard(task, decoder) for task in planned.tasks])
    assert verify(tmp_path).findings == []
    tables = ["rejects.csv", "notes.csv", "rows.csv"]
    for name in tables:
        with (tmp_path / name).open("a") as file:
            file.write("one,more\n")
    assert [finding.file for finding in verify(tmp_path).findings] == tables


def test_a_disk_that_takes_no_more_leaves_no_half_file(raw, tmp_path):
    # A limit on file size stands for the full disk: the write fails in the same place.
    source = (
        "import sys, resource; from pathlib import Path; from tests.test_prepare import plan; "
        "from raymsa.data.decoder import Decoder; from raymsa.data.shardfile import write_shard\n"
        "task = plan(*map(Path, sys.argv[1:]))[0]\n"
        "with Decoder(task.media) as decoder:\n"
        "    decoder.decode(Path(task.raw) / 'whole.mp4')\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))\n"
        "    try: write_shard(task, decoder)\n"
        "    except OSError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", source, raw, tmp_path / "out"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert "File too large" in done.stdout and done.stdout.count("\n") == 1
    assert not list((tmp_path / "out").glob("**/*.part")) and not list((tmp_path / "out").glob("*.parquet"))


def test_row_groups_hold_at_most_32_clips_in_the_order_of_the_label_file(tmp_path, decoder):
    clips = [RawClip(f"c{i}", "v", "words", 0.0, "train", None) for i in range(70)]
    (tmp_path / PARTS).mkdir()
    (task,) = plan_shards(list(clips), tmp_path, tmp_path, MediaSettings()).tasks
    write_shard(task, decoder)
    file = pq.ParquetFile(tmp_path / task.name)
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [32, 32, 6]
    assert file.read().column("id").to_pylist() == [clip.id for clip in clips]


def test_shards_are_planned_under_the_limit_and_always_alike(tmp_path):
    media = MediaSettings()
    for i in range(130):
        (tmp_path / f"{i}.mp4").write_bytes(bytes(100 + i))
    clips = [RawClip(f"c{i}", "v", "x", 0.0, ("train", "test")[i % 2], Path(f"{i}.mp4")) for i in range(130)]
    first, second = (plan_shards(list(clips), tmp_path, tmp_path, media).tasks for _ in range(2))
    assert [(t.name, t.plan, t.clips) for t in first] == [(t.name, t.plan, t.clips) for t in second]
    assert all(sum(most_bytes(clip, 100, media) for clip in task.clips) <= SHARD_BYTES for task in first)
    assert [clip for task in first if task.split == "train" for clip in task.clips] == clips[::2]


def test_long_sound_is_planned_for(tmp_path):
    clip = RawClip("a", "v", "x", 0.0, "train", Path("a.wav"))
    audio_bytes = 300 * 32_000
    assert most_bytes(clip, audio_bytes, MediaSettings(max_frames=1, max_pixels=784)) > audio_bytes
    assert most_bytes(RawClip("a", "v", "x", 0.0, "train", None), 0, MediaSettings()) < 10_000


@pytest.fixture
def whole(planned, decoder):
    """A folder with one real shard and its manifest."""
    out, written = Path(planned[0].out), write_shard(planned[0], decoder)
    file = manifests.ShardFile(**written.model_dump(include={"name", "split", "rows", "bytes", "sha256"}))
    none = {"train": 0, "valid": 0, "test": 0}
    manifest = manifests.Manifest(
        name="m", digest="0", counts=none, without_sound=none, without_picture=none, cut_sound=0, damaged=0, rejects=0,
        labels=None, settings={"low": -3, "high": 3}, versions=manifests.versions(), files=(file,),
    )  # fmt: skip
    manifests.write(out, manifest)
    return out, manifest


def test_a_manifest_comes_back_as_it_was_written(whole):
    out, manifest = whole
    assert (
        manifests.read(out) == manifest and manifest.of("train") == list(manifest.files) and manifest.of("test") == []
    )
    assert not list(out.glob("*.part"))


def break_off(out):
    (out / "manifest.json").unlink()


def lose_a_shard(out):
    (out / "train-00000.parquet").unlink()


def shorten_a_shard(out):
    (out / "train-00000.parquet").write_bytes(b"short")


def garble(out):
    (out / "manifest.json").write_text("{")


def from_the_future(out):
    raw = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps({**raw, "format": 99}))


def lose_a_field(out):
    raw = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps({key: value for key, value in raw.items() if key != "counts"}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (break_off, "no prepared clips there"),
        (lose_a_shard, "the shard is missing"),
        (shorten_a_shard, "has 5 bytes"),
        (garble, "cannot be read"),
        (from_the_future, "given format 99"),
        (lose_a_field, "counts: Field required"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused_in_one_line(whole, change, words):
    out, _ = whole
    change(out)
    with pytest.raises(DataError) as caught:
        manifests.read(out)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_scale_needs_training_clips_and_never_divides_by_zero(whole):
    _, manifest = whole
    with pytest.raises(DataError, match="no training clips"):
        manifests.target(manifest, Regression())
    constant = manifest.model_copy(update={"labels": Labels(mean=1, sd=0, median=1)})
    assert manifests.target(constant, Regression()).sd == 1.0


def test_importing_prepare_is_cheap():
    source = "import sys, raymsa.data.prepare; print('ray' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == ["False", "False"]
