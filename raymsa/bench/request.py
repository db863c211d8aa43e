"""What one process of a bench is asked to measure; it crosses to that process as JSON."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from raymsa.errors import UsageError

RECIPE = Path("tests/benchmarks/plain_recipe.py")  # of the checkout


@dataclass(frozen=True)
class Request:
    """One side, measured once."""

    spec: dict[str, Any]  # a resolved JobSpec with one seed
    side: str  # raymsa, or plain
    shards: str | None
    made_up: list[str]
    weights: str  # real, or random
    steps: int
    warm_up: int
    clips: int  # scored
    plain_batch: int | None = None
    recipe: str | None = None  # the file of the plain recipe

    def dump(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls, text: str) -> Request:
        """From JSON."""
        return cls(**json.loads(text))


def recipe() -> Path:
    """The plain recipe: in the checkout that raymsa is installed from, or where one stands. Raises UsageError."""
    for folder in (Path(__file__).parents[2], Path()):
        if (folder / RECIPE).exists():
            return (folder / RECIPE).absolute()
    raise UsageError(f"--against plain: {RECIPE} is not here; it comes with a checkout: run the command there")


def checked(path: str, spec: Any) -> Any:
    """The plain recipe's module, which does the same as this spec says. Raises UsageError if it cannot."""
    found = importlib.util.spec_from_file_location("plain_recipe", path)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    try:
        module.check(spec)
    except ValueError as error:
        raise UsageError(f"--against plain: {error}") from None
    return module


def at_hand(path: str) -> bool:
    """Whether the weights of `model.path` are on this machine: made on the spot, in a folder, or in the hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    local = Path(path).expanduser()
    if path == "tiny" or local.is_dir():
        return path == "tiny" or any(local.glob("*.safetensors"))
    names = ("model.safetensors", "model.safetensors.index.json")
    return any(isinstance(try_to_load_from_cache(path, name), str) for name in names)
