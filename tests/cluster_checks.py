"""What is wrong with a file in cluster/, by the tool it is for. A check gives a list of problems, best an empty one."""

import contextlib
import io
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from tests import crd_fields

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REQUIREMENTS = [
    *PROJECT["dependencies"],
    *(each for extra in PROJECT["optional-dependencies"].values() for each in extra),
]
UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
SECRETS = ("RAYMSA_STORE", "RAY_AUTH_TOKEN")

# `sbatch --help` of Slurm 22.05, --open-mode, which it leaves out, and --kill-on-bad-exit, which is srun's
SBATCH = re.compile(
    r"""(?x)
    account | array | bb | bbf | begin | chdir | cluster-constraint | clusters | comment | constraint | container |
    contiguous | core-spec | cores-per-socket | cpu-freq | cpus-per-gpu | cpus-per-task | deadline | delay-boot |
    dependency | distribution | error | exclude | exclusive | export | export-file | get-user-env | gid | gpu-bind |
    gpu-freq | gpus | gpus-per-node | gpus-per-socket | gpus-per-task | gres | gres-flags | hold | ignore-pbs |
    input | job-name | kill-on-bad-exit | licenses | mail-type | mail-user | mcs-label | mem | mem-per-cpu |
    mem-per-gpu | mincpus | nice | no-kill | no-requeue | nodefile | nodelist | nodes | ntasks | ntasks-per-core |
    ntasks-per-node | ntasks-per-socket | open-mode | output | overcommit | oversubscribe | parsable | partition |
    power | priority | profile | propagate | qos | quiet | reboot | requeue | reservation | signal |
    sockets-per-node | spread-job | switches | test-only | thread-spec | threads-per-core | time | time-min | tmp |
    uid | use-min-nodes | verbose | wait | wait-all-nodes | wckey | wrap
    """
)
DOCKERFILE = re.compile(
    r"""(?x)
    ADD | ARG | CMD | COPY | ENTRYPOINT | ENV | EXPOSE | FROM | HEALTHCHECK | LABEL | ONBUILD | RUN | SHELL |
    STOPSIGNAL | USER | VOLUME | WORKDIR
    """
)


def against(schema: dict[str, Any], value: Any) -> list[str]:
    """Problems of a JSON schema, each with its place."""
    found = jsonschema.Draft7Validator(schema).iter_errors(value)
    return [f"{'.'.join(map(str, error.absolute_path)) or 'file'}: {error.message[:200]}" for error in found]


# ray up


def ray_up(config: dict[str, Any]) -> list[str]:
    """A file for `ray up`: Ray's own schema and checks, and EC2's for what a machine is."""
    import ray.autoscaler

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    known = {*schema["properties"]["provider"]["properties"], "availability_zone"}
    found = against(schema, config)
    found += [f"provider.{key}: unknown" for key in config.get("provider", {}) if key not in known]
    return found or [*_ray_itself(config), *_machines(config["available_node_types"])]


def _ray_itself(config: dict[str, Any]) -> list[str]:
    from ray.autoscaler._private.util import prepare_config, validate_config

    try:
        with contextlib.redirect_stdout(io.StringIO()):
            validate_config(prepare_config(json.loads(json.dumps(config))))
    except (AssertionError, ValueError, RuntimeError, KeyError, jsonschema.ValidationError) as error:
        return [f"ray up: {error}"]
    return []


def _machines(types: dict[str, Any]) -> list[str]:
    """`node_config` against what EC2's RunInstances takes, which botocore knows."""
    import botocore.session
    from botocore.validate import ParamValidator

    takes = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    found = []
    for name, about in types.items():
        report = ParamValidator().validate({**about["node_config"], "MinCount": 1, "MaxCount": 1}, takes)
        found += [f"{name}: {line}" for line in report.generate_report().splitlines()]
        found += [f"{name}: no {key}" for key in ("InstanceType", "ImageId") if key not in about["node_config"]]
    return found


# Kubernetes


def kubernetes(document: dict[str, Any]) -> list[str]:
    """One document for kubectl: its fields, KubeRay's and Kueue's own rules, and that what it refers to is there."""
    try:
        schema = crd_fields.schema(document["apiVersion"], document["kind"])
    except KeyError:
        return [f"unknown kind: {document.get('apiVersion')} {document.get('kind')}"]
    if found := against(schema, document):
        return found
    spec = document["spec"]
    cluster = spec.get("rayClusterSpec") if document["kind"] == "RayJob" else spec
    found = _job(document) if document["kind"] == "RayJob" else []
    if document["apiVersion"] == "ray.io/v1":
        found += _cluster(cluster)
    return [*found, *(line for pod in pods(document) for line in _pod(pod))]


