"""Sessions: whole networks, threads, callers, and wrong arguments."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from models.packing.file import PackedFileError
from models.xnor import EngineError, Session, available_isas, default_isa
from models.xnor.cpu import cgroup_cpus, default_threads
from models.xnor.plan import make_plan
from tests.models.xnor import oracle
from tests.models.xnor.builder import Builder, add_resnet18, random_images


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A narrow ResNet-18 for 64 x 32 pixels."""
    b = Builder()
    logits = add_resnet18(b, np.random.default_rng(5), classes=10, small_stem=False, width=16)
    path = tmp_path_factory.mktemp("resnet") / "model.safetensors"
    b.write(path, logits, 10, (64, 32), labels=True)
    return path


def test_a_resnet_equals_torch(resnet: Path, isa: str) -> None:
    session = Session.load(resnet, isa=isa, threads=1)
    images = random_images(session.file, 8)
    logits = session.run(images)["logits"]
    expected = oracle.run(session.file, images)[session.file.header.graph.outputs["logits"]].flatten(1)
    assert logits.shape == (8, 10)
    assert logits.dtype == np.float32
    torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=1e-4, atol=1e-4)


def test_each_op_of_a_resnet_fused_or_not(resnet: Path, isa: str) -> None:
    file = Session.load(resnet).file
    images = random_images(file, 1, seed=6)
    results = []
    for fuse in (True, False):
        kept = Session.load(resnet, isa=isa, threads=1, fuse=fuse, keep=file.values).run(images)
        oracle.check_each_op(file, images, kept)
        results += [kept["logits"], Session.load(resnet, isa=isa, threads=1, fuse=fuse).run(images)["logits"]]
    for other in results[1:]:
        assert np.array_equal(results[0], other)


def test_the_plan_fuses_and_reuses_memory(resnet: Path) -> None:
    fused, apart = Session.load(resnet, threads=1), Session.load(resnet, threads=1, fuse=False)
    images = random_images(fused.file, 1)
    steps = [name for name, _ in fused.profile(images, 1)]
    assert not [name for name in steps if name.split(":")[0] in ("prelu", "add", "threshold", "affine")]
    assert fused.arena_bytes < apart.arena_bytes
    total = sum(v.elements * (4 if v.kind == "float" else 1 / 8) for v in fused.file.values.values())
    assert fused.arena_bytes < total / 2


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_threads_change_nothing(resnet: Path, isa: str, threads: int) -> None:
    session = Session.load(resnet, isa=isa, threads=threads)
    images = random_images(session.file, 11)
    expected = Session.load(resnet, isa=isa, threads=1).run(images)["logits"]
    for count in (0, 1, 2, 5, 11):
        assert np.array_equal(session.run(images[:count])["logits"], expected[:count])


def test_a_call_that_knows_of_others_takes_its_share_of_the_threads(resnet: Path) -> None:
    session = Session.load(resnet, threads=4)
    images = random_images(session.file, 4)
    before = session.resident_bytes
    found = {}
    for callers, arenas in ((9, 1), (4, 1), (2, 2), (1, 4)):  # one arena for each thread that took part
        found[callers] = session.run(images, callers)["logits"]
        assert session.resident_bytes - before == pytest.approx(arenas * session.arena_bytes, rel=0.01)
    assert all(np.array_equal(logits, found[1]) for logits in found.values())


@pytest.mark.parametrize("threads", [1, 4])
def test_many_callers_at_once(resnet: Path, threads: int) -> None:
    session = Session.load(resnet, threads=threads)
    images = random_images(session.file, 16)
    expected = session.run(images)["logits"]

    def call(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(15):
            begin = int(rng.integers(0, 15))
            end = int(rng.integers(begin + 1, min(17, begin + 5)))
            assert np.array_equal(session.run(images[begin:end])["logits"], expected[begin:end])

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(call, range(12)))
    assert session.resident_bytes <= session.arena_bytes * (threads + 1) + 10 * session.file.file_bytes


