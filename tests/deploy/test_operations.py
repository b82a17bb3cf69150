"""What is written for those who operate the service is true: tables of settings, changelog, make targets, workflows."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.cluster_settings import ClusterSettings
from app.settings import Settings

WORKFLOWS = "lint.yml", "test.yml", "wheels.yml"
LOGS = {"image-test": "image-test.log", "ray-test": "ray-test.log", "soak": "soak.log"}


@pytest.fixture(scope="module")
def operations(root: Path) -> str:
    return (root / "docs/operations.md").read_text()


def test_the_tables_of_settings_are_those_of_the_classes(root: Path, operations: str) -> None:
    rewritten = runpy.run_path(str(root / "docs/settings_table.py"))["rewritten"]
    assert rewritten(operations) == operations, "run `make docs`"


def test_every_setting_has_its_row_with_its_default(operations: str) -> None:
    for settings in (Settings, ClusterSettings):
        for name, field in settings.model_fields.items():
            (row,) = re.findall(rf"^\| `{settings.model_config['env_prefix']}{name.upper()}` \|.*$", operations, re.M)
            if isinstance(field.default, bool | str | int | float):
                assert f"`{field.default}`".removesuffix(".0`").strip("`").lower() in row


def test_every_variable_that_is_mentioned_exists(root: Path) -> None:
    known = {f"SIGNET_{name.upper()}" for name in Settings.model_fields}
    known |= {f"SIGNET_RAY_{name.upper()}" for name in ClusterSettings.model_fields}
    known |= {
        "SIGNET_ISA",
        "SIGNET_DATA",
        "SIGNET_VERSION",
        "SIGNET_CPUS",
        "SIGNET_MEMORY",
    }  # engine, training, Compose
    for page in ("docs/operations.md", "docs/capacity.md", "deploy/README.md", "README.md"):
        for name in re.findall(r"\bSIGNET_[A-Z_]+[A-Z]\b", (root / page).read_text()):
            assert name in known, f"{page}: {name}"


def test_pages_lead_to_files_that_exist(root: Path) -> None:
    for page in (root / "docs").glob("*.md"):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_changelog_tells_of_the_version_that_this_is(root: Path) -> None:
    version = tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"]
    headings = re.findall(r"^## (.+)$", (root / "CHANGELOG.md").read_text(), re.M)
    assert headings[0] == "Unreleased"
    assert re.fullmatch(rf"{re.escape(version)} - \d{{4}}-\d\d-\d\d", headings[1])


@pytest.mark.parametrize("target", LOGS)
def test_each_slow_check_passed_when_it_was_last_run(root: Path, target: str) -> None:
    assert re.search(rf"^{target}:", (root / "Makefile").read_text(), re.M)
    *_, last = (root / "docs" / LOGS[target]).read_text().strip().splitlines()
    assert last.startswith("PASSED")


def test_make_leaves_the_variables_of_the_image_test_alone(root: Path) -> None:
    """A variable of the Makefile would reach the script in place of the one that was given."""
    names = re.findall(r"^#   ([A-Z_]+) ", (root / "deploy/test_image.sh").read_text(), re.M)
    assert "ENGINE" in names
    assert not re.findall(rf"^({'|'.join(names)}) *[:?]?=", (root / "Makefile").read_text(), re.M)


@pytest.mark.skipif(find_spec("check_jsonschema") is None, reason="check-jsonschema is not installed")
def test_workflows_are_what_github_takes(root: Path) -> None:
    folder = root / ".github/workflows"
    assert {path.name for path in folder.iterdir()} == set(WORKFLOWS)
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows"]
    done = subprocess.run([*command, *folder.iterdir()], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", WORKFLOWS)
def test_workflows_run_targets_that_exist(root: Path, name: str) -> None:
    content: dict[str, Any] = yaml.safe_load((root / ".github/workflows" / name).read_text())
    assert content["permissions"] == {"contents": "read"}
    steps = [step for job in content["jobs"].values() for step in job["steps"]]
    makefile = (root / "Makefile").read_text()
    for target in re.findall(r"\bmake ([\w-]+)", " ".join(step.get("run", "") for step in steps)):
        assert re.search(rf"^{target}:", makefile, re.M), target
    assert all(job["timeout-minutes"] for job in content["jobs"].values())


def test_wheels_are_for_the_pythons_that_the_project_takes(root: Path) -> None:
    content = tomllib.loads((root / "pyproject.toml").read_text())
    first = content["project"]["requires-python"].removeprefix(">=3.")
    built = [re.fullmatch(r"cp3(\d+)-manylinux_\*", name) for name in content["tool"]["cibuildwheel"]["build"]]
    minors = [int(found[1]) for found in built if found]
    assert minors == list(range(int(first), int(first) + len(built)))


def test_what_is_left_out_of_wheels_is_named_from_the_root(root: Path) -> None:
    """A pattern that is only a name would also leave out folders of that name inside the packages."""
    build = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["scikit-build"]
    for pattern in [*build["wheel"]["exclude"], *build["sdist"]["exclude"]]:
        assert "/" in pattern
        assert (root / pattern.removesuffix("/**").removeprefix("/")).exists()
