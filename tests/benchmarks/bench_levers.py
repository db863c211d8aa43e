"""What each lever for speed and memory brings by itself: a job with all of them against the same with one taken back.

    python -m tests.benchmarks.bench_levers FILE [--set FIELD=VALUE]... [--lever NAME]... [--rounds 2]

The job's prepared clips and real weights; every measurement is a process of its own, as in `raymsa bench`, all of them
in turn, `--rounds` times; medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from raymsa.bench.measure import measure
from raymsa.bench.request import Request
from raymsa.jobfile import load_job
from raymsa.plan import anchored, shards_of
from raymsa.spec import runs

ALL = "all levers"
FIGURES = (
    ("training", "clips_per_s"),
    ("training", "host_bytes"),
    ("scoring", "clips_per_s"),
    ("scoring", "host_bytes"),
)


def without_lean_head() -> None:
    """lm_head is loaded and applied to every token, whether or not the readout asks, as a whole `forward` does."""
    from raymsa.readouts.base import Readout
    from raymsa.readouts.disc import Discriminative

    Discriminative.needs_lm_head = True
    original = Readout.run

    def run(self: Any, head: Any, thinker: Any, batch: Any) -> Any:
        hidden_BTD, embedded = original(self, head, thinker, batch)
        thinker.logits(hidden_BTD.flatten(0, 1))
        return hidden_BTD, embedded

    Readout.run = run  # type: ignore[method-assign]


def without_true_lengths() -> None:
    """Mel features of 300 s of every clip, cut to the clip's afterwards, as transformers' processor makes them."""
    from raymsa.clip import SAMPLE_RATE, mel_frames
    from raymsa.thinker.inputs import Encoder

    def mel(self: Any, clip: Any) -> Any:
        out = self.extractor(
            clip.audio_S.astype("float32") / 32768,
            sampling_rate=SAMPLE_RATE,
            padding="max_length",
            return_tensors="pt",
            device="cpu",
        )
        return out["input_features"][0][:, : mel_frames(len(clip.audio_S))]

    Encoder._mel = mel  # type: ignore[method-assign]


def without_frozen_types() -> None:
    """Frozen weights that are not 4-bit are made float32, as peft's `prepare_model_for_kbit_training` does."""
    from peft import prepare_model_for_kbit_training

    from raymsa.thinker import load

    original = load.adapt
    load.adapt = lambda model, *given: original(prepare_model_for_kbit_training(model, False), *given)


def without_onednn() -> None:
    """float32 products of a CPU by MKL, as torch has it."""
    from raymsa.thinker import load

    load.by_onednn = lambda: False


def without_lean_lora() -> None:
    """peft's own LoRA layers."""
    from raymsa.thinker import load

    load.lean = lambda model: None


def without_fused_adamw() -> None:
    """torch's AdamW as it comes."""
    original = torch.optim.AdamW
    torch.optim.AdamW = lambda *given, **options: original(*given, **{**options, "fused": None})  # type: ignore


def without_index_copy() -> None:
    """The towers' vectors put in place by a mask."""
    from raymsa.thinker import backbone

    def filled(hidden_BTD: Any, at_N: Any, vectors_ND: Any) -> Any:
        mask_M = hidden_BTD.new_zeros(hidden_BTD.shape[:2].numel(), dtype=torch.bool)
        mask_M[at_N] = True
        return hidden_BTD.masked_scatter(mask_M.view(*hidden_BTD.shape[:2], 1), vectors_ND.to(hidden_BTD.dtype))

    backbone.filled = filled


def with_a_thread() -> None:
    """Batches are made in a thread beside the CPU's own, as they are for a GPU."""
    from raymsa.data.ahead import ahead
    from raymsa.data.collate import Collate

    Collate.ahead = lambda self, made: ahead(made)  # type: ignore[method-assign]


