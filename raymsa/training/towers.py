"""The outputs of frozen towers, computed once for all runs that can share them, and read in place of pixels and sound.

Every shard has a file beside it in a folder of RAYMSA_HOME/towers: the same rows in the same row groups, so that order
and streaming are those of the shards. The folder is known by all that decides on its contents: the clips, the weights,
the inputs and the arithmetic. towers.json is written last; one run writes, others wait for it.

Axes: N vectors, D width of the language model.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from raymsa.clip import VECTORS_SCHEMA, Clip, Vectors
from raymsa.data.ahead import ahead
from raymsa.data.folder import locked
from raymsa.data.groups import MEDIA, RowGroup, clips_of, mib, row_groups, table
from raymsa.data.manifest import Manifest, target
from raymsa.errors import Cancelled, DataError, Stopped
from raymsa.home import towers_dir
from raymsa.place import states, write_at_once
from raymsa.spec import digest_of_plain
from raymsa.thinker.backbone import Thinker
from raymsa.thinker.inputs import Encoded, Encoder
from raymsa.thinker.kept import identity
from raymsa.thinker.load import autocast, compute_type, load, open_folder
from raymsa.words import duration

FORMAT = 1  # goes up when mel features, patches or these files change
FILE = "towers.json"
PLAIN = [name for name in VECTORS_SCHEMA.names if name not in ("heard", "seen", "frames_shape", "targets", "previous")]
Say = Callable[[str], None]


class Towers(NamedTuple):
    """What computes the outputs of a clip."""

    thinker: Thinker  # without its language model
    encoder: Encoder
    dtype: torch.dtype
    model: Any  # ModelSpec


def cached(
    spec: Any, made: Manifest, shards: Path, device: torch.device, say: Say, stopping: Callable[[], bool]
) -> Path:
    """A folder that stands for `shards`, with the towers' outputs in it; computes what of it is not there yet.

    Raises Stopped when `stopping` said so meanwhile; finished files are kept.
    """
    if not {"audio", "video"} & {*spec.inputs.modalities}:
        return shards
    folder = towers_dir() / f"{made.name}-{_digest(spec, made, device)}"
    names = [file.name for file in made.files]
    try:
        with locked(folder, say, stopping, "run"):
            if not _is_whole(folder, names):
                _compute(folder, names, spec, made, shards, device, say, stopping)
    except Cancelled as reason:
        raise Stopped(str(reason)) from None
    say(f"towers' outputs are read from {folder}; neither sound nor picture is")
    return folder


def _digest(spec: Any, made: Manifest, device: torch.device) -> str:
    model, denoise = open_folder(spec.model), spec.inputs.denoise
    about = {
        "format": FORMAT,
        "clips": made.digest,
        "weights": identity(model.path),
        "sound": model.extractor.to_dict(),  # preprocessor_config.json
        "modalities": [m for m in spec.inputs.modalities if m != "text"],
        "denoise": denoise and [denoise, version(denoise)],
        "attention": spec.model.attention,
        "dtype": str(compute_type(spec.model, device)),
        "device": device.type,
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }
    return digest_of_plain(about)


def _is_whole(folder: Path, names: list[str]) -> bool:
    """Every file has the size that towers.json says; one that has not is removed, and made again."""
    try:
        said = json.loads((folder / FILE).read_text(encoding="utf-8"))["bytes"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    there = states(folder, names)
    wrong = [name for name in names if (state := there[name]) is None or state.bytes != said.get(name)]
    for name in wrong:
        (folder / name).unlink(missing_ok=True)
    return not wrong


def _compute(
    folder: Path,
    names: list[str],
    spec: Any,
    made: Manifest,
    shards: Path,
    device: torch.device,
    say: Say,
    stopping: Callable[[], bool],
) -> None:
    left = [name for name in names if not (folder / name).exists()]
    say(f"computing the towers' outputs of {len(left)} of {len(names)} shards into {folder}")
    begun = time.monotonic()
    towers = _towers(spec, made, device)
    for name in left:
        _write(folder / name, row_groups(shards, [name]), towers, stopping)
    del towers
    if device.type == "cuda":
        torch.cuda.empty_cache()
    sizes = {name: (folder / name).stat().st_size for name in names}
    write_at_once(folder / FILE, json.dumps({"bytes": sizes}, indent=1))
    say(f"computed the towers' outputs in {duration(time.monotonic() - begun)}: {mib(sum(sizes.values()))}")


def _towers(spec: Any, made: Manifest, device: torch.device) -> Towers:
    plain = spec.model.model_copy(update={"quantization": "none"})  # towers are never quantised
    thinker = load(plain, None, spec.inputs.modalities, False, device, language_model=False)
    thinker.train_mode(False, checkpointing=False)
    folder = thinker.folder
    words = (spec.inputs, "", target(made, spec.dataset.task))  # none of them reaches a tower
    encoder = Encoder(folder.tokenizer, folder.extractor, folder.config, *words)
    return Towers(thinker, encoder, compute_type(spec.model, device), spec.model)


def _write(path: Path, groups: list[RowGroup], towers: Towers, stopping: Callable[[], bool]) -> None:
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            with pq.ParquetWriter(
                file,
                VECTORS_SCHEMA,
                compression="none",  # vectors do not compress
                use_dictionary=False,
                write_statistics=PLAIN,
                write_page_checksum=True,  # so that a flipped byte is found and named
                write_batch_size=1,  # a page ends after a clip
            ) as writer:
                for group in groups:
                    rows = table(group)
                    writer.write_table(_with_vectors(rows, towers, stopping), row_group_size=max(1, rows.num_rows))
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _with_vectors(rows: Any, towers: Towers, stopping: Callable[[], bool]) -> Any:
    """The rows with what the towers made of their clips; one clip at a time, so that no result depends on others."""
    found = []
    for clip, encoded in ahead(_encoded(rows, towers.encoder)):
        found.append(_vectors(clip, encoded, towers))
        if stopping():
            raise Stopped("stopped while the towers' outputs were computed")
    columns = {
        "heard": pa.array([v.heard for v in found], pa.large_binary()),
        "seen": pa.array([v.seen for v in found], pa.large_binary()),
        "vector_type": pa.array([v.dtype for v in found], pa.string()),
        "vector_bytes": pa.array([_bytes(v) for v in found], pa.int64()),
    }
    plain = rows.drop_columns([name for name in MEDIA if name in rows.column_names])
    every = {**{name: plain[name] for name in plain.column_names}, **columns}
    return pa.table([every[name] for name in VECTORS_SCHEMA.names], schema=VECTORS_SCHEMA)


def _encoded(rows: Any, encoder: Encoder) -> Iterator[tuple[Clip, Encoded]]:
    for clip in clips_of(rows):
        yield clip, encoder.encode(clip, encoder.tokens(clip), [])


@torch.inference_mode()
def _vectors(clip: Clip, encoded: Encoded, towers: Towers) -> Vectors:
    device = towers.thinker.device
    heard = seen = None
    with autocast(towers.model, device):
        if encoded.mel_ML is not None:
            length_A = torch.tensor([encoded.mel_ML.shape[1]])
            heard = _as_bytes(towers.thinker.hear(encoded.mel_ML.to(device), length_A), clip.audio_tokens, towers)
        if encoded.patch_PX is not None:
            grid_V3 = torch.tensor([encoded.grid_3])
            seen = _as_bytes(towers.thinker.see(encoded.patch_PX.to(device), grid_V3), clip.video_tokens, towers)
    return Vectors(str(towers.dtype).removeprefix("torch."), heard, seen)


def _as_bytes(vectors_ND: Tensor, tokens: int, towers: Towers) -> Any:
    """In the number type of the word vectors beside which they will stand."""
    if len(vectors_ND) != tokens:
        raise DataError(f"a tower made {len(vectors_ND)} vectors where the clip has {tokens} places for them")
    plain: np.ndarray = vectors_ND.to(towers.dtype).contiguous().cpu().view(torch.uint8).numpy()
    return plain.tobytes()


def _bytes(vectors: Vectors) -> int:
    return len(vectors.heard or b"") + len(vectors.seen or b"")
