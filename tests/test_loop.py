"""The training loop on the tiny Thinker: steps, rates, stopping, errors, and going on as if nothing had happened.

Axes as in `raymsa.clip.Batch`.
"""

import math
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import SafetensorError

from raymsa.clip import SHARD_SCHEMA, to_row
from raymsa.data import manifest as manifests
from raymsa.data.collate import Collate
from raymsa.data.shards import read
from raymsa.errors import DataError, NonFiniteLoss, OutOfMemory
from raymsa.readouts.base import Readout
from raymsa.readouts.disc import Discriminative
from raymsa.readouts.gen import Generative
from raymsa.spec import READOUTS, InputsSpec, LoraSpec, ModelSpec, TrainSpec, check
from raymsa.target import Labels, Scale
from raymsa.thinker.backbone import layers
from raymsa.thinker.inputs import Encoder
from raymsa.thinker.load import load
from raymsa.training import checkpoint, run
from raymsa.training.loop import Feed, Position, fit, make_optimizer, rate, step
from raymsa.training.predictions import read_predictions
from raymsa.training.run import Work, execute
from raymsa.training.student import Student
from tests.clips import MIXED, clip
from tests.faults import fill, make_space, small_disk

SCALE = Scale(-3, 3, -0.1, 1.5, 0.0)
CPU = torch.device("cpu")
ALL = ("text", "audio", "video")
MEANING = [("good", 2.0), ("bad", -2.0), ("so", 0.5), ("fun", 1.0)]
WORDS = [clip(f"w{i}", f"{MEANING[i % 4][0]} " * (1 + i % 5), 0, 0.0, label=MEANING[i % 4][1]) for i in range(12)]
STILL = {"disc": Discriminative(head_width=16, head_dropout=0), "gen": Generative()}  # no dropout


def make_student(readout, seed=0, dropout=0.0, modalities=("text",), quantization="none") -> Student:
    """A student whose adapters already do something, so that every adapter has a gradient."""
    torch.manual_seed(seed)
    model = ModelSpec(path="tiny", quantization=quantization)
    thinker = load(model, LoraSpec(rank=2, dropout=dropout), modalities, readout.needs_lm_head, CPU)
    student = Student(thinker, readout, readout.head(thinker.width, SCALE), SCALE, model)
    draw = torch.Generator().manual_seed(seed)
    for weight in thinker.parameters():
        weight.data += 0.02 * torch.randn(weight.shape, generator=draw)
    return student


def batches_of(student, sizes, clips=WORDS, modalities=("text",)):
    folder = student.thinker.folder
    inputs = InputsSpec(prompt="{text}\nHow?", modalities=modalities)
    collate = Collate(
        Encoder(folder.tokenizer, folder.extractor, folder.config, inputs, str(inputs.prompt), SCALE), student.readout
    )
    source = iter(clips)
    return [collate([collate.measure(next(source)) for _ in range(size)], answers=True) for size in sizes]


def one_step(student, batches, train=None):
    """One optimizer step at the peak rate: loss, gradients, parameters, and how far these moved."""
    train = train or TrainSpec(warmup=0, max_grad_norm=1e9)
    student.train_mode(True)
    optimizer = make_optimizer(student, train)
    params = [p for group in optimizer.param_groups for p in group["params"]]
    before = [p.detach().clone() for p in params]
    loss, norm = step(student, train, optimizer, batches, 1.0, 1, Position())
    moved = [float((p - b).abs().max()) for p, b in zip(params, before, strict=True)]
    return loss, norm, [p.grad.clone() for p in params], [p.detach().clone() for p in params], moved


class Diary:
    """A listener that writes down what it is told."""

    def __init__(self):
        self.losses, self.rates, self.epochs, self.lines = [], [], [], []
        self.optimizer = None

    def step(self, progress):
        self.losses.append(progress.loss)
        self.lines.append(progress.line())

    def epoch(self, position, optimizer, valid_error, best):
        self.epochs.append((position.epoch, valid_error, best))
        self.rates.append([group["lr"] for group in optimizer.param_groups])

    def stopping(self):
        return False

    def pause(self, position, optimizer):
        pass


