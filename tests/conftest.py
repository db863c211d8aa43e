"""What the tests share: a home of their own, the tiny Thinker, one Ray session."""

import importlib.util
import os

import pytest
from hypothesis import settings

settings.register_profile("raymsa", deadline=None)  # a busy machine is no failure
settings.register_profile("ci", deadline=None, derandomize=True)  # nor is what another run did not draw
settings.load_profile("raymsa")

os.environ["HF_HUB_OFFLINE"] = "1"  # a test that asks the hub is a mistake, and must fail at once
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tensors are tiny: on a busy machine threads that wait cost 20 times

# The parity test needs transformers' video processor, which needs torchvision; raymsa does not. `.ci/run` installs it.
collect_ignore = [] if importlib.util.find_spec("torchvision") else ["test_parity.py"]


def pytest_xdist_make_scheduler(config, log):
    """A file's tests stay in one process, for what they share; all files with Ray in one, as there is one session."""
    from xdist.scheduler import LoadScopeScheduling

    class Files(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.split("::")[0]
            return "ray" if "mark.ray" in (config.rootpath / file).read_text() else file

    return Files(config, log)


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory):
    """RAYMSA_HOME of all tests; the user's own is never touched."""
    folder = tmp_path_factory.mktemp("home")
    os.environ["RAYMSA_HOME"] = str(folder)
    os.environ.pop("RAYMSA_STORE", None)
    return folder


@pytest.fixture(scope="session", autouse=True)
def postgres_is_stopped():
    """The session's PostgreSQL server is started by the first test that asks for it; see tests/postgres.py."""
    yield
    from tests import postgres

    postgres.stop_shared()


@pytest.fixture(scope="session")
def tiny_folder(home):
    from raymsa.spec import ModelSpec
    from raymsa.thinker.load import open_folder

    return open_folder(ModelSpec(path="tiny"))


@pytest.fixture(scope="session")
def tiny_thinker(home):
    """The tiny Thinker in NF4 with fresh adapters, lm_head and both towers; tests must not train it."""
    import torch

    from raymsa.spec import LoraSpec, ModelSpec
    from raymsa.thinker.load import load

    torch.manual_seed(0)
    thinker = load(ModelSpec(path="tiny"), LoraSpec(rank=4), ("text", "audio", "video"), True, torch.device("cpu"))
    thinker.train_mode(False, checkpointing=False)
    return thinker


@pytest.fixture(scope="session")
def stock_thinker(tiny_folder):
    """transformers' own class on the meta device: for its get_rope_index and its parameter names."""
    import torch
    from transformers import Qwen2_5OmniThinkerForConditionalGeneration

    with torch.device("meta"):
        return Qwen2_5OmniThinkerForConditionalGeneration(tiny_folder.config)


@pytest.fixture(scope="session")
def ray_session(home):
    """One Ray session for every test that needs one: starting it costs seconds."""
    from raymsa.cluster import session

    with session(None):
        yield
