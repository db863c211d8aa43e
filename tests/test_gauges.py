"""The queue as Prometheus reads it."""

import socket
import struct
import threading
import time
import urllib.error
import urllib.request

import pytest
from click.testing import CliRunner
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import update

from raymsa import gauges, queue
from raymsa.cli import main
from raymsa.errors import UsageError
from raymsa.store import Store, queries, records, tables
from tests.stores import BACKENDS, entry, fresh_url, put


@pytest.fixture(params=BACKENDS)
def store(request, tmp_path):
    with fresh_url(request.param, tmp_path) as url, Store.open(url) as opened:
        yield opened


def samples(text: bytes) -> dict[tuple[str, ...], float]:
    """(name, label values...) -> value"""
    found = [sample for family in text_string_to_metric_families(text.decode()) for sample in family.samples]
    return {(sample.name, *sample.labels.values()): sample.value for sample in found}


def training(store: Store, run_id: str, gpus: int) -> str:
    """A job with a run that trains."""
    job_id = put(store)
    task = queue.claim(store, "gpu1:1", 60)
    row = {"id": run_id, "job_id": job_id, "task_id": task.id, "variant": "disc", "seed": 1, "group_key": "g"}
    spec = {"resources": {"gpus": gpus, "cpus": 2}}
    records.create_runs(store, [{**row, "spec": spec, "spec_digest": "d"}])
    records.start_run(store, run_id, steps_total=10)
    records.record_steps(store, run_id, [entry(3, {"loss": 1.0, "clips_per_s": 12.5})], (5.0, 7.0))
    return job_id


def test_an_empty_store_has_every_state_at_zero(store) -> None:
    found = samples(gauges.text(store))
    assert [found["raymsa_tasks", state] for state in ("queued", "running", "failed", "done")] == [0, 0, 0, 0]
    assert found[("raymsa_queue_wait_seconds",)] == 0


def test_every_gauge_says_what_the_store_holds(store) -> None:
    job_id = training(store, "a", gpus=1)
    training(store, "b", gpus=0)
    waiting, broken = put(store), put(store, tasks=2, priority=5)
    queue.fail(store, queue.claim(store, "gpu1:1", 60), "no", "user")
    with store.write() as connection:
        old = update(tables.tasks).where(tables.tasks.c.job_id == waiting).values(created_at=time.time() - 100)
        connection.execute(old)
    found = samples(gauges.text(store))
    assert found["raymsa_tasks", "running"] == 2
    assert found["raymsa_tasks", "queued"] == 2
    assert found["raymsa_jobs", "failed"] == 1
    assert found[("raymsa_runs_running",)] == 2
    assert found["raymsa_run_clips_per_second", job_id, "a"] == 12.5
    assert found["raymsa_device_seconds", "gpu"] == 7
    assert found["raymsa_device_seconds", "cpu"] == 7
    assert found["raymsa_failed", "user", "task"] == 1
    assert 100 <= found[("raymsa_queue_wait_seconds",)] < 160
    assert queries.tasks(store, broken)[1].state == "queued"


def test_the_command_prints_the_same(store) -> None:
    put(store)
    result = CliRunner().invoke(main, ["metrics", "--store", store.secret_url()])
    assert result.exit_code == 0
    assert samples(result.stdout.encode())["raymsa_tasks", "queued"] == 1


def get(address: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(address, timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def test_it_is_served_and_a_store_that_is_away_is_a_503_with_one_line(tmp_path) -> None:
    path = tmp_path / "store.db"
    with Store.open(str(path)) as store, gauges.served(store, "127.0.0.1", 0) as address:
        assert get(address)[0] == 200
        assert get(address.replace("/metrics", "/else"))[0] == 404
        put(store)
        for file in tmp_path.glob("store.db*"):
            file.rename(tmp_path / f"away-{file.name}")
        store.engine.dispose()
        path.mkdir()  # what is there is no database
        code, body = get(address)
        assert (code, body.count(b"\n")) == (503, 1)
        path.rmdir()
        for file in tmp_path.glob("away-*"):
            file.rename(tmp_path / file.name.removeprefix("away-"))
        code, body = get(address)
        assert code == 200
        assert samples(body)["raymsa_tasks", "queued"] == 1
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(address, timeout=5)


def test_a_port_in_use_is_one_clear_line(tmp_path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, Store.open(str(tmp_path / "store.db")) as store:
        port = taken.getsockname()[1]
        said = f"--metrics {port}: 127.0.0.1:{port} .*already in use; give another port"
        with pytest.raises(UsageError, match=said), gauges.served(store, "127.0.0.1", port):
            pass
        words = ["work", "--until-empty", "--metrics", str(port), "--store", store.secret_url()]
        result = CliRunner().invoke(main, words)
        assert result.exit_code == 2
        assert result.stderr.startswith(f"error: --metrics {port}: ")
        assert result.stderr.count("\n") == 1


def test_one_who_hangs_up_is_not_told_of(store, capfd: pytest.CaptureFixture[str], monkeypatch) -> None:
    gone = threading.Event()

    def late(store: Store) -> bytes:
        gone.wait(10)
        return b"x" * 10_000_000

    monkeypatch.setattr(gauges, "text", late)
    with gauges.served(store, "127.0.0.1", 0) as address:
        port = int(address.rsplit(":", 1)[1].split("/")[0])
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # leaves with a reset
            client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            time.sleep(0.2)
        gone.set()
        time.sleep(0.5)
    assert capfd.readouterr().err == ""
