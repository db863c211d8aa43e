"""What a prepare leaves beside its shards: rejects.csv, notes.csv, rows.csv and, last of all, manifest.json."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from raymsa.clip import SPLITS, RawClip, Reject
from raymsa.data import manifest as manifests
from raymsa.data.folder import as_csv, drop_strays, settings_of
from raymsa.data.manifest import NOTES, REJECTS, ROWS, Manifest, ShardFile, shaping
from raymsa.data.plan import Plan
from raymsa.data.shardfile import Written
from raymsa.datasets.base import Layout
from raymsa.errors import DataError
from raymsa.place import names, write_at_once
from raymsa.target import Labels


def account(dataset: Layout, raw: Path, out: Path, plan: Plan, done: list[Written]) -> Manifest:
    """Write the files. Raises DataError when no clip is left."""
    rejects = _all_rejects(plan.rows, done)
    texts = {REJECTS: as_csv(("id", "media", "reason"), [(r.id, r.media, r.reason) for r in rejects])}
    notes = [note for written in done for note in sorted({*written.missing, *written.damaged})]
    if notes:
        texts[NOTES] = as_csv(("id", "note"), notes)
    elif NOTES in names(out):  # of a call before this one, which did not come to its end
        (out / NOTES).unlink()
    anything_left = any(written.rows for written in done)
    if anything_left:
        texts[ROWS] = as_csv(("id", "digest"), plan.digests)
    for name, text in texts.items():
        write_at_once(out / name, text)
    if not anything_left:
        raise DataError(_nothing_left(raw, out, rejects))
    beside = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}
    made = _manifest(dataset, plan, done, rejects, beside)
    drop_strays(out, made)
    manifests.write(out, made)
    return made


def say_result(dataset: Layout, made: Manifest, out: Path, say: Callable[[str], None]) -> None:
    """Counts, those that differ from the published ones, and what was left out or kept with less."""
    for split, published in dataset.published.items():
        here = made.counts[split]
        if here != published:
            how = f"{abs(here - published)} {'fewer' if here < published else 'more'}"
            see = f"; see {REJECTS}" if made.rejects else ""
            say(f"warning: {split} has {here} clips, published are {published} ({how}{see})")
    less = {
        "without sound": sum(made.without_sound.values()),
        "without picture": sum(made.without_picture.values()),
        "damaged": made.damaged,
        "with sound cut at media.max_audio_s": made.cut_sound,
    }
    if any(less.values()):
        say(f"{out}: kept with less: {', '.join(f'{n} {what}' for what, n in less.items() if n)}; see {NOTES}")
    megabytes = sum(file.bytes for file in made.files) / 1e6
    counts = ", ".join(f"{split} {count}" for split, count in made.counts.items())
    shards = f"{len(made.files)} shard{'s' if len(made.files) > 1 else ''}"
    say(f"{out}: {counts}; {made.rejects} rejected; {shards}, {megabytes:.1f} MB; data {made.digest}")


def _all_rejects(rows: list[RawClip | Reject], done: list[Written]) -> list[Reject]:
    """Every reject once, in the order of the label file."""
    refused = {reject.id: reject for written in done for reject in written.rejects}
    found = [row if isinstance(row, Reject) else refused.get(row.id) for row in rows]
    return [reject for reject in found if reject]


def _manifest(
    dataset: Layout, plan: Plan, done: list[Written], rejects: list[Reject], beside: dict[str, str]
) -> Manifest:
    files = tuple(
        ShardFile(name=w.name, split=w.split, rows=w.rows, bytes=w.bytes, sha256=w.sha256) for w in done if w.rows
    )
    settings = settings_of(dataset)
    return Manifest(
        name=dataset.name,
        digest=manifests.digest_of(files, shaping(settings)),
        counts=_per_split(done, lambda w: w.rows),
        without_sound=_per_split(done, lambda w: w.without_sound),
        without_picture=_per_split(done, lambda w: w.without_picture),
        cut_sound=sum(w.cut_sound for w in done),
        damaged=len({clip for w in done for clip, _ in w.damaged}),
        rejects=len(rejects),
        seconds={split: sum(w.seconds for w in done if w.split == split) for split in SPLITS},
        audio_tokens=sum(w.audio_tokens for w in done),
        video_tokens=sum(w.video_tokens for w in done),
        media_bytes=sum(w.media_bytes for w in done),
        with_previous=sum(bool(row.previous) for row in plan.rows if isinstance(row, RawClip)),
        largest_clip_bytes=max(w.largest_clip_bytes for w in done),
        rows=manifests.digest_of_rows(plan.digests),
        beside=beside,
        labels=_labels(dataset, plan.rows, {reject.id for w in done for reject in w.rejects}),
        settings=settings,
        versions=manifests.versions(),
        files=files,
    )


def _per_split(done: list[Written], count: Callable[[Written], int]) -> dict[str, int]:
    return {split: sum(count(written) for written in done if written.split == split) for split in SPLITS}


def _labels(dataset: Layout, rows: list[RawClip | Reject], refused: set[str]) -> Labels | None:
    clips = (row for row in rows if isinstance(row, RawClip) and row.id not in refused)
    labels = [clip.label for clip in clips if clip.split == "train"]
    return dataset.task.learned(labels) if labels else None


def _nothing_left(raw: Path, out: Path, rejects: list[Reject]) -> str:
    reason, times = Counter(reject.reason for reject in rejects).most_common(1)[0]
    return f"{raw}: no clip is left of {len(rejects)} rows; most frequent: {reason} ({times}); see {out / REJECTS}"
