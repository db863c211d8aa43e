"""Every file that is shipped: jobs and configs load, and the pages say what is there."""

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner

from raymsa.cli import main
from raymsa.cli.base import COMMANDS
from raymsa.jobfile import load_dataset, load_job, read_job
from raymsa.spec import ModelSpec, check, runs, validate
from raymsa.yamlfile import read_mapping

ROOT = Path(__file__).parent.parent
JOBS = sorted((ROOT / "jobs").iterdir())
MODELS = sorted((ROOT / "configs/models").iterdir())
DATASETS = sorted((ROOT / "configs/datasets").iterdir())
README = (ROOT / "README.md").read_text(encoding="utf-8")
CLUSTER = (ROOT / "cluster/README.md").read_text(encoding="utf-8")


def name(path: Path) -> str:
    return path.stem


def tracked() -> list[str]:
    """What git tracks, and new files that it does not ignore."""
    try:
        command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return sorted(path for path in set(listed) if (ROOT / path).exists())


# Jobs and configs


@pytest.mark.parametrize("path", JOBS, ids=name)
def test_every_job_loads_and_is_named_after_its_file(path: Path) -> None:
    job = load_job(path)
    assert job.name == path.stem
    assert len(runs(job)) == (1 if job.search else max(1, len(job.variants)) * len(job.seeds))


@pytest.mark.parametrize("path", JOBS, ids=name)
def test_every_job_begins_with_what_it_is_for(path: Path) -> None:
    assert path.read_text(encoding="utf-8").startswith("# ")


@pytest.mark.parametrize("path", MODELS, ids=name)
def test_every_model_config_loads(path: Path) -> None:
    assert validate(ModelSpec, read_mapping(path), str(path)).quantization == "nf4"


@pytest.mark.parametrize("path", DATASETS, ids=name)
def test_every_dataset_config_loads(path: Path) -> None:
    assert load_dataset(path).name in path.stem or path.stem == "table_example"


def test_the_papers_settings_load_as_a_base() -> None:
    raw = read_job(ROOT / "configs/paper.yaml")
    raw["dataset"] = read_mapping(ROOT / "configs/datasets/synthetic.yaml")
    assert check({**raw, "name": "x"}, "paper.yaml").readout.kind == "disc"


def test_the_papers_settings_are_the_published_ones() -> None:
    job = load_job(ROOT / "jobs/mosi_disc.yaml")
    assert job.model.path == "Qwen/Qwen2.5-Omni-7B"
    assert job.model.quantization == "nf4"
    assert (job.lora.rank, job.lora.alpha, job.lora.dropout, job.lora.scope) == (32, 32, 0.1, "thinker")
    assert set(job.lora.targets) == {f"{part}_proj" for part in ("q", "k", "v", "o", "gate", "up", "down")}
    assert (job.train.lora_lr, job.train.head_lr) == (2e-4, 1e-3)
    assert (job.readout.kind, job.readout.head_width, job.readout.head_dropout) == ("disc", 256, 0.2)
    assert job.inputs.modalities == ("text", "audio", "video")
    assert job.dataset.media.max_frames == 16
    assert len(job.seeds) == 4
    assert job.resources.gpus == 1


def test_the_main_job_trains_as_many_parameters_as_the_paper_and_this_page_say() -> None:
    from raymsa.plan import trainable
    from raymsa.thinker.geometry import GEOMETRY, parameter_counts

    job = load_job(ROOT / "jobs/mosi_disc.yaml")
    config = GEOMETRY[job.model.path]()
    adapters = parameter_counts(config, job.lora, job.inputs.modalities).lora
    assert adapters == 103_043_072
    assert f"{adapters:,} in the adapters" in " ".join(README.split())
    assert f"{trainable(job):,} trainable parameters" in " ".join(README.split())


@pytest.mark.parametrize("dataset", ["mosi", "mosei"])
def test_the_two_readouts_are_compared_all_else_equal(dataset: str) -> None:
    disc, gen = (load_job(ROOT / f"jobs/{dataset}_{kind}.yaml").model_dump() for kind in ("disc", "gen"))
    assert {key for key in disc if disc[key] != gen[key]} == {"name", "readout"}


def test_the_published_splits_are_those_of_the_field() -> None:
    published = {path.stem: load_dataset(path).published for path in DATASETS}
    assert published["mosi"] == {"train": 1284, "valid": 229, "test": 686}
    assert published["mosei"] == {"train": 16326, "valid": 1871, "test": 4659}


def test_the_text_only_job_differs_from_the_main_one_in_what_it_reads() -> None:
    full, text = (load_job(ROOT / f"jobs/mosi_{kind}.yaml").model_dump() for kind in ("disc", "text_only"))
    assert {key for key in full if full[key] != text[key]} == {"name", "inputs", "dataset"}
    assert text["inputs"]["modalities"] == ("text",)
    assert text["dataset"] == {**full["dataset"], "media_dir": None}


@pytest.mark.parametrize("path", sorted((ROOT / "configs/prompts").iterdir()), ids=lambda path: path.name)
def test_no_prompt_speaks_of_streams_that_a_variant_may_leave_out(path: Path) -> None:
    assert not re.search("voice|face|语音|表情", path.read_text(encoding="utf-8"))


# The pages


def shown_tree() -> dict[str, str]:
    """README's tree: path -> comment."""
    block = README.split("## The tree")[1].split("```")[1]
    folders: list[str] = []
    files = {}
    for line in filter(str.strip, block.splitlines()):
        depth = (len(line) - len(line.lstrip())) // 2
        entry, _, comment = line.strip().partition(" ")
        if entry.endswith("/") and not comment:
            folders[depth:] = [entry]
        else:
            files["".join(folders[:depth]) + entry] = comment.strip()
    return files


