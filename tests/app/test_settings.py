"""Settings come from the environment, and wrong ones are refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from app.keys import read_keys
from app.settings import Settings, shipped_zoo


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("SIGNET_")]:
        monkeypatch.delenv(name)


def test_the_defaults_serve_the_shipped_zoo_to_this_machine_alone() -> None:
    settings = Settings()
    assert (settings.host, settings.port) == ("127.0.0.1", 8000)
    assert settings.models == (shipped_zoo(),)
    assert shipped_zoo().parts[-2:] == ("models", "zoo")


def test_repositories_are_separated_like_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGNET_MODELS", os.pathsep.join(["/a", "b/c", ""]))
    assert Settings().models == (Path("/a"), Path("b/c"))


def test_an_empty_variable_is_no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGNET_PORT", "")
    monkeypatch.setenv("SIGNET_MODELS", "")
    assert Settings().port == 8000
    assert Settings().models == (shipped_zoo(),)


def test_arguments_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGNET_PORT", "9000")
    assert Settings().port == 9000
    assert Settings(port=9001).port == 9001


@pytest.mark.parametrize(
    ("name", "value"),
    [("PORT", "70000"), ("MAX_QUEUE_IMAGES", "0"), ("LOG_LEVEL", "loud"), ("BODY_TIMEOUT_S", "-1"), ("THREADS", "x")],
)
def test_wrong_values_are_refused_by_name(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"SIGNET_{name}", value)
    with pytest.raises(ValidationError, match=name.lower()):
        Settings()


def test_every_setting_says_what_it_is_for() -> None:
    assert all(field.description for field in Settings.model_fields.values())


def test_keys_are_separated_by_commas_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGNET_API_KEYS", "first, second,")
    settings = Settings()
    assert read_keys(settings.api_keys, None) == ["first", "second"]
    assert "first" not in repr(settings)
    assert Settings(admin_keys=("one",)).admin_keys[0].get_secret_value() == "one"  # type: ignore[arg-type]
