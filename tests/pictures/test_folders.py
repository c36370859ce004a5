"""Folders of pictures: imagefolder, subfolders, CIFAR-10, and what is said of everything else."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from dekag.errors import FileError
from dekag.generation.images import to_jpeg, to_png
from dekag.pictures import find_pictures

RNG = np.random.default_rng(0)


def noise(width: int = 40, height: int = 30) -> np.ndarray:
    return RNG.integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two pictures, one of them in a subfolder under a wrong name, and files that are none."""
    (tmp_path / "sub" / ".hidden").mkdir(parents=True)
    (tmp_path / "b.png").write_bytes(to_png(noise()))
    (tmp_path / "sub" / "a.txt").write_bytes(to_jpeg(noise()))
    (tmp_path / "sub" / ".hidden" / "c.png").write_bytes(to_png(noise()))
    (tmp_path / ".d.png").write_bytes(to_png(noise()))
    (tmp_path / "notes.png").write_text("no picture")
    return tmp_path


def metadata(folder: Path, *rows: object) -> None:
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")


def test_pictures_are_found_by_their_contents_in_order(folder: Path) -> None:
    found = find_pictures(folder)
    assert [each.name for each in found.pictures] == ["b.png", "sub/a.txt"]
    assert [each.read().format for each in found.pictures] == ["PNG", "JPEG"]
    assert found.skipped == ("notes.png",)
    assert len(find_pictures(folder, count=1).pictures) == 1


def test_all_pictures_that_cannot_be_read_are_named_at_once(folder: Path) -> None:
    for name in ("e.png", "f.png"):
        (folder / name).write_bytes(to_png(noise())[:90])
    read = find_pictures(folder).read()
    assert [next(read)[0].name, next(read)[0].name] == ["b.png", "sub/a.txt"]
    with pytest.raises(FileError, match=r"has 2 of 4 pictures that cannot be read.*e\.png must be.*f\.png"):
        next(read)
    with pytest.raises(FileError, match=r"^\S*e\.png must be"):
        next(find_pictures(folder / "e.png").read())


def test_what_dekag_link_received_is_left_out_of_its_sources(folder: Path) -> None:
    received = folder / "link-out" / "semantic"
    received.mkdir(parents=True)
    (received / "b.png").write_bytes(to_png(noise()))
    assert len(find_pictures(folder).pictures) == 3
    (folder / "link-out" / "link.jsonl").write_text("{}\n")
    found = find_pictures(folder)
    assert [picture.name for picture in found.pictures] == ["b.png", "sub/a.txt"]
    assert found.skipped == ("link-out/", "notes.png")
    assert [picture.name for picture in find_pictures(folder / "link-out").pictures] == ["semantic/b.png"]


def test_metadata_gives_prompts(folder: Path) -> None:
    metadata(folder, {"file_name": "sub/a.txt", "text": "a cat", "other": 1}, {"file_name": "b.png"})
    assert [each.prompt for each in find_pictures(folder).pictures] == [None, "a cat"]
    (folder / "metadata.jsonl").rename(folder / "sub" / "metadata.jsonl")
    metadata(folder / "sub", {"file_name": "a.txt", "text": "a dog"})
    assert [each.prompt for each in find_pictures(folder).pictures] == [None, "a dog"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"file_name": "missing.png"}, "no file"),
        ({"file_name": "../b.png"}, "no file"),
        ({"file_name": "/etc/passwd"}, "no file"),
        ({"text": "a cat"}, "file_name"),
        ({"file_name": "b.png", "text": 3}, "string"),
        ({"file_name": "b.png", "text": " "}, "not blank"),
        ({"file_name": "b.png", "text": "x" * 1001}, "1000"),
        (["b.png"], "object"),
    ],
)
def test_metadata_that_is_wrong_names_its_line(folder: Path, row: object, said: str) -> None:
    metadata(folder, {"file_name": "b.png", "text": "fine"}, row)
    with pytest.raises(FileError, match=r"metadata.jsonl, line 2") as error:
        find_pictures(folder)
    assert said in str(error.value)


def test_the_hash_follows_names_prompts_and_contents(folder: Path) -> None:
    first = find_pictures(folder).content_hash()
    assert find_pictures(folder).content_hash() == first
    metadata(folder, {"file_name": "b.png", "text": "a cat"})
    second = find_pictures(folder).content_hash()
    (folder / "b.png").write_bytes(to_png(noise()))
    third = find_pictures(folder).content_hash()
    (folder / "b.png").rename(folder / "c.png")
    (folder / "metadata.jsonl").unlink()
    assert len({first, second, third, find_pictures(folder).content_hash()}) == 4


def cifar(path: Path, count: int, label: int = 3) -> np.ndarray:
    """A batch as in CIFAR-10's binary version; returns its pictures (count, 32, 32, 3)."""
    pixels = RNG.integers(0, 256, (count, 32, 32, 3), np.uint8)
    planes = pixels.transpose(0, 3, 1, 2).reshape(count, -1)
    labels = np.full((count, 1), label, np.uint8)
    path.write_bytes(np.concatenate([labels, planes], axis=1).tobytes())
    return pixels


def test_cifar_10_is_read_in_its_binary_version(tmp_path: Path) -> None:
    pixels = cifar(tmp_path / "test_batch.bin", 3)
    (tmp_path / "batches.meta.txt").write_text("airplane\n")
    for path in (tmp_path, tmp_path / "test_batch.bin"):
        found = find_pictures(path)
        assert [each.name for each in found.pictures] == [f"test_batch-{i:05}" for i in range(3)]
        assert all(np.array_equal(each.read().pixels, pixels[i]) for i, each in enumerate(found.pictures))
    assert len(find_pictures(tmp_path, count=2).pictures) == 2
    cifar(tmp_path / "data_batch_1.bin", 2)
    assert [each.name for each in find_pictures(tmp_path).pictures][:2] == [
        "data_batch_1-00000", "data_batch_1-00001"
    ]  # fmt: skip


def test_pickles_are_never_read(tmp_path: Path) -> None:
    for name in ("data_batch_1", "test_batch"):
        (tmp_path / name).write_bytes(pickle.dumps({"data": noise()}))
    for path in (tmp_path, tmp_path / "test_batch"):
        with pytest.raises(FileError, match=r"pickle.*binary version"):
            find_pictures(path)


@pytest.mark.parametrize("content", [bytes(3073 * 2 - 1), b"\x0a" + bytes(3072), b""])
def test_other_bins_are_no_cifar(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.bin").write_bytes(content)
    with pytest.raises(FileError, match="can be read"):
        find_pictures(tmp_path / "x.bin").pictures[0].read()
    with pytest.raises(FileError, match="no pictures"):
        find_pictures(tmp_path)


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="does not exist"):
        find_pictures(tmp_path / "nowhere")
    with pytest.raises(FileError, match="no pictures"):
        find_pictures(tmp_path)
    (tmp_path / "cut.png").write_bytes(to_png(noise())[:500])
    (only,) = find_pictures(tmp_path).pictures
    with pytest.raises(FileError, match=r"cut\.png must be .* truncated"):
        only.read()
