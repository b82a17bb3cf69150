"""The service runs without anything that trains."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TRAINING = ("torch", "tensorly", "lightning", "pytorch_lightning", "torchmetrics", "scipy", "safetensors", "yaml")

PROGRAM = """
import sys
import app.cli, app.main, app.server
from app.settings import Settings
app = app.main.create_app(Settings(models=(sys.argv[1],)))
loaded = {name.partition('.')[0] for name in sys.modules}
print(*sorted(loaded & set(sys.argv[2].split(','))))
"""


def test_the_service_imports_no_training_library(zoo: Path) -> None:
    command = [sys.executable, "-c", PROGRAM]
    ended = subprocess.run(
        [*command, str(zoo), ",".join(TRAINING)], capture_output=True, text=True, check=True, timeout=60
    )
    assert ended.stdout.split() == []


def test_import_times_name_no_training_library() -> None:
    ended = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "import app.main, app.cli, models.xnor"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in ended.stderr.splitlines()}
    assert "fastapi" in imported
    assert not imported & set(TRAINING)


def test_a_running_service_has_mapped_no_torch(zoo: Path) -> None:
    from tests.helpers import pictures
    from tests.helpers.server import Server

    running = Server(zoo)
    try:
        assert running.classify(pictures.png()).status_code == 200
        maps = Path(f"/proc/{running.process.pid}/maps")
        if maps.exists():
            assert "torch" not in maps.read_text()
    finally:
        running.close()
