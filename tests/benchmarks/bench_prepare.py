"""Clips per second and peak memory of `raymsa prepare` against a plain loop over PyAV and transformers' processor.

    python tests/benchmarks/bench_prepare.py [--raw FOLDER] [--clips 880] [--rounds 2] [--processor FOLDER]

FOLDER has *.mp4 files somewhere inside; without it clips are made. One after the other on the same clips: the loop on
one core, prepare on one core, again as often as --rounds says, then prepare on two cores. Start-up (imports, Ray) is
shown beside and is no part of a rate. Everything runs at the niceness of Ray's workers, so that other work on the
machine slows all of it alike; `CPU ms/clip` does not depend on other work.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import psutil

NICE = 15  # of Ray's workers
LEAD = 0.1  # of the clips, before the clock starts: on two cores the second writer starts later than the first
FRAMES, PIXELS = 16, 128 * 28 * 28  # raymsa's defaults


# ---- the reference: what one writes first ----------------------------------------------------------------------------


def plain(files: list[Path], processor_folder: Path | None) -> None:
    import torch

    torch.set_num_threads(1)
    process = reference(processor_folder)
    process(*read(files[0]))
    started = time.monotonic()
    cpu = time.process_time()
    for path in files:
        process(*read(path))
    say(len(files), time.monotonic() - started, time.process_time() - cpu, process.__name__)


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """All frames and all sound; then 16 frames of them."""
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    resampler = av.AudioResampler(format="flt", layout="mono", rate=16_000)
    with av.open(str(path)) as container:
        pieces = [out.to_ndarray()[0] for frame in container.decode(audio=0) for out in resampler.resample(frame)]
    pieces += [out.to_ndarray()[0] for out in resampler.resample(None)]
    chosen = np.linspace(0, len(frames) - 1, min(FRAMES, len(frames))).round().astype(int)
    return np.stack([frames[i] for i in chosen]), np.concatenate(pieces)


def reference(folder: Path | None):
    """transformers' Qwen2_5OmniProcessor; where torchvision is absent its feature extractor and torch's resize."""
    import torch
    from transformers import WhisperFeatureExtractor

    extractor = WhisperFeatureExtractor(feature_size=128, n_fft=400, hop_length=160, chunk_length=300)
    try:
        omni = whole_processor(extractor, folder)
    except (ImportError, OSError, ValueError) as error:
        print(f"# no Qwen2_5OmniProcessor here ({' '.join(str(error).split())[:80]})", file=sys.stderr)
        omni = None

    def qwen2_5_omni_processor(frames, sound):
        text = "<|im_start|>user\n<|audio_bos|><|AUDIO|><|audio_eos|><|vision_bos|><|VIDEO|><|vision_eos|><|im_end|>"
        video = torch.from_numpy(frames).permute(0, 3, 1, 2)
        kwargs = {"do_sample_frames": False, "size": {"shortest_edge": 28 * 28, "longest_edge": PIXELS * FRAMES}}
        return omni(text=[text], audio=[sound], videos=[video], videos_kwargs=kwargs, return_tensors="pt")

    def feature_extractor_and_torch_resize(frames, sound):
        height, width = frames.shape[1:3]
        shrink = min(1.0, (PIXELS / (height * width)) ** 0.5)
        size = [int(side * shrink) // 28 * 28 for side in (height, width)]
        video = torch.from_numpy(frames).permute(0, 3, 1, 2)
        small = torch.nn.functional.interpolate(video, size=size, mode="bicubic", antialias=True)
        return extractor(sound, sampling_rate=16_000, return_tensors="pt"), small.float().div(255).sub(0.5).div(0.25)

    return qwen2_5_omni_processor if omni else feature_extractor_and_torch_resize


def whole_processor(extractor, folder: Path | None):
    import torch

    try:
        import torchvision  # noqa: F401
    except RuntimeError:  # a CUDA build beside a CPU torch: two schemas are all that transformers' import misses
        library = whole_processor.library = torch.library.Library("torchvision", "FRAGMENT")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from transformers import AutoTokenizer, Qwen2_5OmniProcessor
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    from raymsa.thinker.tiny import make_tiny

    folder = folder or make_tiny(Path(tempfile.mkdtemp()) / "tiny")
    return Qwen2_5OmniProcessor(
        image_processor=Qwen2VLImageProcessor(),
        video_processor=Qwen2VLVideoProcessor(),
        feature_extractor=extractor,
        tokenizer=AutoTokenizer.from_pretrained(folder),
        chat_template=(folder / "chat_template.jinja").read_text(),
    )


# ---- raymsa ----------------------------------------------------------------------------------------------------------


def ours(raw: Path) -> None:
    """As the command does it, with a clock in place of the progress bar."""
    from raymsa.cluster import session
    from raymsa.data.prepare import prepare
    from raymsa.datasets.table import Columns, Table

    seen = []

    def clock(count):
        cpu = cpu_of_tree()
        if count.clips >= LEAD * count.total:
            seen.append((count.clips, time.monotonic(), cpu))

    with tempfile.TemporaryDirectory() as out, session(None):
        table = Table(name="bench", columns=Columns(media="file"))
        prepare(table, raw, Path(out) / "shards", lambda line: None, progress=clock)
    (first, began, cpu), (last, ended, all_cpu) = seen[0], seen[-1]
    say(last - first, ended - began, all_cpu - cpu, "raymsa prepare")


CPU: dict[int, float] = {}  # seconds by process; those that have ended count on


def cpu_of_tree() -> float:
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        try:
            CPU[process.pid] = sum(process.cpu_times()[:2])
        except psutil.Error:
            continue
    return sum(CPU.values())


# ---- both ------------------------------------------------------------------------------------------------------------


def say(clips: int, seconds: float, cpu_s: float, what: str) -> None:
    print(json.dumps({"clips": clips, "seconds": seconds, "cpu_s": cpu_s, "what": what}), flush=True)


def measured(words: list[str], cores: int) -> dict:
    """One run in a process of its own on so many cores: what it said, all its seconds and its peak memory."""
    allowed = sorted(os.sched_getaffinity(0))[:cores]

    def confine() -> None:
        os.sched_setaffinity(0, allowed)
        os.nice(NICE - os.nice(0))

    env = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, __file__, *words], stdout=subprocess.PIPE, text=True, env=env, preexec_fn=confine
    )
    peak, over = [0], threading.Event()
    watcher = threading.Thread(target=watch, args=(process.pid, peak, over))
    watcher.start()
    text, _ = process.communicate()
    over.set()
    watcher.join()
    if process.returncode:
        sys.exit(f"{' '.join(words)}: exit code {process.returncode}")
    found = json.loads(text.splitlines()[-1])
    rate, cpu_ms = found["clips"] / found["seconds"], 1000 * found["cpu_s"] / found["clips"]
    start_s = time.monotonic() - began - found["seconds"]
    print(
        f"{cores} core{'s' if cores > 1 else ' '}  {found['what']:<36} {rate:6.2f} clips/s  {cpu_ms:6.1f} CPU ms/clip  "
        f"{found['cpu_s'] / found['seconds']:4.2f} cores busy  {peak[0] / 1e6:6.0f} MB peak  "
        f"{start_s:5.1f} s start and end",
        flush=True,
    )
    return {"rate": rate, "cpu_ms": cpu_ms, "busy": found["cpu_s"] / found["seconds"]}


def watch(pid: int, peak: list[int], over: threading.Event) -> None:
    """Memory of a process and all it started, shared pages counted once (PSS)."""
    while not over.wait(1.0):
        total = 0
        try:
            for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
                text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
                total += 1024 * next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
        except (psutil.Error, OSError, StopIteration):
            continue
        peak[0] = max(peak[0], total)


def make_raw(folder: Path, source: Path, count: int) -> None:
    """`count` clips in the layout of a table; the same few files under many names."""
    names = []
    for i, path in zip(range(count), itertools.cycle(sorted(source.rglob("*.mp4"))), strict=False):
        names.append(folder / f"{i:05d}.mp4")
        names[-1].symlink_to(path.absolute())
    rows = [f"{path.stem},words,{i % 7 - 3},train,{path.name}" for i, path in enumerate(names)]
    (folder / "clips.csv").write_text("\n".join(["id,text,score,split,file", *rows]) + "\n")


def make_clip(path: Path, seed: int) -> Path:
    """3 to 6 seconds of 360 x 288 at 25 frames per second, with sound."""
    rng = np.random.default_rng(seed)
    frames = int(rng.integers(75, 150))
    coarse = rng.integers(0, 255, (36, 45, 3)).astype(np.uint8).repeat(8, 0).repeat(8, 1)
    tone = (8000 * np.sin(np.arange(frames * 640) * rng.uniform(0.05, 0.3))).astype(np.int16)
    with av.open(str(path), "w") as out:
        picture = out.add_stream("libx264" if "libx264" in av.codecs_available else "mpeg4", rate=25)
        picture.width, picture.height, picture.pix_fmt = 360, 288, "yuv420p"
        voice = out.add_stream("aac", rate=16_000, layout="mono")
        for i in range(frames):
            grain = rng.integers(0, 12, coarse.shape).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(np.roll(coarse // 2, i, axis=1) + grain, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 25)
            out.mux(picture.encode(frame))
        out.mux(picture.encode(None))
        block = av.AudioFrame.from_ndarray(tone[None], format="s16", layout="mono")
        block.sample_rate = 16_000
        out.mux(voice.encode(block))
        out.mux(voice.encode(None))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw", type=Path, help="folder with *.mp4 files [default: made here]")
    parser.add_argument("--clips", type=int, default=880, help="for prepare; twenty shards' worth by default")
    parser.add_argument("--plain-clips", type=int, default=40, help="for the loop, whose rate does not change")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--processor", type=Path, help="folder of the model's processor [default: the tiny Thinker's]")
    parser.add_argument("--run", choices=["plain", "ours"], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run == "plain":
        plain(sorted(given.raw.glob("*.mp4"))[: given.plain_clips], given.processor)
        return
    if given.run == "ours":
        ours(given.raw)
        return
    with tempfile.TemporaryDirectory() as folder:
        raw, made = Path(folder) / "raw", Path(folder) / "made"
        raw.mkdir()
        made.mkdir()
        for i in range(0 if given.raw else 12):
            make_clip(made / f"{i}.mp4", i)
        make_raw(raw, given.raw or made, given.clips)
        compare(raw, given)


def compare(raw: Path, given: argparse.Namespace) -> None:
    loop = ["--run", "plain", "--raw", str(raw), "--plain-clips", str(given.plain_clips)]
    loop += ["--processor", str(given.processor)] if given.processor else []
    runs: dict[str, list[dict]] = {"plain": [], "one": [], "two": []}
    for _ in range(given.rounds):
        runs["plain"].append(measured(loop, 1))
        runs["one"].append(measured(["--run", "ours", "--raw", str(raw)], 1))
    for _ in range(given.rounds):
        runs["two"].append(measured(["--run", "ours", "--raw", str(raw)], 2))
    rate = {name: statistics.median(run["rate"] for run in found) for name, found in runs.items()}
    cpu = {name: statistics.median(run["cpu_ms"] for run in found) for name, found in runs.items()}
    print(f"\nprepare / loop on one core: {rate['one'] / rate['plain']:.2f} times the clips per second (aim 1.5), "
          f"{cpu['plain'] / cpu['one']:.2f} times fewer CPU seconds per clip")  # fmt: skip
    busy = {name: statistics.median(run["busy"] for run in found) for name, found in runs.items()}
    print(
        f"prepare, two cores / one core: {rate['two'] / rate['one']:.2f} times the clips per second (aim 1.8), with "
        f"{busy['two'] / busy['one']:.2f} times the CPU time that the machine gave it; two cores of its own, at the "
        f"CPU seconds per clip seen here: {2 * cpu['one'] / cpu['two']:.2f}"
    )


if __name__ == "__main__":
    main()
