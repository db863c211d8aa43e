"""What a job says of its clips before it trains on them."""

import pytest

from raymsa.data import manifest as manifests
from raymsa.errors import DataError
from raymsa.execute import _check_data
from raymsa.jobfile import load_job
from raymsa.store import Store, queries, records
from tests import stores
from tests.jobs import job_file


def made(**fields):
    about = {"without_sound": {}, "without_picture": {}, "settings": {}, "versions": {}, "files": ()}
    counts = {"counts": {}, "cut_sound": 0, "damaged": 0, "rejects": 0, "labels": None}
    return manifests.Manifest(**{"name": "clips", "digest": "aa", **about, **counts, **fields})


def rows_of(tmp_path, digest):
    with Store.open(f"sqlite:///{tmp_path}/store.db") as store:
        stores.add_runs(store, stores.put(store), "r1")
        records.start_run(store, "r1", data_digest=digest)
        records.finish_run(store, "r1", {}, {})
        return [queries.run(store, "r1")]


def test_runs_of_one_job_are_never_made_from_different_clips(tmp_path):
    spec, said = load_job(job_file(tmp_path)), []
    _check_data(made(), rows_of(tmp_path, "aa"), spec, said.append)
    with pytest.raises(DataError, match="hold data aa, but run r1 was trained on data bb"):
        _check_data(made(), rows_of(tmp_path / "other", "bb"), spec, said.append)
    assert said == []


def test_context_that_no_clip_has_is_told(tmp_path):
    spec, said = load_job(job_file(tmp_path), ["inputs.context=2"]), []
    _check_data(made(with_previous=5), [], spec, said.append)
    assert said == []
    _check_data(made(), [], spec, said.append)
    assert "no clip of clips has another before it" in said[0]
