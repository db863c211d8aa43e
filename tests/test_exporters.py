"""What other tools read of our runs, asked of the tools themselves: MLflow, Weights & Biases, TensorBoard, CSV."""

import csv
import json
import math
import os
import shlex
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from raymsa.cli import main
from raymsa.exporters.base import Exporter, chosen
from raymsa.plugins import kinds
from raymsa.report.formats import csv_cell
from raymsa.store import Store, records
from raymsa.words import for_json
from tests import stores

TRACKERS = ["mlflow", "tensorboard", "wandb"]
SPEC = {
    "name": "demo",
    "dataset": {"name": "clips"},
    "train": {"lora_lr": 2e-4, "epochs": 3},
    "seeds": [1],
    "search": None,
    "readout": {"kind": "disc"},
}
HOSTILE = {
    "script": "<script>alert(1)</script></title>",
    "quotes": "\"'`;,\n\r\n\t",
    "formula": "=cmd|' /C calc'!A0",
    "long": "x" * 10_000,
    "rtl": "\u202eabc\u2066",
    "emoji": "🙂👩‍👩‍👧",
    "escape": "\x1b[31mred\x1b]0;title\x07",
    "half": "\udc80",
    "nul": "a\0b",
}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(f"{tmp_path}/store.db") as opened:
        yield opened


def add(store: Store, job_id: str, run_id: str, seed: int, **more: Any) -> None:
    spec = {**SPEC, "seeds": [seed]}
    about = {"id": run_id, "job_id": job_id, "task_id": None, "variant": "disc", "seed": seed, "group_key": "abcdef12"}
    records.create_runs(store, [{**about, "spec": spec, "spec_digest": f"d{seed}", **more}])


def fill(store: Store, name: str = "demo") -> str:
    """A job with a run in each state."""
    job_id = stores.put(store, name)
    for seed, state in enumerate(("done", "failed", "running", "queued", "cancelled", "pruned"), start=1):
        run_id = f"{job_id}-disc-{seed}"
        add(store, job_id, run_id, seed)
        if state == "queued":
            continue
        records.start_run(store, run_id, data_digest="da7a", versions={"torch": "2.8.0"}, git_commit="c0ffee")
        for step in (1, 2, 3):
            values = {"loss": 1.0 / step, "grad_norm": math.nan if step == 2 else 0.5}
            values |= {"valid_mae": 0.75} if step == 3 else {}
            records.record_steps(store, run_id, [{"step": step, "epoch": 1, "values": values}], (1.0, 1.0))
        if state == "failed":
            records.fail_run(store, run_id, "loss is nan at step 3", "diverged")
        elif state not in ("running", "done"):
            records.set_run_state(store, run_id, state)
    clip = {
        "split": "test",
        "clip_id": "a_1",
        "label": 1.0,
        "score": -0.5,
        "text": "-0.5",
        "parsed": True,
        "in_range": True,
    }
    finals = {"test": {"mae": 0.5, "corr": math.nan}, "valid": {"mae": 0.75}}
    records.finish_run(store, f"{job_id}-disc-1", {"best_epoch": 1}, finals, [clip])
    return job_id


def call(store: Store, *words: str) -> Result:
    return CliRunner().invoke(main, [*words, "--store", store.secret_url()], prog_name="raymsa")


