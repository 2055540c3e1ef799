"""Show the main job on CartPole: record random steps, learn from them offline, look at the store.

Usage: python tools/demo.py [--folder DIR] [--steps N] [--updates N] [--seed N]
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def run(*arguments: str, quiet: bool = False) -> str:
    """Run `diskreplay` with these arguments, as a user would; return what it wrote to stdout."""
    if not quiet:
        print(f"\n$ diskreplay {shlex.join(arguments)}", flush=True)
    done = subprocess.run(
        [sys.executable, "-m", "diskreplay", *arguments],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if not quiet or done.returncode:
        print(done.stdout, end="", flush=True)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where the files go (default: a new one)")
    parser.add_argument("--steps", type=int, default=50_000, help="random steps to record")
    parser.add_argument("--updates", type=int, help="gradient steps (default: the command's)")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    """Ingest, train, stats; then say what came of it."""
    options = parse()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="diskreplay-demo-"))
    folder.mkdir(parents=True, exist_ok=True)
    store, out, picture = folder / "cartpole.replay", folder / "run", folder / "cartpole.png"
    seed = ["--seed", str(options.seed)]
    updates = [] if options.updates is None else ["--updates", str(options.updates)]
    started = time.monotonic()

    run("ingest", str(store), "gym:CartPole-v1", "--steps", str(options.steps), *seed)
    run("train", str(store), "--out", str(out), *updates, *seed)
    run("stats", str(store), "--plot", str(picture))

    random = json.loads(run("stats", str(store), "--json", quiet=True))["episode_return"]
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    learned = [line for line in lines if line["kind"] == "evaluation"][-1]
    mean, episodes = learned["eval_return_mean"], len(learned["eval_returns"])
    print(
        f"\nActing at random, as the store was filled, balances the pole for {random['mean']:.1f}"
        f"\nsteps (mean of {random['count']:,} episodes). The network trained on those alone"
        f"\nbalances it for {mean:.1f} (greedy, mean of {episodes} episodes; 500 is the most).\n",
    )
    print(f"  store           {store}")
    print(f"  its contents    {picture}")
    print(f"  learning curve  {out / 'curve.png'}")
    print(f"  checkpoint      {out / 'checkpoint.pt'}")
    print(f"  TensorBoard     tensorboard --logdir {out}")
    print(f"\n{time.monotonic() - started:.0f} seconds in all.")


if __name__ == "__main__":
    main()
