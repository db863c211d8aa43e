"""Is this machine fit for raymsa, and what to do where it is not.

Each check tries the real thing (a multiplication in NF4, a write to the store) and says what it found. Heavy imports
are inside the checks, so that a broken package is a finding and not a traceback.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from raymsa.home import home, store_url

if TYPE_CHECKING:
    from raymsa.store import Store

GIB = 2**30
MIN_GPU_GIB = 10.8  # the least peak memory published for the 7B in 4 bits (arXiv 2606.05713, table 4)
MIN_DISK_GIB = 30  # the 7B's download has about 22 GB, talker and all
MIN_SHARED_GIB = 1  # below, Ray's object store moves to disk; a container's default is 0.06
DECODERS = ("h264", "aac")  # what MOSI, MOSEI and MELD are made of


@dataclass(frozen=True)
class Check:
    """One finding. `ok` is None where something is missing that one can do without; `advice` says what to do."""

    name: str
    ok: bool | None
    found: str
    advice: str = ""


def checks() -> list[Check]:
    """Every check, in the order a person would go through them; takes some seconds, changes nothing."""
    parts = [python, torch, gpu, bitsandbytes, ray, shared_memory, media, denoiser, disk, store]
    return [_guarded(part) for part in parts]


def _guarded(part: Callable[[], Check]) -> Check:
    try:
        check = part()
        return replace(check, advice="") if check.ok else check
    except Exception as error:  # whatever is broken, the other checks are still wanted
        lines = str(error).strip().splitlines() or ["no message"]
        advice = "install again: pip install -e . (in a new virtual environment)"
        return Check(part.__name__.replace("_", " "), False, f"{type(error).__name__}: {lines[0]}", advice)


def python() -> Check:
    """raymsa and its pinned packages are tested on one Python."""
    found = ".".join(map(str, sys.version_info[:3]))
    return Check("python", sys.version_info[:2] == (3, 11), found, "make the virtual environment with Python 3.11")


def torch() -> Check:
    """A CPU build on a machine with an NVIDIA driver is the usual mistake."""
    import torch

    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    unused = not torch.version.cuda and shutil.which("nvidia-smi") is not None
    advice = "a GPU driver is here, but this torch cannot use it: install a CUDA build (see pytorch.org)"
    return Check("torch", not unused, f"{torch.__version__}, {build}", advice)


def gpu() -> Check:
    """Without a GPU raymsa works, on the CPU: right for the tiny Thinker, slow for anything else."""
    import torch

    if not torch.cuda.is_available():
        return Check("gpu", None, "none", "set resources.gpus: 0 to run on the CPU; the 7B needs one GPU")
    cards = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    found = ", ".join(f"{card.name} {card.total_memory / GIB:.0f} GiB" for card in cards)
    if max(card.total_memory for card in cards) / GIB < MIN_GPU_GIB:
        return Check("gpu", None, found, f"the 7B in 4 bits needs {MIN_GPU_GIB} GiB and more: try qwen2.5-omni-3b")
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        return Check("gpu", None, f"{found}, no bfloat16", "set model.compute: float32; it is slower")
    return Check("gpu", True, found)


def bitsandbytes() -> Check:
    """Quantise a small matrix to NF4 and multiply with it, where training would."""
    import torch
    from bitsandbytes.nn import Linear4bit

    device = "cuda" if torch.cuda.is_available() else "cpu"
    draw = torch.Generator().manual_seed(0)
    weight_OI, input_BI = (torch.randn(rows, 128, generator=draw) for rows in (64, 8))
    linear = Linear4bit(128, 64, bias=False, quant_type="nf4", compute_dtype=torch.float32)
    linear.weight.data = weight_OI
    got_BO = linear.to(device)(input_BI.to(device)).detach().cpu()
    right_BO = input_BI @ weight_OI.T
    error = float((got_BO - right_BO).norm() / right_BO.norm())
    found = f"{version('bitsandbytes')}, NF4 on {device}: {100 * error:.0f} % off"
    return Check("bitsandbytes", error < 0.2, found, "set model.quantization: none, or install bitsandbytes again")


def ray() -> Check:
    """Its version; no session is started."""
    return Check("ray", True, version("ray"))


def shared_memory() -> Check:
    """Ray keeps prepared clips there."""
    shared = Path("/dev/shm")  # noqa: S108 - where Linux has it; nothing is written
    if not shared.exists():
        return Check("shared memory", None, "no /dev/shm", "Ray will keep its objects on disk; it is slower")
    size, free = (part / GIB for part in shutil.disk_usage(shared)[::2])
    enough = True if free >= MIN_SHARED_GIB else None
    advice = "give the container more (docker run --shm-size=8g), or Ray keeps its objects on disk"
    return Check("shared memory", enough, f"{free:.1f} of {size:.1f} GiB free", advice)


def media() -> Check:
    """Whether PyAV's own ffmpeg can decode what the datasets have."""
    import av

    missing = [name for name in DECODERS if name not in av.codecs_available]
    found = f"PyAV {version('av')}, {'no ' + ', '.join(missing) if missing else ' and '.join(DECODERS)}"
    return Check("media", not missing, found, "install PyAV's own wheel: pip install --force-reinstall av")


def denoiser() -> Check:
    """Optional: only `inputs.denoise` needs it."""
    if find_spec("noisereduce") is None:
        return Check("denoiser", None, "none", "for inputs.denoise: pip install 'raymsa[denoise]'")
    return Check("denoiser", True, f"noisereduce {version('noisereduce')}")


def disk() -> Check:
    """Free space where raymsa writes."""
    folder = next(path for path in (home(), *home().parents) if path.exists())
    free = shutil.disk_usage(folder).free / GIB
    enough = True if free >= MIN_DISK_GIB else None
    advice = f"the 7B and a dataset's shards want {MIN_DISK_GIB} GiB: free some, or set RAYMSA_HOME to another disk"
    return Check("disk", enough, f"{free:.0f} GiB free at {home()}", advice)


def store() -> Check:
    """Open it and write a line that is taken back."""
    from raymsa.errors import NotFound, StoreError
    from raymsa.store import Store

    try:
        with Store.open(store_url(), create=False) as opened:
            _write_and_take_back(opened)
            return Check("store", True, f"{opened}, readable and writable")
    except NotFound:
        return Check("store", None, "none yet", "the first `raymsa submit` makes it")
    except StoreError as error:
        return Check("store", False, str(error), "name another one with --store or RAYMSA_STORE")


class _TakeBack(Exception):
    """Leaves a transaction without keeping it."""


def _write_and_take_back(opened: Store) -> None:
    from raymsa.store.records import insert_event

    try:
        with opened.write() as connection:
            insert_event(connection, "doctor", at=opened.now(connection))
            raise _TakeBack
    except _TakeBack:
        pass
