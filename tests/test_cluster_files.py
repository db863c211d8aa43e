"""cluster/: every file against the tool it is for. No cloud, no network."""

import copy
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from raymsa.jobfile import load_job
from tests import cluster_checks as check
from tests import command_lines
from tests.jobs import job_file

ROOT = Path(__file__).parent.parent
CLUSTER = ROOT / "cluster"
FILES = sorted(path for path in CLUSTER.iterdir() if path.is_file())
SCRIPTS = [path for path in FILES if path.suffix == ".sh"]
MANIFESTS = [path for path in FILES if path.suffix == ".yaml" and path.name != "aws.yaml"]
UP = check.documents(CLUSTER / "aws.yaml")[0]
SLURM = (CLUSTER / "slurm.sh").read_text(encoding="utf-8")
DOCKERFILE = (CLUSTER / "Dockerfile").read_text(encoding="utf-8")


def name(path: Path) -> str:
    return path.name


# The files


def test_ray_up_takes_the_file_for_aws() -> None:
    assert check.ray_up(UP) == []


@pytest.mark.parametrize("path", MANIFESTS, ids=name)
def test_every_field_for_kubernetes_is_one_that_there_is(path: Path) -> None:
    assert [problem for document in check.documents(path) for problem in check.kubernetes(document)] == []


@pytest.mark.parametrize("path", SCRIPTS, ids=name)
def test_bash_can_read_every_script(path: Path) -> None:
    assert bash_problems(path.read_text(encoding="utf-8")) == ""
    assert os.access(path, os.X_OK)


@pytest.mark.parametrize("field", [key for key in UP if key.endswith("_commands")])
def test_bash_can_read_every_command_for_aws(field: str) -> None:
    assert [bash_problems(command) for command in UP[field] if bash_problems(command)] == []


def test_slurm_takes_every_line_meant_for_it() -> None:
    assert check.slurm(SLURM) == []


def test_the_dockerfile_installs_what_the_project_asks_for() -> None:
    assert check.dockerfile(DOCKERFILE) == []


@pytest.mark.parametrize("path", FILES, ids=name)
def test_every_command_of_ours_and_of_ray_exists_with_its_options(path: Path) -> None:
    assert [problem for words in command_lines.of_file(path) for problem in command_lines.problems(words)] == []


def test_the_commands_are_found() -> None:
    """A check of the files that finds nothing to check would pass as well."""
    found = {path.name: {words[0] for words in command_lines.of_file(path)} for path in FILES}
    both = {"ray", "raymsa"}
    assert found["aws.yaml"] == found["raycluster.yaml"] == found["slurm.sh"] == found["README.md"] == both
    assert (found["rayjob.yaml"], found["Dockerfile"], found["spot_notice.sh"]) == ({"raymsa"}, {"raymsa"}, {"ray"})


