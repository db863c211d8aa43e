"""A run's predictions file: one row per clip."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

FILE = "predictions.parquet"
SCHEMA = pa.schema(
    [
        ("split", pa.string()),
        ("clip_id", pa.string()),
        ("label", pa.float64()),
        ("score", pa.float64()),
        ("text", pa.string()),
        ("parsed", pa.bool_()),
        ("in_range", pa.bool_()),
    ]
)


def write_predictions(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Write the rows to the run folder, at once: the file is whole or not there."""
    part = folder / f".{FILE}.part"
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), part)
    part.rename(folder / FILE)


def read_predictions(folder: Path) -> list[dict[str, Any]]:
    """What a finished run predicted, one dict per clip."""
    rows: list[dict[str, Any]] = pq.read_table(folder / FILE).to_pylist()
    return rows
