"""Paths and addresses: which is which, and a prepare whose clips and shards lie in S3 (a server of moto)."""

import csv
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import fsspec
import numpy as np
import pytest
from click.testing import CliRunner
from fsspec.spec import AbstractFileSystem

from raymsa.cli import main
from raymsa.data import manifest as manifests
from raymsa.data.decoder import Decoder
from raymsa.data.folder import claim
from raymsa.data.groups import read, row_groups
from raymsa.data.plan import plan_shards
from raymsa.data.prepare import prepare
from raymsa.data.shardfile import kept, write_shard
from raymsa.data.verify import verify
from raymsa.datasets.base import MediaSettings
from raymsa.datasets.table import Columns, Table
from raymsa.errors import DataError
from raymsa.place import (
    LOCK,
    State,
    absolute,
    folder_at_once,
    is_local,
    local_copy,
    names,
    new_folder,
    place,
    put,
    replaced_folder,
    states,
    write_at_once,
)
from raymsa.plan import raw_of, shards_of
from tests.media_files import grey_ramp, tone, write_media

ROOT = Path(__file__).parent.parent
FEW = Table(name="few", columns=Columns(media="file"), media=MediaSettings(max_pixels=2_000_000))
S3 = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@pytest.fixture(scope="module")
def bucket():
    """s3:// of a server that lives in this process."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as env:
        for name, value in {**S3, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}.items():
            env.setenv(name, value)
        place("s3://clips").mkdir()
        yield "s3://clips"
    server.stop()


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Seven clips of which two are no clips."""
    folder = tmp_path_factory.mktemp("raw")
    for i in range(5):
        write_media(folder / "media" / f"{i} ü.mp4", grey_ramp(5 + i), tone(0.5 + i / 10))
    (folder / "media" / "junk.mp4").write_text("no video" * 50)
    files = [*(f"media/{i} ü.mp4" for i in range(5)), "media/junk.mp4", "media/gone.mp4"]
    with (folder / "clips.csv").open("w", newline="", encoding="utf-8") as file:
        rows = [(f"c{i}", "words", i - 3, ("train", "test")[i % 2], name) for i, name in enumerate(files)]
        csv.writer(file).writerows([("id", "text", "score", "split", "file"), *rows])
    return folder


@pytest.fixture(scope="module")
def far_raw(raw, bucket):
    """The same clips in the bucket."""
    far = place(f"{bucket}/raw")
    for path in raw.rglob("*.*"):
        (far / path.relative_to(raw).as_posix()).write_bytes(path.read_bytes())
    return far


def test_a_path_is_made_absolute_and_an_address_stays_as_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute("clips") == str(tmp_path / "clips") and absolute("file:///data/x") == "/data/x"
    assert absolute("s3://bucket/folder/") == "s3://bucket/folder"
    assert place("clips") == tmp_path / "clips" and is_local(place("clips"))
    assert place(place("memory://x/y")) == place("memory://x/y") and not is_local(place("memory://x/y"))


def test_a_datasets_addresses_reach_the_driver_unharmed():
    far = Table(name="far", raw="memory://b/raw", shards="memory://b/shards")
    assert str(raw_of(far)) == "memory://b/raw" and str(shards_of(far)) == "memory://b/shards"
    assert is_local(shards_of(far.model_copy(update={"shards": None})))


class Gone(AbstractFileSystem):
    """A file system whose machine does not answer."""

    protocol = "gone"

    def exists(self, path, **options):
        raise ConnectionError("nobody answers")


@pytest.mark.filterwarnings("ignore:UPath 'gone'")
@pytest.mark.parametrize("words", [["data", "stats"], ["data", "verify"], ["prepare", "FILE", "--check-only", "--raw"]])
def test_an_address_that_does_not_answer_is_one_line(tmp_path, words):
    fsspec.register_implementation("gone", Gone, clobber=True)
    file = tmp_path / "few.yaml"
    file.write_text("kind: table\nname: few\n")
    given = [str(file) if word == "FILE" else word for word in words]
    result = CliRunner().invoke(main, [*given, "gone://there/folder"], prog_name="raymsa")
    assert (result.exit_code, result.stderr) == (2, "error: gone://there/folder: cannot be reached: nobody answers\n")


