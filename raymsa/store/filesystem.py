"""Which file system a path is on, and whether it is a network's: SQLite must not be there.

SQLite's locks are not kept by network file systems, and its WAL is shared memory, which two machines do not share: the
file is damaged sooner or later, without a word.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

MOUNTS = Path("/proc/self/mountinfo")
# As the kernel names them; what runs outside the kernel is "fuse." and its own name.
# fmt: off
NETWORK = {
    "9p", "afs", "beegfs", "ceph", "cifs", "coda", "davfs", "fhgfs", "gfs2", "glusterfs", "gpfs", "lustre",
    "ncpfs", "nfs", "nfs4", "ocfs2", "orangefs", "panfs", "pvfs2", "smb3", "smbfs", "vboxsf", "wekafs", "blobfuse",
    "blobfuse2", "ceph-fuse", "cvmfs2", "davfs2", "gcsfuse", "goofys", "juicefs", "mfs", "mount-s3", "rclone",
    "s3fs", "seaweedfs", "sshfs",
}
# fmt: on


class Mount(NamedTuple):
    """A mounted file system: where, and its type."""

    point: Path
    kind: str


def network_mount(path: Path) -> Mount | None:
    """The network file system that holds a path, which may not exist yet; None when it is local or unknown."""
    whole = Path(os.path.realpath(path))  # first: looking at a path is what makes the kernel mount an automatic one
    try:
        mounts = MOUNTS.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:  # not Linux
        return None
    found = holding(mounts, whole)
    return found if found and found.kind.removeprefix("fuse.") in NETWORK else None


def holding(mounts: str, path: Path) -> Mount | None:
    """The mount of a mountinfo text (`man 5 proc`) that a path without symlinks is on."""
    held = [mount for mount in map(_mount, mounts.splitlines()) if mount and path.is_relative_to(mount.point)]
    # Of two at one place, the later covers the earlier.
    return max(enumerate(held), key=lambda at: (len(at[1].point.parts), at[0]), default=(0, None))[1]


def _mount(line: str) -> Mount | None:
    # 36 35 98:0 /root /mount/point rw,noatime master:1 - type source rw: between the point and " - ", none or many.
    about, _, rest = line.partition(" - ")
    fields, kind = about.split(" "), rest.split(" ")[0]
    return Mount(Path(_plain(fields[4])), kind) if len(fields) > 4 and kind else None


def _plain(point: str) -> str:
    r"""Space, tab, newline and backslash are written as \040, \011, \012, \134."""
    return re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), point)