def test_images_that_are_not_contiguous(resnet: Path) -> None:
    session = Session.load(resnet)
    images = random_images(session.file, 4)
    expected = session.run(images)["logits"]
    assert np.array_equal(session.run(images[::2])["logits"], expected[::2])
    flipped = images[:, :, ::-1]
    assert np.array_equal(session.run(flipped)["logits"], session.run(np.ascontiguousarray(flipped))["logits"])
    locked = images.copy()
    locked.flags.writeable = False
    assert np.array_equal(session.run(locked)["logits"], expected)


@pytest.mark.parametrize(
    ("images", "found"),
    [
        (np.zeros((1, 64, 32, 3), np.float32), "float32"),
        (np.zeros((1, 64, 32, 3), np.int8), "int8"),
        ([[0]], "list"),
        (np.zeros((64, 32, 3), np.uint8), "[64, 32, 3]"),
        (np.zeros((1, 32, 64, 3), np.uint8), "[1, 32, 64, 3]"),
        (np.zeros((1, 3, 64, 32), np.uint8), "[1, 3, 64, 32]"),
        (np.zeros((1, 64, 32, 4), np.uint8), "[1, 64, 32, 4]"),
    ],
)
def test_wrong_images_are_named(resnet: Path, images: np.ndarray, found: str) -> None:
    with pytest.raises(EngineError, match="expected") as caught:
        Session.load(resnet).run(images)
    assert str(caught.value).endswith(f"found {found}")


def test_wrong_arguments_are_named(resnet: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"isa: 'sse9' is not .* portable"):
        Session.load(resnet, isa="sse9")
    with pytest.raises(EngineError, match="threads: is 0"):
        Session.load(resnet, threads=0)
    with pytest.raises(EngineError, match="keep: the graph has no value 'nothing'"):
        Session.load(resnet, keep=["nothing"])
    with pytest.raises(PackedFileError, match="cannot be read"):
        Session.load(tmp_path / "absent")
    monkeypatch.setenv("SIGNET_ISA", "portable")
    assert default_isa() == "portable"
    assert Session.load(resnet).isa == "portable"
    monkeypatch.setenv("SIGNET_ISA", "z80")
    with pytest.raises(EngineError, match="SIGNET_ISA: 'z80'"):
        Session.load(resnet)
    monkeypatch.delenv("SIGNET_ISA")
    assert default_isa() == available_isas()[0]


def test_weights_with_stray_bits_are_refused(tmp_path: Path) -> None:
    b = Builder()
    bits = b.threshold("image", np.zeros(3, np.float32))
    b.binary_conv2d(bits, np.ones((1, 3, 1, 1)))
    b.tensors["v1.weight"] = b.tensors["v1.weight"] | np.uint64(8)
    b.write(tmp_path / "m", "v1", 1, (4, 4))
    with pytest.raises(PackedFileError, match=r"tensors\.v1\.weight: has bits beyond its 3 channels"):
        Session.load(tmp_path / "m")


def test_activations_beyond_the_limit_are_refused(tmp_path: Path) -> None:
    b = Builder()
    x = b.op("concat", inputs=("image",) * 64)
    x = b.op("upsample", input=x, factor=4)
    y = [b.op("max_pool2d", input=x, kernel=(1, 1), stride=(1, 1)) for _ in range(12)]
    y = [b.op("global_avg_pool", input=value) for value in y]
    b.write(tmp_path / "m", b.op("concat", inputs=tuple(y)), 192 * 12, (256, 256), labels=True)
    with pytest.raises(EngineError, match=r"its activations need \d+ bytes, the limit is"):
        Session.load(tmp_path / "m")


def tables_without_end(b: Builder) -> str:
    """Windows of many sizes over a large picture: each needs a table of its own."""
    pools = [b.op("max_pool2d", input="image", kernel=(1 + i, 1), stride=(1, 1)) for i in range(31)]
    return b.op("concat", inputs=tuple(b.op("global_avg_pool", input=pool) for pool in pools))