@pytest.mark.parametrize("text", ["s3:/bucket/folder", "s3://", "file:/tmp/x", "S3:/b"])
def test_half_an_address_is_refused_and_not_taken_for_a_folder(text):
    with pytest.raises(DataError, match="neither a path nor an address"):
        place(text)


def test_an_address_that_cannot_be_opened_is_one_line():
    with pytest.raises(DataError, match=r"cannot open nosuch:// addresses here"):
        place("nosuch://x/y")
    source = "import sys; sys.modules['s3fs'] = None; from raymsa.place import place; place('s3://x/y')"
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, cwd=ROOT)
    assert "pip install 'raymsa[s3]'" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("where", ["tmp_path", "bucket"])
def test_a_folder_is_listed_read_and_written_alike_wherever_it_is(request, tmp_path, where):
    folder = place(str(request.getfixturevalue(where))) / "alike"
    if is_local(folder):
        folder.mkdir()
    assert names(folder) == set() and states(folder, ["a.txt"]) == {"a.txt": None}
    write_at_once(folder / "a.txt", "first\n")
    first = states(folder, ["a.txt", "b.txt"])
    assert first["a.txt"].bytes == 6 and first["b.txt"] is None
    write_at_once(folder / "a.txt", "other\n")
    assert states(folder, ["a.txt"]) != first and isinstance(first["a.txt"], State)
    (tmp_path / "part").write_bytes(b"whole")
    put(tmp_path / "part", folder / "b.bin")
    assert names(folder) == {"a.txt", "b.bin"} and not (tmp_path / "part").exists()
    with local_copy(folder / "b.bin") as copy:
        assert copy.read_bytes() == b"whole"
    assert copy.exists() == is_local(folder)


def run(*words):
    source = "from raymsa.cli import main; main()"
    command = [sys.executable, "-c", source, "prepare", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ)


@pytest.mark.slow
@pytest.mark.ray
def test_clips_and_shards_may_lie_in_s3(raw, far_raw, bucket, tmp_path, ray_session):
    local = prepare(FEW, raw, tmp_path / "out", lambda line: None)
    out, config = place(f"{bucket}/shards"), tmp_path / "few.yaml"
    config.write_text("kind: table\nname: few\ncolumns: {media: file}\nmedia: {max_pixels: 2000000}\n")

    claim(FEW, out)  # a call before, which ended after its first shard
    tasks = plan_shards(list(FEW.clips(far_raw)), far_raw, out, FEW.media).tasks
    with Decoder(FEW.media) as decoder:
        write_shard(tasks[0], decoder)
    assert list(kept(tasks)) == [tasks[0].name]

    done = run(config, "--raw", far_raw, "--out", out)
    assert done.returncode == 0, done.stderr
    assert f"1 of {len(tasks)} shards are there already" in done.stderr and done.stdout == f"{out}\n"
    manifest = manifests.read(out)
    assert manifest.digest == local.digest and manifest.files == local.files
    assert {path.name for path in (tmp_path / "out").iterdir()} - {".lock"} == names(out)
    assert (out / "rejects.csv").read_text() == (tmp_path / "out" / "rejects.csv").read_text()
    shards = [file.name for file in manifest.files]
    here, there = ([*read([row_groups(folder, shards)]).of(0)] for folder in (tmp_path / "out", out))
    assert [clip.id for clip in there] == [clip.id for clip in here] == ["c0", "c2", "c4", "c1", "c3"]
    assert all(np.array_equal(a.frames_FHWC, b.frames_FHWC) for a, b in zip(here, there, strict=True))
    assert verify(out).findings == []


