"""How fast does the loader deliver batches, beside numpy fancy indexing of the same transitions in RAM?

    python benchmarks/bench_loader.py STORE [--batch-size 256] [--frame-stack 4] [--n-step 1] [--repeats 5]

The rival holds every frame of the store in one array in RAM and gathers the same windows by fancy indexing; it
checks nothing and decodes nothing: the limit. Repeats alternate; medians are printed, one JSON line at the end.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import numpy as np

from diskreplay import PrioritizedSampler, ReplayLoader, ReplayStore, UniformSampler


def loader_rate(loader, sampler, batches, batch_size):
    """Return transitions/s over so many batches, priorities updated after each."""
    started = time.perf_counter()
    for i, batch in enumerate(loader, 1):
        if isinstance(sampler, PrioritizedSampler):
            sampler.update_priorities(batch.step_ids, batch.reward)
        if i == batches:
            break
    return batches * batch_size / (time.perf_counter() - started)


class Ram:
    """Every row in RAM, and the row numbers of windows of k + 1 frames."""

    def __init__(self, store, frame_stack):
        self.observation = np.concatenate(list(store.column("observation")))
        self.action = np.concatenate(list(store.column("action")))
        self.reward = np.concatenate(list(store.column("reward")))
        self.window = np.arange(-frame_stack + 1, 2)
        self.first = frame_stack

    def rate(self, batches, batch_size, rng):
        started = time.perf_counter()
        for _ in range(batches):
            rows = rng.integers(self.first, len(self.reward) - 1, size=batch_size)
            self.observation[rows[:, None] + self.window]
            self.action[rows], self.reward[rows]
        return batches * batch_size / (time.perf_counter() - started)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--frame-stack", type=int, default=4)
    parser.add_argument("--n-step", type=int, default=1)
    parser.add_argument("--batches", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=None)
    options = parser.parse_args()
    store = ReplayStore.open(options.store)
    window = {"n_step": options.n_step, "frame_stack": options.frame_stack}
    ram, rng = Ram(store, options.frame_stack), np.random.default_rng(0)
    samplers = {"prioritized": PrioritizedSampler(store, seed=0), "uniform": UniformSampler(store, seed=0)}
    loaders = {
        name: ReplayLoader(sampler, batch_size=options.batch_size, threads=options.threads, **window)
        for name, sampler in samplers.items()
    }
    rates = {name: [] for name in [*samplers, "numpy in RAM"]}
    for name, loader in loaders.items():
        loader_rate(loader, samplers[name], 20, options.batch_size)
    for _ in range(options.repeats):
        for name, loader in loaders.items():
            rates[name].append(loader_rate(loader, samplers[name], options.batches, options.batch_size))
        rates["numpy in RAM"].append(ram.rate(options.batches, options.batch_size, rng))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    for name, rate in medians.items():
        share = rate / medians["numpy in RAM"]
        print(f"{name:14} {rate:10,.0f} transitions/s   {share:5.2f} of numpy in RAM")
    print(json.dumps({"store": options.store, "steps": len(store), **window, "transitions_per_second": medians}))


if __name__ == "__main__":
    main()
