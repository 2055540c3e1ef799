"""fio: what the disk itself gives, random reads past the page cache; one transition's bytes a read."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path


class RandomReads:
    """Random reads of a file, O_DIRECT, 32 under way at a time."""

    def __init__(self, file: str, *, bytes_per_read: int, seconds: float) -> None:
        kind = ["--readonly", "--rw=randread", "--direct=1", "--iodepth=32", "--ioengine=libaio", "--time_based"]
        much = [f"--filename={file}", f"--bs={bytes_per_read}", f"--runtime={seconds}"]
        self.name = Path(file).name
        self.command = ["fio", "--name=reads", *much, *kind, "--output-format=json"]

    def prepare(self) -> dict[str, str]:
        """Run it once."""
        self.run()
        return {"command": " ".join(f"--filename={self.name}" if "filename" in part else part for part in self.command)}

    def run(self) -> dict[str, float]:
        """Return reads a second."""
        done = subprocess.run(self.command, check=True, capture_output=True, text=True)
        return {"transitions_per_second": json.loads(done.stdout)["jobs"][0]["read"]["iops"]}
