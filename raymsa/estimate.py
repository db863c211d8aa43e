"""How much device memory a run would take, before it is run: its own code, on a Thinker without memory or arithmetic.

Tensors are counted, in the blocks of the CUDA allocator; the CUDA context is not, nor what the allocator cannot reuse.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from raymsa.clip import Batch, Clip, Vectors, mel_frames
from raymsa.data import manifest as manifests
from raymsa.data.collate import Collate, Measured
from raymsa.data.largest import STATED_S, STATED_WORDS, Largest, in_shards, largest, stated, within
from raymsa.errors import DataError
from raymsa.plan import shards_of
from raymsa.prompts import prompt_of
from raymsa.target import Labels
from raymsa.thinker.backbone import Folder
from raymsa.thinker.geometry import GEOMETRY, known_folder
from raymsa.thinker.inputs import Encoder
from raymsa.thinker.live import size_of
from raymsa.thinker.load import compute_type
from raymsa.thinker.simulate import Simulation, simulate
from raymsa.thinker.trace import Trace
from raymsa.training.loop import make_optimizer
from raymsa.training.run import student_of
from raymsa.training.student import Student

FLOAT_BYTES = 4  # of a trained number
STATE_8BIT_BYTES = 2 + 2 * 4 / 256  # for each: two states of a byte, and their scales, one for 256 numbers
CONTEXT_BYTES = 2**29  # of CUDA, its libraries' kernels and workspaces: about 0.5 GiB before the first tensor


class Peak(NamedTuple):
    """Bytes at the highest point of one thing that a run does, and where that is."""

    bytes: int
    where: str


@dataclass(frozen=True)
class Estimate:
    """Bytes of a run: what lasts, by part, and the peak of each thing that it does.

    `tokens` and `clips` are those of the pass of each that takes the most.
    """

    lasting: dict[str, int]
    peaks: dict[str, Peak]
    clips: dict[str, int]
    tokens: dict[str, int]

    @property
    def peak(self) -> int:
        """The most of all."""
        return max(peak.bytes for peak in self.peaks.values())


class Clips(NamedTuple):
    """What passes are made of: clips to be trained on and clips to be scored."""

    train: list[Clip]
    score: list[Clip]
    about: str


class Estimator:
    """Estimates of one run and of the same with other settings: its model and clips are looked up once.

    Raises SpecError or DataError when they cannot be read.
    """

    def __init__(self, spec: Any) -> None:
        self.spec = spec
        self._folder = known_folder(spec.model)
        self._clips = clips_of(spec)
        self.about = [self._clips.about]  # what was taken for granted: sentences
        if self._folder.path in GEOMETRY:
            self.about.append(
                f"{self._folder.path} is not on this disk: its geometry, and the tiny Thinker's tokenizer"
            )

    def __call__(self, spec: Any) -> Estimate:
        """The memory of the run with this spec."""
        train, score = ([within(clip, spec.dataset.media) for clip in some] for some in self._clips[:2])
        return estimate(spec, self._folder, self._clips._replace(train=train, score=score))


def clips_of(spec: Any) -> Clips:
    """The job's clips where they are prepared, else some of stated sizes. Raises DataError if broken or missing."""
    folder = shards_of(spec.dataset)
    if (folder / manifests.FILE).exists():
        manifest = manifests.read(folder)
        train = in_shards(folder, manifest, ("train",))
        scored = tuple(dict.fromkeys(("valid", *spec.evaluate.splits)))
        score = in_shards(folder, manifest, scored)
        if spec.train.epochs and not train:
            raise DataError(f"{folder}: holds no clip of train to train on; train.epochs: 0 scores without")
        if not spec.train.epochs and not score:
            raise DataError(f"{folder}: holds no clip of {' or '.join(scored)} to score")
        return Clips(train, score, f"the largest passes of {folder}")
    clip = stated(spec.dataset.media)
    frames, height, width = clip.frames_FHWC.shape[:3] if clip.frames_FHWC is not None else (0, 0, 0)
    about = (
        f"clips are not prepared yet: taken to have {frames} frames of {width} x {height}, {clip.seconds:g} s of sound "
        f"(stated: {STATED_S:g} s), {STATED_WORDS} words"
    )
    many = [clip] * max(spec.train.batch_clips, spec.train.batch_tokens)
    return Clips(many[: spec.train.batch_clips], many, about)


