"""The text-only group that stands beside others unasked: how much of a result is owed to the words alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from raymsa.store import Store, queries

if TYPE_CHECKING:
    from raymsa.report.groups import Group


def baselines(
    store: Store, asked: Sequence[Group], words: Sequence[Group], error: Callable[[Group], float]
) -> list[Group]:
    """The best text-only group (that of the lowest error) for every set of clips on which none was asked for.

    It is one of the same shards, or where there is none, one of shards with the same test clips: a job that needs
    neither sound nor picture prepares them without.
    """
    if not words:
        return []
    clips = _TestClips(store)
    told = [group for group in asked if group.text_only]
    made: dict[tuple[str, str | None], Group] = {}
    for group in asked:
        if any(_same_shards(group, one) or clips.same(group, one) for one in told):
            continue
        same = [one for one in words if _same_shards(group, one)] or [one for one in words if clips.same(group, one)]
        if same:
            best = min(same, key=error)
            other = not _same_shards(group, best)
            made[best.key, best.data_digest] = replace(best, rivals=len(same), other_shards=other)
    return list(made.values())


def _same_shards(one: Group, other: Group) -> bool:
    return one.data_digest is not None and one.data_digest == other.data_digest


class _TestClips:
    """What tells one test set from another: ids and labels. It is read once for all groups of the same shards."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[str | None, str | None] = {None: None}

    def same(self, one: Group, other: Group) -> bool:
        """Whether both were tested on the same clips; false where that is not known."""
        return self._of(one) is not None and self._of(one) == self._of(other)

    def _of(self, group: Group) -> str | None:
        if group.data_digest not in self._known:
            found = (queries.predictions(self._store, seed.run_id, "test") for seed in group.seeds)
            self._known[group.data_digest] = next((_digest(clips) for clips in found if clips), None)
        return self._known[group.data_digest]


def _digest(clips: Sequence[queries.Prediction]) -> str:
    return hashlib.sha256(repr([(clip.clip_id, clip.label) for clip in clips]).encode()).hexdigest()
