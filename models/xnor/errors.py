"""The engine's one exception."""

from __future__ import annotations


class EngineError(ValueError):
    """A network, machine or input that the engine cannot serve; the message says what was expected."""
