#!/usr/bin/env bash
# Build the image and try it as it is deployed: a read-only root, no capabilities, no new privileges, its own user.
#
#   deploy/test_image.sh
#
# It builds the service's image, checks its size, starts it, waits for /readyz, posts a photograph, looks at the
# metrics, sends SIGTERM in the middle of requests, and wants every accepted request answered and exit status 0.
#
# From the environment:
#   ENGINE         docker or podman; default: the one that is installed
#   IMAGE          an image that is there already, tried instead of building one
#   BUILD_FLAGS    more options for `$ENGINE build`: --build-arg BASE_IMAGE=..., --secret id=pip,src=..., --isolation chroot
#   RUN_FLAGS      more options for `$ENGINE run`: where no network can be set up, --network host; where podman has no
#                  systemd to time health checks with, --no-healthcheck (the check itself is run here)
#   MODELS         model repository to serve; default: the models that ship
#   PHOTOGRAPH     JPEG to post; default: one that is made inside the image
#   MAX_IMAGE_MB   the most that the image's files may take on disk, in 10^6 bytes; default 250
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

for name in ${ENGINE:-docker podman}; do
    command -v "$name" > /dev/null && { engine=$name; break; }
done
: "${engine:?needs docker or podman}"
image=${IMAGE:-localhost/signet-test}
max_image_mb=${MAX_IMAGE_MB:-250}
photograph=${PHOTOGRAPH:-}
scratch=$(mktemp -d)
container=signet-test-$$
read -ra build_flags <<< "${BUILD_FLAGS:-}"
read -ra run_flags <<< "${RUN_FLAGS:-}"
hardened=(--read-only --cap-drop ALL --security-opt no-new-privileges)

finish() {
    local status=$?
    if ((status != 0)) && "$engine" container inspect "$container" > /dev/null 2>&1; then
        echo "--- the service's log ---"
        "$engine" logs "$container" 2>&1 | tail -n 40
    fi
    "$engine" rm --force "$container" > /dev/null 2>&1 || true
    rm -rf "$scratch"
    ((status == 0)) && echo "PASSED" || echo "FAILED"
    exit "$status"
}
trap finish EXIT

step() { printf '\n== %s\n' "$*"; }
fail() { echo "FAIL: $*"; exit 1; }
inside() { "$engine" exec --interactive "$container" "$@"; }
python() { "$engine" run --rm --interactive "${hardened[@]}" "${run_flags[@]}" --entrypoint /opt/signet/bin/python "$image" "$@"; }

build() {
    local begun=$SECONDS revision formats=()
    revision=$(git rev-parse --short HEAD 2> /dev/null || echo unknown)
    [[ $engine == podman ]] && formats=(--format docker) # the other format has no HEALTHCHECK
    "$engine" build "${formats[@]}" "${build_flags[@]}" --build-arg REVISION="$revision" --tag "$image" . \
        > "$scratch/build.log" 2>&1 || { tail -n 60 "$scratch/build.log"; fail "the build"; }
    echo "built in $((SECONDS - begun)) s (layers that were there already cost nothing)"
}

if [[ -z ${IMAGE:-} ]]; then
    step "build"
    build
fi

step "image"
"$engine" image inspect --format \
    'user {{.Config.User}}, entry point {{.Config.Entrypoint}} {{.Config.Cmd}}, {{.Os}}/{{.Architecture}}' "$image"
[[ -n ${MODELS:-} ]] && echo "models: a repository mounted at /models" || echo "models: those that ship"
date --utc '+%Y-%m-%d %H:%M UTC'

step "contents"
python - << 'PYTHON'
import importlib.metadata
import importlib.util
import shutil

absent = [name for name in ("torch", "tensorly", "lightning", "pip", "setuptools") if importlib.util.find_spec(name)]
tools = [name for name in ("gcc", "c++", "ld", "make", "cmake", "curl", "wget") if shutil.which(name)]
assert not absent + tools, f"the image carries {absent + tools}"
print("Python packages:", len(list(importlib.metadata.distributions())), "- no torch, no pip, no compiler, no curl")
PYTHON
# Sum of the blocks of all files, as du counts them; the container's own mounts are other file systems.
on_disk=$("$engine" run --rm --user 0 "${run_flags[@]}" --entrypoint /usr/bin/du "$image" -x -s -B1 / 2> /dev/null | cut -f1)
echo "on disk: $((on_disk / 1000000)) MB (at most $max_image_mb MB)"
((on_disk <= max_image_mb * 1000000)) || fail "the image is too large"

