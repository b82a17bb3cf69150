#!/usr/bin/env bash
# Write the lock files of the image anew from pyproject.toml: exact versions with hashes, for every platform at once.
#
#   deploy/lock.sh            keep the pins that still fit, add what is missing
#   deploy/lock.sh --upgrade  take the newest versions that fit
#
# It needs uv (pip install uv). The index is the one that uv is configured for; its address is not written down.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

compile() { # compile NAME SOURCE [OPTION...]
    local name=$1 source=$2
    shift 2
    uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
        --output-file "deploy/locks/$name.lock" "$@" "$source"
    echo "deploy/locks/$name.lock: $(grep -c '==' "deploy/locks/$name.lock") packages"
}

compile serve pyproject.toml "$@"
compile train pyproject.toml --extra train --constraint deploy/locks/serve.lock "$@"
python3 - <<'PYTHON' | compile build - "$@"
import tomllib
from pathlib import Path

print(*tomllib.loads(Path("pyproject.toml").read_text())["build-system"]["requires"], sep="\n")
PYTHON
