"""A folder of modules becomes one union of specs, told apart by `kind`: adding a file adds a kind."""

import importlib
import pkgutil
from functools import reduce
from operator import or_
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

S = TypeVar("S", bound="Spec")


class Spec(BaseModel):
    """Base of everything a person may write in a file: frozen, and unknown keys are errors."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        protected_namespaces=(),
        allow_inf_nan=False,
        validate_default=True,  # a default of 32 and a written 32 are both 32.0: one digest
    )

    @model_validator(mode="before")
    @classmethod
    def _yes_is_no_number(cls, raw: Any) -> Any:
        """YAML 1.1 reads `yes` and `on` as true, and pydantic takes true for 1: as text it is refused."""
        if not isinstance(raw, dict):
            return raw
        numbers = {name for name, field in cls.model_fields.items() if field.annotation in (int, float)}
        return {
            name: str(value).lower() if isinstance(value, bool) and name in numbers else value
            for name, value in raw.items()
        }


def kinds(package: str, base: type[S]) -> dict[str, type[S]]:
    """Import every module of `package`; return the subclasses of `base` that have a `kind`, by kind."""
    folder = importlib.import_module(package)
    for module in pkgutil.iter_modules(folder.__path__):
        importlib.import_module(f"{package}.{module.name}")
    found = {kind_of(cls): cls for cls in _subclasses(base) if "kind" in cls.model_fields}
    return dict(sorted(found.items()))


def kind_of(cls: type[Spec]) -> str:
    """The word that selects this spec in a file."""
    return str(cls.model_fields["kind"].default)


def union(found: dict[str, type[S]]) -> Any:
    """The annotation `one of these, by kind` for a pydantic field."""
    return Annotated[reduce(or_, found.values()), Field(discriminator="kind")]


def _subclasses(base: type[S]) -> list[type[S]]:
    direct = base.__subclasses__()
    return direct + [deeper for cls in direct for deeper in _subclasses(cls)]
