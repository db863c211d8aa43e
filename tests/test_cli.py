"""The command line without Ray: exit codes, what goes to stdout and what to stderr, names and their beginnings."""

import json
import re
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from raymsa import orders, queue
from raymsa.cli import main
from raymsa.errors import StoreAway
from raymsa.spec import check, digest, runs
from raymsa.store import Store, queries, records
from tests import stores
from tests.jobs import job_file, raymsa

READING = ("list", "status JOB", "results JOB", "kinds", "submit FILE --dry-run")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A RAYMSA_HOME that does not exist yet, and a terminal wide enough for every table."""
    monkeypatch.setenv("RAYMSA_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("RAYMSA_STORE", raising=False)
    return tmp_path / "home"


def call(*words: str) -> Result:
    """The real entry point, in this process; anything but an exit is a traceback and fails the test."""
    result = CliRunner().invoke(main, list(words), prog_name="raymsa")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result


def open_store(home: Path) -> Store:
    return Store.open(f"sqlite:///{home}/store.db")


def submit(home: Path, tmp_path: Path, **sections: Any) -> str:
    """A queued job's id."""
    result = call("submit", str(job_file(tmp_path, **sections)), "--detach", "--json")
    assert result.exit_code == 0, result.stderr
    return str(json.loads(result.stdout)["job"])


def finish(home: Path, job_id: str, test_mae: float = 0.5) -> str:
    """Record what a driver would: every task and the only run done. Returns the run's id."""
    with open_store(home) as store:
        job = queries.job(store, job_id)
        (run,) = runs(check(job.spec, "job"))
        run_id = f"{job_id}-{run.variant}-{run.seed}"
        about = {"job_id": job_id, "task_id": None, "variant": run.variant, "seed": run.seed, "group_key": run.group}
        spec = {"spec": run.spec.model_dump(mode="json"), "spec_digest": digest(run.spec)}
        records.create_runs(store, [{"id": run_id, **about, **spec}])
        finals = {"valid": {"mae": 0.4}, "test": {"mae": test_mae, "corr": float("nan")}}
        clips = [
            {"split": "test", "clip_id": str(n), "label": n, "score": n + 0.5, "parsed": True, "in_range": True}
            for n in range(3)
        ]
        records.finish_run(store, run_id, {"valid_error": 0.4, "best_epoch": 1}, finals, clips)
        while task := queue.claim(store, "driver", 60, job_id):
            queue.finish(store, task)
    return run_id


