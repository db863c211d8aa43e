"""4-bit weights kept as a folder under RAYMSA_HOME, so that a large model is quantised once and then loads in seconds.

A folder is known by all that decides on its contents, so one of other weights is never taken; it can be deleted at any
time.
"""

from __future__ import annotations

import shutil
import warnings
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from raymsa.home import models_dir
from raymsa.place import folder_at_once
from raymsa.spec import digest_of_plain

CONFIG = "config.json"
FORMAT = 1  # goes up when how weights are quantised changes (`load.nf4`)
KEPT_FROM_BYTES = 2**28  # smaller models are quantised in a second or two
FILE_SIZE = "128MB"  # one file is held in host memory while it is written


def identity(path: str) -> dict[str, Any]:
    """What tells the weights of a model folder or hub id from any others."""
    folder = Path(path)
    if not folder.is_dir():
        from transformers.utils import cached_file

        return {"hub": path, "commit": Path(str(cached_file(path, CONFIG))).parent.name}
    files = sorted([folder / CONFIG, *folder.glob("*.safetensors")])
    states = [(file.name, file.stat()) for file in files]
    return {"folder": path, "files": [[name, state.st_size, state.st_mtime_ns] for name, state in states]}


def kept_folder(path: str, absent: tuple[str, ...], dtype: torch.dtype, device: torch.device) -> Path:
    """Where the 4-bit weights of a model without some parts are kept."""
    about = {
        "format": FORMAT,
        "weights": identity(path),
        "absent": sorted(absent),
        "dtype": str(dtype),
        "device": device.type,  # another one may round otherwise
        "versions": {name: version(name) for name in ("bitsandbytes", "torch", "transformers")},
    }
    return models_dir() / f"nf4-{digest_of_plain(about)}"


def is_kept(folder: Path) -> bool:
    """The folder is there, and so it is whole."""
    return (folder / CONFIG).exists()


def keep(model: Any, folder: Path) -> None:
    """Write a quantised model to `folder` unless it is small; a full disk harms nothing."""
    if model.get_memory_footprint() < KEPT_FROM_BYTES:
        return
    # transformers warns of every model on a CPU that it might be offloaded to a disk.
    with suppress(OSError, SafetensorError), folder_at_once(folder, CONFIG) as part, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(part, max_shard_size=FILE_SIZE)


def forget(folder: Path) -> None:
    """Delete a damaged folder."""
    shutil.rmtree(folder, ignore_errors=True)