def test_a_bucket_that_is_not_there_is_one_line(bucket, tmp_path):
    with pytest.raises(DataError) as caught:
        prepare(FEW, place("s3://nothing-here/raw"), tmp_path / "out", lambda line: None)
    assert "no such folder" in str(caught.value) or "cannot be reached" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_shard_that_is_gone_from_the_bucket_is_noticed(bucket, tmp_path):
    out = place(f"{bucket}/broken")
    text = '{"name": "m", "digest": "0", "counts": {}, "without_sound": {}, "without_picture": {}, "cut_sound": 0, '
    text += '"format": 2, "damaged": 0, "rejects": 0, "labels": null, "settings": {}, "versions": {}, '
    text += '"files": [{"name": "a.parquet", "split": "train", "rows": 1, "bytes": 3, "sha256": ""}]}'
    write_at_once(out / "manifest.json", text)
    with pytest.raises(DataError, match="the shard is missing"):
        manifests.read(out)
    write_at_once(out / "a.parquet", "four")
    with pytest.raises(DataError, match=r"has 4 bytes, manifest\.json says 3"):
        manifests.read(out)


# Folders that appear whole or not at all

WRITER = """
import sys
from pathlib import Path
from raymsa.place import folder_at_once
with folder_at_once(Path(sys.argv[1]), "mark") as part:
    (part / "weights").write_bytes(bytes(1000))
    print("writing", flush=True)
    sys.stdin.read()
"""


@contextmanager
def writing(folder: Path):
    """Another process that writes `folder`, and is in the middle of it."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], cwd=ROOT, **pipes) as process:
        assert process.stdout.readline() == b"writing\n"
        yield process
        process.kill()


@pytest.mark.parametrize("write", [lambda folder: folder_at_once(folder, "mark"), new_folder])
def test_what_a_killed_writer_left_is_removed_and_what_another_writes_is_not(tmp_path, write):
    folder = tmp_path / "models" / "nf4-[1]"
    of_the_user = folder.parent / f".{folder.name}-20261121"
    of_the_user.mkdir(parents=True)
    with writing(folder) as living:
        stays = {*folder.parent.iterdir()}
        with writing(folder.with_name("of another version")):
            pass  # killed
        (left,) = {*folder.parent.iterdir()} - stays
        with write(folder) as part:
            (part / "mark").touch()
            assert not left.exists() and all(path.exists() for path in stays)
        living.communicate()
        assert living.returncode == 0
    assert {*folder.parent.iterdir()} == {folder, of_the_user}
    assert [path.name for path in folder.iterdir()] == ["mark"]
    assert folder.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("how", ["os.kill(os.getpid(), 9)", "raise KeyboardInterrupt"])
def test_what_was_there_is_not_lost_when_its_replacement_ends_between_two_renames(tmp_path, how):
    folder = tmp_path / "report"
    folder.mkdir()
    (folder / "page").write_text("old")
    code = f"""
import os, sys
from pathlib import Path
from raymsa.place import replaced_folder
rename = Path.rename
def ends(self, target):
    rename(self, target)
    if self == Path(sys.argv[1]):
        {how}
Path.rename = ends
with replaced_folder(Path(sys.argv[1])) as part:
    (part / "page").write_text("new")
"""
    ended = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, check=False)
    assert ended.returncode != 0
    with folder_at_once(tmp_path / "other", "mark") as part:  # the next writer tidies up
        (part / "mark").touch()
    assert [page.read_text() for page in tmp_path.rglob("page")].count("old") == 1
    assert folder.exists() is ("raise" in how)


def test_a_link_leads_to_what_replaced_the_folder(tmp_path):
    (tmp_path / "there").mkdir()
    link = tmp_path / "link"
    link.symlink_to("there")
    with replaced_folder(link) as part:
        (part / "page").touch()
    assert link.is_symlink() and [path.name for path in (tmp_path / "there").iterdir()] == ["page"]


def test_what_another_machine_writes_on_the_same_disk_is_left_alone(tmp_path):
    theirs = tmp_path / ".nf4-1"
    theirs.mkdir()
    (theirs / LOCK).write_text("another")  # whose lock this machine may not see
    with folder_at_once(tmp_path / "nf4", "mark") as part:
        (part / "mark").touch()
    assert (theirs / LOCK).exists()