def fit_words(student, train, seed=1, valid=(1.0,), watch=None):
    """Train on the words, four clips a step, with the valid MAE of each epoch given."""
    scripted = iter(valid)
    steps = [[batch] for batch in batches_of(student, [4, 4, 4])]
    feed = Feed(lambda epoch, skip: iter(steps[skip:]), len(steps), lambda: next(scripted))
    watch = watch or Diary()
    return fit(student, train, feed, watch, seed), watch


# One step


@pytest.mark.parametrize("kind", READOUTS)
def test_accumulation_equals_one_large_batch(kind):
    whole = make_student(STILL[kind])
    loss, norm, gradients, params, _ = one_step(whole, batches_of(whole, [12]))
    for sizes in ([6, 6], [1, 4, 7], [1] * 12):
        parts = make_student(STILL[kind])
        other_loss, other_norm, other_gradients, other_params, _ = one_step(parts, batches_of(parts, sizes))
        assert other_loss == pytest.approx(loss, abs=1e-5) and other_norm == pytest.approx(norm, rel=1e-4)
        for one, other in zip(gradients, other_gradients, strict=True):
            assert torch.allclose(one, other, atol=1e-5)
        for one, other in zip(params, other_params, strict=True):
            assert torch.allclose(one, other, atol=1e-5)


def test_adapters_and_head_move_at_their_own_rates():
    student = make_student(STILL["disc"])
    train = TrainSpec(lora_lr=1e-3, head_lr=1e-2, weight_decay=0, warmup=0)
    *_, moved = one_step(student, batches_of(student, [12]), train)
    adapters = len(student.thinker.parameters())
    assert max(moved[:adapters]) == pytest.approx(1e-3, rel=0.01)  # AdamW's first step is as long as its rate
    assert max(moved[adapters:]) == pytest.approx(1e-2, rel=0.01)


def test_a_readout_without_a_head_has_one_group_of_rates():
    assert len(make_optimizer(make_student(STILL["gen"]), TrainSpec()).param_groups) == 1


def test_the_fused_optimizer_moves_weights_as_the_plain_one_does(monkeypatch):
    plain, moved = torch.optim.AdamW, []
    for swapped in (False, True):
        if swapped:
            monkeypatch.setattr(torch.optim, "AdamW", lambda groups, fused, **rest: plain(groups, **rest))
        student = make_student(STILL["disc"])
        moved.append(one_step(student, batches_of(student, [12]))[3])
    assert all(torch.allclose(one, other, atol=1e-7) for one, other in zip(*moved, strict=True))


def test_gradients_are_scaled_down_to_the_largest_norm_allowed():
    student = make_student(STILL["disc"])
    _, norm, gradients, _, _ = one_step(student, batches_of(student, [12]), TrainSpec(max_grad_norm=0.01))
    assert norm > 0.01  # what is reported is the norm before
    assert float(torch.cat([g.flatten() for g in gradients]).norm()) == pytest.approx(0.01, rel=1e-3)


def test_what_is_not_an_adapter_or_the_head_never_changes():
    student = make_student(STILL["disc"], quantization="nf4")
    trained = {id(p) for group in student.groups(TrainSpec()) for p in group["params"]}
    frozen = [p for p in student.thinker.model.parameters() if id(p) not in trained]
    before = [p.clone() for p in frozen]
    one_step(student, batches_of(student, [12]), TrainSpec(lora_lr=0.1))
    assert frozen and all(torch.equal(p, b) for p, b in zip(frozen, before, strict=True))