@pytest.mark.parametrize("path", FILES, ids=name)
def test_every_path_that_is_named_is_there(path: Path) -> None:
    assert check.paths(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", FILES, ids=name)
def test_every_setting_is_read_by_somebody(path: Path) -> None:
    assert check.settings(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", FILES, ids=name)
def test_no_file_holds_a_password(path: Path) -> None:
    assert check.secrets(path.read_text(encoding="utf-8")) == []


def test_every_file_is_explained_on_the_page_and_every_link_of_the_page_leads_somewhere() -> None:
    page = (CLUSTER / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in FILES if path.name != "README.md" and f"[{path.name}]({path.name})" not in page] == []
    links = re.findall(r"\]\(([^)#:]+)\)", page)
    assert [link for link in links if not (CLUSTER / link).exists()] == []


def test_the_pages_blocks_of_a_job_are_right(tmp_path: Path) -> None:
    block = re.findall(r"(?s)```yaml\n(.*?)```", (CLUSTER / "README.md").read_text(encoding="utf-8"))[0]
    assert load_job(job_file(tmp_path, **yaml.safe_load(block))).resources.custom == {"card_24g": 1}


def test_one_image_serves_all() -> None:
    texts = [path.read_text(encoding="utf-8") for path in FILES if path.suffix == ".yaml"]
    assert {image for text in texts for image in re.findall(r"image: (\S+)", text)} == {"REGISTRY/raymsa:0.1"}


# The checks themselves: each must find what is wrong


def with_(document: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """The document with one field other; `None` takes it out."""
    changed = inside = copy.deepcopy(document)
    *steps, last = [int(step) if step.isdigit() else step for step in path.split("/")]
    for step in steps:
        inside = inside[step]
    if value is None:
        del inside[last]
    else:
        inside[last] = value
    return changed


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("max_worker", 4, "max_worker"),
        ("max_workers", "four", "max_workers"),
        ("provider/regio", "us-west-2", "provider.regio"),
        ("provider/type", "awss", "awss"),
        ("head_node_type", "haed", "head_node_type"),
        ("available_node_types/gpu/ressources", {}, "ressources"),
        ("available_node_types/gpu/min_workers", 9, "min_workers"),
        ("available_node_types/head/resources/CPU", "none", "CPU"),
        ("available_node_types/gpu/node_config/InstanceTyp", "g5.2xlarge", "InstanceTyp"),
        ("available_node_types/gpu/node_config/BlockDeviceMappings/0/Ebs/Size", 5, "Size"),
        ("available_node_types/gpu/node_config/ImageId", None, "ImageId"),
        ("docker/image", None, "container & image"),
        ("head_start_ray_commands", "ray stop", "head_start_ray_commands"),
    ],
)
def test_a_wrong_file_for_ray_up_is_found(path: str, value: Any, says: str) -> None:
    assert says in " ".join(check.ray_up(with_(UP, path, value)))


WORKER = "spec/workerGroupSpecs/0"
JOB_WORKER = "spec/rayClusterSpec/workerGroupSpecs/0"


@pytest.mark.parametrize(
    ("file", "path", "value", "says"),
    [
        ("raycluster", "kind", "RayClsuter", "unknown kind"),
        ("raycluster", "apiVersion", "ray.io/v1alpha1", "unknown kind"),
        ("raycluster", "spec/workerGroupSpec", [], "workerGroupSpec"),
        ("raycluster", "spec/authOptions/mod", "token", "mod"),
        ("raycluster", "spec/authOptions", None, "not token"),
        ("raycluster", "spec/rayVersion", "2.9.0", "pyproject.toml"),
        ("raycluster", "spec/headGroupSpec/rayStartParams/num-cpus", 0, "not of type 'string'"),
        ("raycluster", "spec/headGroupSpec/rayStartParams/num-cpus", "4", "only drivers"),
        ("raycluster", f"{WORKER}/rayStartParams/objectstore-memory", "1", "--objectstore-memory"),
        ("raycluster", f"{WORKER}/rayStartParams/object-store-memory", "9000000000", "/dev/shm"),
        ("raycluster", f"{WORKER}/rayStartParams/resources", '{"card": 1}', "no JSON after a shell"),
        ("raycluster", f"{WORKER}/minReplicas", 3, "minReplicas"),
        ("raycluster", f"{WORKER}/template/spec/containers/0/volumeMount", [], "volumeMount"),
        ("raycluster", f"{WORKER}/template/spec/containers/0/volumeMounts/0/name", "shard", "no volume shard"),
        ("raycluster", f"{WORKER}/template/spec/containers/0/resources/limits/memory", "28GB", "28GB"),
        ("raycluster", f"{WORKER}/template/spec/terminationGracePeriodSeconds", 60, "checkpoint"),
        (
            "raycluster",
            "spec/headGroupSpec/template/spec/containers/0/env/0",
            {"name": "RAYMSA_STORE", "value": "x"},
            "stands in the file",
        ),
        ("rayjob", "spec/shutdownAfterJobFinishes", None, "shutdownAfterJobFinishes"),
        ("rayjob", "spec/ttlSecondsAfterFinish", 5, "ttlSecondsAfterFinish"),
        ("rayjob", "spec/backoffLimit", -1, "-1"),
        ("rayjob", "spec/suspend", False, "suspend: true"),
        ("rayjob", "spec/rayClusterSpec/enableInTreeAutoscaling", True, "Kueue"),
        ("rayjob", f"{JOB_WORKER}/groupNam", "gpu", "groupNam"),
        ("storage", "spec/accessModes/0", "ReadWriteMost", "ReadWriteMost"),
    ],
)
def test_a_wrong_manifest_is_found(file: str, path: str, value: Any, says: str) -> None:
    document = check.documents(CLUSTER / f"{file}.yaml")[0]
    assert check.kubernetes(document) == []
    assert says in " ".join(check.kubernetes(with_(document, path, value)))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("raymsa sumbit FILE", "sumbit"),
        ("raymsa work --until-emtpy", "--until-emtpy"),
        ("raymsa work surplus", "surplus"),
        ("raymsa submit", "FILE"),
        ("raymsa submit FILE --lease-s soon", "soon"),
        ("exec raymsa work --adress auto", "--adress"),
        ("VAR=1 raymsa data statts SHARDS", "statts"),
        ("bash -c 'sleep 1; exec raymsa work --adress auto'", "--adress"),
        ("until raymsa work --adress auto; do sleep 10; done", "--adress"),
        ("ray start --haed", "--haed"),
        ("ray start --head --port=many", "many"),
        ("ray strat --head", "strat"),
        ("ray drain-node --reason DRAIN --reason-message x", "DRAIN"),
        ("ray symmetric-run --address $ip:6379 raymsa work", "no --"),
        ("ray symmetric-run --min-nodes 2 -- raymsa work", "--address"),
        ("ray symmetric-run --address $ip:6379 --num-cpu=4 -- raymsa work", "--num-cpu"),
        ("ray symmetric-run --address $ip:6379 --block -- raymsa work", "not with symmetric-run"),
        ("srun --nodes=2 ray symmetric-run --address $ip:6379 \\\n  -- raymsa work --adress auto", "--adress"),
        ("ray job submit --adress http://HEAD:8265 -- raymsa work", "--adress"),
        ("ray job submit --no-wait -- raymsa wrok", "wrok"),
    ],
)
def test_a_wrong_command_is_found(line: str, says: str) -> None:
    assert says in " ".join(
        problem for words in command_lines.commands(line) for problem in command_lines.problems(words)
    )


