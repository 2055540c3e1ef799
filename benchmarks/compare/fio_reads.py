"""fio: what the disk itself gives, random reads past the page cache; one transition's bytes a read."""

from __future__ import annotations

import json
import subprocess


class RandomReads:
    """Random reads of a file, O_DIRECT, 32 under way at a time."""

    def __init__(self, file: str, *, bytes_per_read: int, seconds: float) -> None:
        self.command = [
            "fio", "--name=reads", f"--filename={file}", "--readonly", "--rw=randread", "--direct=1", "--iodepth=32",
            "--ioengine=libaio", f"--bs={bytes_per_read}", f"--runtime={seconds}", "--time_based", "--output-format=json",
        ]  # fmt: skip

    def prepare(self) -> dict[str, str]:
        """Run it once."""
        self.run()
        return {"command": " ".join(self.command[3:])}

    def run(self) -> dict[str, float]:
        """Return reads a second."""
        done = subprocess.run(self.command, check=True, capture_output=True, text=True)
        return {"transitions_per_second": json.loads(done.stdout)["jobs"][0]["read"]["iops"]}