def estimate(spec: Any, folder: Folder, clips: Clips) -> Estimate:
    """The memory of one run of a spec. `folder` is its model's; only the config and the tokenizer are used."""
    gpu = spec.resources.gpus > 0
    model = spec.model
    if gpu and model.compute == "auto":
        model = model.model_copy(update={"compute": "bfloat16"})
    train, lora = spec.train, spec.lora if spec.train.epochs else None
    cached = spec.inputs.cache == "towers"
    modalities = ("text",) if cached else spec.inputs.modalities
    unlike = type(train.checkpointing) is int  # every n-th layer is recomputed
    simulation = simulate(model, folder, lora, modalities, spec.readout.needs_lm_head, gpu, unlike)
    target = spec.dataset.task.with_labels(Labels())
    student = _student(simulation, spec, model, target)
    words = (spec.inputs, prompt_of(spec), target, spec.dataset.language)
    collate = Collate(Hollow(folder.tokenizer, folder.extractor, folder.config, *words), spec.readout)
    packed = simulation.thinker.packing
    own = size_of(student.head.parameters()) if student.head is not None else 0
    lasting = {**simulation.weights, "head": own}
    peaks: dict[str, Peak] = {}
    passes = {}
    if train.epochs:
        trained = simulation.weights["adapters"] + own
        states, workspace = _optimizer(simulation, student, train, trained)
        lasting |= {"gradients": trained, "optimizer": states}

        def trained_on(found: Largest) -> Peak:
            batch = collate(_read(found.clips, student, cached), answers=True)
            return _training(simulation, student, train, batch, found.more)

        tried = largest(clips.train, collate, train.batch_tokens, train.batch_clips, packed)
        peak, passes["training"] = _highest(tried, trained_on)
        peaks["training"] = Peak(peak.bytes + states, peak.where)
        peaks["optimizer"] = Peak(sum(lasting.values()) + workspace, "step of the optimizer")
    if clips.score:

        def scored(found: Largest) -> Peak:
            return _scoring(simulation, student, collate(_read(found.clips, student, cached)))

        tried = largest(clips.score, collate, train.batch_tokens, None, packed and not spec.readout.decodes)
        peak, passes["scoring"] = _highest(tried, scored)
        kept = lasting.get("gradients", 0) + lasting.get("optimizer", 0)
        peaks["scoring"] = Peak(peak.bytes + kept, peak.where)
    sizes = {name: len(found.clips) for name, found in passes.items()}
    tokens = {name: found.tokens for name, found in passes.items()}
    return Estimate(lasting, peaks, sizes, tokens)


class Hollow(Encoder):
    """What the towers read has its size, and nothing is worked out from sound or pixels."""

    def _raw(self, clip: Clip) -> dict[str, Tensor | None]:
        found: dict[str, Tensor | None] = {"mel_ML": None, "patch_PX": None}
        if self._hears(clip) and clip.audio_S is not None:
            found["mel_ML"] = torch.empty(self.extractor.feature_size, mel_frames(len(clip.audio_S)))
        if picture := self._picture(clip):
            vision = self._vision
            numbers = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
            found["patch_PX"] = torch.empty(prod(picture.grid_3), numbers)
        return found


def _highest(passes: list[Largest], run: Callable[[Largest], Peak]) -> tuple[Peak, Largest]:
    return max(((run(one), one) for one in passes), key=lambda pair: pair[0].bytes)


def _student(simulation: Simulation, spec: Any, model: Any, target: Any) -> Student:
    student = replace(student_of(simulation.thinker, spec, target), model=model)
    if student.head is not None:
        for module in student.head.modules():
            for name, p in module.named_parameters(recurse=False):
                module._parameters[name] = nn.Parameter(simulation.empty(p.detach()))
    return student