def weights_without_end(b: Builder) -> str:
    """Every convolution repacks the one weight, whose groups of one channel fill vectors."""
    x = b.op("global_avg_pool", input=b.conv2d("image", np.ones((4096, 3, 1, 1), np.float32)))
    weight = b.ops[0]["weight"] + "s"
    b.tensors[weight] = np.ones((4096, 31, 31, 1), np.float32)
    for _ in range(20):
        x = b.op("conv2d", input=x, weight=weight, out_channels=4096, kernel=(31, 31), padding=(15, 15), groups=4096)
    return x


def sums_without_end(b: Builder) -> str:
    """Convolutions of a large picture that all have the same few weights."""
    bits = b.threshold("image", np.zeros(3, np.float32))
    x = b.binary_conv2d(bits, np.ones((60, 3, 31, 31)), padding=(15, 15))
    again = {field: value for field, value in b.ops[-1].items() if field != "output"}
    for _ in range(20):
        x = b.op("add", inputs=(x, b.op(**again)))
    return b.op("global_avg_pool", input=x)


@pytest.mark.parametrize(
    ("graph", "channels", "side", "message"),
    [
        (tables_without_end, 93, 8192, r"its weights and tables need \d+ bytes, the limit is"),
        (weights_without_end, 4096, 8, r"its weights and tables need \d+ bytes, the limit is"),
        (sums_without_end, 60, 2048, r"an image takes \d+ operations, the limit is"),
    ],
)
def test_what_a_few_bytes_ask_for_is_limited(
    tmp_path: Path, graph: Callable[[Builder], str], channels: int, side: int, message: str
) -> None:
    b = Builder()
    file = b.write(tmp_path / "m", graph(b), channels, (side, side), labels=True)
    with pytest.raises(EngineError, match=message):
        make_plan(file)


def test_a_forked_child_runs_and_drops_a_session(resnet: Path) -> None:
    """Its parent's helpers are not there: it computes alone, and waits for nobody when the session goes."""
    code = """
import os, signal, sys, time
import numpy as np
from models.xnor import Session

session = Session.load(sys.argv[1], threads=3)
images = np.zeros((1, 64, 32, 3), np.uint8)
expected = session.run(images)["logits"]
time.sleep(0.2)  # until the helpers sleep
child = os.fork()
if child == 0:
    signal.alarm(20)
    equal = all(np.array_equal(session.run(images)["logits"], expected) for _ in range(5))
    del session
    sys.exit(0 if equal else 3)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    subprocess.run([sys.executable, "-c", code, str(resnet)], check=True)


def test_quotas_of_both_cgroup_versions(tmp_path: Path) -> None:
    v2 = tmp_path / "v2"
    (v2 / "a/b").mkdir(parents=True)
    of_self = tmp_path / "cgroup"
    of_self.write_text("0::/a/b\n")
    assert cgroup_cpus(v2, of_self) is None
    (v2 / "a/b/cpu.max").write_text("max 100000\n")
    assert cgroup_cpus(v2, of_self) is None
    (v2 / "a/cpu.max").write_text("150000 100000\n")
    assert cgroup_cpus(v2, of_self) == 1.5
    (v2 / "a/b/cpu.max").write_text("50000 100000\n")
    assert cgroup_cpus(v2, of_self) == 0.5

    v1 = tmp_path / "v1"
    (v1 / "cpu,cpuacct/docker/x").mkdir(parents=True)
    of_self.write_text("4:memory:/m\n3:cpu,cpuacct:/docker/x\n")
    (v1 / "cpu,cpuacct/docker/x/cpu.cfs_quota_us").write_text("-1\n")
    (v1 / "cpu,cpuacct/docker/x/cpu.cfs_period_us").write_text("100000\n")
    assert cgroup_cpus(v1, of_self) is None
    (v1 / "cpu,cpuacct/docker/x/cpu.cfs_quota_us").write_text("300000\n")
    assert cgroup_cpus(v1, of_self) == 3
    assert cgroup_cpus(tmp_path / "none", tmp_path / "absent") is None
    assert default_threads() >= 1


def test_the_engine_imports_no_torch() -> None:
    code = "import sys, models.xnor; assert not {'torch', 'tensorly'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
