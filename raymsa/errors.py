"""Every error raymsa raises on purpose.

    RaymsaError                 exit 1
    |- UsageError               exit 2    something a person wrote is wrong
    |  |- SpecError                       a job or config file; one line per problem
    |  `- DataError                       a raw folder, a label file, a set of shards
    |- NotFinished              exit 101  asked for a result that is not there yet
    |- NotFound                 exit 102  no such job, run or file
    |- Cancelled                exit 103  somebody cancelled it
    |- StoreError               exit 1    the experiment store cannot be used
    |  `- StoreAway                       it is out of reach, locked or full, perhaps only now
    |- LeaseLost                exit 1    another driver holds this task now
    |- Paused                   exit 101  somebody paused it
    |- Stopped                  exit 1    a run wrote a checkpoint and stopped, as it was asked to
    |- Lost                     exit 1    a process, a machine or its memory of the clips is gone
    |- RunsFailed               exit 1    runs of a job failed, each after its own retries
    |- NoSession                exit 1    no Ray session can be had
    |- DoesNotFit               exit 1    asks for more than the Ray session has
    |- NoRoom                   exit 104  would need more device memory than there is
    |- MediaError               exit 1    one clip's file cannot be decoded
    `- TrainingError            exit 1    a run cannot go on
       |- NonFiniteLoss                   the loss became NaN or infinite
       `- OutOfMemory                     device or host memory ran out

Errors keep plain constructors (one message) because they cross process borders by pickle. `cause` is a word of
raymsa/causes.py, which says whether the thing is tried again.
"""


class RaymsaError(Exception):
    """Anything raymsa reports to its user in one line."""

    exit_code = 1
    cause = "fault"


class UsageError(RaymsaError):
    exit_code = 2
    cause = "user"


class SpecError(UsageError):
    """A file or an override is wrong; the message has one line per problem."""


class DataError(UsageError):
    """Raw data, labels or shards are not what the dataset's layout says."""


class NotFinished(RaymsaError):
    exit_code = 101


class NotFound(RaymsaError):
    exit_code = 102


class Cancelled(RaymsaError):
    exit_code = 103


class StoreError(RaymsaError):
    """The experiment store is unreachable, read-only or of an unknown version, or cannot hold a value."""


class StoreAway(StoreError):
    """The store does not answer now, or is locked or full; trying again may help."""

    cause = "store"


class LeaseLost(RaymsaError):
    """The task was claimed by another driver, because this one was silent for too long."""


class Paused(RaymsaError):
    exit_code = 101


class Stopped(RaymsaError):
    """A run stopped because it was asked to; its checkpoint says where."""


class Lost(RaymsaError):
    """What a run needs is gone with a process or a machine; it can go on elsewhere."""

    cause = "lost"


class NoSession(RaymsaError):
    """Ray cannot be started on this machine, or the cluster cannot be reached."""


class DoesNotFit(RaymsaError):
    """The job asks for more CPUs or GPUs than the Ray session has."""

    cause = "user"


class NoRoom(RaymsaError):
    """A run is predicted to need more device memory than it was said to have."""

    exit_code = 104


class MediaError(RaymsaError):
    """One media file is missing, empty or cannot be decoded; the message is the reason."""


class TrainingError(RaymsaError):
    """A run ended early; the message says at which step and why."""


class RunsFailed(RaymsaError):
    """Runs of a task failed for good: each was tried as often as its own cause allows."""

    cause = "runs"


class NonFiniteLoss(TrainingError):
    """The loss is NaN or infinite; the message names the step and the clips."""

    cause = "diverged"


class OutOfMemory(TrainingError):
    """Memory ran out; the message says which setting would use less."""

    cause = "memory"
