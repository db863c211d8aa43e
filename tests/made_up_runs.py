"""Jobs with finished runs that nobody trained: scores are formulas of the labels, curves fall as curves do."""

from typing import Any

import numpy as np

from raymsa.evaluation.metrics import CRITERIA, constant_scores, measure
from raymsa.plan import run_id
from raymsa.queue import NewTask, claim, put
from raymsa.queue import finish as done
from raymsa.spec import check, runs
from raymsa.store import Store, records
from raymsa.target import task_of

Labels = dict[str, dict[str, float]]  # split -> clip -> label
STEPS, EPOCHS = 40, 5
CLASSES = {"kind": "classification", "classes": ["sad", "<b>快乐</b>", "angry & loud"]}


def small(clips: int = 24, classes: int = 0) -> Labels:
    """Labels from -3 to 3, or classes, of a few clips."""
    values = np.round(np.linspace(-3, 3, clips), 1) if not classes else np.arange(clips) % classes
    return {split: {f"v{n}$_${n}": float(v) for n, v in enumerate(values)} for split in ("valid", "test")}


def job_spec(seeds: tuple[int, ...] = (1, 2), name: str = "made_up", **sections: Any) -> dict[str, Any]:
    """A whole spec as the store keeps it; both readouts unless `variants` says otherwise."""
    job = {"name": name, "dataset": {"kind": "synthetic", "name": "clips"}, "model": {"path": "tiny"}}
    job |= {"readout": {"kind": "disc"}, "seeds": list(seeds), "variants": {"disc": {}, "gen": {"readout.kind": "gen"}}}
    job |= {"train": {"epochs": EPOCHS}}
    return check({**job, **sections}, "test").model_dump(mode="json")  # type: ignore[no-any-return]


def submit(store: Store, spec: dict[str, Any], shards: str = "", name: str = "") -> str:
    """A queued job; only here may its name be what no file could say."""
    task = NewTask("prepare", {"shards": shards} if shards else {})
    return put(store, name or spec["name"], spec, [task], submitted_by="ada@lab", folder="/", git_commit="c0ffee")


def finish(store: Store, job_id: str, spec: dict[str, Any], labels: Labels, skip: tuple[str, ...] = ()) -> list[str]:
    """Enter every run of a job; those not in `skip` (as VARIANT-SEED) are done. Returns all ids."""
    made = runs(check(spec, "test"))
    rows = [
        {"id": run_id(job_id, run), "job_id": job_id, "task_id": None, "variant": run.variant, "seed": run.seed}
        | {"group_key": run.group, "spec": run.spec.model_dump(mode="json"), "spec_digest": "d"}
        for run in made
    ]
    records.create_runs(store, rows)
    for row in rows:
        if f"{row['variant']}-{row['seed']}" not in skip:
            finish_run(store, row, labels)
    if not skip and (task := claim(store, "driver", 60)):
        done(store, task)
    return [str(row["id"]) for row in rows]


def confirmed_search(store: Store, clips: int = 24) -> tuple[str, ...]:
    """A search by correlation: its job, its one trial (seed 1), and two runs that confirm the trial's setting."""
    search = {"space": {"lora.rank": {"choice": [2, 4]}}, "trials": 1, "metric": "valid_corr"}
    search["confirm"] = {"seeds": [2, 3], "top": 1, "default": False}
    spec = job_spec(seeds=(1,), name="search", variants={}, search=search)
    job_id = submit(store, spec)
    trial = runs(check(spec, "test"))[0]
    seeds = {seed: {**trial.spec.model_dump(mode="json"), "seeds": [seed]} for seed in (1, 2, 3)}
    rows = [
        {"id": f"{job_id}-t1-{seed}", "job_id": job_id, "task_id": None, "variant": "t1", "seed": seed}
        | {"group_key": trial.group, "spec": spec, "spec_digest": "d"}
        for seed, spec in seeds.items()
    ]
    records.create_runs(store, rows)
    for row in rows:
        finish_run(store, row, small(clips))
    return job_id, *(row["id"] for row in rows)