step "start, as the image's own user"
port=$(python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
volume=()
[[ -n ${MODELS:-} ]] && volume=(--volume "$(realpath "$MODELS"):/models:ro")
begun_ns=$(date +%s%N)
"$engine" run --detach --name "$container" "${hardened[@]}" "${volume[@]}" --env SIGNET_PORT="$port" \
    --env SIGNET_LOG_LEVEL=debug --publish "127.0.0.1:$port:$port" "${run_flags[@]}" "$image" > /dev/null 2> "$scratch/run.log" \
    || { cat "$scratch/run.log"; fail "the start"; }
url=http://127.0.0.1:$port
until [[ $(curl --silent --output /dev/null --write-out '%{http_code}' "$url/readyz") == 200 ]]; do
    (($(date +%s%N) - begun_ns < 60 * 10 ** 9)) || fail "not ready after a minute"
    sleep 0.02
done
echo "ready after $((($(date +%s%N) - begun_ns) / 1000000)) ms, the container's own start included"
inside /opt/signet/bin/python -I -S /opt/signet/healthcheck.py || fail "the image's health check"
"$engine" image inspect "$image" | grep -q healthcheck.py || fail "the image has no HEALTHCHECK"

step "what the process may do"
inside /opt/signet/bin/python - << 'PYTHON'
import os
from pathlib import Path

status = dict(line.split(":\t", 1) for line in Path("/proc/1/status").read_text().splitlines() if ":\t" in line)
command = Path("/proc/1/cmdline").read_text().replace("\0", " ").strip()
print(f"process 1: {command}")
print(f"uid {status['Uid'].split()[0]}, capabilities {status['CapEff']}, no new privileges {status['NoNewPrivs']}")
assert status["Uid"].split() == ["10001"] * 4 and status["Gid"].split() == ["10001"] * 4
assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0 and status["NoNewPrivs"] == "1"
assert "signet serve" in command, "a shell stands between the signal and the service"
for folder in ("/", "/opt/signet", "/models", "/etc", "/root"):
    try:
        Path(folder, "written").touch()
    except OSError:
        continue
    raise SystemExit(f"{folder} can be written")
assert not Path(os.environ["HOME"]).exists()
print("nothing of the root file system can be written, and there is no home")
PYTHON

step "a photograph"
if [[ -z $photograph ]]; then
    photograph=$scratch/photograph.jpg
    python - > "$photograph" << 'PYTHON'
import io
import sys

import numpy as np
from PIL import Image

small = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
picture = io.BytesIO()
Image.fromarray(small).resize((1600, 1200), Image.Resampling.BICUBIC).save(picture, "JPEG", quality=90)
sys.stdout.buffer.write(picture.getvalue())
PYTHON
fi
echo "$(stat --format %s "$photograph") bytes"
answer=$(curl --silent --show-error --fail --form "image=@$photograph" "$url/v1/classify?top_k=3")
echo "$answer"
grep -q '"predictions":\[{"label":' <<< "$answer" || fail "no predictions"
answered=1
if [[ -z ${MODELS:-} ]]; then
    answer=$(curl --silent --show-error --fail --form "image=@$photograph" "$url/v1/pose")
    points=$(grep -o '"name":' <<< "$answer" | wc -l)
    echo "a person's keypoints: $points"
    ((points == 14)) || fail "the pose model gave $answer"
    answered=2
fi
refused=$(curl --silent --output /dev/null --write-out '%{http_code}' --data-binary "not a picture" "$url/v1/classify")
[[ $refused == 415 ]] || fail "bytes that are no picture were answered with $refused"
echo "bytes that are no picture: $refused"

step "metrics"
curl --silent --fail "$url/metrics" > "$scratch/metrics"
for sample in 'signet_requests_total{model="[^"]+",route="/v1/classify",status="200"} 1\.0' \
    'signet_images_total{model="[^"]+"} 1\.0' 'signet_rejected_total{reason="not-an-image"} 1\.0' \
    'signet_model_loaded{[^}]*} 1\.0' 'signet_build_info{isa="[^"]+",[^}]*} 1\.0' 'process_resident_memory_bytes '; do
    grep -E "^$sample" "$scratch/metrics" || fail "no sample $sample"
done
awk '/^process_resident_memory_bytes/ { printf "resident: %.1f MB\n", $2 / 1e6 }' "$scratch/metrics"

step "SIGTERM under load"
for client in 1 2 3 4; do
    while :; do
        curl --silent --output /dev/null --write-out '%{http_code} %{errormsg}\n' --form "image=@$photograph" \
            "$url/v1/classify" >> "$scratch/client$client" || break
    done &
done
bytes=$(stat --format %s "$photograph")
curl --silent --output /dev/null --write-out '%{http_code} %{time_total}\n' --limit-rate $((bytes / 4)) \
    --form "image=@$photograph" "$url/v1/classify" > "$scratch/upload" &
sleep 2
begun_ns=$(date +%s%N)
"$engine" kill --signal TERM "$container" > /dev/null
status=$("$engine" wait "$container")
echo "exit status $status after $((($(date +%s%N) - begun_ns) / 1000000)) ms"
wait
[[ $status == 0 ]] || fail "exit status $status"
echo "an upload that was half way at the signal (status, seconds): $(cat "$scratch/upload")"
grep -q '^200' "$scratch/upload" || fail "the upload was cut off"
echo "the other requests:"
sort "$scratch"/client* | uniq --count
# Clients that go on asking find the door closed in the end. Whatever the service had accepted it answered, and what it
# logged as answered has arrived.
"$engine" logs "$container" > "$scratch/log" 2>&1
grep -q '"draining"' "$scratch/log" || fail "the log does not tell of the drain"
for code in 200 503; do
    logged=$(grep -c "\"method\": \"POST\".*\"status\": $code" "$scratch/log" || true)
    arrived=$(cat "$scratch"/client* "$scratch/upload" | grep -c "^$code" || true)
    ((code == 200)) && arrived=$((arrived + answered)) # the photograph above
    [[ $logged == "$arrived" ]] || fail "$logged answers of $code in the log, $arrived at the clients"
done
echo "each answer in the log arrived"

step "done"
