"""Recordings of radios and of ray tracers: IQ samples in SigMF, and complex gains in NumPy and MATLAB files.

SigMF (https://sigmf.org) is a pair of files: NAME.sigmf-data with the samples and NAME.sigmf-meta, JSON that
says what they are. A radio can send symbols that are written so, and what it received can be read back in the
place of the channel. Gains as Sionna RT or DeepMIMO export them become traces (`dekag.link.trace`).
"""

from __future__ import annotations

import re
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dekag.errors import FileError, InvalidInputError
from dekag.link.iq import bytes_to_iq, iq_to_bytes

MAX_RECORDING_BYTES = 1 << 30
MAX_META_BYTES = 1 << 20
MAX_GAINS_BYTES = 256 << 20  # in a file, and unpacked
_SIGMF_SUFFIXES = (".sigmf-data", ".sigmf-meta")
_REAL = (
    "holds real numbers in {key!r}, but gains are complex: save amplitudes as complex numbers, real and "
    "imaginary parts as one complex array, and SNRs in dB as a trace with the header time_s,snr_db"
)
_PIECE = 1 << 16
_MAT_HEADER_BYTES, _MAT_COMPRESSED = 128, 15

_UNREADABLE = (
    OSError, ValueError, LookupError, TypeError, AttributeError, EOFError, NotImplementedError, MemoryError,
    RecursionError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What the readers raise for damaged files."""

Gains = npt.NDArray[np.complex128]


def write_sigmf(
    path: Path, symbols: torch.Tensor, *, sample_rate_hz: float, description: str = ""
) -> tuple[Path, Path]:
    """Write symbols as a SigMF recording of complex float32 samples (cf32_le), one sample a symbol.

    Example:
        >>> import tempfile, torch
        >>> from pathlib import Path
        >>> from dekag.link.recordings import read_sigmf, write_sigmf
        >>> folder = Path(tempfile.mkdtemp())
        >>> meta, _ = write_sigmf(folder / "sent", torch.ones(1, 8) + 0j, sample_rate_hz=1e6)
        >>> read_sigmf(meta)[0].shape
        torch.Size([8])

    Args:
        path: of both files, without or with one of their suffixes.
        symbols: complex, of any shape; written row by row.
        sample_rate_hz: samples per second, above 0.
        description: for readers of the metadata.

    Returns:
        The paths of metadata and samples.

    Raises:
        InvalidInputError: a symbol is not complex or not finite, or the sample rate is not above 0.
        ModuleNotFoundError: the extra `iq` is not installed.
    """
    import sigmf

    if not 0 < sample_rate_hz < float("inf"):
        raise InvalidInputError("sample_rate_hz", "a finite number above 0", sample_rate_hz)
    if not symbols.is_complex():
        raise InvalidInputError("symbols", "complex numbers", symbols.dtype)
    data, meta = sigmf_files(path)
    data.write_bytes(iq_to_bytes(symbols, field="symbols"))
    known = {"core:datatype": "cf32_le", "core:sample_rate": sample_rate_hz, "core:description": description}
    recording = sigmf.SigMFFile(data_file=str(data), global_info=known)
    recording.add_capture(0)
    recording.tofile(str(meta), overwrite=True)
    return meta, data


def sigmf_files(path: Path) -> tuple[Path, Path]:
    """The files of samples and of metadata of a recording, whose path may lack a suffix or have either."""
    base = path.with_suffix("") if path.suffix in _SIGMF_SUFFIXES else path
    data, meta = (base.with_name(base.name + suffix) for suffix in _SIGMF_SUFFIXES)
    return data, meta


def read_sigmf(path: Path) -> tuple[torch.Tensor, float]:
    """Samples (N,) complex64 and sample rate, Hz, of a SigMF recording of one channel.

    Integer samples are scaled to -1 to 1.

    Args:
        path: of both files, without or with one of their suffixes.

    Raises:
        FileError: there is no such recording, it does not match its checksum, or it is not one channel of
            finite complex samples with a sample rate.
        ModuleNotFoundError: the extra `iq` is not installed.
    """
    import sigmf

    data, meta = sigmf_files(path)
    try:
        if data.stat().st_size > MAX_RECORDING_BYTES:
            raise FileError(path, f"is too large: at most {MAX_RECORDING_BYTES} bytes of samples are allowed")
        if meta.stat().st_size > MAX_META_BYTES:
            raise FileError(path, f"is too large: at most {MAX_META_BYTES} bytes of metadata are allowed")
        recording = sigmf.fromfile(str(meta))
        if getattr(recording, "data_file", None) != data:  # whose size nobody has looked at
            raise FileError(path, f"has its samples elsewhere than in {data.name}")
        known = recording.get_global_info()
        samples = np.asarray(recording.read_samples())
    except FileError:
        raise
    except (*_UNREADABLE, sigmf.error.SigMFError) as error:
        raise FileError(path, f"is no SigMF recording that can be read: {error}") from None
    if samples.ndim != 1 or not np.iscomplexobj(samples):
        raise FileError(path, f"is not one channel of complex samples; its type is {known['core:datatype']}")
    rate = known.get("core:sample_rate")
    if not isinstance(rate, int | float) or not 0 < rate < float("inf"):
        raise FileError(path, "has no core:sample_rate above 0")
    try:
        return bytes_to_iq(samples.astype("<c8").tobytes()), float(rate)
    except InvalidInputError:
        raise FileError(path, "has samples that are not finite") from None


def read_gains(path: Path, key: str | None = None) -> Gains:
    """Complex gains of a .npy, .npz or .mat file (up to version 7), in the shape in which they are stored.

    Real numbers are refused: they may be amplitudes, powers, SNRs in dB, or one of the two parts of a gain.

    Args:
        path: the file.
        key: which array of a .npz or .mat file; not needed if it has only one.

    Raises:
        FileError: it cannot be read, is too large, also after decompression, or does not hold finite complex
            numbers.
        InvalidInputError: the key is missing or unknown; lists the arrays.
        ModuleNotFoundError: SciPy, for .mat, is not installed.
    """
    try:
        if path.stat().st_size > MAX_GAINS_BYTES:
            raise FileError(path, f"is too large: at most {MAX_GAINS_BYTES} bytes are allowed")
        arrays = _arrays(path)
    except FileError:
        raise
    except _UNREADABLE as error:
        raise FileError(path, f"cannot be read: {error}") from None
    if key is None and len(arrays) == 1:
        key = next(iter(arrays))
    if key not in arrays:
        raise InvalidInputError("key", f"one of {', '.join(arrays) or 'no arrays'}", key)
    values = np.asarray(arrays[key])
    if not np.issubdtype(values.dtype, np.number) or not values.size or not np.isfinite(values).all():
        raise FileError(path, f"does not hold finite numbers in {key!r}")
    if not np.iscomplexobj(values):
        raise FileError(path, _REAL.format(key=key))
    return values.astype(np.complex128)


def _arrays(path: Path) -> dict[str, Any]:
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return {path.stem: np.load(path, allow_pickle=False)}
    if suffix == ".npz":
        with zipfile.ZipFile(path) as members:
            _check_unpacked(path, sum(member.file_size for member in members.infolist()))
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    if suffix == ".mat":
        from scipy.io import loadmat
        from scipy.io.matlab import MatReadError

        _check_unpacked(path, _mat_size(path))
        try:
            found = loadmat(path)
        except MatReadError as error:
            raise ValueError(error) from None
        return {name: value for name, value in found.items() if not name.startswith("__")}
    raise FileError(path, "is not a .npy, .npz or .mat file")


def _check_unpacked(path: Path, size: int) -> None:
    """FileError if a file, which may have a thousandth of it, unpacks to too many bytes."""
    if size > MAX_GAINS_BYTES:
        raise FileError(path, f"is too large: at most {MAX_GAINS_BYTES} bytes, unpacked, are allowed")


def _mat_size(path: Path) -> int:
    """Bytes of the compressed arrays of a .mat file, unpacked; not counted further than what is too many."""
    size = 0
    with path.open("rb") as file:
        little = file.read(_MAT_HEADER_BYTES)[-2:] == b"IM"
        while len(tag := file.read(8)) == 8 and size <= MAX_GAINS_BYTES:
            kind, length = struct.unpack("<II" if little else ">II", tag)
            start = file.tell()
            decoder, left = zlib.decompressobj(), length if kind == _MAT_COMPRESSED else 0
            try:
                while (
                    left > 0
                    and size <= MAX_GAINS_BYTES
                    and not decoder.eof  # what is behind the end would be copied again and again
                    and (piece := file.read(min(left, _PIECE)))
                ):
                    left -= len(piece)
                    size += len(decoder.decompress(piece))
            except zlib.error:  # which SciPy says better
                return size
            file.seek(start + length)
    return size


def write_trace(path: Path, gains: Gains, *, step_s: float, description: str = "") -> Path:
    """Write gains, sampled every `step_s` seconds, as a trace that the channel can play.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import numpy as np
        >>> from dekag.link.recordings import write_trace
        >>> path = Path(tempfile.mkdtemp()) / "street.csv"
        >>> gains = np.exp(2j * np.pi * np.arange(3) / 4).round(9)
        >>> print(write_trace(path, gains, step_s=1e-3, description="antenna 0").read_text(), end="")
        # antenna 0
        time_s,gain_re,gain_im
        0,1,0
        0.001,0,1
        0.002,-1,0

    Args:
        path: a .csv file; its name without suffix is the trace's: 1 to 64 lower-case letters, digits and -.
        gains: (N,) complex, 2 to 100,000, finite and not all 0.
        step_s: time between samples, s, above 0.
        description: for readers of the file: where the gains are from, for example.

    Raises:
        InvalidInputError: the path is not a trace's, the gains are others, or the step is not above 0.
    """
    from dekag.link.trace import MAX_SAMPLES

    if not re.fullmatch(r"[a-z0-9-]{1,64}\.csv", path.name):
        allowed = "a file NAME.csv with a name of 1 to 64 lower-case letters, digits and -"
        raise InvalidInputError("path", allowed, path.name)
    if gains.ndim != 1 or not 2 <= len(gains) <= MAX_SAMPLES:
        allowed = f"2 to {MAX_SAMPLES} gains in one dimension: choose one path, antenna and subcarrier"
        raise InvalidInputError("gains", allowed, gains.shape)
    wrong = (
        "real numbers" if not np.iscomplexobj(gains)
        else "some that are not finite" if not np.isfinite(gains).all()
        else "zeros alone" if not gains.any()
        else ""
    )  # fmt: skip
    if wrong:
        raise InvalidInputError("gains", "finite complex numbers that are not all 0", wrong)
    if not 0 < step_s < float("inf"):
        raise InvalidInputError("step_s", "a finite number above 0", step_s)
    notes = [f"# {line}" for line in description.splitlines()]
    rows = (f"{i * step_s:.9g},{gain.real:.9g},{gain.imag:.9g}" for i, gain in enumerate(gains))
    path.write_text("\n".join([*notes, "time_s,gain_re,gain_im", *rows]) + "\n", encoding="utf-8")
    return path