@pytest.mark.parametrize("kind", READOUTS)
def test_recomputing_activations_changes_no_gradient(kind):
    grads = []
    for checkpointing in (False, True, 2, "towers"):
        student = make_student(STILL[kind], modalities=ALL, quantization="nf4")
        batches = batches_of(student, [4], MIXED, ALL)
        student.train_mode(True, checkpointing)
        student.loss_B(batches[0]).sum().backward()
        grads.append([p.grad for group in student.groups(TrainSpec()) for p in group["params"]])
        assert all(g is not None for g in grads[-1])
    first, *others = grads
    for other in others:
        assert all(torch.allclose(one, another, atol=1e-5) for one, another in zip(first, other, strict=True))


@pytest.mark.parametrize(
    ("checkpointing", "language", "tower"),
    [
        (False, [1, 1, 1, 1], [1, 1]),
        (True, [2, 2, 2, 2], [2, 2]),
        (2, [2, 1, 2, 1], [2, 1]),
        (3, [2, 1, 1, 2], [2, 1]),
        ("towers", [1, 1, 1, 1], [2, 2]),
    ],
    ids=str,
)
def test_each_policy_recomputes_the_layers_it_names(checkpointing, language, tower):
    student = make_student(STILL["disc"], modalities=ALL)
    (batch,) = batches_of(student, [4], MIXED, ALL)
    core, passes = student.thinker._core, {}
    for part in ("language_model", "audio_tower", "visual"):
        for index, layer in enumerate(layers(getattr(core, part))):
            passes[part, index] = 0
            inner = layer.fc1 if part == "audio_tower" else layer.mlp
            inner.register_forward_pre_hook(lambda *_, at=(part, index): passes.__setitem__(at, passes[at] + 1))
    student.train_mode(True, checkpointing)
    student.loss_B(batch).sum().backward()
    found = {part: [passes[p, i] for p, i in passes if p == part] for part, _ in passes}
    assert found == {"language_model": language, "audio_tower": tower, "visual": tower}


def test_activations_are_recomputed_in_every_part_without_reentrance_and_only_in_training():
    student = make_student(STILL["disc"], modalities=ALL)
    (batch,) = batches_of(student, [4], MIXED, ALL)
    core = student.thinker._core
    passes = dict.fromkeys(("language_model", "audio_tower", "visual"), 0)

    def count(part):
        def hook(*_):
            passes[part] += 1

        return hook

    core.language_model.layers[0].mlp.register_forward_pre_hook(count("language_model"))
    core.audio_tower.layers[0].fc1.register_forward_pre_hook(count("audio_tower"))
    core.visual.blocks[0].mlp.register_forward_pre_hook(count("visual"))
    for checkpointing, expected in ((True, 2), (False, 1)):
        student.train_mode(True, checkpointing)
        student.loss_B(batch).sum().backward()
        assert set(passes.values()) == {expected}, passes
        passes.update(dict.fromkeys(passes, 0))
    student.train_mode(True, True)
    how = [
        m._gradient_checkpointing_func.keywords for m in core.modules() if getattr(m, "gradient_checkpointing", False)
    ]
    assert how and all(keywords["use_reentrant"] is False for keywords in how)
    student.train_mode(False)
    student.read(batch)
    assert set(passes.values()) == {1}


def test_epochs_leave_no_hooks_behind():
    student = make_student(STILL["disc"], modalities=ALL)
    modules = list(student.thinker.model.modules())
    before = sum(len(module._forward_hooks) for module in modules)
    for _ in range(3):
        student.train_mode(True, True)
        assert sum(len(module._forward_hooks) for module in modules) == before
        student.train_mode(False)


def test_a_training_step_after_a_valid_pass_has_the_gradients_it_had_before_it():
    """bitsandbytes packs 4-bit weights in an eval pass on some CPUs, and the packed ones have no backward pass."""
    student = make_student(STILL["disc"], quantization="nf4")
    (batch,) = batches_of(student, [12])
    found = []
    for _ in range(2):
        student.train_mode(True)
        params = [p for group in student.groups(TrainSpec()) for p in group["params"]]
        found.append(torch.autograd.grad(student.loss_B(batch).sum(), params))
        student.train_mode(False)
        student.read(batch)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


# Rates


