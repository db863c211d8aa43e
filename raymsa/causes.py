"""Why something failed, and what follows: tried again or not, how often, and when.

    cause      what happened                                     tried again
    lost       worker, driver or machine died, or was preempted  `queue.retries` times
    memory     device or host memory ran out                     once: somebody else may have had it
    disk       no space left on a disk                           `queue.retries` times
    store      the store is out of reach                         when it answers; does not count
    fault      raymsa or a library broke                         once
    user       what a person wrote, or the data                  never
    diverged   the loss is not a number                          never
    deadline   it was not done in time                           never
    runs       runs of the task failed, after their own retries  never

The first retry waits `queue.backoff_s`, each further one twice as long, up to ten minutes.
"""

from __future__ import annotations

import errno

from raymsa.errors import RaymsaError

AT_MOST = {"memory": 1, "fault": 1, "user": 0, "diverged": 0, "deadline": 0, "runs": 0}  # whatever queue.retries says
LONGEST_WAIT_S = 600.0
WORDS = {  # of a cause, for people
    "lost": "a process or a machine died, or was preempted",
    "memory": "device or host memory ran out",
    "disk": "no space was left on a disk",
    "store": "the store was out of reach",
    "fault": "raymsa or a library broke",
    "user": "something that was written is wrong, or the data is",
    "diverged": "the loss was not a number",
    "deadline": "it was not done in time",
    "runs": "runs failed, each after its own retries",
}
FULL = (errno.ENOSPC, errno.EDQUOT)
NO_MEMORY = ("out of memory", "not enough memory", "allocate memory", "bad_alloc")  # of torch's allocators


def cause_of(error: BaseException) -> str:
    """The cause of an error, of ours or not."""
    if isinstance(error, RaymsaError):
        return error.cause
    if isinstance(error, OSError) and error.errno in FULL:
        return "disk"
    if type(error).__module__.startswith("ray.exceptions"):  # an object, actor or task that died with its node
        return "lost"
    if isinstance(error, MemoryError) or any(words in str(error) for words in NO_MEMORY):
        return "memory"
    # safetensors and pyarrow raise errors of their own for a full disk, with the system's words in them
    return "disk" if "No space left" in str(error) or "os error 28" in str(error) else "fault"


def again_in(cause: str, failures: int, retries: int, backoff_s: float) -> float | None:
    """Seconds until the next try after so many failures; None when there is none."""
    if failures > min(retries, AT_MOST.get(cause, retries)):
        return None
    return float(min(LONGEST_WAIT_S, backoff_s * 2 ** (failures - 1)))