LEVERS: dict[str, Callable[[], None] | dict[str, Any]] = {  # what takes a lever back: here, or in the job's file
    "no lm_head": without_lean_head,
    "mel of the true length": without_true_lengths,
    "frozen weights as they are": without_frozen_types,
    "oneDNN": without_onednn,
    "lean LoRA": without_lean_lora,
    "fused AdamW": without_fused_adamw,
    "index_copy": without_index_copy,
    "no thread beside the CPU": with_a_thread,
    "packing": {"packing": False},
    "recomputation": {"checkpointing": False},
}


def main() -> None:
    """Measure and print; or be one of the processes that measure."""
    if sys.argv[1:2] == ["--one"]:
        one(*sys.argv[2:])
        return
    asked = argparse.ArgumentParser()
    asked.add_argument("file", type=Path)
    asked.add_argument("--set", dest="overrides", action="append", default=[])
    asked.add_argument("--lever", dest="levers", action="append", choices=LEVERS)
    asked.add_argument("--rounds", type=int, default=2)
    asked.add_argument("--steps", type=int, default=1)
    asked.add_argument("--clips", type=int, default=16)
    args = asked.parse_args()
    request = requested(args)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in (ALL, *(args.levers or LEVERS))}
    for number in range(args.rounds):
        for name, measured in found.items():
            print(f"round {number + 1} of {args.rounds}: {name}", file=sys.stderr)
            measured.append(in_its_own_process(name, request))
    show({name: medians(measured) for name, measured in found.items()})


def requested(args: argparse.Namespace) -> Request:
    """What every process measures, but for its lever."""
    spec = runs(anchored(load_job(args.file, args.overrides)))[0].spec
    return Request(
        spec=spec.model_dump(mode="json"),
        side="raymsa",
        shards=str(shards_of(spec.dataset)),
        made_up=[],
        weights="real",
        steps=args.steps,
        warm_up=1,
        clips=args.clips,
    )


def in_its_own_process(name: str, request: Request) -> dict[str, Any]:
    """The figures without a lever."""
    with tempfile.TemporaryDirectory(prefix="raymsa-levers-") as folder:
        asked, told = Path(folder) / "request.json", Path(folder) / "result.json"
        asked.write_text(request.dump())
        subprocess.run([sys.executable, "-m", __spec__.name, "--one", name, str(asked), str(told)], check=True)
        found: dict[str, Any] = json.loads(told.read_text())
    return found


def one(name: str, asked: str, told: str) -> None:
    """Measure without a lever, in this process."""
    request = Request.parse(Path(asked).read_text())
    lever = LEVERS.get(name, {})
    if isinstance(lever, dict):
        request.spec["train"].update(lever)
    else:
        lever()
    Path(told).write_text(json.dumps(measure(request, partial(print, file=sys.stderr))))


def medians(measured: list[dict[str, Any]]) -> list[float]:
    """Of each of FIGURES."""
    return [statistics.median(run[section][name] for run in measured) for section, name in FIGURES]


def show(found: dict[str, list[float]]) -> None:
    """One line per lever: what the job does without it, and in brackets the gain of having it."""
    with_all = found.pop(ALL)
    print(f"{'':28}{'training':>24}{'peak':>18}{'scoring':>24}{'peak':>18}")
    print(f"{ALL:28}{cells(with_all, None)}")
    for name, figures in found.items():
        print(f"{'without: ' + name:28}{cells(figures, with_all)}")


def cells(figures: list[float], with_all: list[float] | None) -> str:
    """Clips/s and MiB in turn."""
    written = []
    for at, ((_, name), value) in enumerate(zip(FIGURES, figures, strict=True)):
        rate = name == "clips_per_s"
        shown = f"{value:.3f} clips/s" if rate else f"{value / 2**20:.0f} MiB"
        if with_all:
            gain = with_all[at] / value if rate else value / with_all[at]
            shown += f" ({gain:.2f})"
        written.append(f"{shown:>{24 if rate else 18}}")
    return "".join(written)


if __name__ == "__main__":
    main()
