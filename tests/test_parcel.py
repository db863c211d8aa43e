"""Runs carried from one machine to another: whole, never over what is there, and nothing of a stranger's tricks."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from raymsa.cli import main
from raymsa.errors import UsageError
from raymsa.home import run_dir, store_url
from raymsa.jobfile import load_job
from raymsa.parcel import read
from raymsa.spec import runs
from raymsa.store import Store, queries, records
from raymsa.target import Labels
from raymsa.training import checkpoint
from raymsa.training.loop import Position
from raymsa.training.predictions import write_predictions
from raymsa.training.run import build
from raymsa.unpack import take_in
from tests import stores
from tests.jobs import job_file

CLIP = {"split": "test", "clip_id": "c", "label": 1.0, "score": 0.5, "text": None, "parsed": True, "in_range": True}
MUCH = 1e12


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return move_to(tmp_path / "here", monkeypatch)


def move_to(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAYMSA_HOME", str(home))
    return home


@pytest.fixture
def store(here: Path) -> Iterator[Store]:
    with Store.open(store_url()) as opened:
        yield opened


def call(*words: str) -> Result:
    return CliRunner().invoke(main, list(words), prog_name="raymsa")


def said(*words: str) -> str:
    result = call(*words)
    assert result.exit_code == 0, result.output
    return result.stdout


def fake_run(store: Store, job_id: str, run_id: str, seed: int = 1, state: str = "done") -> None:
    """A run with files that look like a checkpoint's."""
    about = {"id": run_id, "job_id": job_id, "task_id": queries.tasks(store, job_id)[0].id, "variant": "disc"}
    more = {"seed": seed, "group_key": stores.KEY, "spec": {**stores.SPEC, "seeds": [seed]}, "spec_digest": f"d{seed}"}
    records.create_runs(store, [{**about, **more}])
    records.start_run(store, run_id)
    records.record_steps(store, run_id, [stores.entry(1, {"loss": 1.0})])
    if state == "done":
        files = [{"name": "folder", "path": str(run_dir(run_id))}]
        records.finish_run(store, run_id, {}, {"test": {"mae": 0.5}}, [CLIP], files)
    for name in ("best-000004/state.json", "best-000004/head.safetensors", "last-000004/state.json", "log.txt"):
        path = run_dir(run_id) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{name} of {run_id}")
    (run_dir(run_id) / ".best-000009.part").mkdir()


def packed(store: Store, out: Path, *names: str) -> Path:
    said("export", *names, "--with-checkpoints", "--out", str(out))
    return out


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def in_home(home: Path) -> dict[str, bytes]:
    return {name: text for name, text in files(home / "runs").items() if name != ".import.lock"}


# There and back