# Usage


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["sbumit", "x"], "no such command 'sbumit'; did you mean 'submit'?"),
        (["fly"], "no such command 'fly' (known: submit, work, list, "),
        (["submit", "--detatch", "x.yaml"], "No such option '--detatch'. Did you mean '--detach'?"),
        (["submit"], "Missing argument 'FILE'"),
        (["status"], "Missing argument 'JOB'"),
        (["predict", "run"], "Missing argument 'CLIP...'"),
        (["submit", "x.yaml", "--set"], "Option '--set' requires an argument"),
        (["submit", "x.yaml", "--lease-s", "long"], "'long' is not a valid float"),
        (["work", "--lease-s", "0"], "0.0 is not in the range x>=1.0"),
        (["predict", "run", "a.mp4", "b.mp4", "c.mp4", "--text", "x", "--text", "y"], "2 --text for 3 clips; give one"),
    ],
)
def test_a_misspelt_command_or_option_is_a_usage_error_with_what_was_meant(
    home: Path, words: list[str], line: str
) -> None:
    result = call(*words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert line in result.stderr


def test_a_wrong_job_file_is_a_usage_error_with_one_line_per_problem(home: Path, tmp_path: Path) -> None:
    path = job_file(tmp_path, tarin={}, seeds=1)
    for more in ([], ["--dry-run"], ["--detach"]):
        result = call("submit", str(path), *more)
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr.splitlines()[0] == f"error: {path}: seeds: given 1; give a list: [1]"
        assert result.stderr.splitlines()[1].startswith(f"error: {path}: tarin: unknown key; did you mean 'train'?")
        assert len(result.stderr.splitlines()) == 2
    assert not home.exists()


def test_a_wrong_override_or_dataset_file_is_a_usage_error(home: Path, tmp_path: Path) -> None:
    result = call("submit", str(job_file(tmp_path)), "--set", "train.lr=1e-4", "--dry-run")
    assert result.exit_code == 2
    assert "train.lr: unknown key; did you mean 'lora_lr' or 'head_lr'?" in result.stderr
    result = call("prepare", str(job_file(tmp_path)))
    assert result.exit_code == 2
    assert "kind: missing; it is one of ch_sims, " in result.stderr


def test_help_and_version_are_for_stdout(home: Path) -> None:
    for words in (["--help"], ["-h"], ["submit", "--help"], ["--version"]):
        result = call(*words)
        assert (result.exit_code, result.stderr) == (0, "")
        assert "raymsa" in result.stdout


def test_the_installed_command_ends_with_the_same_codes(home: Path, tmp_path: Path) -> None:
    path = job_file(tmp_path, seeds=1)
    for words, code in [(["kinds", "--json"], 0), (["submit", str(path)], 2), (["status", "abc"], 102)]:
        ended = raymsa(home, *words, timeout_s=60)
        assert ended.returncode == code, ended.stderr
        assert "Traceback" not in ended.stderr


# What is not there yet


@pytest.mark.parametrize("words", [["status", "abc"], ["results", "abc"], ["logs", "abc"], ["cancel", "abc"]])
def test_before_the_first_job_a_job_is_not_found_and_nothing_is_made(home: Path, words: list[str]) -> None:
    result = call(*words)
    assert (result.exit_code, result.stdout) == (102, "")
    assert "nothing was submitted yet" in result.stderr
    assert not home.exists()


@pytest.mark.parametrize("command", ["status", "results", "logs", "cancel", "retry"])
def test_an_unknown_job_is_not_found(home: Path, tmp_path: Path, command: str) -> None:
    submit(home, tmp_path)
    result = call(command, "xyz")
    assert (result.exit_code, result.stdout) == (102, "")
    noun = {"logs": "run", "results": "job or group"}.get(command, "job")
    assert result.stderr == f"error: no {noun} 'xyz' in the store\n"


def test_an_unknown_run_is_not_found(home: Path, tmp_path: Path) -> None:
    submit(home, tmp_path)
    result = call("predict", "xyz", "clip.mp4")
    assert result.exit_code == 102
    assert "no run 'xyz' in the store" in result.stderr


def test_results_of_a_queued_job_are_not_finished(home: Path, tmp_path: Path) -> None:
    job_id = submit(home, tmp_path)
    result = call("results", job_id)
    assert (result.exit_code, result.stdout) == (101, "")
    assert f"job {job_id} is queued" in result.stderr


def test_a_store_that_cannot_be_used_is_an_error_of_one_line(home: Path, tmp_path: Path) -> None:
    (tmp_path / "no.db").write_text("this is not a database, but long enough to be taken for one" * 20)
    for url, said in [(str(tmp_path / "no.db"), "not a database"), ("mysql://u:secret@h/d", "a store is sqlite")]:
        result = call("list", "--store", url)
        assert result.exit_code == 1
        assert said in result.stderr
        assert "secret" not in result.stderr
        assert len(result.stderr.splitlines()) == 1


# Submit


def test_a_dry_run_prints_the_resolved_job_and_writes_nothing_at_all(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "user").mkdir()
    path = job_file(tmp_path, seeds=[1, 2], variants={"disc": {}, "gen": {"readout.kind": "gen"}})
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    ended = call("submit", str(path), "--dry-run", "--json", "--set", "lora.rank=2")
    assert ended.exit_code == 0, ended.stderr
    said = json.loads(ended.stdout)
    assert (said["runs"], said["tasks"], said["job"]["lora"]["rank"]) == (4, 2, 2)
    trained = {key: value for key, value in said.items() if key.startswith("trainable parameters")}
    assert trained["trainable parameters of disc"] > trained["trainable parameters of gen"] > 0
    assert sorted(tmp_path.rglob("*")) == before
    assert not home.exists()


def test_a_dry_run_for_a_person_is_a_job_file_that_can_be_submitted(home: Path, tmp_path: Path) -> None:
    result = call("submit", str(job_file(tmp_path)), "--dry-run")
    (tmp_path / "resolved.yaml").write_text(result.stdout)
    again = call("submit", str(tmp_path / "resolved.yaml"), "--dry-run")
    assert again.stdout == result.stdout
    assert {"runs: 1", "tasks: 2"} <= set(result.stderr.splitlines())


def test_a_detached_job_is_two_queued_tasks_and_the_next_commands(home: Path, tmp_path: Path) -> None:
    result = call("submit", str(job_file(tmp_path)), "--detach")
    assert result.exit_code == 0
    found = re.search(r"job ([0-9a-f]{8}) \(small\) is queued", result.stderr)
    assert found is not None
    job_id = found[1]
    for command in (f"raymsa status {job_id}", f"raymsa logs -f {job_id}", f"raymsa cancel {job_id}", "raymsa work"):
        assert command in result.stderr
    with open_store(home) as store:
        tasks = queries.tasks(store, job_id)
        assert [(task.kind, task.state) for task in tasks] == [("prepare", "queued"), ("train", "queued")]
        assert queries.runs(store, job_id) == []


def test_a_queued_job_holds_the_resolved_spec_with_absolute_paths(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "clips").mkdir()
    monkeypatch.chdir(tmp_path)
    dataset = {"kind": "cmu", "name": "mosi", "raw": "clips"}
    job_id = submit(home, tmp_path, dataset=dataset)
    with open_store(home) as store:
        spec = queries.job(store, job_id).spec
    assert spec["dataset"]["raw"] == str(tmp_path / "clips")
    assert check(spec, "stored").model_dump(mode="json") == spec


def test_the_store_is_where_the_option_or_the_variable_says(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(job_file(tmp_path))
    assert call("submit", path, "--detach", "--store", f"sqlite:///{tmp_path}/a.db").exit_code == 0
    monkeypatch.setenv("RAYMSA_STORE", f"sqlite:///{tmp_path}/b.db")
    assert call("submit", path, "--detach").exit_code == 0
    assert len(json.loads(call("list", "--json").stdout)) == 1
    assert (tmp_path / "a.db").exists()
    assert not (home / "store.db").exists()


# Reading


@pytest.mark.parametrize("words", READING)
def test_data_is_json_on_stdout_and_words_are_on_stderr(home: Path, tmp_path: Path, words: str) -> None:
    job_id = submit(home, tmp_path)
    finish(home, job_id)
    given = words.replace("JOB", job_id).replace("FILE", str(job_file(tmp_path))).split()
    result = call(*given, "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)
    assert "{" not in result.stderr


def test_json_has_null_where_a_number_is_none(home: Path, tmp_path: Path) -> None:
    job_id = submit(home, tmp_path)
    finish(home, job_id)
    said = json.loads(call("results", job_id, "--json").stdout)
    assert said["rows"][0]["test"]["corr"]["mean"] is None
    assert said["rows"][0]["test"]["mae"]["mean"] == 0.5


def test_results_of_a_finished_job_are_a_table_and_code_0(home: Path, tmp_path: Path) -> None:
    job_id = submit(home, tmp_path)
    run_id = finish(home, job_id)
    result = call("results", job_id)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "0.500" in result.stdout
    assert run_id in result.stdout


def test_a_list_and_a_status_are_readable_tables(home: Path, tmp_path: Path) -> None:
    first, second = submit(home, tmp_path), submit(home, tmp_path, name="other")
    finish(home, first)
    shown = call("list").stdout
    assert re.search(rf"{first} +small +done +1/1", shown)
    assert re.search(rf"{second} +other +queued +0/1", shown)
    shown = call("status", first).stdout
    assert f"job {first} (small): done" in shown
    assert f"{first}-disc-1" in shown


def test_a_log_that_is_not_there_yet_is_not_found(home: Path, tmp_path: Path) -> None:
    result = call("logs", submit(home, tmp_path))
    assert (result.exit_code, result.stdout) == (102, "")
    assert "nothing was logged yet" in result.stderr


def test_logs_are_those_of_the_job_or_of_the_run(home: Path, tmp_path: Path) -> None:
    job_id = submit(home, tmp_path)
    run_id = finish(home, job_id)
    for path, text in [(home / "jobs" / f"{job_id}.log", "the driver\n"), (home / "runs" / run_id / "log.txt", "µ\n")]:
        path.parent.mkdir(parents=True)
        path.write_text(text, encoding="utf-8")
    for word in (job_id, job_id[:4], "small"):  # a cut id means the job, even if it has a single run
        assert call("logs", word).stdout == "the driver\n"
    assert call("logs", run_id).stdout == "µ\n"
    assert call("logs", "-f", job_id).stdout == "the driver\n"  # ends, because the job has


# Ids


def test_an_id_may_be_cut_and_a_name_may_stand_for_it(home: Path, tmp_path: Path) -> None:
    job_id = submit(home, tmp_path)
    for word in (job_id, job_id[:4], job_id[0], "small"):
        assert json.loads(call("status", word, "--json").stdout)["job"]["id"] == job_id


def test_an_ambiguous_id_is_a_usage_error_that_names_the_candidates(home: Path) -> None:
    with open_store(home) as store:
        ids = sorted(stores.put(store, f"job{number}") for number in range(17))  # 16 first digits
    prefix = next(one[0] for one, other in pairwise(ids) if one[0] == other[0])
    for command in ("status", "cancel", "retry", "results", "logs"):
        result = call(command, prefix)
        assert (result.exit_code, result.stdout) == (2, ""), command
        assert all(job_id in result.stderr for job_id in ids if job_id[0] == prefix)
        assert "give more of the id" in result.stderr


# Cancel, retry


def test_a_queued_job_can_be_cancelled_and_queued_again(home: Path, tmp_path: Path) -> None:
    job_id = submit(home, tmp_path)
    result = call("cancel", job_id[:5], "--json")
    assert (result.exit_code, json.loads(result.stdout)) == (0, {"job": job_id, "cancelled": 2, "asked": 0})
    assert call("cancel", job_id).exit_code == 1
    assert json.loads(call("status", job_id, "--json").stdout)["job"]["state"] == "cancelled"

    result = call("retry", job_id)
    assert (result.exit_code, result.stdout) == (0, "")
    assert "2 tasks queued again; `raymsa work` does them" in result.stderr
    assert json.loads(call("status", job_id, "--json").stdout)["job"]["state"] == "queued"


def test_results_of_a_cancelled_job_end_with_103(home: Path, tmp_path: Path) -> None:
    job_id = submit(home, tmp_path)
    call("cancel", job_id)
    result = call("results", job_id)
    assert result.exit_code == 103
    assert f"job {job_id} was cancelled" in result.stderr


def test_results_of_a_failed_job_end_with_1_and_say_where_to_look(home: Path, tmp_path: Path) -> None:
    job_id = submit(home, tmp_path)
    with open_store(home) as store:
        task = queue.claim(store, "driver", 60)
        assert task is not None
        queue.fail(store, task, "the raw folder is empty")
    result = call("results", job_id)
    assert result.exit_code == 1
    assert f"raymsa status {job_id}" in result.stderr
    assert "the raw folder is empty" in call("status", job_id).stdout


def test_a_job_that_ended_well_has_nothing_to_cancel_or_retry(home: Path, tmp_path: Path) -> None:
    job_id = submit(home, tmp_path)
    finish(home, job_id)
    result = call("cancel", job_id)
    assert result.exit_code == 1
    assert "nothing that could be cancelled; it is done" in result.stderr
    result = call("retry", job_id)
    assert result.exit_code == 2
    assert "no failed or cancelled task to retry" in result.stderr


def test_waiting_for_no_time_looks_once(home: Path, tmp_path: Path) -> None:
    job_id = submit(home, tmp_path)
    result = raymsa(home, "wait", job_id, "--timeout", "0", timeout_s=60)
    assert result.returncode == 101 and f"job {job_id} is still queued" in result.stderr


def test_a_job_that_is_removed_while_somebody_waits_for_it_is_not_done(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = submit(home, tmp_path)
    monkeypatch.setattr("raymsa.cli.orders.time.sleep", lambda _: orders.remove(open_store(home), job_id, "eve"))
    result = call("wait", job_id)
    assert (result.exit_code, result.stderr) == (102, f"error: job {job_id} was removed from the store\n")


def test_a_store_that_is_away_for_a_moment_is_waited_for(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = submit(home, tmp_path)
    finish(home, job_id)
    away, state = [True, True], queries.state

    def answer(store: Store, job_id: str) -> str:
        if away:
            away.pop()
            raise StoreAway("the server is being restarted")
        return state(store, job_id)

    monkeypatch.setattr(queries, "state", answer)
    result = call("wait", job_id)
    assert result.exit_code == 0
    assert result.stderr == f"the server is being restarted; waiting for it\njob {job_id} is done\n"
    away.append(True)
    assert call("wait", job_id, "--timeout", "0").exit_code == 1


def test_a_job_that_waits_for_a_failed_one_is_not_waited_for(home: Path, tmp_path: Path) -> None:
    first = submit(home, tmp_path)
    with open_store(home) as store:
        for task in queries.tasks(store, first):
            queue.fail(store, queue.claim(store, "driver", 60, first), "broke") if task.seq == 0 else None
    done = raymsa(home, "submit", str(job_file(tmp_path)), "--after", first, timeout_s=60)
    assert done.returncode == 101, done.stderr
    assert f"waits for prepare of job {first}" in done.stderr and f"raymsa retry {first}" in done.stderr
    assert "starting Ray" not in done.stderr


def test_the_age_of_a_job_is_by_the_stores_clock(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    submit(home, tmp_path)
    monkeypatch.setattr(Store, "now", lambda *_: time.time() + 7200)  # this machine is two hours late
    assert "2h00m ago" in call("list").stdout


def test_a_running_job_is_asked_to_stop(home: Path, tmp_path: Path) -> None:
    job_id = submit(home, tmp_path)
    with open_store(home) as store:
        queue.claim(store, "driver", 60)
    result = call("cancel", job_id)
    assert result.exit_code == 0
    assert "1 running tasks asked to stop" in result.stderr
    assert call("retry", job_id).exit_code == 2


def test_work_ends_at_once_when_the_queue_is_empty(home: Path, tmp_path: Path) -> None:
    finish(home, submit(home, tmp_path))
    result = call("work", "--until-empty")
    assert (result.exit_code, result.stderr) == (0, "the queue is empty\n")
