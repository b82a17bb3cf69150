"""Signals: the first asks, an echo is ignored, a later one ends the process."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from training import checkpoints


def test_only_a_later_signal_ends_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[int] = []
    now = [100.0]
    monkeypatch.setattr(os, "kill", lambda process, number: killed.append(number))
    monkeypatch.setattr(checkpoints.signal, "signal", lambda number, handler: None)
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: now[0])
    callback = checkpoints.Checkpoints(tmp_path, "val_top1")
    callback.receive(signal.SIGINT)
    now[0] += 0.2
    callback.receive(signal.SIGTERM)
    assert callback.received == signal.SIGINT
    assert killed == []
    now[0] += 1
    callback.receive(signal.SIGINT)
    assert killed == [signal.SIGINT]


def test_a_forked_worker_leaves_signals_to_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    callback = checkpoints.Checkpoints(tmp_path, "val_top1")
    monkeypatch.setattr(os, "getpid", lambda: -1)
    callback.receive(signal.SIGINT)
    assert callback.received is None
    assert capfd.readouterr().err == ""
