"""Playback of recorded channels: CSV files of time and SNR or of time and complex gain, SigMF recordings.

A file `NAME.csv` starts with the line `time_s,snr_db` or `time_s,gain_re,gain_im`; times are ascending. Blank
lines and lines starting with `# ` are ignored. If the header has semicolons or tabs instead of commas, so
have the other lines, and their numbers may have decimal commas. A byte order mark is ignored. A sample is
valid until the next one, the last sample for the mean sampling interval; then the trace starts over.

A SigMF recording `NAME.sigmf-meta`, with `NAME.sigmf-data`, is a trace whose samples are the gains, as a
receiver records them of a carrier that is sent without modulation. If there are both, `NAME.csv` is used.

A trace describes how the channel *varies*: its mean power over time is scaled to 1, like that of every other
fading, and `snr_db` of the conditions is the mean SNR. To play an SNR trace at its recorded level, use its
`Trace.mean_snr_db`. SNRs have no phase; their gains are real.
"""

from __future__ import annotations

import csv
import hashlib
import math
import os
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from dekag.errors import FileError, InvalidInputError
from dekag.files import read_lines
from dekag.link.conditions import BLOCKS, BUILT_IN_TRACES
from dekag.link.ofdm import SLOT_S

MAX_BYTES = 8 * 2**20
MAX_SAMPLES = 100_000

_SNR_HEADER = ["time_s", "snr_db"]
_GAIN_HEADER = ["time_s", "gain_re", "gain_im"]
_MAX_SNR_DB = 200.0
_SUFFIXES = (".csv", ".sigmf-meta")
_MAX_SAMPLE_BYTES = 16  # of any data type of SigMF
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")
_SEPARATORS = (",", ";", "\t")
_PLAIN = " (with commas between columns, numbers need a decimal point)"


@dataclass(frozen=True)
class Trace:
    """One period of a trace.

    Attributes:
        times: (N,) float64, s, ascending from 0: start of each sample.
        gains: (N,) complex128, mean power 1 over `period_s`.
        period_s: time after which the trace starts over.
        mean_snr_db: mean recorded SNR, dB; for gains, their mean power in dB.
    """

    times: torch.Tensor
    gains: torch.Tensor
    period_s: float
    mean_snr_db: float

    def at(self, times_s: torch.Tensor) -> torch.Tensor:
        """complex128 gains at times of any shape, s since the start of the trace."""
        within = torch.remainder(times_s.to(torch.float64), self.period_s)
        return self.gains[torch.searchsorted(self.times, within, right=True) - 1]

    def block_gains(self, start_s: float, slots: int) -> torch.Tensor:
        """(J,) complex128: gains at the centres of J equal parts of `slots` slots from `start_s` on."""
        middles = (torch.arange(BLOCKS, dtype=torch.float64) + 0.5) / BLOCKS
        return self.at(start_s + middles * slots * SLOT_S)


def names(folder: Path = BUILT_IN_TRACES) -> list[str]:
    """The names of the traces in that folder, sorted."""
    files = [path for suffix in _SUFFIXES for path in folder.glob(f"*{suffix}")]
    return sorted({path.stem for path in files if re.fullmatch("[a-z0-9-]{1,64}", path.stem)})


def load(name: str, folder: Path = BUILT_IN_TRACES) -> Trace:
    """The trace of that name.

    Raises:
        InvalidInputError: names "link.trace"; there is no such trace, or its file is invalid.
    """
    path = _found(name, folder)
    try:
        return _read(path, tuple(_state(each) for each in _files(path)))
    except OSError as error:  # it was just deleted, or is a dangling link
        raise _broken(path, "exist", error.strerror) from None


def content_hash(name: str, folder: Path = BUILT_IN_TRACES) -> str:
    """SHA-256 (hex) of the files of the trace of that name; raises as `load`."""
    path, digest = _found(name, folder), hashlib.sha256()
    for file in _files(path):
        try:
            content = file.read_bytes()
        except OSError as error:
            raise _broken(path, "exist", error.strerror) from None
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()


def _found(name: str, folder: Path) -> Path:
    """The first file of the trace of that name."""
    if name not in names(folder):  # a name is looked up, never joined to a path
        raise InvalidInputError("link.trace", f"one of {', '.join(names(folder)) or 'no traces'}", name)
    paths = [folder / f"{name}{suffix}" for suffix in _SUFFIXES]
    return paths[0] if os.path.lexists(paths[0]) else paths[1]


def _files(path: Path) -> tuple[Path, ...]:
    """The files that a trace consists of."""
    return (path,) if path.suffix == ".csv" else (path, path.with_suffix(".sigmf-data"))


def _state(path: Path) -> tuple[int, int]:
    """What changes when the file does."""
    state = path.stat()
    return state.st_mtime_ns, state.st_size