@pytest.mark.parametrize(
    ("at", "share"),
    [(0, 0.1), (4, 0.5), (9, 1.0), (10, 1.0), (55, 0.5), (32, 0.5 * (1 + math.cos(math.pi * 22 / 90))), (100, 0.0)],
)
def test_the_rate_rises_in_a_line_and_falls_as_half_a_cosine(at, share):
    assert rate(at, steps=100, warmup=0.1) == pytest.approx(share, abs=1e-12)


def test_without_warm_up_the_first_step_has_the_peak_rate():
    assert rate(0, steps=10, warmup=0) == 1.0


@pytest.mark.parametrize("steps", [1, 2, 3, 100])
@pytest.mark.parametrize("warmup", [0, 0.05, 0.5, 0.99])
def test_every_step_learns_something(steps, warmup):
    shares = [rate(at, steps, warmup) for at in range(steps)]
    assert all(0 < share <= 1 for share in shares)


def test_the_groups_rates_follow_the_same_curve_from_their_own_peaks():
    train = TrainSpec(epochs=2, lora_lr=2e-4, head_lr=1e-3, warmup=0, checkpointing=False)
    _, diary = fit_words(make_student(STILL["disc"]), train, valid=[2.0, 1.0])
    share = rate(2, 6, 0), rate(5, 6, 0)  # the last step of each epoch
    assert diary.rates == [[pytest.approx(2e-4 * s), pytest.approx(1e-3 * s)] for s in share]


# Whole runs


@pytest.mark.parametrize("kind", READOUTS)
def test_the_same_seed_gives_the_same_losses_and_another_seed_gives_others(kind):
    train = TrainSpec(epochs=2, checkpointing=False)

    def losses(seed):
        student = make_student(READOUTS[kind](), dropout=0.3)
        return fit_words(student, train, seed, valid=[2.0, 1.0])[1].losses

    first = losses(1)
    torch.rand(3)  # what else draws numbers must not matter
    assert losses(1) == first and len(first) == 6
    assert all(one != other for one, other in zip(losses(2), first, strict=True))


def test_training_lowers_the_loss():
    train = TrainSpec(epochs=8, lora_lr=3e-3, head_lr=3e-3, patience=9, checkpointing=False)
    _, diary = fit_words(make_student(STILL["disc"]), train, valid=[1.0] * 8)
    assert sum(diary.losses[-3:]) < 0.7 * sum(diary.losses[:3])


def test_a_run_stops_when_valid_mae_alone_has_not_fallen_for_its_patience():
    train = TrainSpec(epochs=9, patience=2, checkpointing=False)
    end, diary = fit_words(make_student(STILL["disc"]), train, valid=[1.0, 0.8, 0.9, 0.8, 0.1])
    assert diary.epochs == [(1, 1.0, True), (2, 0.8, True), (3, 0.9, False), (4, 0.8, False)]
    assert (end.epoch, end.step, end.best_epoch, end.best_valid_error) == (4, 12, 2, 0.8)


def test_a_valid_mae_that_is_no_number_is_never_the_best():
    train = TrainSpec(epochs=3, patience=3, checkpointing=False)
    end, diary = fit_words(make_student(STILL["disc"]), train, valid=[math.nan, 2.0, math.nan])
    assert [best for *_, best in diary.epochs] == [False, True, False] and end.best_epoch == 2


def test_the_checkpoint_that_is_kept_is_the_one_that_was_best_on_valid(tmp_path):
    student = make_student(STILL["disc"])
    kept = []

    class Keeper(run._Watch):
        """The run's own listener, and a copy of the head after every epoch."""

        def epoch(self, position, optimizer, valid_error, best):
            super().epoch(position, optimizer, valid_error, best)
            kept.append({name: value.clone() for name, value in student.head.state_dict().items()})

    train = TrainSpec(epochs=5, patience=2, checkpointing=False)
    work = run.Work(SimpleNamespace(train=train), tmp_path, None, tmp_path)
    watch = Keeper(work, student, lambda report: None, Position())
    fit_words(student, train, valid=[1.0, 0.8, 0.9, 0.85], watch=watch)
    best = checkpoint.find(tmp_path, "best")
    assert checkpoint.position_of(best) == Position(2, 6, 0, 2, 0.8)
    checkpoint.load_weights(best, student)
    found = student.head.state_dict()
    assert all(torch.equal(found[name], kept[1][name]) for name in found)
    assert any(not torch.equal(found[name], kept[3][name]) for name in found)
    assert "epoch 3 done: valid MAE 0.9000 (best 0.8000, epoch 2)" in (tmp_path / "log.txt").read_text()


