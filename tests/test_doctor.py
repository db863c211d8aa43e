"""`raymsa doctor`: real checks of the machine the tests run on."""

from pathlib import Path

import pytest

from raymsa import doctor
from raymsa.store import Store, queries


@pytest.fixture(autouse=True)
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAYMSA_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("RAYMSA_STORE", raising=False)
    return tmp_path / "home"


def test_what_raymsa_cannot_do_without_is_fine_here_and_nothing_is_written(empty_home: Path) -> None:
    found = {check.name: check for check in doctor.checks()}
    assert all(found[name].ok for name in ("python", "bitsandbytes", "ray", "media"))
    assert "NF4" in found["bitsandbytes"].found
    assert not empty_home.exists()


def test_advice_is_given_where_something_is_not_fine_and_nowhere_else() -> None:
    assert all(bool(check.advice) != bool(check.ok) for check in doctor.checks())


def test_a_store_is_written_to_and_left_as_it_was(empty_home: Path) -> None:
    Store.open(f"sqlite:///{empty_home / 'store.db'}").close()
    assert doctor.store().ok is True
    with Store.open(f"sqlite:///{empty_home / 'store.db'}") as opened:
        assert queries.events(opened) == []


def test_a_store_that_is_no_database_is_a_finding(empty_home: Path) -> None:
    empty_home.mkdir()
    (empty_home / "store.db").write_text("this is not a database, but long enough to be taken for one" * 20)
    check = doctor.store()
    assert check.ok is False
    assert "store.db" in check.found


def test_a_broken_package_is_a_finding_and_not_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "av", None)  # makes `import av` fail
    broken = next(check for check in doctor.checks() if check.name == "media")
    assert broken.ok is False
    assert "av" in broken.found
    assert broken.advice
