"""What lies in a raw folder: each folder is listed once, because in a bucket every question costs a round trip."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path, PurePath

from raymsa.errors import DataError

# Picture and sound first: where one clip has files of several kinds, the first kind is taken.
PICTURES = (".mp4", ".mkv", ".avi", ".mov", ".webm", ".mpg", ".mpeg", ".m4v", ".flv", ".wmv", ".3gp", ".ts")
SOUNDS = (".wav", ".flac", ".mp3", ".m4a", ".ogg", ".opus", ".aac", ".aiff")
ENDINGS = {ending: rank for rank, ending in enumerate(PICTURES + SOUNDS)}
NO_FOLDERS = {*ENDINGS, ".csv", ".json", ".jsonl", ".txt", ".pkl", ".npy", ".gz", ".zip", ".tar"}


class Listing:
    """The names in a raw folder and below it. Paths are relative to it, with `/`; "" is the folder itself."""

    def __init__(self, raw: Path) -> None:
        self.raw = raw
        self._names: dict[str, frozenset[str]] = {}
        self._stems: dict[str, dict[str, str]] = {}

    def names(self, folder: str) -> frozenset[str]:
        """Names in a folder; none where there is no such folder. Raises DataError when it cannot be listed."""
        if folder not in self._names:
            self._names[folder] = self._listed(folder)
        return self._names[folder]

    def clip(self, folder: str, name: str) -> str | None:
        """The media file of a clip, whatever its ending: `name` may lead into a subfolder."""
        *inner, stem = name.split("/")
        place = "/".join(filter(None, [folder, *inner]))
        found = self._by_stem(place).get(stem)
        return f"{place}/{found}" if place and found else found

    def find(self, name: str) -> list[str]:
        """Paths of the files or folders of this name, in any case: the nearest ones, at most two folders down."""
        level = [""]
        for _ in range(3):
            level = [_join(folder, inner) for folder in level if _maybe_folder(folder) for inner in self.names(folder)]
            found = [path for path in level if path.rpartition("/")[2].casefold() == name.casefold()]
            if found:
                return sorted(found)
        return []

    def folders(self, *paths: str) -> list[str]:
        """Those of the paths, in any case, that are folders with something in them."""
        return [found for path in paths for found in self._like("", path.split("/")) if self.names(found)]

    def _like(self, folder: str, parts: list[str]) -> Iterator[str]:
        for name in sorted(self.names(folder)):
            if name.casefold() == parts[0].casefold():
                path = _join(folder, name)
                if parts[1:]:
                    yield from self._like(path, parts[1:])
                else:
                    yield path

    def _by_stem(self, folder: str) -> dict[str, str]:
        if folder not in self._stems:
            media: defaultdict[str, list[str]] = defaultdict(list)
            for name in self.names(folder):
                stem, dot, ending = name.rpartition(".")
                if dot and f".{ending.lower()}" in ENDINGS:
                    media[stem].append(name)
            self._stems[folder] = {stem: min(names, key=_rank) for stem, names in media.items()}
        return self._stems[folder]

    def _listed(self, folder: str) -> frozenset[str]:
        if folder:  # only what stands in a listing is looked into: nothing that a label file says leads outside
            parent, _, name = folder.rpartition("/")
            if name not in self.names(parent):
                return frozenset()
        path = self.raw / folder if folder else self.raw
        try:
            return frozenset(entry.name for entry in path.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return frozenset()
        except OSError as error:
            raise DataError(f"{path}: cannot be listed: {error.strerror or error}") from None


def one_of(found: list[str], raw: Path, field: str) -> str | None:
    """The folder that is meant: none, or the only one. Raises DataError when there are several."""
    inner = [path for path in found if not any(other.startswith(f"{path}/") for other in found)]
    if len(inner) > 1:
        raise DataError(f"{raw}: {field}: several folders may be meant ({', '.join(inner)}); name one of them")
    return inner[0] if inner else None


def leaves(*parts: str) -> bool:
    """Whether a part of a path, as a label file has it, leads out of the raw folder."""
    return any(PurePath(part).is_absolute() or ".." in PurePath(part).parts for part in parts)


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _rank(name: str) -> tuple[int, str]:
    return ENDINGS[PurePath(name).suffix.lower()], name


def _maybe_folder(path: str) -> bool:
    return PurePath(path).suffix.lower() not in NO_FOLDERS