def _read(clips: list[Measured], student: Student, cached: bool) -> list[Measured]:
    """The clips as a run reads them: with the towers' outputs in place of media where those are cached."""
    if not cached:
        return clips
    dtype = compute_type(student.model, student.thinker.device)
    wide = student.thinker.width * dtype.itemsize

    def known(clip: Clip) -> Clip:
        heard, seen = (np.zeros(count * wide, np.uint8) for count in (clip.audio_tokens, clip.video_tokens))
        return replace(clip, vectors=Vectors(str(dtype).removeprefix("torch."), heard, seen))

    return [replace(one, clip=known(one.clip)) for one in clips]


def _optimizer(simulation: Simulation, student: Student, train: Any, trained: int) -> tuple[int, int]:
    """Bytes of the optimizer's states and of what its step takes meanwhile, for all that is trained."""
    if train.optimizer == "paged_adamw_8bit":  # its kernels know no tensors without memory
        return int(trained / FLOAT_BYTES * STATE_8BIT_BYTES), 0
    live = simulation.live
    optimizer = make_optimizer(student, train)
    params = [p for group in optimizer.param_groups for p in group["params"]]
    if simulation.gpu and not any(group.get("fused") for group in optimizer.param_groups):
        for group in optimizer.param_groups:
            group["foreach"] = True  # torch's own choice on a GPU
    with simulation.running():
        _prime(simulation, params)
        before = live.now
        optimizer.step()
        after = live.peak = live.now
        optimizer.step()
        workspace = live.peak - live.now
    _unprime(params)
    whole = trained / size_of(params)  # layers are missing
    return int((after - before) * whole), int(workspace * whole) if simulation.gpu else workspace


def _training(simulation: Simulation, student: Student, train: Any, batch: Batch, more: bool) -> Peak:
    student.train_mode(True, train.checkpointing)
    params = [p for group in student.groups(train) for p in group["params"]]  # type: ignore[attr-defined]
    if more:  # the passes before this one have left their gradients
        _prime(simulation, params)
    trace = _trace(simulation)
    held: list[Batch] = []  # on a CPU, the batch that is made lies where it is computed with
    with simulation.running():
        loss = student.loss_B(_shown(simulation, batch, held)).sum()
        if simulation.gpu:
            held.clear()
        trace.backward()
        torch.autograd.backward(loss)
    trace.end()
    del loss
    _unprime(params)
    layer, gradients = simulation.layer, simulation.layer_trained
    if more:
        layer, gradients = {part: layer[part] + gradients[part] for part in layer}, dict.fromkeys(layer, 0)
    return Peak(*trace.peak(layer, gradients))


def _scoring(simulation: Simulation, student: Student, batch: Batch) -> Peak:
    student.train_mode(False)
    trace = _trace(simulation)
    with simulation.running():
        student.read(_shown(simulation, batch, []))
    trace.end()
    return Peak(*trace.peak(simulation.layer, dict.fromkeys(simulation.layer, 0)))


def _trace(simulation: Simulation) -> Trace:
    return Trace(simulation.live, simulation.layers, simulation.left_out)


def _shown(simulation: Simulation, batch: Batch, held: list[Batch]) -> Batch:
    """The batch as it lies on the device: integers as they are, the rest without memory."""
    tensors = {name: value for name, value in vars(batch).items() if isinstance(value, Tensor)}
    simulation.live.see(*(t for t in tensors.values() if not t.is_floating_point()))
    empty = {name: simulation.empty(t) for name, t in tensors.items() if t.is_floating_point()}
    held.append(replace(batch, **empty))  # type: ignore[arg-type]
    return held[0]


def _prime(simulation: Simulation, params: list[nn.Parameter]) -> None:
    for p in params:
        p.grad = simulation.empty(p.detach())


def _unprime(params: list[nn.Parameter]) -> None:
    for p in params:
        p.grad = None
