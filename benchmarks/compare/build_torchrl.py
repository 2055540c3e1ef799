"""Compile TorchRL's C++ extension from the sources in its own wheel, where the wheel's binary does not load.

    python -m benchmarks.compare.build_torchrl

TorchRL's wheels are built against one release of torch each: 0.13 against 2.12, 0.14 against 2.14, none against the
2.13 whose CPU build this project pins. Without the extension TorchRL has no prioritized sampler. The wheel
carries the sources (`torchrl/csrc`), so they are compiled as its own setup.py does: -O3, C++17, whatever torch wants.
Needs a C++ compiler; does nothing if the extension loads already. Run with the interpreter that has torchrl.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path


def loads() -> bool:
    """Return whether a new process can import the extension."""
    code = "import torch; from torchrl._torchrl import SumSegmentTreeFp32"
    return (
        subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=False, capture_output=True).returncode == 0
    )


def build(folder: Path) -> None:
    """Compile, and put the result in the place of the wheel's binary."""
    from torch.utils.cpp_extension import load  # noqa: PLC0415  seconds, and only here

    sources = [str(folder / "csrc" / name) for name in ("pybind.cpp", "utils.cpp")]
    with tempfile.TemporaryDirectory() as scratch:
        load("_torchrl", sources, extra_cflags=["-O3"], build_directory=scratch, is_python_module=False)
        for old in folder.glob("_torchrl*.so"):
            old.unlink()
        shutil.copyfile(Path(scratch) / "_torchrl.so", folder / "_torchrl.so")


def main() -> int:
    """Build if need be; return 0 if the extension loads in the end."""
    folder = Path(importlib.util.find_spec("torchrl").submodule_search_locations[0])
    if not loads():
        build(folder)
    return 0 if loads() else 1


if __name__ == "__main__":
    sys.exit(main())