def test_a_progress_line_says_what_a_person_wants_to_know():
    _, diary = fit_words(make_student(STILL["disc"]), TrainSpec(epochs=1, checkpointing=False))
    assert diary.lines[1].startswith("epoch 1/1  step 2/3  loss ")
    for words in ("clips/s", "tokens/s", "data wait", "GiB", "left"):
        assert words in diary.lines[1]


# Errors


def test_a_loss_that_is_no_number_ends_the_run_with_the_step_and_the_clips():
    student = make_student(STILL["disc"])
    clips = [replace(c, label=math.nan) if c.id in ("w5", "w6") else c for c in WORDS]
    steps = [[batch] for batch in batches_of(student, [4, 4, 4], clips)]
    feed = Feed(lambda epoch, skip: iter(steps), 3, lambda: 1.0)
    with pytest.raises(NonFiniteLoss, match=r"^step 2 \(epoch 1\): loss is nan; clips w5, w6$"):
        fit(student, TrainSpec(epochs=2, checkpointing=False), feed, Diary(), 1)


def test_all_clips_of_a_step_whose_loss_is_no_number_are_named_and_the_weights_stay():
    student = make_student(STILL["disc"])
    clips = [replace(c, label=math.nan) if c.id in ("w1", "w9") else c for c in WORDS]
    before = student.head[0].weight.detach().clone()
    with pytest.raises(NonFiniteLoss, match=r"^step 1 \(epoch 1\): loss is nan; clips w1, w9$"):
        one_step(student, batches_of(student, [4, 4, 4], clips))
    assert torch.equal(student.head[0].weight, before)


def test_gradients_that_are_no_numbers_end_the_run_and_leave_the_weights_as_they_were():
    student = make_student(STILL["disc"])
    student.head[0].weight.register_hook(lambda grad: grad * math.inf)
    before = student.head[0].weight.detach().clone()
    with pytest.raises(NonFiniteLoss, match=r"^step 1 \(epoch 1\): gradient is (inf|nan); clips w0, w1, w2, w3"):
        one_step(student, batches_of(student, [4, 8]))
    assert torch.equal(student.head[0].weight, before)


class Greedy(Readout):
    """A readout that needs more memory than there is. It has no kind, so no job can name it."""

    def read(self, head, thinker, batch, target):
        """Never asked for: training comes first."""
        return []

    def loss_B(self, head, thinker, batch, target):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nmore lines")


def test_running_out_of_memory_says_which_setting_uses_less():
    student = make_student(Greedy())
    batches = batches_of(student, [4, 8])
    widest = max(batch.token_BT.numel() for batch in batches)
    with pytest.raises(OutOfMemory) as caught:
        one_step(student, batches, TrainSpec(batch_tokens=777))
    message = str(caught.value)
    assert message.startswith(f"step 1: out of memory in a pass of {widest} tokens; lower train.batch_tokens (now 777)")
    assert "train.checkpointing=true" in message and "Tried to allocate 20.00 GiB" in message and "\n" not in message


