"""SQLite on a network file system loses data: which file system holds a path, and the line that says so."""

from pathlib import Path

import pytest

from raymsa import doctor
from raymsa.errors import StoreError
from raymsa.store import Store, filesystem
from raymsa.store.filesystem import Mount, holding

# As `man 5 proc` describes it: any number of optional fields before the dash, blanks in octal.
MOUNTS = r"""
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
23 22 0:21 / /proc rw - proc proc rw
40 22 0:50 / /net rw,relatime shared:7 master:2 propagate_from:3 - autofs auto.net rw,fd=7
41 40 0:51 / /net/ada rw,relatime shared:8 - nfs4 files:/export/ada rw,vers=4.2,addr=10.0.0.1
42 22 0:52 /sub /data\040of\040ours rw,relatime - fuse.sshfs ada@host:/data rw,user_id=0
43 22 0:53 / /scratch rw - lustre mgs@tcp:/scratch rw
44 43 8:1 / /scratch/local rw - xfs /dev/sda1 rw
45 22 0:54 / /mnt/back\134slash rw - 9p share rw
46 22 0:55 / /twice rw - ext4 /dev/sdb1 rw
47 46 0:56 / /twice rw - cifs //server/share rw

a line of a kernel that is not written yet
"""


@pytest.mark.parametrize(
    ("path", "point", "kind"),
    [
        ("/", "/", "ext4"),
        ("/network/x", "/", "ext4"),
        ("/net/ada", "/net/ada", "nfs4"),
        ("/net/ada/.raymsa/store.db", "/net/ada", "nfs4"),
        ("/net/bob/store.db", "/net", "autofs"),
        ("/data of ours/store.db", "/data of ours", "fuse.sshfs"),
        ("/mnt/back\\slash/store.db", "/mnt/back\\slash", "9p"),
        ("/scratch/store.db", "/scratch", "lustre"),
        ("/scratch/local/store.db", "/scratch/local", "xfs"),
        ("/twice/store.db", "/twice", "cifs"),
    ],
)
def test_a_path_is_on_the_longest_mount_above_it_and_of_two_on_the_later(path: str, point: str, kind: str) -> None:
    assert holding(MOUNTS, Path(path)) == Mount(Path(point), kind)


def test_where_no_mount_is_known_nothing_is_claimed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert holding("", Path("/net/ada")) is None
    monkeypatch.setattr(filesystem, "MOUNTS", tmp_path / "no such file")  # as on macOS
    Store.open(f"{tmp_path}/store.db").close()


@pytest.fixture
def share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that the kernel's list, as we are given it, calls an NFS mount."""
    folder = tmp_path / "my share"
    folder.mkdir()
    escaped = str(folder).replace(" ", r"\040")
    text = filesystem.MOUNTS.read_text() + f"99 1 0:99 / {escaped} rw - nfs4 files:/share rw\n"
    monkeypatch.setattr(filesystem, "MOUNTS", tmp_path / "mountinfo")
    filesystem.MOUNTS.write_text(text)
    return folder


def test_a_store_on_a_network_file_system_is_refused_before_anything_is_written(share: Path, tmp_path: Path) -> None:
    Store.open(f"{tmp_path}/store.db").close()  # beside it is fine
    (tmp_path / "link").symlink_to(share / "deep")
    for place in (share / "store.db", share / "not/there/yet/store.db", tmp_path / "link/store.db"):
        for create in (True, False):
            with pytest.raises(StoreError) as caught:
                Store.open(str(place), create=create)
            line = str(caught.value)
            assert "\n" not in line
            assert f"store sqlite:///{place}: {share} is a network file system (nfs4)" in line
            assert "name a file on a local disk, or a PostgreSQL database, with --store or RAYMSA_STORE" in line
    assert list(share.iterdir()) == []


def test_the_doctor_says_so_too(share: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYMSA_STORE", f"sqlite:///{share}/store.db")
    check = doctor.store()
    assert check.ok is False
    assert "is a network file system (nfs4)" in check.found
