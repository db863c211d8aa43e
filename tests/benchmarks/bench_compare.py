"""How often the interval of `raymsa compare` holds the true difference, how often p is small without one, and how long
it takes. One core, numpy alone: python -m tests.benchmarks.bench_compare --worlds 4000
"""

import argparse
import math
import resource
import time

import numpy as np

from raymsa.evaluation.significance import compare, scored
from tests.test_significance import clustered

# seeds of each group, sd of what seeds differ by, the same seeds in both
WORLDS = [(4, 0.1, True), (4, 0.1, False), (4, 0.3, True), (4, 0.0, True), (2, 0.1, True), (1, 0.0, True)]
CLIPS, VIDEOS, SEEDS = 4_659, 676, 4  # MOSEI's test split


def rates(worlds: int, resamples: int) -> None:
    """Of many made-up test sets, of 31 videos each."""
    print("seeds  sd of seeds  paired  holds the difference  p <= 0.05 without one")
    for seeds, of_seeds, by_seed in WORLDS:
        rng, held, wrong = np.random.default_rng(1), 0, 0
        for world in range(worlds):
            found = compare(
                clustered(rng, 0.0, seeds, of_seeds, by_seed), "mosi", "mae", resamples=resamples, seed=world
            )
            held += found.low <= 0 <= found.high
            wrong += found.p <= 0.05
        print(f"{seeds:5}  {of_seeds:11}  {by_seed!s:6}  {held / worlds:20.3f}  {wrong / worlds:21.3f}", flush=True)
    print(f"standard error of a share of 0.95 or 0.05: {math.sqrt(0.95 * 0.05 / worlds):.4f}")


def speed() -> None:
    """Two groups on a test split of MOSEI's size, 10,000 resamples."""
    rng = np.random.default_rng(0)
    label = np.clip(rng.normal(0, 1, CLIPS), -3, 3).round(2)
    a, b = (label + rng.normal(0, sd, (SEEDS, CLIPS)) for sd in (0.6, 0.65))
    for video, words in ((rng.integers(0, VIDEOS, CLIPS), f"{VIDEOS} videos"), (np.arange(CLIPS), "no videos")):
        for metric in ("mae", "corr", "f1_has0"):
            begun = time.process_time()
            compare(scored(a, b, label, video, True), "mosi", metric)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
            print(f"{metric}, {words}: {time.process_time() - begun:.2f} s of CPU; peak memory {peak} MB so far")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worlds", type=int, default=4_000)
    parser.add_argument("--resamples", type=int, default=400)
    given = parser.parse_args()
    speed()
    rates(given.worlds, given.resamples)
