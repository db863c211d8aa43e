"""A run as a folder for the Hub: what PEFT, the Hub's own reader of cards and a Hub make of it."""

import base64
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from huggingface_hub import ModelCard
from peft import PeftModel
from safetensors.torch import load_file

from raymsa import push
from raymsa.cli import main
from raymsa.evaluation.metrics import PROFILES
from raymsa.home import run_dir, store_url
from raymsa.jobfile import load_job
from raymsa.report.card import Card, card_of, text
from raymsa.report.collapse import Collapse
from raymsa.spec import ModelSpec, runs
from raymsa.store import Store, queries, records, tables
from raymsa.target import Labels
from raymsa.thinker.load import load
from raymsa.training import checkpoint
from raymsa.training.loop import Position
from raymsa.training.run import build, collate_for, student_of
from raymsa.words import visible
from tests import made_up_runs, stores
from tests.clips import MIXED
from tests.jobs import RAYMSA, job_file

CPU = torch.device("cpu")
TOKEN = "hf_" + "s" * 34
NAMES = ["README.md", "adapter_config.json", "adapter_model.safetensors", "head.safetensors", "spec.yaml", "state.json"]
NAMES += ["store.jsonl", "raymsa.json"]
MAE = {1: 0.5, 2: 0.6, 3: 0.7}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home with three seeds of one group; the first has a checkpoint whose adapters and head do something."""
    folder = tmp_path_factory.mktemp("push")
    before = os.environ["RAYMSA_HOME"]
    os.environ["RAYMSA_HOME"] = str(folder / "home")
    with Store.open(store_url()) as store:
        fill(store, folder)
    yield folder
    os.environ["RAYMSA_HOME"] = before


@pytest.fixture
def store(made: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setenv("RAYMSA_HOME", str(made / "home"))
    with Store.open(store_url()) as opened:
        yield opened


def fill(store: Store, folder: Path) -> None:
    spec = runs(load_job(job_file(folder, seeds=[1])))[0].spec
    torch.manual_seed(1)
    student = build(spec, spec.dataset.task.with_labels(Labels(mean=0.1, sd=1.5)), CPU, None)
    for group in student.groups(spec.train):
        for weight in group["params"]:  # type: ignore[attr-defined]
            weight.data += 0.1 * torch.randn(weight.shape)
    checkpoint.save(run_dir("r1"), "best", student, Position(step=12), None)
    plain = spec.model_dump(mode="json")
    plain["dataset"] |= {"raw": "/data/ada/secret/MOSI", "shards": "s3://ada-bucket/MOSI"}
    job_id = stores.put(store, "small")
    with store.write() as connection:
        connection.execute(tables.jobs.update().values(spec={**plain, "seeds": list(MAE)}))
    task = queries.tasks(store, job_id)[0]
    for seed, mae in MAE.items():
        about = {"id": f"r{seed}", "job_id": job_id, "task_id": task.id, "variant": "disc", "seed": seed}
        records.create_runs(
            store, [{**about, "group_key": stores.KEY, "spec": {**plain, "seeds": [seed]}, "spec_digest": f"d{seed}"}]
        )
        facts = {
            "data_digest": "da7a",
            "versions": {"torch": "2.8.0"},
            "place": "adas-host GPU 0",
            "git_commit": "c0ffee",
        }
        records.start_run(store, f"r{seed}", **facts)
        records.record_steps(store, f"r{seed}", [stores.entry(1, {"loss": 1.0})])
        finals = {**dict.fromkeys(PROFILES["mosi"], 0.8), "mae": mae, "corr": float("nan")}
        finals |= {"constant_mae": 1.4, "out_of_range": 0.00125}
        clip = {"split": "test", "clip_id": "secret_clip", "label": 1.0, "score": 0.5, "parsed": True, "in_range": True}
        records.finish_run(store, f"r{seed}", {}, {"test": finals, "valid": {"mae": 2 - mae}}, [clip])


def call(*words: str) -> Result:
    return CliRunner().invoke(main, list(words), prog_name="raymsa")


def pushed(out: Path, *words: str) -> Path:
    result = call("push", "r1", "--out", str(out), *words)
    assert result.exit_code == 0, result.output
    return out


# What is in it


def test_plain_peft_loads_the_folder_and_gives_the_same_scores(store: Store, tmp_path: Path) -> None:
    folder = pushed(tmp_path / "hub")
    run = runs(load_job(folder / "spec.yaml"))[0]
    best = checkpoint.find(run_dir("r1"), "best")
    assert best is not None
    target = checkpoint.target_of(best)
    ours = build(run.spec, target, CPU, best)
    base = load(ModelSpec(path="tiny"), None, run.spec.inputs.modalities, False, CPU)
    bare = student_of(base, run.spec, target)
    collate = collate_for(bare, run.spec)
    batch = collate([collate.measure(clip) for clip in MIXED[:4]], answers=False)
    bare.head.load_state_dict(load_file(folder / "head.safetensors"))
    bare.train_mode(False)
    before = [one.score for one in bare.read(batch)]
    PeftModel.from_pretrained(base.model, folder).eval()  # puts its layers into the model
    after = [one.score for one in bare.read(batch)]
    assert after == pytest.approx([one.score for one in ours.read(batch)], abs=1e-5)
    assert after != pytest.approx(before, abs=1e-3)


def test_the_hubs_own_reader_finds_what_it_looks_for_in_the_card(store: Store, tmp_path: Path) -> None:
    card = ModelCard.load(pushed(tmp_path / "hub", "--base-model", "Qwen/Qwen2.5-Omni-3B") / "README.md")
    assert card.data.base_model == "Qwen/Qwen2.5-Omni-3B" and card.data.library_name == "peft"
    assert {"raymsa", "lora", "disc"} <= set(card.data.tags) and card.data.license is None
    assert card.data.eval_results is not None
    found = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert found == {n: 0.8 for n in PROFILES["mosi"] if n != "corr"} | {
        "mae": 0.5
    }  # this run's own; what is NaN has no number
    assert {result.dataset_name for result in card.data.eval_results} == {"synthetic"}


def test_the_table_says_what_is_one_seed_and_what_is_the_mean(store: Store, tmp_path: Path) -> None:
    card = (pushed(tmp_path / "hub") / "README.md").read_text()
    assert "| this run (seed 1): what lies here | 0.500 | nan | 80.0 |" in card
    assert "| mean ± sd of 3 seeds (1, 2, 3) | 0.600 ± 0.100 | nan ± nan | 80.0 ± 0.0 |" in card
    assert "| constant predictor (train median) | 1.400 | - | - |" in card
    assert "out_of_range answers on test: 0.12 %" in card
    assert "collapsed" not in card
    assert "By MAE on valid, this run is number 3 of 3 seeds." in card
    assert "- `acc2_has0`: Negative against non-negative, all clips." in card
    assert "data digest: da7a" in card and "torch 2.8.0" in card and "None is stated here." in card


def test_a_single_seed_is_called_that(store: Store, tmp_path: Path) -> None:
    with store.write() as connection:
        connection.execute(tables.runs.update().where(tables.runs.c.id != "r1").values(group_key="other"))
    try:
        card = (pushed(tmp_path / "hub") / "README.md").read_text()
    finally:
        with store.write() as connection:
            connection.execute(tables.runs.update().values(group_key=stores.KEY))
    assert "mean ± sd of 1 seeds (1) | 0.500 |" in card and "One seed is known here" in card


def test_nothing_of_this_machine_its_people_or_the_clips_is_in_it(store: Store, tmp_path: Path) -> None:
    folder = pushed(tmp_path / "hub")
    everything = b"".join(path.read_bytes() for path in folder.iterdir())
    words = (
        "secret",
        '"ada"',
        "ada/",
        "adas-host",
        "s3://",
        str(tmp_path),
        str(Path(os.environ["RAYMSA_HOME"])),
        "secret_clip",
    )
    assert [word for word in words if word.encode() in everything] == []
    assert sorted(path.name for path in folder.iterdir()) == sorted(NAMES)
    spec = yaml.safe_load((folder / "spec.yaml").read_text())
    assert (spec["dataset"]["raw"], spec["dataset"]["shards"], spec["seeds"]) == ("MOSI", "MOSI", [1])


def test_the_commands_of_the_card_work(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = json.loads(call("predict", "r1", "-", "--text", "fine", "--json").stdout)
    folder = pushed(tmp_path / "hub")
    card = (folder / "README.md").read_text()
    assert "    raymsa import FOLDER\n" in card and "    raymsa predict r1 clip.mp4 --text " in card
    (folder / "README.md").write_text(card + "more words")  # which a person may add
    monkeypatch.setenv("RAYMSA_HOME", str(tmp_path / "there"))
    assert call("import", str(folder)).stdout == "r1\n"
    assert json.loads(call("predict", "r1", "-", "--text", "fine", "--json").stdout) == before
    with Store.open(store_url()) as other:
        job = queries.jobs(other)[0]
        assert (job.submitted_by, job.folder, queries.predictions(other, "r1")) == ("", "", [])
    assert "0.500" in call("results", job.id).stdout
    again = call("push", "r1", "--out", str(tmp_path / "again"))
    assert again.exit_code == 0 and "(1)" in (tmp_path / "again/README.md").read_text()


def test_hostile_words_stay_words_in_the_card(store: Store) -> None:
    run = queries.run(store, "r1")
    hostile = "x`\n---\n</title><script>alert(1)</script> | [a](javascript:b) \x1b[31m \u202e" + "y" * 10_000
    spec = json.loads(json.dumps(run.spec))
    spec["dataset"]["name"] = hostile
    changed = Card(
        run.__class__(**{**run.__dict__, "id": hostile, "versions": {hostile: hostile}}),
        hostile, spec, None, {"test": {"mae": 0.5}}, {1: {"test": {"mae": 0.5}}}, True,
        Collapse("mae", "test", 1), Collapse("mae", "test", 1),
    )  # fmt: skip
    card = text(changed)
    assert "\x1b" not in card and "\u202e" not in card
    front, body = card.removeprefix("---\n").split("\n---\n", 1)
    assert yaml.safe_load(front)["model-index"][0]["results"][0]["dataset"]["name"] == visible(hostile)
    outside = "\n".join(line for line in body.splitlines() if not line.startswith("    "))
    assert "<script>" not in outside and "[a](" not in outside and "\n---\n" not in outside


def card(store: Store, run_id: str) -> Card:
    run = queries.run(store, run_id)
    return card_of(store, run, run.spec, None, False)


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Store]:
    with Store.open(f"sqlite:///{tmp_path / 'other.db'}") as opened:
        yield opened


def test_the_trial_that_chose_the_settings_is_in_no_mean_with_the_runs_that_confirm_them(empty: Store) -> None:
    _, trial, *fresh = made_up_runs.confirmed_search(empty)
    assert [list(card(empty, name).seeds) for name in (trial, *fresh)] == [[2, 3]] * 3
    assert "(2, 3)" in text(card(empty, trial))
    assert "it is not in the mean" in text(card(empty, trial))
    assert "this run is number" in text(card(empty, fresh[0]))
    spec = made_up_runs.job_spec(seeds=(1,), variants={})
    made_up_runs.finish(empty, made_up_runs.submit(empty, spec), spec, made_up_runs.small())  # with the trial's seed
    assert list(card(empty, trial).seeds) == [1, 2, 3] and "it is not in the mean" in text(card(empty, trial))


def test_a_seed_with_which_a_search_tried_the_settings_is_called_lucky_in_the_card(empty: Store) -> None:
    _, _, *fresh = made_up_runs.confirmed_search(empty)
    tried = "A search tried these settings with seed 1, too: if it chose them for that, it is a lucky one."
    assert tried not in text(card(empty, fresh[0]))
    spec = made_up_runs.job_spec(seeds=(1,), variants={})
    (plain,) = made_up_runs.finish(empty, made_up_runs.submit(empty, spec), spec, made_up_runs.small())
    assert tried in text(card(empty, plain)) and tried in text(card(empty, fresh[0]))


def test_a_collapsed_run_is_called_so_in_its_card(empty: Store) -> None:
    spec = made_up_runs.job_spec(seeds=(1, 2, 3), variants={})
    job_id = made_up_runs.submit(empty, spec)
    bad, good, _ = made_up_runs.finish(empty, job_id, spec, made_up_runs.small())
    records.finish_run(empty, bad, {}, {"test": {**queries.finals(empty, bad)["test"], "mae": 1.9}})
    told = text(card(empty, bad))
    assert "this run (seed 1): what lies here (collapsed)" in told
    assert "seeds (1, 2, 3) (collapsed: 1 of 3 seeds)" in told
    assert "- collapsed: seed 1 has a test mae of 1.900, no better than the constant predictor's" in told
    assert "what lies here |" in text(card(empty, good))


def test_metrics_that_are_younger_than_the_run_are_in_its_card(empty: Store) -> None:
    spec = made_up_runs.job_spec(seeds=(1,), variants={})
    job_id = made_up_runs.submit(empty, spec)
    (run_id,) = made_up_runs.finish(empty, job_id, spec, made_up_runs.small())
    known = queries.finals(empty, run_id)["test"]
    with empty.write() as connection:
        connection.execute(tables.finals.delete().where(tables.finals.c.name == "acc7"))
    assert card(empty, run_id).finals["test"]["acc7"] == known["acc7"]


# What is refused


def test_a_checkpoint_that_is_gone_is_one_clear_line(store: Store, tmp_path: Path) -> None:
    result = call("push", "r2", "--out", str(tmp_path / "hub"))
    assert result.exit_code == 1 and result.output.count("\n") == 1
    assert result.output.startswith(f"error: run r2: no checkpoint in {run_dir('r2')}: it was removed")
    assert not (tmp_path / "hub").exists()


def test_only_a_run_that_is_done_is_pushed(store: Store, tmp_path: Path) -> None:
    records.set_run_state(store, "r3", "running")
    try:
        result = call("push", "r3", "--out", str(tmp_path / "hub"))
    finally:
        records.set_run_state(store, "r3", "done")
    assert (result.exit_code, result.output) == (101, "error: run r3 is running; a run that is done can be pushed\n")


def test_a_folder_with_something_else_in_it_is_left_alone(store: Store, tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub/mine.txt").write_text("mine")
    result = call("push", "r1", "--out", str(tmp_path / "hub"))
    assert result.exit_code == 2 and "is there already; name another, or remove it first" in result.output
    assert [path.name for path in (tmp_path / "hub").iterdir()] == ["mine.txt"]


def test_a_dry_run_lists_and_writes_nothing(store: Store, tmp_path: Path) -> None:
    result = call("push", "r1", "--out", str(tmp_path / "hub"), "--dry-run", "--to", "ada/model", "--json")
    assert result.exit_code == 0 and list(tmp_path.iterdir()) == []
    told = json.loads(result.stdout)
    assert list(told["files"]) == NAMES and told["uploaded"] is None
    assert "nothing was written; it would be uploaded to ada/model, private" in result.stderr


# Uploading, to a Hub of the test's own


class Hub(BaseHTTPRequestHandler):
    """Keeps what it is asked and what it is sent."""

    asked: list[tuple[str, str, Any]]
    private: bool
    refuses: int
    url: str

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer({"id": "ada/model", "private": self.private, "siblings": [], "tags": [], "sha": "0" * 40})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        self.asked.append((self.path, self.headers.get("Authorization", ""), body))
        if self.refuses:
            self._answer({"error": f"no, {TOKEN}"}, self.refuses)
        elif "preupload" in self.path:
            files = [{"path": f["path"], "uploadMode": "regular"} for f in json.loads(body)["files"]]
            self._answer({"files": [{**file, "shouldIgnore": False, "oid": None} for file in files]})
        elif "commit" in self.path:
            self._answer(
                {
                    "commitUrl": f"{self.url}/ada/model/commit/{'0' * 40}",
                    "commitOid": "0" * 40,
                    "pullRequestUrl": None,
                    "success": True,
                }
            )
        else:
            self._answer({"url": f"{self.url}/ada/model", "id": "ada/model", "name": "ada/model"})

    def _answer(self, value: Any, status: int = 200) -> None:
        text = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


@pytest.fixture
def hub() -> Iterator[Any]:
    handler = type("OneHub", (Hub,), {"asked": [], "private": True, "refuses": 0, "url": ""})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    handler.url = f"http://127.0.0.1:{server.server_port}"
    yield handler
    server.shutdown()
    server.server_close()


def push_to(hub: Any, made: Path, out: Path, *words: str, token: str = TOKEN) -> "subprocess.CompletedProcess[str]":
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    environment = {**kept, "RAYMSA_HOME": str(made / "home"), "HF_HOME": str(out.parent / "hf"), "HF_ENDPOINT": hub.url}
    environment |= {"HF_TOKEN": token} if token else {}
    command = [*RAYMSA, "push", "r1", "--out", str(out), *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def seen(hub: Any) -> list[tuple[str, str, str]]:
    """The repositories that were asked for: owner, name, and who may see them, as older and newer clients say it."""
    asked = [json.loads(body) for path, _, body in hub.asked if path == "/api/repos/create"]
    private = [one.get("visibility", "private" if one.get("private") else "public") for one in asked]
    return [(one["organization"], one["name"], who) for one, who in zip(asked, private, strict=True)]


def test_it_is_uploaded_when_asked_to_a_private_repository_and_the_token_stays_secret(
    store: Store, made: Path, hub: Any, tmp_path: Path
) -> None:
    folder = pushed(tmp_path / "hub")
    assert hub.asked == []
    (folder / "LICENSE").write_text("mine")
    (folder / "notes.txt").write_text("not for others")
    (folder / "README.md").write_text((folder / "README.md").read_text() + "more words")
    ended = push_to(hub, made, folder, "--to", "ada/model")
    assert ended.returncode == 0 and ended.stdout == f"{hub.url}/ada/model\n", ended.stderr
    assert seen(hub) == [("ada", "model", "private")]
    (commit,) = [body for path, _, body in hub.asked if "/commit/" in path]
    files = [line["value"] for line in map(json.loads, commit.splitlines()) if line["key"] == "file"]
    assert {f["path"] for f in files} == {*NAMES, "LICENSE"}
    sent = {f["path"]: base64.b64decode(f["content"]) for f in files}
    assert sent == {name: (folder / name).read_bytes() for name in sent} and sent["README.md"].endswith(b"more words")
    assert {secret for _, secret, _ in hub.asked} == {f"Bearer {TOKEN}"}
    assert TOKEN not in ended.stdout + ended.stderr and "as they were there" in ended.stderr
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    assert kept == []


def test_public_is_said_aloud(store: Store, made: Path, hub: Any, tmp_path: Path) -> None:
    hub.private = False
    ended = push_to(hub, made, tmp_path / "a", "--to", "ada/model")
    assert ended.returncode == 2 and "ada/model is there already and is public; say --public" in ended.stderr
    assert not [path for path, _, _ in hub.asked if "commit" in path]
    assert push_to(hub, made, tmp_path / "a", "--to", "ada/model", "--public").returncode == 0
    assert seen(hub) == [("ada", "model", "private"), ("ada", "model", "public")]
    assert push_to(hub, made, tmp_path / "b", "--public").returncode == 2


def test_a_hub_that_refuses_is_one_line_without_the_token(store: Store, made: Path, hub: Any, tmp_path: Path) -> None:
    hub.refuses = 403
    ended = push_to(hub, made, tmp_path / "hub", "--to", "ada/model")
    assert ended.returncode == 1 and TOKEN not in ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("error: ada/model: not uploaded: ") and "403" in ended.stderr
    assert (tmp_path / "hub/README.md").exists()  # to be tried again


def test_without_a_login_or_a_name_nothing_is_asked(store: Store, made: Path, hub: Any, tmp_path: Path) -> None:
    ended = push_to(hub, made, tmp_path / "hub", "--to", "ada/model", token="")
    assert ended.returncode == 2 and "`hf auth login`, or set HF_TOKEN" in ended.stderr
    assert "is no repository; give owner/name" in push_to(hub, made, tmp_path / "hub", "--to", "../x y").stderr
    assert hub.asked == []


@pytest.mark.parametrize(
    ("name", "value", "public"),
    [
        ("dataset.raw", "../../ada/secret_project/mosi", "mosi"),
        ("dataset.shards", "ada/secret/x/", "x"),
        ("dataset.shards", "s3://key:pw@bucket", "bucket"),
        ("dataset.raw", "s3://key:pw@bucket/ada/x", "x"),
        ("model.path", "models/ada/qwen", "qwen"),
        ("model.path", "./qwen/here", "here"),
        ("model.path", "Qwen/Qwen2.5-Omni-7B", "Qwen/Qwen2.5-Omni-7B"),
        ("model.path", "tiny", "tiny"),
        ("variants.big.model.path", "C:\\Users\\ada\\qwen", "qwen"),
        ("search.space.model.path.choice", ["ada/secret/a", "../b", "/srv/ada/c", "Qwen/Q", "mine/d"],
         ["a", "b", "c", "Qwen/Q", "d"]),
        ("search.space.dataset.raw.choice", ["ada/a"], ["a"]),
        ("name", "~/ada/x", "x"),
        ("name", "C:/Users/ada/x", "x"),
        ("name", "..\\ada\\x", "x"),
        ("prompt", "sad/happy or both", "sad/happy or both"),
        ("prompt", "on a scale\n/srv", "on a scale\n/srv"),
    ],
)  # fmt: skip
def test_no_form_of_a_path_of_this_machine_is_pushed(
    name: str, value: Any, public: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine/d").mkdir(parents=True)  # like an id on the Hub, and a folder here
    monkeypatch.chdir(tmp_path)
    plain: Any = value
    for part in reversed(name.split(".")):
        plain = {part: plain}
    found = push._without_paths(None)(plain)
    for part in name.split("."):
        found = found[part]
    assert found == public
    dotted = {"search": {"space": {"model.path": {"choice": ["ada/secret/a"]}}}}  # as a search has it
    assert push._without_paths("owner/base")(dotted)["search"]["space"]["model.path"]["choice"] == ["a"]
