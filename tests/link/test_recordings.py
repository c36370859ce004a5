"""SigMF out and in, and gains of NumPy and MATLAB files as traces."""

from __future__ import annotations

import json
import struct
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from dekag.errors import FileError, InvalidInputError
from dekag.link import recordings, trace
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


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"global": {}}', '{"global": []}'])
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


def test_other_symbols_and_rates_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="sample_rate_hz"):
        write_sigmf(tmp_path / "sent", symbols(), sample_rate_hz=0)
    with pytest.raises(InvalidInputError, match="symbols must be complex numbers"):
        write_sigmf(tmp_path / "sent", symbols().real, sample_rate_hz=1.0)
    assert not list(tmp_path.iterdir())


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


@pytest.mark.parametrize("values", [[-3.0, 2.0], [3, 2]], ids=["dB", "integers"])
def test_real_numbers_are_no_gains(tmp_path: Path, values: list[float]) -> None:
    """They may be SNRs in dB, amplitudes or one part of a gain: nobody can tell, so the user is asked."""
    from scipy.io import savemat

    np.save(tmp_path / "h.npy", np.array(values))
    np.savez(tmp_path / "h.npz", h=np.array(values))
    savemat(tmp_path / "h.mat", {"h": np.array(values)})
    for name in ("h.npy", "h.npz", "h.mat"):
        with pytest.raises(FileError, match=rf"{name} holds real numbers in 'h', but gains are complex"):
            read_gains(tmp_path / name)


def test_archives_are_judged_by_what_they_unpack_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "h.npz", h=np.zeros(100_000, complex))
    monkeypatch.setattr(recordings, "MAX_GAINS_BYTES", 100_000)
    with pytest.raises(FileError, match="at most 100000 bytes, unpacked"):
        read_gains(tmp_path / "h.npz")


@pytest.mark.parametrize("name", ["h.npz", "h.npy"])
def test_files_that_end_early_are_said(tmp_path: Path, name: str) -> None:
    gains = symbols().numpy()
    np.savez(tmp_path / "h.npz", h=gains)
    np.save(tmp_path / "h.npy", gains)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(FileError, match=f"{name} cannot be read"):
        read_gains(path)


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
    with pytest.raises(FileError, match="cannot be read"):
        read_gains(tmp_path / "no.npz")
    with (tmp_path / "promise.npy").open("wb") as file:  # of an exabyte
        np.lib.format.write_array_header_1_0(file, header | {"shape": (2**56,)})
    with pytest.raises(FileError, match="cannot be read"):
        read_gains(tmp_path / "promise.npy")


def test_what_stands_behind_the_end_of_a_compressed_array_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scipy_io = pytest.importorskip("scipy.io")
    scipy_io.savemat(tmp_path / "h.mat", {"a": symbols().numpy()}, do_compression=True)
    whole = (tmp_path / "h.mat").read_bytes()
    kind, length = struct.unpack("<II", whole[128:136])
    behind = struct.pack("<II", kind, length + 2**24) + whole[136:] + bytes(2**24)
    (tmp_path / "long.mat").write_bytes(whole[:128] + behind)
    fed: list[int] = []
    made = zlib.decompressobj

    class Counting:
        def __init__(self) -> None:
            self._real = made()

        @property
        def eof(self) -> bool:
            return self._real.eof

        def decompress(self, piece: bytes) -> bytes:
            fed.append(len(piece))
            return self._real.decompress(piece)

    monkeypatch.setattr(recordings.zlib, "decompressobj", Counting)
    assert recordings._mat_size(tmp_path / "long.mat") < 2**20
    assert len(fed) == 1


def test_damaged_metadata_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meta, _ = write_sigmf(tmp_path / "sent", symbols(), sample_rate_hz=1e6)
    meta.write_text("[" * 100_000)
    with pytest.raises(FileError, match="no SigMF recording that can be read"):
        read_sigmf(meta)
    monkeypatch.setattr(recordings, "MAX_META_BYTES", 1000)
    with pytest.raises(FileError, match="at most 1000 bytes of metadata"):
        read_sigmf(meta)


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
    for wrong in (gains.real, gains * 0, gains * np.nan):
        with pytest.raises(InvalidInputError, match="gains must be finite complex numbers"):
            write_trace(tmp_path / "x.csv", wrong, step_s=1e-3)
    for name in ("Street.csv", "my street.csv", "street", "street.txt"):
        with pytest.raises(InvalidInputError, match=r"path must be a file NAME\.csv"):
            write_trace(tmp_path / name, gains, step_s=1e-3)
    assert [path.name for path in tmp_path.iterdir()] == ["street.csv"]


