"""CH-SIMS and CH-SIMS v2: Chinese clips with a score for all modalities together and one for each alone."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from raymsa.clip import RawClip, Reject
from raymsa.datasets.base import Layout
from raymsa.datasets.folder import Listing
from raymsa.datasets.mmsa import COLUMNS, KEYS, LABEL_FILE, MEDIA_DIR, ClipFiles, label_rows, video_of
from raymsa.datasets.textfile import CHINESE, table_rows
from raymsa.target import Language, Regression, Task

SCORES = {"low": -1.0, "high": 1.0, "metrics": "sims"}
LABEL_FILES = (LABEL_FILE, "meta.csv")  # the second is what v2 is handed out with


class ChSims(Layout):
    """CH-SIMS (v1, v2): label.csv or meta.csv, in UTF-8 or GBK, with or without header, and Raw/<video>/<clip>.mp4."""

    expects: ClassVar[str] = f"{' or '.join(LABEL_FILES)} ({', '.join(KEYS)}) and Raw/<video_id>/<clip_id>.mp4"

    kind: Literal["ch_sims"] = "ch_sims"
    task: Task = Field(
        default_factory=lambda: Regression.model_validate(SCORES),
        description="what is predicted; label_T, label_A and label_V are the scores of one modality alone",
    )
    language: Language = Field("zh", description="language of the words, and of the prompt where none is given: en, zh")
    media_dir: str | None = Field(
        MEDIA_DIR,
        description="folder of the clips inside the raw folder; null takes the words alone and looks for none",
    )

    @field_validator("task", mode="before")
    @classmethod
    def _scores_of_sims(cls, value: Any) -> Any:
        """A task that names only its target has the scores of CH-SIMS all the same."""
        is_scores = isinstance(value, dict) and value.get("kind") == "regression"
        return {**SCORES, **value} if is_scores else value

    def video_of(self, clip_id: str) -> str | None:
        """The part before `$_$`."""
        return video_of(clip_id)

    def clips(self, raw: Path) -> Iterator[RawClip | Reject]:
        """Every row of the label file, in file order. Raises DataError when the file or a column is missing."""
        listing = Listing(raw)
        name = next((name for name in LABEL_FILES if name in listing.names("")), LABEL_FILE)
        table = table_rows(raw / name, KEYS, encodings=CHINESE, without_header=COLUMNS)
        return self.checked(label_rows(table, ClipFiles(listing, self.media_dir)))