def export(store: Store, kind: str, out: Path, *names: str) -> dict[str, Any]:
    result = call(store, "export", *names, "--to", kind, "--out", str(out), "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def at_of(store: Store, run_id: str) -> list[float]:
    from raymsa.store import queries

    return sorted({step.at for step in queries.steps(store, run_id)})


# MLflow, by its client


def mlflow_runs(out: Path) -> dict[str, Any]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{out}/mlflow.db")
    experiments = [e.experiment_id for e in client.search_experiments() if e.name != "Default"]
    return {run.info.run_name: run for run in client.search_runs(experiments)} | {"client": client}


def test_mlflow_reads_parameters_metrics_over_steps_states_and_groups(store: Store, tmp_path: Path) -> None:
    job_id = fill(store)
    export(store, "mlflow", tmp_path / "ml", "demo")
    runs = mlflow_runs(tmp_path / "ml")
    client, first = runs.pop("client"), runs[f"{job_id}-disc-1"]
    assert first.data.params["train.lora_lr"] == "0.0002" and first.data.params["seeds"] == "[1]"
    history = client.get_metric_history(first.info.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert [m.timestamp for m in history] == [int(at * 1000) for at in at_of(store, f"{job_id}-disc-1")]
    assert math.isnan(client.get_metric_history(first.info.run_id, "grad_norm")[1].value)
    assert (first.data.metrics["test/mae"], first.data.metrics["valid/mae"]) == (0.5, 0.75)
    assert first.data.metrics["test/acc2_has0"] == 0.0  # younger than the run, from its prediction
    assert math.isnan(first.data.metrics["test/corr"])
    tags = {
        name: first.data.tags[f"raymsa.{name}"] for name in ("job", "group", "data_digest", "version.torch", "state")
    }
    assert tags == {
        "job": job_id,
        "group": "abcdef12",
        "data_digest": "da7a",
        "version.torch": "2.8.0",
        "state": "done",
    }
    states = {name.rsplit("-", 1)[1]: run.info.status for name, run in runs.items() if name.startswith(job_id)}
    assert states == {"1": "FINISHED", "2": "FAILED", "3": "RUNNING", "4": "SCHEDULED", "5": "KILLED", "6": "KILLED"}
    parents = {run.data.tags["mlflow.parentRunId"] for name, run in runs.items() if name.startswith(job_id)}
    assert parents == {runs["disc abcdef"].info.run_id} and len(runs) == 7
    assert json.loads(Path(client.download_artifacts(first.info.run_id, "spec.json")).read_text()) == {**SPEC}


def test_a_database_that_is_none_is_one_line(store: Store, tmp_path: Path) -> None:
    fill(store)
    (tmp_path / "mlflow.db").write_text("something else " * 1000)
    result = call(store, "export", "demo", "--to", "mlflow", "--out", str(tmp_path))
    assert result.exit_code == 1 and result.output.splitlines()[-1].startswith(f"error: {tmp_path}: MLflow refused: ")


def test_mlflow_names_that_it_does_not_take_are_told_apart(store: Store, tmp_path: Path) -> None:
    job_id = stores.put(store, "demo")
    strange = {"a:b": 1, "a?b": 2, "..": 3, "": 4, "x/../y": 5, "o" * 400: 6}
    add(store, job_id, "r1", 1, spec={**strange, "dataset": {"name": "clips"}})
    export(store, "mlflow", tmp_path / "ml", "r1")
    params = mlflow_runs(tmp_path / "ml")["r1"].data.params
    assert (
        sorted(params.values()) == ["1", "2", "3", "4", "5", "6", "clips"]
        and params["a_b"] == "1"
        and params["a_b_2"] == "2"
    )


# TensorBoard, by its event reader


def accumulated(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder)).Reload()


def hparams(events: Any, tag: str) -> Any:
    from tensorboard.plugins.hparams import plugin_data_pb2

    content = events.SummaryMetadata(f"_hparams_/session_{tag}_info").plugin_data.content
    return getattr(plugin_data_pb2.HParamsPluginData.FromString(content), f"session_{tag}_info")


def test_tensorboard_reads_scalars_with_step_and_time_and_the_parameters(store: Store, tmp_path: Path) -> None:
    job_id = fill(store)
    export(store, "tensorboard", tmp_path / "tb", "demo")
    events = accumulated(tmp_path / "tb" / job_id / f"{job_id}-disc-1")
    loss = events.Scalars("loss")
    assert [(e.step, e.value) for e in loss] == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]
    assert [e.wall_time for e in loss] == at_of(store, f"{job_id}-disc-1")
    assert math.isnan(events.Scalars("grad_norm")[1].value)
    assert [(e.step, e.value) for e in events.Scalars("test/mae")] == [(3, 0.5)]
    start = hparams(events, "start")
    assert start.group_name == "abcdef12" and start.hparams["train.lora_lr"].number_value == 2e-4
    assert start.hparams["raymsa.data_digest"].string_value == "da7a"
    (page,) = events.Tensors("raymsa/text_summary")
    assert '"lora_lr": 0.0002' in page.tensor_proto.string_val[0].decode()