@lru_cache(maxsize=16)
def _read(path: Path, state: tuple[tuple[int, int], ...]) -> Trace:
    """The trace in the file; the cache is invalidated when the file changes."""
    try:
        if path.suffix != ".csv":
            return _recorded(path, state[1][1])
        return _parse(path, read_lines(path, max_bytes=MAX_BYTES))
    except FileError as error:
        allowed = f"a trace that can be read: {path.name} {error.problem}"
        raise InvalidInputError("link.trace", allowed, path.name) from None


def _recorded(path: Path, data_bytes: int) -> Trace:
    """The trace of a SigMF recording with so many bytes of samples."""
    from dekag.link.recordings import read_sigmf

    if data_bytes > MAX_SAMPLES * _MAX_SAMPLE_BYTES:
        raise _broken(path, f"hold 2 to {MAX_SAMPLES} samples; resample it", f"{data_bytes} bytes")
    try:
        samples, rate_hz = read_sigmf(path)
    except ModuleNotFoundError:
        raise _broken(path, "be a .csv file where the extra iq is not installed", path.name) from None
    except FileError as error:  # its folder is none of a client's business
        raise FileError(path, error.problem.replace(f"{path.parent}{os.sep}", "")) from None
    if not 2 <= len(samples) <= MAX_SAMPLES:
        raise _broken(path, f"hold 2 to {MAX_SAMPLES} samples; resample it", len(samples))
    times = torch.arange(len(samples), dtype=torch.float64) / rate_hz
    return _trace(path, times, samples.to(torch.complex128))


def _parse(path: Path, texts: list[tuple[int, str]]) -> Trace:
    # a spreadsheet writes semicolons where its country's numbers have commas
    separator = max(_SEPARATORS, key=texts[0][1].count) if texts else ","
    rows = [(number, _cells(path, number, text, separator)) for number, text in texts]
    (_, header), *lines = rows or [(0, [])]
    if header not in (_SNR_HEADER, _GAIN_HEADER):
        must = f"start with {','.join(_SNR_HEADER)} or {','.join(_GAIN_HEADER)}"
        raise _broken(path, must, separator.join(header))
    if not 2 <= len(lines) <= MAX_SAMPLES:
        raise _broken(path, f"hold 2 to {MAX_SAMPLES} samples", len(lines))
    values = torch.tensor(
        [_numbers(path, number, line, len(header)) for number, line in lines],
        dtype=torch.float64,
    )
    times = values[:, 0] - values[0, 0]
    if not (times.diff() > 0).all():
        number, line = lines[int((times.diff() <= 0).nonzero()[0]) + 1]
        raise _broken(path, f"have a later time_s in line {number} than before it", ",".join(line))
    if header == _SNR_HEADER:
        if not (values[:, 1].abs() <= _MAX_SNR_DB).all():
            raise _broken(path, f"hold SNRs between -{_MAX_SNR_DB:g} and {_MAX_SNR_DB:g} dB", "another")
        gains = (10 ** (values[:, 1] / 20)).to(torch.complex128)
    else:
        gains = torch.complex(values[:, 1], values[:, 2])
    return _trace(path, times, gains)


def _trace(path: Path, times: torch.Tensor, gains: torch.Tensor) -> Trace:
    """The trace of gains that start at those times, scaled to mean power 1."""
    period_s = times[-1].item() * len(times) / (len(times) - 1)
    holds = torch.cat([times[1:], torch.tensor([period_s], dtype=torch.float64)]) - times
    mean_power = ((gains.abs().square() * holds).sum() / period_s).item()
    if not 0 < mean_power < math.inf:
        raise _broken(path, "have a mean power above 0", mean_power)
    return Trace(times, gains / math.sqrt(mean_power), period_s, 10 * math.log10(mean_power))


def _cells(path: Path, number: int, text: str, separator: str) -> list[str]:
    try:
        rows = csv.reader([text], strict=True, skipinitialspace=True, delimiter=separator)
        cells = [cell.strip() for cell in next(rows)]
    except csv.Error as error:
        raise _broken(path, f"be CSV in line {number}", error) from None
    return cells if separator == "," else [cell.replace(",", ".", 1) for cell in cells]


def _numbers(path: Path, number: int, line: list[str], columns: int) -> list[float]:
    values = [float(each) for each in line if _NUMBER.fullmatch(each)]
    if len(line) != columns or len(values) != columns or not all(map(math.isfinite, values)):
        hint = _PLAIN if len(line) > columns else ""
        raise _broken(path, f"hold {columns} finite numbers in line {number}{hint}", ",".join(line))
    return values


def _broken(path: Path, must: str, got: object) -> InvalidInputError:
    return InvalidInputError("link.trace", f"a trace that can be read: {path.name} must {must}", got)
