"""The kernels for 64-bit ARM, cross-compiled and run in an emulator against plain loops."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SOURCE = ROOT / "models" / "xnor" / "src"
PROGRAM = [
    SOURCE / "kernels_neon.cpp",
    SOURCE / "kernels_portable.cpp",
    SOURCE / "dispatch.cpp",
    Path(__file__).parent / "native" / "kernels_test.cpp",
]
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
OPTIONS = ["-std=gnu++17", "-O2", "-ffp-contract=off", "-fno-math-errno", "-fno-tree-slp-vectorize", f"-I{SOURCE}"]


@pytest.mark.skipif(
    not (shutil.which(COMPILER) and shutil.which(EMULATOR)),
    reason=f"needs {COMPILER} and {EMULATOR} (Debian: g++-aarch64-linux-gnu, qemu-user)",
)
def test_the_arm_kernels_equal_plain_loops(tmp_path: Path) -> None:
    compilers = [
        subprocess.Popen([COMPILER, *OPTIONS, "-c", str(path), "-o", str(tmp_path / f"{path.stem}.o")])
        for path in PROGRAM
    ]
    assert [compiler.wait() for compiler in compilers] == [0] * len(PROGRAM)
    objects = [str(tmp_path / f"{path.stem}.o") for path in PROGRAM]
    subprocess.run([COMPILER, "-static", *objects, "-o", str(tmp_path / "kernels_test")], check=True)
    done = subprocess.run([EMULATOR, str(tmp_path / "kernels_test")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["neon", "portable"]