def test_tensorboard_knows_how_each_run_ended(store: Store, tmp_path: Path) -> None:
    from tensorboard.plugins.hparams.api_pb2 import Status

    job_id = fill(store)
    export(store, "tensorboard", tmp_path / "tb", "demo")
    found = {}
    for seed in (1, 2, 3, 5, 6):
        end = hparams(accumulated(tmp_path / "tb" / job_id / f"{job_id}-disc-{seed}"), "end")
        found[seed] = Status.Name(end.status).removeprefix("STATUS_")
    assert found == {1: "SUCCESS", 2: "FAILURE", 3: "RUNNING", 5: "FAILURE", 6: "SUCCESS"}


# Weights & Biases: its offline file is a log of LevelDB's form whose records are its own messages


def wandb_records(folder: Path) -> list[Any]:
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = folder.glob("*.wandb")
    data, at, found, parts = file.read_bytes(), 7, [], b""  # after ":W&B", a magic number and a version
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        parts, at = parts + data[at + 7 : at + 7 + size], at + 7 + size
        if kind in (1, 4):  # whole, or the last part
            found.append(Record.FromString(parts))
            parts = b""
    return found


def wandb_runs(out: Path) -> dict[str, dict[str, Any]]:
    found = {}
    for folder in sorted((out / "wandb").glob("offline-run-*")):
        told: dict[str, Any] = {"history": []}
        for record in wandb_records(folder):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                told["run"] = record.run
                told["config"] = {i.key: json.loads(i.value_json) for i in record.run.config.update}
            elif kind == "history":
                row = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
                told["history"].append(row)
            elif kind == "summary":
                told.setdefault("summary", {}).update(
                    {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.summary.update}
                )
            elif kind == "exit":
                told["exit"] = record.exit.exit_code
        found[told["run"].display_name] = told
    return found


def test_wandb_has_config_history_with_steps_and_times_summary_group_and_state(store: Store, tmp_path: Path) -> None:
    job_id = fill(store)
    export(store, "wandb", tmp_path / "wb", "demo")
    runs = wandb_runs(tmp_path / "wb")
    first = runs[f"{job_id}-disc-1"]
    assert first["config"]["train.lora_lr"] == 2e-4 and first["config"]["raymsa.data_digest"] == "da7a"
    assert (first["run"].project, first["run"].run_group, first["run"].host) == ("demo", "abcdef12", "")
    assert {f"job:{job_id}", "state:done", "seed:1"} <= set(first["run"].tags)
    assert [(row["_step"], row["loss"]) for row in first["history"]] == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert [row["_timestamp"] for row in first["history"]] == at_of(store, f"{job_id}-disc-1")
    assert first["summary"]["test/mae"] == 0.5 and first["summary"]["valid/mae"] == 0.75
    ends = {name.rsplit("-", 1)[1]: told["exit"] for name, told in runs.items()}
    assert ends == {"1": 0, "2": 1, "3": 1, "4": 1, "5": 1, "6": 0}


# CSV


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_csv_has_three_tables_unrounded(store: Store, tmp_path: Path) -> None:
    job_id = fill(store)
    export(store, "csv", tmp_path / "tables", "demo")
    runs = {row["seed"]: row for row in table(tmp_path / "tables/runs.csv")}
    assert {row["state"] for row in runs.values()} == {"done", "failed", "running", "queued", "cancelled", "pruned"}
    assert (runs["1"]["param.train.lora_lr"], runs["1"]["test/mae"], runs["1"]["test/corr"]) == ("0.0002", "0.5", "nan")
    assert (runs["2"]["test/mae"], runs["2"]["error"]) == ("", "loss is nan at step 3")
    steps = [row for row in table(tmp_path / "tables/steps.csv") if row["run"] == f"{job_id}-disc-1"]
    assert [float(row["value"]) for row in steps if row["name"] == "loss"] == [1.0, 0.5, 1 / 3]
    (clip,) = table(tmp_path / "tables/predictions.csv")
    assert (clip["clip_id"], clip["label"], clip["score"], clip["text"]) == ("a_1", "1.0", "-0.5", "'-0.5")


@pytest.mark.parametrize(
    "text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", " =1", "＝1", "=cmd|' /C x'!A0"]
)
def test_no_text_is_a_formula(text: str) -> None:
    assert csv_cell(text) == f"'{text}"
    assert csv_cell(-1.5) == "-1.5" and csv_cell(f"a{text}") == f"a{text}"


