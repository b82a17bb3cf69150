"""CIFAR-10 in both layouts, against Pillow and plain pickle; damaged files are named; pickles run no code."""

from __future__ import annotations

import io
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from training.data import catalog, cifar10
from training.errors import TrainingError
from training.recipe import Cifar10Data

NAMES = np.array([f"class{i}" for i in range(10)])
COUNT, N_TRAIN = 12, 9


def jpegs() -> list[bytes]:
    """JPEGs that share a header, as one encoder with one setting writes them."""
    random = np.random.default_rng(5)
    files = []
    for _ in range(COUNT):
        small = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(small).resize((32, 32), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=75)
        files.append(buffer.getvalue())
    return files


def npz_arrays() -> dict[str, Any]:
    files = jpegs()
    # The header ends where the scan begins: after the SOS marker's segment, the same in all files.
    start = files[0].index(b"\xff\xda")
    header = start + 2 + int.from_bytes(files[0][start + 2 : start + 4], "big")
    assert all(file.startswith(files[0][:header]) for file in files)
    scans = [file[header:-2] for file in files]
    return {
        "header": np.frombuffer(files[0][:header], np.uint8),
        "scans": np.frombuffer(b"".join(scans), np.uint8),
        "lengths": np.array([len(scan) for scan in scans], np.uint16),
        "labels": (np.arange(COUNT) % 10).astype(np.uint8),
        "class_names": NAMES,
        "n_train": np.array(N_TRAIN),
    }


def test_jpegs_decode_as_pillow_decodes_the_files(tmp_path: Path) -> None:
    np.savez(tmp_path / "cifar10_jpeg.npz", **npz_arrays())
    dataset = cifar10.read(tmp_path)
    expected = np.stack([np.asarray(Image.open(io.BytesIO(file))) for file in jpegs()])
    got = torch.cat([dataset.train.images, dataset.validation.images]).numpy()
    assert np.array_equal(got, expected)
    assert (len(dataset.train), len(dataset.validation)) == (N_TRAIN, COUNT - N_TRAIN)
    assert torch.cat([dataset.train.labels, dataset.validation.labels]).tolist() == [i % 10 for i in range(COUNT)]
    assert dataset.class_names == tuple(NAMES)


def test_python_batches_are_read_as_pickle_reads_them(cifar_batches: Path) -> None:
    dataset = cifar10.read(cifar_batches)
    folder = cifar_batches / cifar10.BATCHES_NAME
    images, labels = [], []
    for name in (*cifar10.TRAIN_BATCHES, cifar10.TEST_BATCH):
        content = pickle.loads((folder / name).read_bytes())
        for row, label in zip(content[b"data"], content[b"labels"], strict=True):
            red, green, blue = row[:1024], row[1024:2048], row[2048:]
            images.append(np.stack([red, green, blue], axis=-1).reshape(32, 32, 3))
            labels.append(label)
    assert np.array_equal(torch.cat([dataset.train.images, dataset.validation.images]).numpy(), np.stack(images))
    assert torch.cat([dataset.train.labels, dataset.validation.labels]).tolist() == labels
    assert dataset.class_names == cifar10.CLASS_NAMES
    assert len(dataset.train) == 80
    assert cifar10.read(folder).train.labels.tolist() == dataset.train.labels.tolist()


def test_batches_written_by_python_2_are_read(cifar_batches: Path, tmp_path: Path) -> None:
    """The originals are protocol 2 with the old module path and `str` data; numpy's own names have moved since."""
    folder = tmp_path / cifar10.BATCHES_NAME
    shutil.copytree(cifar_batches / cifar10.BATCHES_NAME, folder)
    path = folder / cifar10.TEST_BATCH
    data = path.read_bytes()
    old = data.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
    assert old != data
    path.write_bytes(old)
    assert torch.equal(cifar10.read(tmp_path).validation.images, cifar10.read(cifar_batches).validation.images)


def test_class_names_come_from_the_meta_file(cifar_batches: Path, tmp_path: Path) -> None:
    folder = tmp_path / cifar10.BATCHES_NAME
    shutil.copytree(cifar_batches / cifar10.BATCHES_NAME, folder)
    (folder / cifar10.META).write_bytes(pickle.dumps({b"label_names": [f"n{i}".encode() for i in range(10)]}, 2))
    assert cifar10.read(tmp_path).class_names == tuple(f"n{i}" for i in range(10))


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("exit 1",)


BAD_BATCHES = {
    "code": (pickle.dumps({b"data": Evil(), b"labels": []}, 2), "which image batches do not need"),
    "no pickle": (b"hello", "cannot be read as a CIFAR-10 batch"),
    "empty": (b"", "cannot be read as a CIFAR-10 batch"),
    "a list": (pickle.dumps([1], 2), "holds a list, expected a dict"),
    "shape": (pickle.dumps({b"data": np.zeros((2, 5), np.uint8), b"labels": [1, 2]}, 2), r"data: expected a uint8"),
    "labels": (
        pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1]}, 2),
        "labels: expected a list of 2",
    ),
    "label": (pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"labels": [10]}, 2), "numbers from 0 to 9"),
}


@pytest.mark.parametrize(("content", "message"), BAD_BATCHES.values(), ids=BAD_BATCHES.keys())
def test_a_damaged_batch_is_named(content: bytes, message: str, cifar_batches: Path, tmp_path: Path) -> None:
    folder = tmp_path / cifar10.BATCHES_NAME
    shutil.copytree(cifar_batches / cifar10.BATCHES_NAME, folder)
    (folder / "data_batch_3").write_bytes(content)
    with pytest.raises(TrainingError, match=f"data_batch_3: .*{message}"):
        cifar10.read(tmp_path)


