"""Generates the built-in traces: ``python -m dekag.link.make_traces [--seed 1]``.

walk: complex gains at walking pace, 1.5 m/s at 3.5 GHz: Clarke's sum of plane waves from all sides.
drive: SNRs of a drive past a base station, one every 0.1 s: path loss with exponent 3.5 and shadowing of 6 dB
with a correlation distance of 20 m (Gudmundson's model).

They are synthetic: they demonstrate the two formats and serve the tests.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dekag.link.conditions import BUILT_IN_TRACES
from dekag.link.ofdm import CARRIER_HZ

_LIGHT_M_S = 299_792_458.0


def walk(seed: int, samples: int = 400, step_s: float = 5e-3) -> npt.NDArray[np.float64]:
    """(samples, 3): time, s, real and imaginary part of the gain."""
    random = np.random.default_rng(seed)
    waves, doppler_hz = 64, 1.5 / _LIGHT_M_S * CARRIER_HZ
    angles, phases = random.uniform(0, 2 * np.pi, (2, waves))
    times = np.arange(samples) * step_s
    turns = 2 * np.pi * doppler_hz * np.cos(angles) * times[:, None] + phases
    gains = np.exp(1j * turns).sum(axis=1) / np.sqrt(waves)
    return np.column_stack([times, gains.real, gains.imag])


def drive(seed: int, samples: int = 300, step_s: float = 0.1) -> npt.NDArray[np.float64]:
    """(samples, 2): time, s, and SNR, dB; 20 dB on average."""
    random = np.random.default_rng(seed)
    speed_m_s, nearest_m, shadowing_db, forgets_m = 14.0, 40.0, 6.0, 20.0
    times = np.arange(samples) * step_s
    distance_m = np.hypot(speed_m_s * (times - times[-1] / 2), nearest_m)
    kept = np.exp(-speed_m_s * step_s / forgets_m)
    shadow = [random.standard_normal()]
    for fresh in random.standard_normal(samples - 1):
        shadow.append(kept * shadow[-1] + np.sqrt(1 - kept**2) * fresh)
    snr_db = shadowing_db * np.array(shadow) - 35 * np.log10(distance_m)
    return np.column_stack([times, snr_db - snr_db.mean() + 20])


def write(folder: Path, seed: int) -> list[Path]:
    """Writes both traces; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    traces = {
        "walk": ("time_s,gain_re,gain_im", walk(seed)),
        "drive": ("time_s,snr_db", drive(seed)),
    }
    for name, (header, values) in traces.items():
        rows = (
            ",".join(f"{value:.4g}" if i else f"{value:.3f}" for i, value in enumerate(row)) for row in values
        )
        (folder / f"{name}.csv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return [folder / f"{name}.csv" for name in traces]


def main() -> None:
    """Command line: see the module's docstring."""
    parser = argparse.ArgumentParser(description="Write the traces that ship.")
    parser.add_argument("--seed", type=int, default=1, help="seeds angles, phases and shadowing")
    parser.add_argument("--folder", type=Path, default=BUILT_IN_TRACES, help="where they go")
    arguments = parser.parse_args()
    write(arguments.folder, arguments.seed)


if __name__ == "__main__":
    main()
