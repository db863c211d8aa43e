"""The scripts of cluster/ at work.

Slurm, Ray, the driver and AWS are played by small programs here: what is tested is what the scripts make of them.
"""

import http.server
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import command_lines
from tests.jobs import wait_for

CLUSTER = Path(__file__).parent.parent / "cluster"


@pytest.fixture
def stage(tmp_path: Path) -> dict[str, str]:
    """An environment in which `program` puts programs on the path, and that Slurm would give to a batch script."""
    folder = tmp_path / "bin"
    folder.mkdir()
    path = f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    (folder / "activate").write_text(f"PATH={path}\n")
    program(folder, "srun", 'while [ "${1#-}" != "$1" ]; do shift; done; exec "$@"')
    program(folder, "scontrol", f'echo "$@" >> {tmp_path}/scontrol.txt')
    return {
        **os.environ,
        "PATH": path,
        "RAYMSA_VENV": str(tmp_path),
        "RAYMSA_HOME": str(tmp_path / "home"),
        "RAYMSA_STORE": "postgresql://db/raymsa",
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_PER_TASK": "4",
        "SLURM_GPUS_ON_NODE": "1",
        "SLURM_NODEID": "0",
        "RAYMSA_AGAIN_S": "0.1",
    }


def program(folder: Path, name: str, body: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/bash\n{body}\n")
    path.chmod(0o755)


RAY = 'echo "ray $*" > {0}/ray.txt; while [ "$1" != -- ]; do shift; done; shift; "$@"'
DRIVER = 'echo "$RAY_AUTH_MODE $RAY_AUTH_TOKEN" > {0}/driver.txt; trap "echo told >> {0}/driver.txt; exit 0" TERM; {1}'


def sbatch(stage: dict[str, str], ray: str, driver: str) -> subprocess.Popen[str]:
    """The batch script, with Ray and the driver played by these lines."""
    folder = Path(stage["RAYMSA_VENV"])
    program(folder / "bin", "ray", '[ "$1" = stop ] && exit; ' + ray.format(folder))
    program(folder / "bin", "raymsa", DRIVER.format(folder, driver.format(folder)))
    return subprocess.Popen(
        [CLUSTER / "slurm.sh"], env=stage, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_slurms_signal_reaches_the_driver_alone_and_the_job_goes_back_into_the_queue(
    tmp_path: Path, stage: dict[str, str]
) -> None:
    job = sbatch(stage, RAY, "while :; do sleep 0.1; done")
    wait_for(lambda: (tmp_path / "driver.txt").exists() and (tmp_path / "driver.txt").read_text())
    time.sleep(0.3)
    job.send_signal(signal.SIGTERM)
    words, _ = job.communicate(timeout=60)
    assert (job.returncode, (tmp_path / "scontrol.txt").read_text()) == (0, "requeue 7\n"), words
    told = (tmp_path / "driver.txt").read_text()
    assert re.fullmatch(r"token [0-9a-f]{64}\ntold\n", told)
    asked = (tmp_path / "ray.txt").read_text()
    assert re.match(r"ray symmetric-run --address [\d.]+:6379 --min-nodes 2 --num-cpus=4 --num-gpus=1 -- bash", asked)


def test_a_driver_that_fails_fails_the_slurm_job(tmp_path: Path, stage: dict[str, str]) -> None:
    job = sbatch(stage, RAY, "exit 3")
    words, _ = job.communicate(timeout=60)
    assert (job.returncode, (tmp_path / "scontrol.txt").exists()) == (3, False), words


TWO_TASKS = """while [ "${1#-}" != "$1" ]; do shift; done
SLURM_NODEID=1 "$@" & SLURM_NODEID=0 "$@"; code=$?; wait; exit $code"""


def test_a_machine_whose_ray_does_not_come_up_tries_again_until_the_head_is_done(
    tmp_path: Path, stage: dict[str, str]
) -> None:
    program(tmp_path / "bin", "srun", TWO_TASKS)
    nothing = 'if [ "$SLURM_NODEID" = 1 ]; then echo x >> {0}/tries.txt; exit 0; fi; '  # with code 0, as Ray does it
    job = sbatch(stage, nothing + RAY, "while [ $(grep -c x {0}/tries.txt) -lt 2 ]; do sleep 0.1; done")
    words, _ = job.communicate(timeout=60)
    assert job.returncode == 0, words


def test_a_ray_that_does_not_start_fails_the_slurm_job_although_symmetric_run_says_0(stage: dict[str, str]) -> None:
    job = sbatch(stage, "exit 0", "exit 0")
    words, _ = job.communicate(timeout=60)
    assert job.returncode == 1
    assert "Ray did not start" in words


@pytest.mark.parametrize("setting", ["RAYMSA_STORE", "RAYMSA_HOME"])
def test_the_batch_script_says_what_it_misses(stage: dict[str, str], setting: str) -> None:
    del stage[setting]
    job = sbatch(stage, RAY, "exit 0")
    words, _ = job.communicate(timeout=60)
    assert job.returncode != 0
    assert f"{setting}: export it before sbatch" in words


class Metadata(http.server.BaseHTTPRequestHandler):
    """What EC2 answers: a session for a PUT, and a notice at the second time of asking."""

    asked = 0

    def do_PUT(self) -> None:
        self.answer(200, b"session" if self.path == "/latest/api/token" else b"")

    def do_GET(self) -> None:
        known = self.headers["X-aws-ec2-metadata-token"] == "session"
        Metadata.asked += 1
        self.answer(200 if known and self.path.endswith("/spot/instance-action") and Metadata.asked > 1 else 404, b"{}")

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@pytest.fixture
def metadata() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metadata) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
def test_ray_hears_of_a_spot_machine_that_aws_takes_back(tmp_path: Path, stage: dict[str, str], metadata: str) -> None:
    program(tmp_path / "bin", "ray", f'printf "%s\\n" ray "$@" > {tmp_path}/ray.txt')
    environment = {**stage, "RAYMSA_METADATA": metadata, "RAYMSA_NOTICE_S": "0.1", "no_proxy": "127.0.0.1"}
    subprocess.run([CLUSTER / "spot_notice.sh", "10.0.0.1:6379"], env=environment, check=True, timeout=60)
    words = (tmp_path / "ray.txt").read_text().splitlines()
    assert words[:4] == ["ray", "drain-node", "--address", "10.0.0.1:6379"]
    assert "DRAIN_NODE_REASON_PREEMPTION" in words
    assert command_lines.problems(words) == []
    assert Metadata.asked > 1
