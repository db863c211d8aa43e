"""raymsa bench: made-up clips, the split of a step, counted operations, two sides in turn, what is printed and kept."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from raymsa.bench import measure, run
from raymsa.bench import request as requests
from raymsa.bench.clips import First, Form, MadeUp, Prepared, form
from raymsa.bench.machine import operations
from raymsa.bench.request import Request, at_hand
from raymsa.bench.run import differences, in_its_own_process, medians, ratios
from raymsa.bench.sides import side_of
from raymsa.bench.split import PARTS, Split
from raymsa.cli import main
from raymsa.clip import Clip
from raymsa.data import manifest as manifests
from raymsa.errors import RaymsaError, UsageError
from raymsa.home import bench_dir
from raymsa.target import Classification, Regression
from tests.clips import clip
from tests.jobs import job_file
from tests.test_look import write_shards

CPU = torch.device("cpu")
MOSI = Regression(low=-3, high=3)


def bench(*words: str):
    return CliRunner().invoke(main, ["bench", *words], catch_exceptions=False)


# Clips


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("16x100k,5s,25w", Form(16, 100_000, 5.0, 25)),
        ("25w", Form(words=25)),
        ("2.5s, 3w", Form(seconds=2.5, words=3)),
        ("4x784,1s", Form(4, 784, 1.0)),
    ],
)
def test_lengths_are_read(text, made):
    assert form(text) == made


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("16x100k,5", "'5' is no length"),
        ("", "is no length"),
        ("5s,6s", "seconds stand twice"),
        ("1x1k,2x1k", "pixels and frames stand twice"),
        ("2x100", "784 pixels or more"),
    ],
)
def test_lengths_that_make_no_sense_are_refused(text, says):
    with pytest.raises(UsageError, match=says):
        form(text)


def test_made_up_clips_are_as_long_as_stated():
    made = MadeUp((form("16x100k,5s,25w"), form("3x10k,2w"), form("7w")), MOSI, 7)
    first, second, third = list(made.epoch(0))[:3]
    assert first.frames_FHWC.shape[0] == 16
    assert 80_000 < first.frames_FHWC[0, :, :, 0].size <= 100_000
    assert (len(first.audio_S), first.seconds, len(first.text.split())) == (80_000, 5.0, 25)
    assert (second.audio_S, second.seconds, len(second.text.split())) == (None, 1.5, 2)
    assert (third.audio_S, third.frames_FHWC, len(third.text.split())) == (None, None, 7)
    assert len({one.id for one in made.epoch(0)}) == 7
    assert {one.label for one in made.epoch(0)} == {-3, -2, -1, 0, 1, 2, 3}


def test_made_up_clips_have_every_class():
    made = MadeUp((form("7w"),), Classification(classes=("a", "b", "c")), 7)
    assert made.target.counts == (3, 2, 2)


def prepared(folder: Path) -> Path:
    """Twelve training clips and four others, as shards."""
    clips = [
        replace(clip(f"c{i}", "good " * (1 + i % 5), i % 3, 0.5, (28, 28), i % 7 - 3.0), split="train")
        for i in range(12)
    ]
    others = [replace(clip(f"v{i}", "bad film", 1, 0.4, (28, 28), 1.0), split="test") for i in range(4)]
    return write_shards(folder, [*clips, *others])


def test_a_jobs_clips_come_in_the_order_of_its_epochs(tmp_path):
    folder = prepared(tmp_path / "shards")
    found = Prepared(folder, manifests.read(folder), MOSI, 1, ("valid", "test"))
    assert {one.id for one in found.epoch(0)} == {f"c{i}" for i in range(12)}
    assert [one.id for one in found.scored(3)] == ["v0", "v1", "v2"]
    assert len(list(First(found, 5).epoch(1))) == 5


# What is measured


def test_the_parts_of_a_step_are_told_apart_and_nothing_of_it_stays():
    model = nn.ModuleDict(
        {"visual": nn.Linear(400, 400), "language_model": nn.Linear(400, 400), "other": nn.Linear(9, 9)}
    )
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    split, original = Split(CPU), torch.Tensor.backward
    with split.watching(model):
        split.begin()
        for x in split.waiting(torch.ones(400, 400) for _ in range(3)):
            model["language_model"](model["visual"](x)).sum().backward()
            optimizer.step()
            split.end_step()
    assert torch.Tensor.backward is original
    assert not model["visual"]._forward_hooks and not model["visual"]._forward_pre_hooks
    assert len(split.rows) == 3 == len(split.seconds)
    for row in split.rows:
        assert list(row) == list(PARTS)
        assert all(row[part] > 0 for part in PARTS)
        assert row["rest"] < 0.9 * sum(row.values())


def test_products_forward_and_backward_are_counted():
    layer, x = nn.Linear(30, 20), torch.ones(7, 30, requires_grad=True)
    assert operations(lambda: layer(x)) == 2 * 7 * 30 * 20
    assert operations(lambda: layer(x).sum().backward()) == 3 * 2 * 7 * 30 * 20


def test_attention_on_a_cpu_is_counted():
    q, k, v = (torch.randn(2, 4, n, 8, requires_grad=True) for n in (5, 6, 6))

    def attend():
        return nn.functional.scaled_dot_product_attention(q, k, v)

    once = operations(attend)
    assert once == 2 * 2 * (2 * 4 * 5 * 6 * 8)
    assert operations(lambda: attend().sum().backward()) == once + once * 5 // 2


@pytest.mark.parametrize("grad", [True, False])
def test_a_4_bit_product_counts_as_a_plain_one(grad):
    from bitsandbytes.nn import Linear4bit

    layer = Linear4bit(128, 64, bias=False, compute_dtype=torch.float32, quant_type="nf4").to("cpu")
    layer.support_avx512bf16_for_cpu = False
    x = torch.ones(3, 128, requires_grad=grad)
    assert operations(lambda: layer(x)) == 2 * 3 * 128 * 64


def test_ratios_say_how_many_times_better_ours_is():
    ours = {"training": {"clips_per_s": 6.0, "host_bytes": 100}, "load": {"seconds": 2.0}}
    theirs = {"training": {"clips_per_s": 2.0, "host_bytes": 300, "device_bytes": 1}, "load": {"seconds": 1.0}}
    found = ratios(ours, theirs)
    assert found == {"training.clips_per_s": 3.0, "training.host_bytes": 3.0, "load.seconds": 0.5}


def test_the_median_of_the_rounds_is_taken_of_every_number():
    runs = [{"side": "raymsa", "scoring": {"latency_s": s}, "load": {}, "losses": [s]} for s in (1.0, 9.0, 2.0)]
    assert medians(runs, 1.0)["scoring"] == {"latency_s": 2.0}
    assert "losses" not in medians(runs, 1.0)


def test_the_first_load_is_told_from_the_later_ones():
    runs = [{"load": {"seconds": s, "host_bytes": 10 * s}} for s in (60.0, 2.0, 4.0)]
    assert medians(runs, 1.0) == {
        "load": {"seconds": 60.0, "host_bytes": 600.0},
        "load_again": {"seconds": 3.0, "host_bytes": 30.0},
    }
    assert list(medians(runs[:1], 1.0)) == ["load"]


def test_all_sides_are_held_against_one_matrix_rate():
    slow, fast = ({"matrix_rate": rate, "load": {}, "training": {"operations_per_s": 30.0}} for rate in (50.0, 100.0))
    assert medians([slow], 100.0)["training"]["share"] == medians([fast], 100.0)["training"]["share"] == 0.3


def test_differences_are_the_largest():
    found = differences({"losses": [1.0, 2.0], "scores": [0.0]}, {"losses": [1.5, 1.0], "scores": [0.0]})
    assert found == {"losses": 1.0, "scores": 0.0}


# The command


@pytest.fixture(scope="module")
def compared(home, tmp_path_factory):
    """A job on its shards, against the plain recipe: what was printed as JSON."""
    folder = tmp_path_factory.mktemp("compared")
    shards = prepared(folder / "shards")
    inputs = {"modalities": ["text", "video"]}  # the plain recipe's 300 s of sound take a second for every clip
    path = job_file(folder, train={"epochs": 1, "batch_clips": 4, "batch_tokens": 120}, inputs=inputs)
    words = ["--steps", "3", "--clips", "3", "--against", "plain", "--rounds", "1", "--json"]
    done = bench(str(path), *words, "--set", f"dataset.shards={shards}")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout), done.stderr


def test_both_sides_are_measured_on_the_same_clips_with_equal_losses_and_scores(compared):
    found, _ = compared
    ours, plain = found["sides"]["raymsa"], found["sides"]["plain"]
    assert found["differences"]["losses"] < 1e-3
    assert found["differences"]["scores"] < 1e-3
    for name in ("steps", "clips", "tokens"):
        assert ours["training"][name] == plain["training"][name] > 0
    assert ours["training"]["clips"] == 12
    for side in (ours, plain):
        assert side["load"]["seconds"] > 0
        assert set(side["training"]["split"]) == set(PARTS)
        assert side["training"]["split"]["towers"] > 0
        assert sum(side["training"]["split"].values()) == pytest.approx(side["training"]["step_s"])
        assert 0 < side["training"]["share"] < 1.5
        assert side["training"]["host_bytes"] > 1e8
        assert side["scoring"]["clips_per_s"] > 0 < side["scoring"]["latency_s"]
    assert ours["training"]["operations_per_token"] < plain["training"]["operations_per_token"]  # no lm_head
    rates = [run["matrix_rate"] for runs in found["runs"].values() for run in runs]
    assert found["matrix_rate"] == max(rates)
    for side in (ours, plain):
        assert side["training"]["share"] == side["training"]["operations_per_s"] / max(rates)
    assert found["ratios"]["training.clips_per_s"] == pytest.approx(
        ours["training"]["clips_per_s"] / plain["training"]["clips_per_s"]
    )


def test_what_was_measured_is_kept_with_all_that_it_depends_on(compared):
    found, said = compared
    kept = Path(found["file"])
    assert kept.parent == bench_dir()
    assert str(kept) in said
    on_file = json.loads(kept.read_text())
    assert on_file == {key: value for key, value in found.items() if key != "file"}
    assert on_file["command"].startswith("raymsa bench ")
    assert on_file["spec"]["name"] == "small"
    assert on_file["versions"]["torch"] == torch.__version__


def test_the_table_has_a_column_for_each_side_and_one_for_the_ratio(compared):
    from rich.console import Console

    from raymsa.report.bench import render

    console = Console(width=120, record=True, force_terminal=False)
    found = json.loads(json.dumps(compared[0]))
    found["sides"]["raymsa"]["training"]["clips_per_s"] = 12.345
    render(found, console)
    text = console.export_text()
    assert "raymsa" in text and "plain" in text
    assert any(line.split()[:3] == ["training,", "clips/s", "12.3"] for line in text.splitlines())
    assert "losses differ by" in text
    assert "device memory" not in text  # there is no GPU


def test_made_up_clips_and_random_weights_need_no_data(home, tmp_path):
    path = job_file(tmp_path, readout={"kind": "gen"}, train={"epochs": 1, "batch_clips": 2})
    done = bench(str(path), "--steps=1", "--warm-up=0", "--clips=1", "--made-up=2x2k,1s,4w", "--weights=random")
    assert done.exit_code == 0, done.output
    assert "weights: random" in done.stdout
    assert "scoring, clips/s" in done.stdout


def test_the_best_batch_is_of_that_many_clips_though_short_ones_are_packed(home, tmp_path, monkeypatch):
    side = side_of(asked(tmp_path), MadeUp((form("3w"),), MOSI, 4).target, CPU)
    taken: list[int] = []
    read = side._student.read
    monkeypatch.setattr(side._student, "read", lambda batch: taken.append(len(batch.ids)) or read(batch))
    words = [clip(f"w{i}", "good " * length, 0, 0.0) for i, length in enumerate((1, 40, 1, 1, 1, 2))]
    found = side.score(words, 2)
    assert side._student.thinker.packing and taken == [2, 2, 2]
    assert [r.score for r in found] == pytest.approx([side.score([one], 1)[0].score for one in words], abs=1e-4)


def test_the_plain_recipe_refuses_what_it_does_not_know_before_it_loads(home, tmp_path):
    request = asked(tmp_path, side="plain", recipe=str(requests.recipe()))
    request.spec["readout"] = {"kind": "gen", "constrained": True}
    request.spec["model"]["path"] = "/nowhere"
    with pytest.raises(UsageError, match=r"^--against plain: the plain recipe does not know readout\.constrained$"):
        side_of(request, MOSI, CPU)


@pytest.mark.slow
def test_towers_outputs_are_read_in_place_of_media_by_raymsa_alone(home, tmp_path):
    shards = prepared(tmp_path / "shards")
    inputs = {"modalities": ["text", "video"], "cache": "towers"}
    path = job_file(tmp_path, train={"epochs": 1, "batch_clips": 4}, lora={"scope": "language_model"}, inputs=inputs)
    words = ["--steps=1", "--warm-up=0", "--clips=2", "--against=plain", "--rounds=1", "--json"]
    done = bench(str(path), *words, "--set", f"dataset.shards={shards}")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    took = {name: side["training"]["split"]["towers"] for name, side in found["sides"].items()}
    assert took["raymsa"] == 0 < took["plain"]
    assert max(found["differences"].values()) < 1e-3


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--made-up", "fast"], "'fast' is no length"),
        (["--plain-batch", "2"], "--plain-batch is for --against plain"),
        (["--variant", "gen"], "--variant gen: "),
        (["--steps", "-1"], "--steps"),
        (
            ["--made-up", "3w", "--set", "inputs.cache=towers", "--set", "lora.scope=language_model"],
            "inputs.cache: towers is measured on prepared clips",
        ),
    ],
)
def test_what_is_wrong_is_said_in_a_line(tmp_path, words, says):
    done = bench(str(job_file(tmp_path)), *words)
    assert done.exit_code == 2
    assert says in done.stderr
    assert "Traceback" not in done.output


def test_without_shards_it_says_how_to_make_them(home, tmp_path):
    done = bench(str(job_file(tmp_path)), "--set", f"dataset.shards={tmp_path}/none")
    assert done.exit_code == 2
    assert "no prepared clips there" in done.stderr


def test_without_a_checkout_the_plain_recipe_is_missed_in_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(requests, "RECIPE", Path("tests/benchmarks/no_such_recipe.py"))
    done = bench(str(job_file(tmp_path)), "--made-up", "3w", "--against", "plain")
    assert done.exit_code == 2
    assert "it comes with a checkout" in done.stderr


def asked(tmp_path, **changes) -> Request:
    from raymsa.jobfile import load_job
    from raymsa.spec import runs

    spec = runs(load_job(job_file(tmp_path), []))[0].spec.model_dump(mode="json")
    return replace(Request(spec, "raymsa", None, ["3w"], "real", 1, 0, 1), **changes)


def test_a_job_that_the_plain_recipe_does_not_know_is_refused_before_a_round(tmp_path):
    words = ("--set", "readout={kind: gen, constrained: true}", "--made-up", "3w", "--against", "plain")
    done = bench(str(job_file(tmp_path)), *words)
    assert done.exit_code == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "--against plain: the plain recipe does not know readout.constrained" in line


def test_what_was_measured_before_a_side_died_is_kept(home, tmp_path, monkeypatch):
    def ends(request: Request) -> dict[str, Any]:
        if request.side == "plain":
            raise RaymsaError("memory ran out")
        return {"matrix_rate": 1.0, "training": {"clips_per_s": 3.0}}

    said: list[str] = []
    monkeypatch.setattr(run, "in_its_own_process", ends)
    with pytest.raises(RaymsaError, match="memory ran out"):
        run.bench([asked(tmp_path), asked(tmp_path, side="plain")], 2, "bench", said.append)
    kept = json.loads(Path(said[-1].split(" kept as ")[1]).read_text())
    assert kept["runs"]["raymsa"][0]["training"] == {"clips_per_s": 3.0} and not kept["runs"]["plain"]


def test_the_peak_that_is_told_is_that_of_the_best_batch(monkeypatch):
    class Slower:
        largest = 0

        def score(self, clips: list[Clip], batch: int) -> list[Any]:
            self.largest = max(self.largest, batch)
            time.sleep(0.005 * batch**2)
            return []

    side: Any = Slower()
    monkeypatch.setattr(measure, "forget_peaks", lambda device: setattr(side, "largest", 0))
    monkeypatch.setattr(measure, "peaks", lambda device: {"host_bytes": side.largest})
    found = measure._scoring(side, [clip(f"c{i}", "good", 0, 0.0) for i in range(8)], CPU)
    assert (found["best_batch"], found["host_bytes"]) == (1, 1) and len(found["clips_per_s_by_batch"]) > 1


def test_a_process_that_dies_is_told_from_one_that_says_why(tmp_path):
    with pytest.raises(RaymsaError, match="ended without a result"):
        in_its_own_process(asked(tmp_path, side="plain", recipe=str(tmp_path / "none.py")))
    with pytest.raises(UsageError, match="no prepared clips there"):
        in_its_own_process(asked(tmp_path, made_up=[], shards=str(tmp_path)))


def test_weights_are_at_hand_where_they_lie(home, tmp_path):
    assert at_hand("tiny")
    assert not at_hand(str(tmp_path))
    (tmp_path / "model.safetensors").touch()
    assert at_hand(str(tmp_path))
    assert not at_hand("nobody/nothing")