def test_a_trained_run_scores_the_same_on_another_machine(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = runs(load_job(job_file(tmp_path)))[0].spec
    torch.manual_seed(1)
    student = build(
        spec, spec.dataset.task.with_labels(Labels(mean=0.0, sd=1.0, median=0.0)), torch.device("cpu"), None
    )
    job_id = stores.put(store)
    about = {"id": "r1", "job_id": job_id, "task_id": None, "variant": "disc", "seed": 1, "group_key": stores.KEY}
    records.create_runs(store, [{**about, "spec": spec.model_dump(mode="json"), "spec_digest": "d"}])
    checkpoint.save(run_dir("r1"), "best", student, Position(), None)
    write_predictions(run_dir("r1"), [CLIP])
    records.finish_run(store, "r1", {}, {"test": {"mae": 0.5}}, [CLIP])
    before = said("predict", "r1", "-", "--text", "fine", "--json")
    packed(store, tmp_path / "parcel", "r1")
    move_to(tmp_path / "there", monkeypatch)
    assert said("import", str(tmp_path / "parcel")) == "r1\n"
    assert said("predict", "r1", "-", "--text", "fine", "--json") == before


def test_what_a_run_left_comes_along_but_not_what_it_would_go_on_from(
    store: Store, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = stores.put(store)
    fake_run(store, job_id, "r1")
    fake_run(store, job_id, "r2", 2, "running")
    packed(store, tmp_path / "parcel", job_id)
    before = in_home(here)
    there = move_to(tmp_path / "there", monkeypatch)
    assert json.loads(said("import", str(tmp_path / "parcel"), "--json")) == {
        "runs": ["r1", "r2"], "files": [], "there": [], "paused": 1,
    }  # fmt: skip
    assert in_home(there) == {name: text for name, text in before.items() if name != "r1/last-000004/state.json"}
    with Store.open(store_url()) as other:
        assert [run.state for run in queries.runs(other)] == ["done", "queued"]
        assert queries.predictions(other, "r1") == queries.predictions(store, "r1")
        assert queries.artifacts(other, "r1")[0].path == str(there / "runs" / "r1")
        assert len(queries.steps(other, "r2")) == 1


def test_one_run_goes_alone_and_its_sisters_join_it_later(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = stores.put(store)
    for seed in (1, 2):
        fake_run(store, job_id, f"r{seed}", seed)
    packed(store, tmp_path / "one", "r1")
    packed(store, tmp_path / "all", job_id)
    move_to(tmp_path / "there", monkeypatch)
    said("import", str(tmp_path / "one"))
    with Store.open(store_url()) as other:
        assert [run.id for run in queries.runs(other)] == ["r1"]
        assert {event.run_id for event in queries.events(other)} == {None, "r1"}
        taken = take_in(other, tmp_path / "all", "eve", MUCH)
        assert (taken.runs, taken.there) == (["r2"], ["r1"])
        assert len(queries.runs(other)) == 2 and len(queries.jobs(other)) == 1
        assert queries.run(other, "r2").task_id == queries.tasks(other)[0].id
        assert len(queries.predictions(other, "r2")) == 1
        assert [event.what for event in queries.events(other) if event.run_id == "r2"] == ["queued", "running", "done"]
        assert take_in(other, tmp_path / "all", "eve", MUCH) == ([], [], ["r1", "r2"], 0)


def test_without_checkpoints_the_rows_go_and_the_files_may_follow(
    store: Store, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_run(store, stores.put(store), "r1")
    said("export", "r1", "--out", str(tmp_path / "rows"))
    (tmp_path / "bare").mkdir()
    said("store", "export", str(tmp_path / "bare/x.jsonl"))
    packed(store, tmp_path / "all", "r1")
    assert sorted(files(tmp_path / "rows")) == ["raymsa.json", "runs/r1/log.txt", "store.jsonl"]
    there = move_to(tmp_path / "there", monkeypatch)
    said("store", "import", str(tmp_path / "bare/x.jsonl"))
    assert json.loads(said("import", str(tmp_path / "all"), "--json"))["files"] == ["r1"]
    assert "r1/best-000004/state.json" in in_home(there)


def test_a_run_that_is_there_is_never_overwritten(store: Store, here: Path, tmp_path: Path) -> None:
    fake_run(store, stores.put(store), "r1")
    packed(store, tmp_path / "parcel", "r1")
    (run_dir("r1") / "log.txt").write_text("since then")
    before = in_home(here)
    assert said("import", str(tmp_path / "parcel")) == ""
    assert in_home(here) == before
    said("rm", queries.jobs(store)[0].id, "--yes")
    (run_dir("r1")).mkdir(parents=True)
    (run_dir("r1") / "log.txt").write_text("another's")
    refused = call("import", str(tmp_path / "parcel"))
    assert refused.exit_code == 2 and refused.output.count("\n") == 1
    assert f"{run_dir('r1')}: is there already, and the store knows no such run" in refused.output
    assert in_home(here) == {"r1/log.txt": b"another's"} and queries.jobs(store) == []


def test_another_job_of_the_same_id_is_refused(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = stores.put(store)
    fake_run(store, job_id, "r1")
    packed(store, tmp_path / "parcel", "r1")
    move_to(tmp_path / "there", monkeypatch)
    with Store.open(store_url()) as other:
        about = {"name": "other", "spec": stores.SPEC, "created_at": 1.0, "submitted_by": "", "folder": ""}
        with other.write() as connection:
            connection.execute(stores_jobs().insert().values(id=job_id, **about))
        with pytest.raises(UsageError, match=f"job {job_id} is there already, and it is another job"):
            take_in(other, tmp_path / "parcel", "eve", MUCH)
        assert queries.runs(other) == [] and in_home(tmp_path / "there") == {}


def stores_jobs() -> Any:
    from raymsa.store import tables

    return tables.jobs


# A stranger's parcel


def contents(parcel: Path) -> dict[str, Any]:
    return json.loads((parcel / "raymsa.json").read_text())


def change(parcel: Path, **over: Any) -> None:
    (parcel / "raymsa.json").write_text(json.dumps({**contents(parcel), **over}))


def first(parcel: Path, **over: Any) -> None:
    """raymsa.json with its second file (the first are the rows) told otherwise."""
    items = contents(parcel)["files"]
    items[1] |= over
    change(parcel, files=items)


def link(parcel: Path) -> None:
    head = parcel / "runs/r1/best-000004/head.safetensors"
    head.rename(parcel / "elsewhere")
    head.symlink_to(parcel / "elsewhere")


def linked_folder(parcel: Path) -> None:
    (parcel / "runs/r1").rename(parcel / "elsewhere")
    (parcel / "runs/r1").symlink_to(parcel / "elsewhere")


def pipe(parcel: Path) -> None:
    (parcel / "runs/r1/log.txt").unlink()
    os.mkfifo(parcel / "runs/r1/log.txt")


def cut(parcel: Path) -> None:
    os.truncate(parcel / "runs/r1/best-000004/head.safetensors", 5)


def flip(parcel: Path) -> None:
    path = parcel / "runs/r1/best-000004/head.safetensors"
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])


def rows_of_another(parcel: Path) -> None:
    text = (parcel / "store.jsonl").read_text().replace('"r1"', '"r2"')
    lines = text.splitlines(keepends=True)
    end = json.loads(lines[-1]) | {"sha256": hashlib.sha256("".join(lines[:-1]).encode()).hexdigest()}
    (parcel / "store.jsonl").write_text("".join(lines[:-1]) + json.dumps(end) + "\n")
    items = contents(parcel)["files"]
    whole = (parcel / "store.jsonl").read_bytes()
    items[0] |= {"bytes": len(whole), "sha256": hashlib.sha256(whole).hexdigest()}
    change(parcel, files=items)


TRICKS: list[tuple[Callable[[Path], None], str]] = [
    (lambda p: first(p, name="../../secret"), "is no file in this folder"),
    (lambda p: first(p, name="/etc/passwd"), "is no file in this folder"),
    (lambda p: first(p, name="runs/r1/a\0b"), "is no file in this folder"),
    (lambda p: first(p, to="../r1/log.txt"), "is no file of its runs"),
    (lambda p: first(p, to="r1/../../store.db"), "is no file of its runs"),
    (lambda p: first(p, to="r2/log.txt"), "is no file of its runs"),
    (lambda p: first(p, to="r1/best-000004/adapter/adapter_model.bin"), "is no file of its runs"),
    (lambda p: first(p, to="r1/best-000004/x.pkl"), "is no file of its runs"),
    (lambda p: first(p, bytes=10**15), "there is room for"),
    (lambda p: first(p, bytes=-1), "files.1.bytes"),
    (lambda p: first(p, sha256="no"), "files.1.sha256"),
    (lambda p: first(p, name="store.jsonl"), "stands in it twice"),
    (lambda p: change(p, files=contents(p)["files"][1:]), "names no store.jsonl"),
    (lambda p: change(p, runs=["../x"]), "cannot be a folder's name"),
    (lambda p: change(p, runs=[".import.lock"]), "cannot be a folder's name"),
    (lambda p: change(p, runs=["r1\x1b[31m"]), "the id 'r1\\x1b[31m' cannot be a folder's name"),
    (lambda p: change(p, runs=["r1;sh"]), "the id 'r1;sh' cannot be a folder's name"),
    (lambda p: change(p, format=2), "upgrade raymsa"),
    (lambda p: change(p, raymsa="export"), "raymsa: "),
    (lambda p: change(p, more=1), "more: "),
    (lambda p: (p / "raymsa.json").write_text("[" * 100_000), "raymsa.json: "),
    (lambda p: (p / "raymsa.json").write_bytes(b"\xff\xfe{"), "raymsa.json: "),
    (lambda p: (p / "raymsa.json").unlink(), "no raymsa.json in it"),
    (lambda p: (p / "runs/r1/log.txt").unlink(), "No such file or directory"),
    (link, "is a link"),
    (linked_folder, "is a link"),
    (pipe, "is no plain file"),
    (cut, "half, or changed"),
    (flip, "half, or changed"),
    (rows_of_another, "its rows are of other runs than its files"),
]


@pytest.mark.parametrize(("trick", "told"), TRICKS, ids=[told for _, told in TRICKS])
def test_a_parcel_that_is_not_as_it_was_packed_is_one_line_and_changes_nothing(
    trick: Callable[[Path], None], told: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_run(store, stores.put(store), "r1")
    parcel = packed(store, tmp_path / "parcel", "r1")
    trick(parcel)
    there = move_to(tmp_path / "there", monkeypatch)
    result = call("import", str(parcel))
    assert result.exit_code == 2 and told in result.output, result.output
    assert result.output.startswith("error: ") and result.output.count("\n") == 1
    assert in_home(there) == {} and not list((there / "runs").glob(".import-*"))
    with Store.open(store_url()) as other:
        assert queries.jobs(other) == [] and queries.runs(other) == []


def test_what_is_no_parcel_is_told_where_it_belongs(store: Store, tmp_path: Path) -> None:
    said("store", "export", str(tmp_path / "x.jsonl"))
    result = call("import", str(tmp_path / "x.jsonl"))
    assert result.exit_code == 2 and "is for `raymsa store import`" in result.output
    assert call("import", str(tmp_path / "nothing")).exit_code == 102


def test_a_parcel_may_be_too_large(store: Store, tmp_path: Path) -> None:
    fake_run(store, stores.put(store), "r1")
    parcel = packed(store, tmp_path / "parcel", "r1")
    read(parcel, MUCH)
    result = call("import", str(parcel), "--max-gb", "0.000001")
    assert result.exit_code == 2 and "more than the 1,000 there is room for" in result.output


# Killed for real, at the moments that matter

KILLED = """
import os, signal, sys
from pathlib import Path
import raymsa.unpack, raymsa.parcel
from raymsa.home import store_url
from raymsa.store import Store, imports
from raymsa.unpack import take_in

when, parcel = sys.argv[1:]
def dying(function, after):
    calls = [0]
    def called(*given, **more):
        calls[0] += 1
        if after and calls[0] == 3: function(*given, **more)
        if calls[0] == (2 if when == "move" else 3): os.kill(os.getpid(), signal.SIGKILL)
        return function(*given, **more)
    return called
if when == "copy": raymsa.unpack.copy = dying(raymsa.unpack.copy, True)
if when == "rows": imports._Intake._insert = dying(imports._Intake._insert, False)
if when == "move": Path.rename = dying(Path.rename, False)
store = Store.open(store_url())
if when == "moved":
    real = raymsa.unpack._sync
    def sync(folder): real(folder); os.kill(os.getpid(), signal.SIGKILL)
    raymsa.unpack._sync = sync
take_in(store, Path(parcel), "eve", 1e12)
if when == "over": os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("when", ["copy", "rows", "move", "moved", "over"])
def test_an_import_that_is_killed_has_taken_in_all_or_nothing_and_can_be_done_again(
    when: str, store: Store, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = stores.put(store)
    for seed in (1, 2):
        fake_run(store, job_id, f"r{seed}", seed)
    parcel = packed(store, tmp_path / "parcel", job_id)
    wanted = {name: text for name, text in in_home(here).items() if "last-" not in name}
    there = move_to(tmp_path / "there", monkeypatch)
    Store.open(store_url()).close()  # so that what is patched is the import's alone
    command = [sys.executable, "-c", KILLED, when, str(parcel)]
    ended = subprocess.run(command, cwd=stores.ROOT, timeout=120, check=False, capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    with Store.open(store_url()) as other:
        known = [run.id for run in queries.runs(other)]
        assert known == (["r1", "r2"] if when == "over" else [])
        assert len(queries.jobs(other)) == (1 if when == "over" else 0)
        if when == "over":
            assert in_home(there) == wanted
        taken = take_in(other, parcel, "eve", MUCH)
        assert taken.runs == ([] if when == "over" else ["r1", "r2"])
        assert in_home(there) == wanted and not list((there / "runs").glob(".import-*"))
        assert [run.id for run in queries.runs(other)] == ["r1", "r2"] and len(queries.predictions(other, "r2")) == 1
