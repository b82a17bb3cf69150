"""What this program is."""

from importlib.metadata import PackageNotFoundError, version


def program_version() -> str:
    """The installed version, or `unknown` in a bare source tree."""
    try:
        return version("signet")
    except PackageNotFoundError:
        return "unknown"