@pytest.mark.parametrize(
    "line",
    [
        "raymsa work --until-empty --address $ip:6379 2> /dev/null",
        "ulimit -n 65536; ray start --head --port=6379 --num-cpus=0 > log.txt 2>&1",
        "ray symmetric-run --address $ip:6379 --min-nodes $N --num-cpus=4 -- raymsa work --address $ip:6379",
        "ray exec cluster/aws.yaml --tmux 'raymsa list'  # a comment; raymsa nonsense",
        "bash -c 'echo hello' raymsa nonsense",
    ],
)
def test_a_right_command_is_left_alone(line: str) -> None:
    assert [problem for words in command_lines.commands(line) for problem in command_lines.problems(words)] == []


@pytest.mark.parametrize(
    ("checks", "text", "says"),
    [
        (check.slurm, SLURM.replace("--gpus-per-node", "--gpu-per-node"), "--gpu-per-node"),
        (check.slurm, SLURM.replace("#SBATCH --requeue", "#SBATCH -- requeue"), "-- requeue"),
        (check.slurm, SLURM.replace("#SBATCH --requeue", "#SBATCH --nodes=3"), "second --nodes"),
        (check.slurm, SLURM + "#SBATCH --mem=1G\n", "after the first command"),
        (check.slurm, SLURM.replace("srun --ntasks-per-node", "srun --ntask-per-node"), "--ntask-per-node"),
        (check.dockerfile, DOCKERFILE.replace("COPY jobs", "COPY job"), "no job in"),
        (check.dockerfile, DOCKERFILE.replace("WORKDIR", "WORKDIRECTORY"), "WORKDIRECTORY"),
        (check.dockerfile, DOCKERFILE.replace("postgres,", "postgresql,"), "no extra postgresql"),
        (check.dockerfile, DOCKERFILE.replace("torch>=2.8,", "torch>=2.1,"), "torch>=2.1"),
        (check.dockerfile, DOCKERFILE.replace("python:3.11", "python:3.13"), "the base"),
        (check.dockerfile, DOCKERFILE.replace("USER raymsa", "USER root"), "root"),
        (check.paths, "see jobs/mosi_dics.yaml", "no jobs/mosi_dics.yaml"),
        (check.settings, "export RAYMSA_HOEM=/mnt", "RAYMSA_HOEM"),
        (check.settings, "RAY_GRACEFULL_SHUTDOWN_DRAIN_TIMEOUT_S: 120", "RAY_GRACEFULL"),
        (check.settings, "export RAY_raylet_start_wait_times=180", "RAY_raylet"),
        (check.secrets, "postgresql://me:secret@db/raymsa", "secret"),
    ],
)
def test_a_wrong_text_is_found(checks: Callable[[str], list[str]], text: str, says: str) -> None:
    assert says in " ".join(checks(text))


def test_a_script_that_bash_cannot_read_is_found() -> None:
    assert "syntax error" in bash_problems(SLURM.replace("\nfi\n", "\n"))


def bash_problems(script: str) -> str:
    """What `bash -n` says."""
    return subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False).stderr