def test_the_help_says_which_targets_add_to_a_folder(store: Store) -> None:
    said = " ".join(call(store, "export", "--help").output.split())
    assert "Of mlflow, wandb and tensorboard, a run that is in FOLDER already is left alone, or replaced when" in said
    assert "csv and raymsa want a new or empty FOLDER" in said


def test_csv_goes_into_a_new_folder_only(store: Store, tmp_path: Path) -> None:
    fill(store)
    export(store, "csv", tmp_path / "tables", "demo")
    again = call(store, "export", "demo", "--to", "csv", "--out", str(tmp_path / "tables"))
    assert again.exit_code == 2
    assert again.output == f"error: {tmp_path}/tables: is there already; name another, or remove it first\n"
    assert sorted(path.name for path in tmp_path.iterdir() if "tables" in path.name) == ["tables"]


# All of them


def what_is_there(kind: str, out: Path) -> Any:
    if kind == "mlflow":
        runs = mlflow_runs(out)
        client = runs.pop("client")
        return {n: (r.info.status, len(client.get_metric_history(r.info.run_id, "loss"))) for n, r in runs.items()}
    if kind == "wandb":
        return {name: (told["exit"], len(told["history"])) for name, told in wandb_runs(out).items()}
    return {
        folder.name: len(events.Scalars("loss")) if "loss" in (events := accumulated(folder)).Tags()["scalars"] else 0
        for folder in out.glob("*/*")
    }


@pytest.mark.parametrize("kind", TRACKERS)
def test_exported_twice_nothing_is_doubled_and_what_has_changed_is_replaced(
    kind: str, store: Store, tmp_path: Path
) -> None:
    job_id = fill(store)
    running = f"{job_id}-disc-3"
    assert len(export(store, kind, tmp_path / "out", "demo")["written"]) == 6
    before = what_is_there(kind, tmp_path / "out")
    assert export(store, kind, tmp_path / "out", "demo", f"{job_id}-disc-1")["written"] == []
    assert what_is_there(kind, tmp_path / "out") == before
    records.record_steps(store, running, [stores.entry(4, {"loss": 0.1})])
    again = export(store, kind, tmp_path / "out", "demo")
    assert (again["written"], len(again["there"])) == ([running], 5)
    after = what_is_there(kind, tmp_path / "out")
    assert {name for name in after if after[name] != before[name]} == {running} and after.keys() == before.keys()


@pytest.mark.parametrize("kind", [*TRACKERS, "csv"])
def test_hostile_words_are_text(kind: str, store: Store, tmp_path: Path) -> None:
    job_id = stores.put(store, HOSTILE["script"] + HOSTILE["long"])
    run_id = "r <b>: =1 " + HOSTILE["rtl"] + HOSTILE["long"]
    add(store, job_id, run_id, 1, variant="'\"=a", spec={**HOSTILE, "dataset": {}}, group_key="g'`\"; DROP")
    records.start_run(store, run_id, versions={"=x": HOSTILE["escape"]})
    records.record_steps(store, run_id, [stores.entry(1, {"<b>": 1.0, "loss": 1.0})])
    clip = {
        "split": "test",
        "clip_id": HOSTILE["formula"],
        "label": 1.0,
        "score": 0.5,
        "parsed": True,
        "in_range": True,
    }
    records.finish_run(store, run_id, {}, {"test": {"=mae": 0.5}}, [{**clip, "text": HOSTILE["escape"]}])
    assert export(store, kind, tmp_path / "out", job_id)["written"] == [run_id]
    if kind == "csv":
        text = "".join(path.read_text() for path in (tmp_path / "out").iterdir())
        assert "\x1b" not in text and "\0" not in text
        cells = [value for path in (tmp_path / "out").iterdir() for row in table(path) for value in row.values()]
        assert not [value for value in cells if value.startswith(("=", "+", "@", "\t", "\r"))]
        assert "'=cmd|' /C calc'!A0" in cells and HOSTILE["script"] in cells
    elif kind == "mlflow":
        (run,) = [r for n, r in mlflow_runs(tmp_path / "out").items() if n.startswith("r <b>")]
        assert run.data.params["script"] == HOSTILE["script"] and run.data.metrics["test/_mae"] == 0.5
    elif kind == "wandb":
        (told,) = wandb_runs(tmp_path / "out").values()
        assert told["config"]["script"] == HOSTILE["script"]
    else:
        (folder,) = (tmp_path / "out").glob("*/*")
        assert hparams(accumulated(folder), "start").hparams["script"].string_value == HOSTILE["script"]