def test_a_trace_says_what_it_is_of(tmp_path: Path) -> None:
    gains = symbols(100).numpy()[0]
    path = write_trace(tmp_path / "street.csv", gains, step_s=1e-3, description="h.npz, antenna 0\n3.5 GHz")
    assert path.read_text().startswith("# h.npz, antenna 0\n# 3.5 GHz\ntime_s,gain_re,gain_im\n0,")
    assert len(trace.load("street", tmp_path).gains) == 100


def test_the_longest_trace_that_is_written_can_be_played(tmp_path: Path) -> None:
    """Gains as small as a path loss, at the sampling rate of NR, take many characters."""
    turns = np.arange(trace.MAX_SAMPLES) * 0.7
    write_trace(tmp_path / "long.csv", -1.23456789e-5 * np.exp(1j * turns), step_s=1 / 30.72e6)
    assert len(trace.load("long", tmp_path).gains) == trace.MAX_SAMPLES


def test_a_recorded_carrier_is_a_trace(tmp_path: Path) -> None:
    """The same as its samples in a .csv, which is used if there are both."""
    gains = symbols(100)[0]
    write_sigmf(tmp_path / "carrier", gains, sample_rate_hz=500.0)
    recorded = trace.load("carrier", tmp_path)
    assert trace.names(tmp_path) == ["carrier"]
    assert recorded.period_s == pytest.approx(0.2)
    assert recorded.mean_snr_db == pytest.approx(10 * gains.abs().square().mean().log10().item(), abs=1e-4)
    write_trace(tmp_path / "written.csv", gains.numpy(), step_s=2e-3)
    torch.testing.assert_close(recorded.gains, trace.load("written", tmp_path).gains, rtol=1e-6, atol=1e-6)
    write_sigmf(tmp_path / "carrier", gains[:50], sample_rate_hz=500.0)
    assert len(trace.load("carrier", tmp_path).gains) == 50, "which changed"
    (tmp_path / "carrier.csv").write_text("time_s,snr_db\n0,20\n1,0\n")
    assert len(trace.load("carrier", tmp_path).gains) == 2


def test_a_recording_that_is_no_trace_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def told(name: str) -> str:
        with pytest.raises(InvalidInputError) as caught:
            trace.load(name, tmp_path)
        assert caught.value.field == "link.trace"
        assert str(tmp_path) not in str(caught.value), "which is none of a client's business"
        return caught.value.allowed

    write_sigmf(tmp_path / "short", symbols()[0, :1], sample_rate_hz=1.0)
    write_sigmf(tmp_path / "silent", 0 * symbols(), sample_rate_hz=1.0)
    write_sigmf(tmp_path / "long", torch.ones(trace.MAX_SAMPLES + 1) + 0j, sample_rate_hz=1.0)
    write_sigmf(tmp_path / "huge", torch.ones(2 * trace.MAX_SAMPLES + 1) + 0j, sample_rate_hz=1.0)
    write_sigmf(tmp_path / "changed", symbols(), sample_rate_hz=1.0)
    (tmp_path / "changed.sigmf-data").write_bytes(bytes(16))
    write_sigmf(tmp_path / "alone", symbols(), sample_rate_hz=1.0)
    (tmp_path / "alone.sigmf-data").unlink()
    (tmp_path / "broken.sigmf-meta").write_text('{"global": []}')
    (tmp_path / "broken.sigmf-data").write_bytes(bytes(16))
    assert "short.sigmf-meta must hold 2 to 100000 samples" in told("short")
    assert "long.sigmf-meta must hold 2 to 100000 samples; resample it" in told("long")
    assert "huge.sigmf-meta must hold 2 to 100000 samples; resample it" in told("huge")
    assert "silent.sigmf-meta must have a mean power above 0" in told("silent")
    assert "changed.sigmf-meta is no SigMF recording" in told("changed")
    assert "alone.sigmf-meta must exist" in told("alone")
    assert "broken.sigmf-meta is no SigMF recording" in told("broken")
    write_sigmf(tmp_path / "fine", symbols(), sample_rate_hz=1.0)
    monkeypatch.setitem(sys.modules, "sigmf", None)
    assert "fine.sigmf-meta must be a .csv file where the extra iq is not installed" in told("fine")


def test_names_of_recordings_may_have_dots(tmp_path: Path) -> None:
    meta, _ = write_sigmf(tmp_path / "run.1", symbols(), sample_rate_hz=1.0)
    for path in (tmp_path / "run.1", meta):
        assert torch.equal(read_sigmf(path)[0], symbols().flatten())
