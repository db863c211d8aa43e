"""Prepared clips that are at hand: under RAYMSA_HOME, known by the digest of their data.

A stored spec names folders and addresses, and it may be a stranger's (`raymsa import`): what reads the store opens none
of them. It takes our own shards if they are the same data, or a folder that a person names on the command line.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from raymsa.data.manifest import FILE, Manifest, parse, read
from raymsa.errors import DataError
from raymsa.home import shards_dir
from raymsa.place import check, place


def at_hand(digest: str | None, named: str | None = None) -> tuple[Path, Manifest]:
    """The folder of shards with this data, and its manifest. `named` is what a person gave, a path or an address.

    Raises DataError, in words for a reader, when there is none.
    """
    if named is not None:
        return _named(digest, named)
    if digest is None:
        raise DataError("which data it is, was not recorded")
    for folder in sorted(path.parent for path in shards_dir().glob(f"*/{FILE}")):
        with suppress(DataError):  # half of another dataset is none of our business
            if parse(folder).digest == digest:
                return folder, read(folder)
    raise DataError(
        f"no clips with data {digest} under RAYMSA_HOME; where they are elsewhere, --shards names the folder"
    )


def _named(digest: str | None, named: str) -> tuple[Path, Manifest]:
    folder = place(named)
    check(folder)
    manifest = read(folder)
    if digest not in (None, manifest.digest):
        raise DataError(f"{folder}: holds data {manifest.digest}, and the runs have seen data {digest}")
    return folder, manifest