def pods(value: Any) -> Iterator[dict[str, Any]]:
    """Every pod in a document."""
    if isinstance(value, dict):
        if "containers" in value:
            yield value
        for inside in value.values():
            yield from pods(inside)
    elif isinstance(value, list):
        for inside in value:
            yield from pods(inside)


def _job(document: dict[str, Any]) -> list[str]:
    spec, found = document["spec"], []
    if not spec.get("shutdownAfterJobFinishes") and (spec.get("suspend") or spec.get("ttlSecondsAfterFinished")):
        found.append("suspend and ttlSecondsAfterFinished need shutdownAfterJobFinishes: true")
    if "rayClusterSpec" not in spec:
        return [*found, "no rayClusterSpec"]
    if "kueue.x-k8s.io/queue-name" in document["metadata"].get("labels", {}):
        if spec["rayClusterSpec"].get("enableInTreeAutoscaling"):
            found.append("Kueue refuses enableInTreeAutoscaling")
        if not spec.get("suspend"):
            found.append("a job for Kueue starts with suspend: true")
    return found


def _cluster(spec: dict[str, Any]) -> list[str]:
    groups = [spec["headGroupSpec"], *spec.get("workerGroupSpecs", [])]
    found = [line for group in groups for line in _start_params(group)]
    if spec.get("authOptions", {}).get("mode") != "token":
        found.append("authOptions.mode is not token")
    if not _allows(next(line for line in REQUIREMENTS if line.startswith("ray[")), spec.get("rayVersion", "")):
        found.append(f"rayVersion {spec.get('rayVersion')} is not the one in pyproject.toml")
    if spec["headGroupSpec"]["rayStartParams"].get("num-cpus") != "0":
        found.append("the head has to have num-cpus: '0', so that only drivers run there")
    for group in groups[1:]:
        if not group["minReplicas"] <= group.get("replicas", 0) <= group["maxReplicas"]:
            found.append(f"{group['groupName']}: replicas is not between minReplicas and maxReplicas")
    return found


def _start_params(group: dict[str, Any]) -> list[str]:
    """rayStartParams become options of `ray start`; the objects have to fit into /dev/shm."""
    from ray.scripts.scripts import start

    known = {name.removeprefix("--") for option in start.params for name in option.opts}
    params = group["rayStartParams"]
    found = [f"rayStartParams: ray start has no --{name}" for name in params if name not in known]
    if "resources" in params:
        try:
            json.loads(" ".join(shlex.split(params["resources"])))
        except ValueError:
            found.append(f"rayStartParams.resources is no JSON after a shell: {params['resources']}")
    memory = [
        volume["emptyDir"].get("sizeLimit", "0Gi")
        for volume in group["template"]["spec"].get("volumes", [])
        if volume.get("emptyDir", {}).get("medium") == "Memory"
    ]
    room = sum(int(size[:-2]) * UNITS[size[-2:]] for size in memory)
    if int(params.get("object-store-memory", room + 1)) > room:
        found.append(f"object-store-memory does not fit into {room} bytes of /dev/shm; Ray would use the disk")
    return found


def _pod(pod: dict[str, Any]) -> list[str]:
    volumes = {volume["name"] for volume in pod.get("volumes", [])}
    found = []
    for container in [*pod.get("initContainers", []), *pod["containers"]]:
        name, environment = container["name"], container.get("env", [])
        mounts = container.get("volumeMounts", [])
        found += [f"{name}: no volume {each['name']}" for each in mounts if each["name"] not in volumes]
        plain = {each["name"]: each["value"] for each in environment if "value" in each}
        found += [f"{name}: {key} stands in the file" for key in SECRETS if key in plain]
        drain_s = float(plain.get("RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", 0))
        if drain_s >= pod.get("terminationGracePeriodSeconds", 30):
            found.append(f"{name}: killed before the {drain_s:g} s for a checkpoint are over")
    return found


# Slurm, Docker