def test_the_loop_runs_where_ray_cannot_be_imported():
    code = """
import sys
import time
sys.modules["ray"] = None
from tests.test_loop import STILL, TrainSpec, fit_words, make_student
end, diary = fit_words(make_student(STILL["disc"]), TrainSpec(epochs=1))
print(end.step, len(diary.losses), sorted(name for name in sys.modules if name.split(".")[0] == "ray"))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[-2] == "3 3 ['ray']"


# Going on after a stop


class Killed(Exception):
    """Raised by the listener of a run, in the place of a kill."""


@pytest.fixture(scope="module")
def work(home, tmp_path_factory):
    """Eighteen training clips in three shards, with sound and picture here and there, and four valid clips."""
    folder = tmp_path_factory.mktemp("shards")
    clips = {
        "train": [
            clip(f"t{i}", "so good " * (1 + i % 4), i % 3, 0.2 * (i % 2), (28, 28), i % 7 - 3.0) for i in range(18)
        ],
        "valid": [clip(f"v{i}", "not bad " * (1 + i), i, 0.1 * i, (28, 28), 1.0 - i) for i in range(4)],
    }
    files = []
    for split, some in clips.items():
        for number, start in enumerate(range(0, len(some), 6)):
            path = folder / f"{split}-{number:05d}.parquet"
            rows = [to_row(replace(c, split=split)) for c in some[start : start + 6]]
            pq.write_table(pa.Table.from_pylist(rows, SHARD_SCHEMA), path, row_group_size=4)
            files.append(manifests.ShardFile(name=path.name, split=split, rows=len(rows), bytes=1, sha256=""))
    counts = {split: len(some) for split, some in clips.items()}
    manifest = manifests.Manifest(
        name="eighteen",
        digest="",
        counts=counts,
        without_sound={},
        without_picture={},
        cut_sound=0,
        damaged=0,
        rejects=0,
        labels=Labels(mean=0.0, sd=2.0, median=0.0),
        settings={},
        versions={},
        files=tuple(files),
    )

    def make(run_folder, kind="disc", **train):
        raw = {
            "name": "resume",
            "model": {"path": "tiny"},
            "dataset": {"kind": "table", "name": "eighteen"},
            "inputs": {"prompt": "{text}\nHow?"},
            "readout": {"kind": kind},
            "lora": {"rank": 2},
            "train": {"epochs": 2, "batch_clips": 4, "batch_tokens": 120, "window_clips": 8} | train,
            "seeds": [7],
            "evaluate": {"splits": ["valid"]},
        }
        raw["train"] |= {"checkpoint_every_s": 1e-9, "lora_lr": 1e-3}
        return Work(check(raw, "test"), folder, manifest, run_folder)

    return make


@pytest.fixture
def every_step_is_reported(monkeypatch):
    monkeypatch.setattr(run, "REPORT_EVERY_S", 0.0)


def run_until(work, stops=()):
    """Run, and run again after every stop; what was reported of each step, each epoch and each start."""
    found, epochs, resumed, stops = {}, {}, [], list(stops)

    def report(news):
        if "resumed_at" in news:
            resumed.append(news["resumed_at"])
        for one in news.get("steps", []):
            kind = epochs if "valid_mae" in one["values"] else found
            values = {k: v for k, v in one["values"].items() if k in ("loss", "grad_norm", "valid_mae")}
            assert kind.setdefault(one["step"], values) == values  # a step that is done again is the same step
            if kind is found and stops and one["step"] == stops[0]:
                stops.pop(0)
                raise Killed

    for _ in range(len(stops) + 1):
        try:
            execute(work, CPU, read, report)
        except Killed:
            continue
    assert not stops
    return found, epochs, resumed


@pytest.mark.parametrize("kind", READOUTS)
def test_a_run_that_is_stopped_again_and_again_is_the_run_that_never_was(kind, work, every_step_is_reported, tmp_path):
    whole, broken = work(tmp_path / "whole", kind), work(tmp_path / "broken", kind)
    losses, valid, resumed = run_until(whole)
    assert list(losses) == list(range(1, 11)) and list(valid) == [5, 10] and resumed == [0]
    # at the first step, inside a window, in a window's first step, in an epoch's last step, in the next epoch
    other_losses, other_valid, resumed = run_until(broken, stops=[1, 3, 5, 6, 9])
    assert resumed == [0, 0, 2, 4, 5, 8]
    assert other_losses == losses and other_valid == valid
    assert read_predictions(broken.folder) == read_predictions(whole.folder)
    assert len(read_predictions(whole.folder)) == 4


def test_a_full_disk_leaves_a_run_as_it_was_and_no_step_is_lost(work, every_step_is_reported, tmp_path):
    found, filled = [], []

    def report(news):
        found.extend(one["step"] for one in news.get("steps", []) if "loss" in one["values"])
        if found and found[-1] == 3 and not filled:
            fill(disk)
            filled.append(True)

    with small_disk(tmp_path / "disk") as disk:
        mine = work(disk / "run")
        left = []
        for _ in range(2):  # the second attempt begins on a full disk
            with pytest.raises((OSError, SafetensorError), match=r"(?i)no space left"):
                execute(mine, CPU, read, report)
            left.append({path.relative_to(disk): path.stat().st_size for path in disk.rglob("*") if path.is_file()})
            found.clear()
        assert left[0] == left[1] and not any(".part" in str(path) for path in left[0])
        assert checkpoint.position_of(checkpoint.find(mine.folder, "last")).step == 2
        make_space(disk)
        execute(mine, CPU, read, report)
        assert sorted(set(found)) == list(range(1, 11))


def test_a_run_that_has_ended_does_not_train_again(work, every_step_is_reported, tmp_path):
    done = work(tmp_path, epochs=1)
    run_until(done)
    before = read_predictions(tmp_path)
    losses, _, resumed = run_until(done)
    assert losses == {} and resumed == [5]
    assert read_predictions(tmp_path) == before


def test_a_run_does_not_go_on_with_other_clips_than_it_began_with(work, every_step_is_reported, tmp_path):
    begun = work(tmp_path, epochs=1)
    run_until(begun)
    other = begun._replace(manifest=begun.manifest.model_copy(update={"digest": "other"}))
    with pytest.raises(DataError, match="holds data other, but this run has seen data"):
        run_until(other)


def test_zero_epochs_score_the_thinker_as_it_is(work, tmp_path):
    losses, _, _ = run_until(work(tmp_path, "gen", epochs=0))
    assert losses == {} and len(read_predictions(tmp_path)) == 4
    assert not (checkpoint.find(tmp_path, "best") / "adapter").exists()


# Waiting for clips


def test_the_share_of_time_that_a_run_waited_for_clips_is_counted_over_all_epochs():
    student = make_student(STILL["disc"])
    (batch,) = batches_of(student, [4])

    def slowly(epoch, skip):
        for _ in range(2):
            time.sleep(0.5 if epoch else 0.0)
            yield [batch]

    feed = Feed(slowly, 2, lambda: 1.0)
    end = fit(student, TrainSpec(epochs=2, checkpointing=False), feed, Diary(), 1)
    assert 1.0 <= end.waited_s < end.trained_s
    assert end.data_wait() == pytest.approx(end.waited_s / end.trained_s)
    assert Position().data_wait() is None


def test_a_run_tells_how_its_clips_come_and_how_long_it_waited_in_all_its_attempts(
    work, every_step_is_reported, tmp_path
):
    def stop_at_six(news):
        if any(one["step"] == 6 for one in news.get("steps", [])):
            raise Killed

    with pytest.raises(Killed):
        execute(work(tmp_path), CPU, read, stop_at_six)
    before = checkpoint.position_of(checkpoint.find(tmp_path, "last"))
    news = []
    execute(work(tmp_path), CPU, read, news.append)
    after = checkpoint.position_of(checkpoint.find(tmp_path, "last"))
    assert 0 < before.trained_s < after.trained_s and before.waited_s < after.waited_s
    assert news[-1]["finished"] and news[-1]["data_wait"] == after.data_wait()
    log = (tmp_path / "log.txt").read_text()
    assert log.count("clips are read in this process; at most ") == 2
    assert log.count(f"waited for clips in {after.data_wait():.1%} of ") == 1
