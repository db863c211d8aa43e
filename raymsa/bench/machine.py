"""What the machine can do and what was used of it: peak memory, matrix rate, counted operations."""

from __future__ import annotations

import ctypes
import gc
import platform
import re
import resource
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

SIDE = {"cuda": 8192, "cpu": 1024}  # of the square matrices whose product is timed
TIMED_S = 0.5
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def forget_peaks(device: torch.device) -> None:
    """Peaks are counted from now on. Where the kernel does not let go of the host's, it stays that of the process."""
    gc.collect()
    with suppress(OSError, AttributeError):  # glibc keeps what was freed, and it would count as in use
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):
        CLEAR.write_text("5")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peaks(device: torch.device) -> dict[str, int]:
    """Most bytes in use since then: of the host, as resident memory of this process, and of the GPU."""
    found = {"host_bytes": _host_peak()}
    if device.type == "cuda":
        found["device_bytes"] = int(torch.cuda.max_memory_allocated(device))
    return found


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of a large matrix product, the best of half a second of them."""
    side = SIDE[device.type]
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    best, begun = float("inf"), time.perf_counter()
    while time.perf_counter() - begun < TIMED_S or best == float("inf"):
        start = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def operations(work: Callable[[], None]) -> int:
    """Multiplications and additions of all matrix products and attentions in `work`, recomputed ones counted."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False, custom_mapping=_mapping()) as counter:
        work()
    return int(counter.get_total_flops())


def name_of(device: torch.device) -> str:
    """The GPU's name, or the processor's with the threads that are used."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    found = re.search(r"model name\s*: (.*)", _read(Path("/proc/cpuinfo")))
    threads = torch.get_num_threads()
    return f"{found[1] if found else platform.machine()}, {threads} thread{'s' if threads > 1 else ''}"


def _host_peak() -> int:
    found = re.search(r"VmHWM:\s*(\d+) kB", _read(STATUS))
    return (int(found[1]) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * 1024


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _mapping() -> dict[Any, Any]:
    """Formulas for what torch's counter does not know: attention on a CPU, and 4-bit products without a gradient."""
    import bitsandbytes  # noqa: F401 - registers its operators

    aten = torch.ops.aten
    return {
        aten._scaled_dot_product_flash_attention_for_cpu: _attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
        torch.ops.bitsandbytes.gemm_4bit: _product_4bit,
    }


def _attention(query: Any, key: Any, *_: Any, **__: Any) -> int:
    batch, heads, length, width = map(int, query)
    return 4 * batch * heads * length * int(key[-2]) * width


def _attention_backward(_: Any, query: Any, key: Any, *__: Any, **___: Any) -> int:
    return 5 * _attention(query, key) // 2  # scores again, then four products


def _product_4bit(inputs: Any, _: Any, shape: Any, *__: Any, **___: Any) -> int:
    return 2 * int(torch.Size(inputs).numel()) * int(shape[0])