def test_the_readmes_tree_names_exactly_the_files_there_are_with_a_comment_each() -> None:
    shown = shown_tree()
    missing = sorted(set(tracked()) - shown.keys())
    gone = sorted(shown.keys() - set(tracked()))
    assert (missing, gone) == ([], []), "README.md, The tree: add the missing, drop the gone"
    assert all(shown.values())


@pytest.mark.parametrize(
    "command",
    [
        "python3 -m venv .venv && .venv/bin/pip install -e . && .venv/bin/raymsa submit jobs/demo.yaml",
        "python3 -m venv .venv && .venv/bin/pip install -e '.[dev]' && .venv/bin/pytest",
    ],
)
def test_the_readmes_two_commands_stand_there_to_be_copied(command: str) -> None:
    assert command in README.splitlines()


def help_of(command: str) -> str:
    """The help page of a command, and those of the commands inside it."""
    inside = getattr(main.get_command(click.Context(main), command), "commands", {})
    pages = [[command], *([command, name] for name in inside)]
    results = [CliRunner().invoke(main, [*words, "--help"], prog_name="raymsa") for words in pages]
    assert all(result.exit_code == 0 for result in results), results
    return "".join(result.output for result in results)


@pytest.mark.parametrize("page", [README, CLUSTER], ids=["README", "cluster"])
def test_every_command_and_option_of_the_pages_exists(page: str) -> None:
    used = re.findall(
        r"raymsa ((?:[a-z]+)(?: [^`\n|]*)?)", " ".join(re.findall(r"`raymsa [^`]+`|^ {4}raymsa .*", page, re.M))
    )
    assert used
    for words in used:
        command, *rest = words.split()
        assert command in COMMANDS, words
        for option in (word.split("=")[0] for word in rest if re.match(r"--?[a-z]", word)):
            assert re.search(rf"(^|[ ,]){re.escape(option)}\b", help_of(command), re.M), f"{command} {option}"


def test_every_other_option_of_the_readme_belongs_to_some_command() -> None:
    """Those of cluster/README.md are other programs' too: see test_cluster_files.py."""
    known = " ".join(map(help_of, COMMANDS)) + (ROOT / "tests/benchmarks/bench_prepare.py").read_text()
    assert [option for option in set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README)) if option not in known] == []


def test_every_command_is_in_the_readmes_table() -> None:
    table = README.split("## Commands")[1].split("## ")[0]
    assert set(re.findall(r"^\| `raymsa ([a-z]+)", table, re.M)) == set(COMMANDS)


def test_every_exit_code_is_in_the_readmes_table() -> None:
    from raymsa import errors

    codes = {cls.exit_code for cls in vars(errors).values() if isinstance(cls, type)}
    assert codes <= set(map(int, re.findall(r"^\| (\d+) \|", README, re.M)))


def test_every_file_the_pages_link_to_or_name_is_there() -> None:
    named = [*re.findall(r"\]\(([^)#:]+)\)", README), *re.findall(r"\b(?:jobs|configs)/[\w./-]+\.yaml", README)]
    examples = {"jobs/my_comparison.yaml", "jobs/mine.yaml"}
    assert [path for path in set(named) - examples if not (ROOT / path).exists()] == []


def test_the_readmes_job_files_are_right(tmp_path: Path) -> None:
    """The examples are taken from the page and loaded as they stand there."""
    variants, search = re.findall(r"```yaml\n(.*?)```", README, re.S)
    folder = tmp_path / "jobs"
    folder.mkdir()
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (folder / "a.yaml").write_text(variants, encoding="utf-8")
    assert len(runs(load_job(folder / "a.yaml"))) == 16
    without = yaml.safe_load(variants)
    del without["variants"]
    (folder / "b.yaml").write_text(yaml.safe_dump(without) + search, encoding="utf-8")
    assert load_job(folder / "b.yaml").search.trials == 20


# The whole repository


@pytest.mark.parametrize(
    "code",
    [
        "import raymsa.cli",
        "from raymsa.cli import main; main(['--help'], standalone_mode=False)",
        "from raymsa.cli import main; main(['submit', '--help'], standalone_mode=False)",
        "import raymsa.cli.show, raymsa.cli.jobs, raymsa.cli.data, raymsa.cli.about, raymsa.cli.keep",
        "from raymsa.cli import main\ntry: main(['list'])\nexcept SystemExit: pass",
        "from raymsa.cli import main\ntry: main(['kinds', '--json'])\nexcept SystemExit: pass",
    ],
)
def test_a_command_that_needs_neither_torch_nor_ray_imports_neither(tmp_path: Path, code: str) -> None:
    heavy = "{'torch', 'ray', 'transformers', 'optuna', 'peft'}"
    ask = f"\nimport sys\nprint('heavy:', sorted({heavy} & sys.modules.keys()), file=sys.stderr)"
    environment = {"RAYMSA_HOME": str(tmp_path / "home"), "PATH": ""}
    ended = subprocess.run(
        [sys.executable, "-c", code + ask], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    assert ended.stderr.splitlines()[-1] == "heavy: []"


def test_no_file_knows_the_machine_it_was_written_on() -> None:
    folders = "|".join(["work", "root", "home"])  # not written out, because this file is looked at too
    hosts = "|".join(["index" + "-url", "find" + "-links", "artifactory", "nexus" + "\\."])
    machine = re.compile(rf"(?<![\w}}.<])/({folders})/|{hosts}")
    found = {}
    for path in tracked():
        text = (ROOT / path).read_text(encoding="utf-8")
        if path != "tests/test_shipped.py" and (hit := machine.search(text)):
            found[path] = hit[0]
    assert found == {}