def test_a_missing_batch_is_named(cifar_batches: Path, tmp_path: Path) -> None:
    folder = tmp_path / cifar10.BATCHES_NAME
    shutil.copytree(cifar_batches / cifar10.BATCHES_NAME, folder)
    (folder / "data_batch_5").unlink()
    with pytest.raises(TrainingError, match=r"data_batch_5: is missing"):
        cifar10.read(tmp_path)


def test_a_damaged_image_is_named_by_its_index(tmp_path: Path) -> None:
    arrays = npz_arrays()
    scans = arrays["scans"].copy()
    begin = int(arrays["lengths"][:7].sum())
    scans[begin : begin + 2] = 0xFF, 0xD8  # a second start of image
    np.savez(tmp_path / "cifar10_jpeg.npz", **{**arrays, "scans": scans})
    with pytest.raises(TrainingError, match=r"cifar10_jpeg\.npz: image 7 is damaged"):
        cifar10.read(tmp_path)


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    """JPEG decoders are forgiving; the archive's checksums are not."""
    path = tmp_path / "cifar10_jpeg.npz"
    arrays = npz_arrays()
    np.savez(path, **arrays)
    content = bytearray(path.read_bytes())
    content[content.index(arrays["scans"].tobytes()) + 300] ^= 1
    path.write_bytes(content)
    with pytest.raises(TrainingError, match=r"cifar10_jpeg\.npz: cannot be read as CIFAR-10 JPEGs: .*scans"):
        cifar10.read(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": np.zeros(3, np.uint8)}, "do not fit together"),
        ({"n_train": np.array(100)}, "do not fit together"),
        ({"scans": np.zeros(10, np.uint8)}, "do not fit together"),
        ({"labels": np.full(COUNT, 10, np.uint8)}, "labels reach from 10 to 10"),
        ({"header": None}, "cannot be read as CIFAR-10 JPEGs"),
        ({"header": np.array([Evil()], object)}, "cannot be read as CIFAR-10 JPEGs"),
    ],
)
def test_an_npz_that_does_not_add_up(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    arrays = {name: value for name, value in {**npz_arrays(), **changes}.items() if value is not None}
    np.savez(tmp_path / "cifar10_jpeg.npz", **arrays)
    with pytest.raises(TrainingError, match=message):
        cifar10.read(tmp_path)


def test_what_is_no_archive_or_a_damaged_compressed_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cifar10_jpeg.npz"
    np.savez_compressed(path, **npz_arrays())
    content = bytearray(path.read_bytes())
    content[300:340] = bytes(40)
    path.write_bytes(content)
    np.save(tmp_path / "a.npy", np.zeros(3))
    (tmp_path / "a.npy").rename(tmp_path / "a.npz")
    for file in (path, tmp_path / "a.npz"):
        with pytest.raises(TrainingError, match=rf"{file.name}: cannot be read as CIFAR-10 JPEGs"):
            cifar10.read(file)


def test_a_truncated_npz_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cifar10_jpeg.npz"
    np.savez(path, **npz_arrays())
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(TrainingError, match=r"cifar10_jpeg\.npz: cannot be read"):
        cifar10.read(tmp_path)


def test_where_the_data_set_is_looked_for(cifar_batches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(catalog.ROOT_VARIABLE, raising=False)
    with pytest.raises(TrainingError, match=r"--data FOLDER, set data\.root in the recipe, or .* SIGNET_DATA"):
        catalog.load(Cifar10Data())
    monkeypatch.setenv(catalog.ROOT_VARIABLE, str(tmp_path))
    with pytest.raises(TrainingError, match=r"no CIFAR-10 in .*: looked for cifar10_jpeg\.npz and"):
        catalog.load(Cifar10Data())
    with pytest.raises(TrainingError, match=r"data\.root: .*nowhere does not exist"):
        catalog.load(Cifar10Data(root=tmp_path / "nowhere"))
    with pytest.raises(TrainingError, match=r"--data: .*nowhere does not exist"):
        catalog.load(Cifar10Data(root=cifar_batches), tmp_path / "nowhere")
    assert len(catalog.load(Cifar10Data(root=cifar_batches)).train) == 80
    monkeypatch.setenv(catalog.ROOT_VARIABLE, str(cifar_batches))
    small = catalog.load(Cifar10Data(train_images=5, validation_images=4))
    assert (len(small.train), len(small.validation)) == (5, 4)


@pytest.mark.skipif("SIGNET_DATA" not in os.environ, reason="SIGNET_DATA names no folder with CIFAR-10")
def test_the_real_data_set() -> None:
    """5,000 training and 1,000 test images a class, and the mean and standard deviation that the network expects."""
    dataset = catalog.load(Cifar10Data())
    assert torch.bincount(dataset.train.labels).tolist() == [5000] * 10
    assert torch.bincount(dataset.validation.labels).tolist() == [1000] * 10
    pixels = dataset.train.images.reshape(-1, 3).double() / 255
    assert torch.allclose(pixels.mean(0), torch.tensor(dataset.input.mean).double(), atol=2e-3)
    assert torch.allclose(pixels.std(0), torch.tensor(dataset.input.std).double(), atol=6e-2)


def test_pictures_shrink_to_means_of_squares(tmp_path: Path) -> None:
    np.savez(tmp_path / "cifar10_jpeg.npz", **npz_arrays())
    whole, small = (catalog.load(Cifar10Data(image_size=side), tmp_path) for side in (32, 16))
    expected = whole.train.images[5, 6:8, 30:32].float().mean((0, 1)).round()
    assert torch.equal(small.train.images[5, 3, 15].float(), expected)
    assert small.validation.images.shape == (COUNT - N_TRAIN, 16, 16, 3)
    assert (small.input.height, small.input.width, small.input.resize.short_side_px) == (16, 16, 16)