def finish_run(store: Store, row: dict[str, Any], labels: Labels, data: str = "d1") -> None:
    """One run from its start to its end."""
    kind, task = row["spec"]["readout"]["kind"], task_of(row["spec"])
    facts = {"versions": {"raymsa": "1", "torch": "2"}, "git_commit": "c0ffee", "data_digest": data}
    records.start_run(store, row["id"], steps_total=STEPS, trainable_parameters=103_961_601, **facts)
    records.update_run(store, row["id"], place="node1, cpu")
    _train(store, row, CRITERIA[task.profile].metric)
    clips = [clip for split, mine in labels.items() for clip in _clips(kind, row["seed"], split, mine, task.profile)]
    finals = {split: _finals(task.profile, [c for c in clips if c["split"] == split]) for split in labels}
    valid = CRITERIA[task.profile].turned(finals["valid"][CRITERIA[task.profile].metric])
    ended = {"best_epoch": 3, "data_wait": 0.02, "valid_error": valid, "peak_memory_bytes": 14 * 2**30}
    records.finish_run(store, row["id"], ended, finals, clips)


def scores(kind: str, seed: int, label_B: np.ndarray) -> np.ndarray:
    """`disc` is drawn to the middle and noisy; `gen` says tenths and sometimes the wrong sign."""
    noise_B = np.random.default_rng([seed, len(kind)]).normal(0, 0.55, len(label_B))
    if kind == "disc":
        return np.clip(0.85 * label_B + 0.08 + noise_B, -3, 3)
    turned_B = np.random.default_rng([seed, 99]).random(len(label_B)) < 0.07
    return np.clip(np.round(np.where(turned_B, -label_B, label_B) + 1.3 * noise_B, 1), -3, 3)


def _train(store: Store, row: dict[str, Any], metric: str) -> None:
    noise = np.random.default_rng([row["seed"], 7])
    for step in range(1, STEPS + 1):
        loss = 0.35 + 0.6 * np.exp(-step / 12) + noise.normal(0, 0.03)
        values = {"loss": float(loss), "clips_per_s": 3.1, "grad_norm": 1.0}
        told = [{"step": step, "epoch": 1 + (step - 1) * EPOCHS // STEPS, "values": values}]
        if step % (STEPS // EPOCHS) == 0:
            epoch = step * EPOCHS // STEPS
            better = 0.5 + 0.5 / epoch + 0.2 * (row["variant"] == "gen") + float(noise.normal(0, 0.02))
            value = better if metric == "mae" else 1.4 - better
            told.append({"step": step, "epoch": epoch, "values": {f"valid_{metric}": value}})
        records.record_steps(store, row["id"], told, (90.0, 90.0))


def _clips(kind: str, seed: int, split: str, labels: dict[str, float], profile: str) -> list[dict[str, Any]]:
    label_B = np.array(list(labels.values()))
    score_B = scores(kind, seed, label_B) if profile != "classes" else (label_B + (label_B + seed) % 3 // 2) % 3
    words = [f"{score:+.2f}" if kind == "gen" else None for score in score_B]
    return [
        {"split": split, "clip_id": name, "label": label, "score": float(score), "text": text}
        | {"parsed": True, "in_range": True}
        for (name, label), score, text in zip(labels.items(), score_B, words, strict=True)
    ]


def _finals(profile: str, clips: list[dict[str, Any]]) -> dict[str, float]:
    score, label = [c["score"] for c in clips], [c["label"] for c in clips]
    floor = constant_scores(profile, 0.2 if profile != "classes" else 0, label)
    said = {"unparsable": 0.0125} if clips[0]["text"] else {}
    return {
        **measure(profile, score, label),
        **{f"constant_{k}": v for k, v in floor.items()},
        "out_of_range": 0.0,
        **said,
    }