def slurm(script: str) -> list[str]:
    """`#SBATCH` lines: known options, once each, before the first command."""
    lines = script.splitlines()
    begin = next((at for at, line in enumerate(lines) if line.strip() and not line.startswith("#")), len(lines))
    found, seen = [], set()
    for at, line in enumerate(lines):
        if not line.startswith("#SBATCH"):
            continue
        if at > begin:
            found.append(f"line {at + 1}: Slurm does not read {line} after the first command")
        match = re.fullmatch(r"#SBATCH --([a-z-]+)(?:=(\S+))?", line)
        if match is None or not SBATCH.fullmatch(match[1]):
            found.append(f"line {at + 1}: no option of sbatch: {line}")
        elif match[1] in seen:
            found.append(f"line {at + 1}: a second --{match[1]}")
        else:
            seen.add(match[1])
    for command, words in re.findall(r"(?m)^\s*(srun|scontrol) (.*)", script.replace("\\\n", " ")):
        own = words.split(" bash ")[0] if command == "srun" else words
        found += [
            f"{command}: no option --{name}" for name in re.findall(r"--([a-z-]+)", own) if not SBATCH.fullmatch(name)
        ]
    return found


def dockerfile(text: str) -> list[str]:
    """Known instructions, sources that exist, the requirements of pyproject.toml, and a user that is not root."""
    lines = re.findall(r"(?m)^(?!#)(\S+)[ \t]+(.+)$", re.sub(r"(?m)^\s*#.*\n", "", text).replace("\\\n", " "))
    found = [f"no instruction: {name}" for name, _ in lines if not DOCKERFILE.fullmatch(name)]
    python = re.search(r"(?m)^FROM python:(\d+\.\d+)", text)
    if python is None or not _allows(PROJECT["requires-python"], f"{python[1]}.1"):
        found.append(f"the base is not Python {PROJECT['requires-python']}")
    for name, rest in lines:
        words = [word for word in rest.split() if not word.startswith("--")]
        if name in ("COPY", "ADD") and "--from" not in rest:
            found += [f"COPY: no {source} in the repository" for source in words[:-1] if not (ROOT / source).exists()]
        for line in re.findall(r"pip install ([^&;|]*)", rest) if name == "RUN" else []:
            found += [problem for word in shlex.split(line) for problem in _requirement(word)]
    users = [rest for name, rest in lines if name == "USER"]
    return found if users and users[-1] not in ("root", "0") else [*found, "the last USER is root"]


def _requirement(word: str) -> list[str]:
    extras = re.search(r"\[(.*)\]$", word)
    if word.startswith(("/", ".")):
        known = PROJECT["optional-dependencies"]
        wanted = extras[1].split(",") if extras else []
        return [f"pip: no extra {name} in pyproject.toml" for name in wanted if name not in known]
    ours = {re.split(r"[\[<>=~!]", line)[0]: line for line in REQUIREMENTS}
    name = re.split(r"[\[<>=~!]", word)[0]
    return [f"pip: {word}, but pyproject.toml has {ours[name]}"] if ours.get(name, word) != word else []


def _allows(requirement: str, version: str) -> bool:
    from packaging.specifiers import SpecifierSet
    from packaging.version import InvalidVersion

    try:
        return version in SpecifierSet(re.sub(r"^[^<>=~!]*", "", requirement))
    except InvalidVersion:
        return False


# All of them


def paths(text: str) -> list[str]:
    """Files of the repository that are named and not there."""
    named = re.findall(r"(?<![\w/.-])(?:configs|jobs|cluster|tests)/[\w./-]*\w", text)
    return [f"no {path}" for path in dict.fromkeys(named) if not (ROOT / path).exists()]


def secrets(text: str) -> list[str]:
    """Addresses with a password in them."""
    return [f"a password: {found}" for found in re.findall(r"\w+://[^\s:/@]+:[^\s/@]+@\S*", text)]


def settings(text: str) -> list[str]:
    """Environment variables that neither raymsa nor Ray nor our scripts look at: misspelt, they do nothing."""
    scripts = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "cluster").glob("*.sh"))
    own = set(re.findall(r"\$\{(RAY\w+):-", scripts))
    named = set(re.findall(r"\b(RAY(?:MSA)?_\w+)", text)) - own
    return [f"nobody reads {name}" for name in sorted(named - _read()) if name[4].isupper() or not _in_raylet(name[4:])]


@cache
def _read() -> set[str]:
    """Every such name in the sources of raymsa and Ray."""
    import ray

    sources = [path for folder in (ROOT / "raymsa", Path(ray.__file__).parent) for path in folder.rglob("*.py")]
    return {name.decode() for path in sources for name in re.findall(rb"\bRAY(?:MSA)?_\w+", path.read_bytes())}


def _in_raylet(setting: str) -> bool:
    """Ray's C++ settings are RAY_ and their name in small letters, which the program holds."""
    import ray

    return setting.encode() in (Path(ray.__file__).parent / "core/src/ray/raylet/raylet").read_bytes()


def documents(path: Path) -> list[dict[str, Any]]:
    """The documents of a YAML file."""
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
