"""MOSI and MOSEI as they are handed around: label.csv beside Raw/<video_id>/<clip_id>.mp4."""

import csv
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import ClassVar, Literal

from pydantic import Field

from raymsa.clip import RawClip, Reject
from raymsa.datasets.base import Layout, Row
from raymsa.errors import DataError

LABEL_FILE = "label.csv"
MEDIA_DIR = "Raw"
COLUMNS = ("video_id", "clip_id", "text", "label", "mode")
TARGETS = ("label", "label_T", "label_A", "label_V", "annotation")
Fields = dict[str, str]


class Cmu(Layout):
    """MOSI, MOSEI: label.csv (video_id, clip_id, text, label, mode) and Raw/<video_id>/<clip_id>.mp4."""

    expects: ClassVar[str] = f"{LABEL_FILE} ({', '.join(COLUMNS)}) and Raw/<video_id>/<clip_id>.mp4"

    kind: Literal["cmu"] = "cmu"
    media_dir: str | None = Field(
        MEDIA_DIR,
        description="folder of the clips inside the raw folder; null takes the words alone and looks for none",
    )

    def clips(self, raw: Path) -> Iterator[RawClip | Reject]:
        """Every row of label.csv, in file order. Raises DataError when the file or a column is missing."""
        return self.checked(label_rows(raw, self.media_dir))


def label_rows(raw: Path, media_dir: str | None = MEDIA_DIR) -> Iterator[Row | Reject]:
    """The rows of raw/label.csv; ids stay text (`-3g5y` and `0001` are ids), `id` is `video_id$_$clip_id`."""
    for number, fields in table_rows(raw / LABEL_FILE, COLUMNS):
        yield fields if isinstance(fields, Reject) else _row(number, fields, media_dir)


def table_rows(
    path: Path, columns: tuple[str, ...], delimiter: str = ",", encoding: str = "utf-8-sig"
) -> Iterator[tuple[int, Fields | Reject]]:
    """Line number and named fields of each row of a CSV file.

    Raises DataError, in one line, for a file or column that is missing and for text in another encoding.
    """
    try:
        with path.open(encoding=encoding, newline="") as file:
            reader = csv.DictReader(file, delimiter=delimiter)
            _check_columns(path, list(reader.fieldnames or []), columns)
            for fields in reader:
                yield reader.line_num, _whole(reader.line_num, fields)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not {encoding} text (byte {error.start}); save it as UTF-8") from None
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: not a CSV row: {error}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; a label file belongs there") from None


def _check_columns(path: Path, given: list[str], wanted: tuple[str, ...]) -> None:
    missing = [name for name in wanted if name not in given]
    if missing:
        raise DataError(
            f"{path}: column {', '.join(missing)} is missing; given {', '.join(given) or 'an empty file'}; "
            f"the first line must name {', '.join(wanted)}"
        )


def _whole(number: int, fields: dict[str | None, str | None]) -> Fields | Reject:
    # DictReader keeps surplus fields under None and fills missing ones with None: either way the row has slipped.
    if None in fields:
        return Reject(f"line {number}", "", "more fields than the first line names (a comma outside quotes?)")
    if None in fields.values():
        return Reject(f"line {number}", "", "fewer fields than the first line names")
    return {str(name): str(value) for name, value in fields.items()}


def _row(number: int, fields: Fields, media_dir: str | None) -> Row | Reject:
    video, clip = fields["video_id"].strip(), fields["clip_id"].strip()
    if not video or not clip:
        return Reject(f"line {number}", "", "video_id or clip_id is empty")
    media = _media(media_dir, video, clip) if media_dir else ""
    targets = {name: fields[name] for name in TARGETS if name in fields}
    return Row(f"{video}$_${clip}", video, fields["text"], targets, fields["mode"], media, _order(clip))


def _media(folder: str, video: str, clip: str) -> str:
    # PurePath would let an absolute part swallow what stands before it; the path rule must still see it.
    inside = not any(PurePath(part).is_absolute() for part in (video, clip))
    return f"{folder}/{video}/{clip}.mp4" if inside else f"/{video}/{clip}.mp4"


def _order(clip: str) -> float | None:
    """A clip's number, or its start in seconds: some copies are numbered by it."""
    try:
        return float(clip)
    except ValueError:
        return None
