"""SigMF out and in, and gains of NumPy and MATLAB files as traces."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from dekag.errors import FileError, InvalidInputError
from dekag.link import trace
from dekag.link.recordings import MAX_GAINS_BYTES, read_gains, read_sigmf, write_sigmf, write_trace

sigmf = pytest.importorskip("sigmf")


def symbols(count: int = 64) -> torch.Tensor:
    return torch.randn(2, count, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))


def test_symbols_come_back_bit_for_bit(tmp_path: Path) -> None:
    sent = symbols()
    meta, data = write_sigmf(tmp_path / "sent", sent, sample_rate_hz=1e6, description="two images")
    assert (meta.name, data.name) == ("sent.sigmf-meta", "sent.sigmf-data")
    received, rate = read_sigmf(meta)
    assert torch.equal(received, sent.flatten())
    assert rate == 1e6
    stored = json.loads(meta.read_text())["global"]
    assert (stored["core:datatype"], stored["core:description"]) == ("cf32_le", "two images")
    sigmf.fromfile(str(meta)).validate()  # by the standard's own schema


def test_integer_samples_of_a_radio_are_scaled(tmp_path: Path) -> None:
    (tmp_path / "radio.sigmf-data").write_bytes(np.array([16384, 0, 0, -16384], "<i2").tobytes())
    meta = {"global": {"core:datatype": "ci16_le", "core:version": "1.0.0", "core:sample_rate": 2e6},
            "captures": [{"core:sample_start": 0}], "annotations": []}  # fmt: skip
    (tmp_path / "radio.sigmf-meta").write_text(json.dumps(meta))
    received, rate = read_sigmf(tmp_path / "radio.sigmf-meta")
    torch.testing.assert_close(received, torch.tensor([0.5, -0.5j], dtype=torch.complex64), atol=1e-4, rtol=0)
    assert rate == 2e6


def test_a_recording_that_was_changed_is_refused(tmp_path: Path) -> None:
    meta, data = write_sigmf(tmp_path / "sent", symbols(), sample_rate_hz=1.0)
    data.write_bytes(data.read_bytes()[:-8] + b"\0" * 8)
    with pytest.raises(FileError, match="no SigMF recording"):
        read_sigmf(meta)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"global": {}}'])
def test_what_is_no_recording_is_said(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.sigmf-data").write_bytes(b"\0" * 16)
    (tmp_path / "x.sigmf-meta").write_text(content)
    with pytest.raises(FileError, match="x"):
        read_sigmf(tmp_path / "x.sigmf-meta")
    with pytest.raises(FileError, match="no SigMF"):
        read_sigmf(tmp_path / "gone.sigmf-meta")


def test_samples_in_another_file_are_refused(tmp_path: Path) -> None:
    meta, _ = write_sigmf(tmp_path / "sent", symbols(), sample_rate_hz=1e6)
    _, other = write_sigmf(tmp_path / "other", symbols(), sample_rate_hz=1e6)
    said = json.loads(meta.read_text())
    del said["global"]["core:sha512"]
    said["global"]["core:dataset"] = other.name
    meta.write_text(json.dumps(said))
    with (
        pytest.warns(UserWarning, match="core:dataset"),
        pytest.raises(FileError, match=r"elsewhere than in sent\.sigmf-data"),
    ):
        read_sigmf(meta)


def test_a_rate_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="sample_rate_hz"):
        write_sigmf(tmp_path / "sent", symbols(), sample_rate_hz=0)


def test_gains_of_every_kind_of_file_are_the_same(tmp_path: Path) -> None:
    from scipy.io import savemat

    gains = symbols().numpy()
    np.save(tmp_path / "h.npy", gains)
    np.savez(tmp_path / "h.npz", h=gains, tau=np.zeros(3))
    savemat(tmp_path / "h.mat", {"h": gains})
    for read in (read_gains(tmp_path / "h.npy"), read_gains(tmp_path / "h.mat")):
        assert np.array_equal(read, gains)
    assert np.array_equal(read_gains(tmp_path / "h.npz", "h"), gains)
    with pytest.raises(InvalidInputError, match="one of h, tau"):
        read_gains(tmp_path / "h.npz")


def test_pickles_and_other_files_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "evil.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "nan.npy", np.array([1, np.nan]))
    (tmp_path / "cut.mat").write_bytes(b"MATLAB")
    (tmp_path / "h.txt").write_text("1")
    for name in ("evil.npy", "nan.npy", "cut.mat", "h.txt", "gone.npy"):
        with pytest.raises(FileError, match=name):
            read_gains(tmp_path / name)


def test_a_small_file_that_becomes_large_is_refused(tmp_path: Path) -> None:
    header = {"descr": "<c16", "fortran_order": False, "shape": (MAX_GAINS_BYTES // 16,)}
    with (
        zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("h.npy", "w") as member,
    ):
        np.lib.format.write_array_header_1_0(member, header)
        for _ in range(MAX_GAINS_BYTES // 2**20):
            member.write(b"\0" * 2**20)
    assert (tmp_path / "bomb.npz").stat().st_size < MAX_GAINS_BYTES / 500
    with pytest.raises(FileError, match="unpacked"):
        read_gains(tmp_path / "bomb.npz")
    scipy_io = pytest.importorskip("scipy.io")
    zeros = np.zeros(MAX_GAINS_BYTES // 32 + 1, complex)
    scipy_io.savemat(tmp_path / "bomb.mat", {"a": zeros, "b": zeros}, do_compression=True)
    with pytest.raises(FileError, match="unpacked"):
        read_gains(tmp_path / "bomb.mat", "a")
    scipy_io.savemat(tmp_path / "fits.mat", {"a": zeros[: len(zeros) // 2]}, do_compression=True)
    assert read_gains(tmp_path / "fits.mat").shape == (1, len(zeros) // 2)
    (tmp_path / "no.npz").write_bytes(b"PK")
    with pytest.raises(FileError, match=r"no \.npz file"):
        read_gains(tmp_path / "no.npz")
    with (tmp_path / "promise.npy").open("wb") as file:  # of an exabyte
        np.lib.format.write_array_header_1_0(file, header | {"shape": (2**56,)})
    with pytest.raises(FileError, match="cannot be read"):
        read_gains(tmp_path / "promise.npy")


def test_gains_are_played_as_a_trace(tmp_path: Path) -> None:
    gains = symbols(100).numpy()[0].astype(complex)
    write_trace(tmp_path / "street.csv", gains, step_s=1e-3)
    played = trace.load("street", tmp_path)
    expected = gains / np.sqrt(np.mean(np.abs(gains) ** 2))
    np.testing.assert_allclose(played.gains.numpy(), expected, rtol=1e-6)
    assert played.period_s == pytest.approx(0.1)
    with pytest.raises(InvalidInputError, match="one dimension"):
        write_trace(tmp_path / "x.csv", symbols().numpy(), step_s=1)
    with pytest.raises(InvalidInputError, match="step_s"):
        write_trace(tmp_path / "x.csv", gains, step_s=0)