@pytest.mark.parametrize("kind", TRACKERS)
def test_a_missing_package_is_one_line_that_names_the_pip_command(
    kind: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store)
    monkeypatch.setitem(sys.modules, kind, None)  # what an import of a package that is not there comes to
    result = call(store, "export", "demo", "--to", kind, "--out", str(tmp_path / "out"))
    assert result.exit_code == 2
    assert result.output == f"error: exporting to {kind} needs a package: pip install 'raymsa[{kind}]'\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", [*TRACKERS, "csv"])
def test_no_tool_calls_anybody(kind: str, store: Store, tmp_path: Path) -> None:
    """Every connection that a tool would open for itself goes to a proxy that counts, and its own names say offline."""
    fill(store)
    called = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)

        def count() -> None:
            while True:
                try:
                    called.append(server.accept())
                except OSError:
                    return

        threading.Thread(target=count, daemon=True).start()
        proxy = f"http://127.0.0.1:{server.getsockname()[1]}"
        names = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
        environment = {k: v for k, v in os.environ.items() if k.lower() != "no_proxy"} | dict.fromkeys(names, proxy)
        environment |= {"WANDB_API_KEY": "x" * 40, "WANDB_MODE": "online", "MLFLOW_TRACKING_URI": "http://example.org"}
        command = [sys.executable, "-c", "from raymsa.cli import main; main()", "export", "demo", "--to", kind]
        command += ["--out", str(tmp_path / "out"), "--store", store.secret_url()]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert ended.returncode == 0 and ended.stdout == f"{tmp_path}/out\n", ended.stderr
        assert len(ended.stderr.splitlines()) == 1 and "6 runs written" in ended.stderr, ended.stderr
    assert called == []


def test_a_target_is_one_file_and_what_is_none_is_told(store: Store, tmp_path: Path) -> None:
    found = kinds("raymsa.exporters", Exporter)
    assert set(found) == {path.stem for path in Path(Exporter.__module__.replace(".", "/")).parent.glob("*.py")} - {
        "__init__",
        "base",
    }
    result = call(store, "export", "demo", "--to", "excel", "--out", str(tmp_path / "out"))
    assert result.exit_code == 2 and f"'excel' is none of {', '.join(found)}." in result.output
    for name in found:
        assert name in CliRunner().invoke(main, ["export", "--help"]).output


def test_jobs_and_runs_are_named_as_everywhere(store: Store) -> None:
    job_id = fill(store)
    assert len(chosen(store, ["demo", job_id[:4], f"{job_id}-disc-2"])) == 6
    assert [one.run.seed for one in chosen(store, [f"{job_id}-disc-2"])] == [2]
    out = call(store, "export", "nothing", "--out", "x")
    assert (out.exit_code, out.output) == (102, "error: no job and no run 'nothing' in the store\n")
    stores.put(store, "empty")
    assert call(store, "export", "empty", "--out", "x").exit_code == 101


def test_the_mark_changes_with_anything_that_is_exported(store: Store) -> None:
    job_id = fill(store)
    (before,) = chosen(store, [f"{job_id}-disc-3"])
    records.update_run(store, before.run.id, error="x")
    (after,) = chosen(store, [before.run.id])
    assert before.mark != after.mark and for_json(before.moments) == for_json(after.moments)


@pytest.mark.parametrize("kind", ["tensorboard", "raymsa"])
def test_the_command_that_is_offered_is_one_whatever_the_folder_is_called(
    kind: str, store: Store, tmp_path: Path
) -> None:
    job_id = fill(store)
    out = tmp_path / "my runs; $(rm x)"
    *_, look = kinds("raymsa.exporters", Exporter)[kind]().write(chosen(store, [f"{job_id}-disc-1"]), out)  # type: ignore[type-abstract]
    assert shlex.split(look.partition("  (")[0])[-1] == str(out)
