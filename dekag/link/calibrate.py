"""Measures the SNR that every modulation and coding needs, and writes dekag/link/mcs.json.

    python -m dekag.link.calibrate [--n 60] [--checks 10] [--seed 1]

AWGN: `n` random payloads of one full codeword go through modulate, transmit and demodulate. Each meets one
fixed noise, whose power is lowered or raised in steps of 0.125 dB until decoding just succeeds; mean and
standard deviation of the SNRs so needed are kept. The threshold is where 90 % of images of 1,200 bytes (a
WebP of the embedded world) arrive, each of them 6 codewords that must all be decoded, if a normal
distribution is fitted to the SNRs needed.

Rayleigh: the payload is interleaved over the J blocks, so it is taken to be decoded when the mean over the
blocks of the bitwise mutual information of its constellation reaches what it is at the AWGN threshold. The
threshold is the mean SNR at which that holds for 90 % of 20,000 fading draws, for each delay spread of the
table.

Neither step is trusted: `checks` says how many images of 1,200 bytes, the same number for every row, were
really lost when sent at those thresholds.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from dekag.link.channel import block_correlator, transmit
from dekag.link.conditions import BLOCKS, LinkConditions
from dekag.link.digital import (
    INFORMATION_BITS,
    TABLE,
    DecodingError,
    DigitalLink,
    ModulationAndCoding,
    _constellation,
)

IMAGE_BYTES = 1200
CODEWORD_BYTES = INFORMATION_BITS // 8 - 3
DECODED_SHARE = 0.9
STEP_DB = 0.125
FADING_DRAWS = 20_000
TAU_RMS_S = (0.0, 1e-8, 2e-8, 5e-8, 1e-7, 2e-7, 5e-7, 1e-6)
CHECKED_TAU_RMS_S = (0.0, 1e-7, 1e-6)

Curve = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]


def calibrate(n: int, checks: int, seed: int) -> dict[str, Any]:
    """The content of mcs.json, from `n` codewords and, at each fading, `checks` images for every row."""
    codewords = math.ceil((IMAGE_BYTES + 3) * 8 / INFORMATION_BITS)
    deviations = statistics.NormalDist().inv_cdf(DECODED_SHARE ** (1 / codewords))
    with tqdm(total=len(TABLE) * (n + checks * (1 + len(CHECKED_TAU_RMS_S)))) as bar:
        needed: list[tuple[float, float]] = []
        gap_db = 1.0
        for coding in TABLE:
            shannon_db = 10 * math.log10(2**coding.efficiency - 1)
            needed.append(_needed_db(coding, n, seed, shannon_db + gap_db, bar))
            gap_db = needed[-1][0] - shannon_db
        awgn = [round(mean + deviations * deviation, 2) for mean, deviation in needed]
        curves = {m: mutual_information_curve(m, seed) for m in {c.bits_per_symbol for c in TABLE}}
        powers = [_fading_powers(tau, seed) for tau in TAU_RMS_S]
        rayleigh = [
            [_rayleigh_threshold_db(curves[coding.bits_per_symbol], threshold, p) for p in powers]
            for coding, threshold in zip(TABLE, awgn, strict=True)
        ]
        fadings: list[dict[str, Any]] = [
            {"fading": "awgn"},
            *({"fading": "rayleigh", "tau_rms_s": t} for t in CHECKED_TAU_RMS_S),
        ]
        columns = [awgn] + [[row[TAU_RMS_S.index(tau)] for row in rayleigh] for tau in CHECKED_TAU_RMS_S]
        checked = []
        for fading, thresholds in zip(fadings, columns, strict=True):
            lost = 0
            for row, (coding, snr_db) in enumerate(zip(TABLE, thresholds, strict=True)):
                link = LinkConditions.model_validate({**fading, "snr_db": min(snr_db, 40.0)})
                for item in range(checks):
                    lost += not _decodes(coding, link, IMAGE_BYTES, seed + n + row * checks + item)
                    bar.update()
            checked.append({**fading, "images": len(TABLE) * checks, "lost": lost})
    return {
        "command": f"python -m dekag.link.calibrate --n {n} --checks {checks} --seed {seed}",
        "n": n,
        "seed": seed,
        "image_bytes": IMAGE_BYTES,
        "decoded_share": DECODED_SHARE,
        "fading_draws": FADING_DRAWS,
        "tau_rms_s": TAU_RMS_S,
        "checks": checked,
        "rows": [
            {
                "bits_per_symbol": coding.bits_per_symbol,
                "codeword_bits": coding.codeword_bits,
                "information_bits": coding.information_bits,
                "codeword_needs_db": {"mean": round(mean, 3), "standard_deviation": round(deviation, 3)},
                "awgn_db": awgn_db,
                "rayleigh_db": rayleigh_db,
            }
            for coding, (mean, deviation), awgn_db, rayleigh_db in zip(
                TABLE, needed, awgn, rayleigh, strict=True
            )
        ],
    }


def mutual_information_curve(bits_per_symbol: int, seed: int, symbols: int = 5_000) -> Curve:
    """SNR grid (dB) and, at each, the mean mutual information (bit) of a bit and its soft value."""
    from dekag.link.phy import complex_normal

    generator = torch.Generator().manual_seed(seed)
    bits = torch.randint(0, 2, (symbols * bits_per_symbol,), generator=generator).float()
    noise = complex_normal((symbols,), precision="single", device="cpu", generator=generator)
    mapper, demapper = _constellation(bits_per_symbol)
    sent = mapper(bits)
    grid = np.arange(-40.0, 51.0)
    information = []
    for snr_db in grid:
        no = 10 ** (-snr_db / 10)
        llrs = demapper(sent + math.sqrt(no) * noise, torch.full((symbols,), no))
        loss = torch.nn.functional.softplus((1 - 2 * bits) * llrs).mean().item() / math.log(2)
        information.append(max(0.0, 1 - loss))
    return grid, np.maximum.accumulate(information)


def _decodes(coding: ModulationAndCoding, conditions: LinkConditions, length: int, seed: int) -> bool:
    """Whether the payload of `seed`, `length` bytes, survives the channel of `seed`."""
    generator = torch.Generator().manual_seed(seed)
    payload = bytes(torch.randint(0, 256, (length,), generator=generator).tolist())
    link = DigitalLink()
    reception = transmit(link.modulate(payload, coding), [conditions], [seed])
    try:
        return link.demodulate(reception, coding, length) == payload
    except DecodingError:
        return False


def _needed_db(
    coding: ModulationAndCoding, n: int, seed: int, start_db: float, bar: Any
) -> tuple[float, float]:
    """Mean and standard deviation of the AWGN SNR, dB, that one codeword needs."""
    needed: list[int] = []
    for item in range(n):
        # The search of each codeword starts where the others ended: a step or two decide.
        step = round(statistics.median(needed) if needed else start_db / STEP_DB)

        def decodes(step: int, item: int = item) -> bool:
            conditions = LinkConditions(snr_db=step * STEP_DB, fading="awgn")
            return _decodes(coding, conditions, CODEWORD_BYTES, seed + item)

        if decodes(step):
            while decodes(step - 1):
                step -= 1
        else:
            step += 1
            while not decodes(step):
                step += 1
        needed.append(step)
        bar.update()
    return statistics.mean(needed) * STEP_DB, statistics.stdev(needed) * STEP_DB


def _fading_powers(tau_rms_s: float, seed: int) -> np.ndarray[Any, Any]:
    """(FADING_DRAWS, J) block powers |h_j|^2, dB."""
    from dekag.link.phy import complex_normal

    generator = torch.Generator().manual_seed(seed)
    independent = complex_normal(
        (FADING_DRAWS, BLOCKS, 1), precision="double", device="cpu", generator=generator
    )
    gains = block_correlator(tau_rms_s)(independent)[..., 0]
    return np.asarray(10 * torch.log10(gains.abs().square()))


def _rayleigh_threshold_db(curve: Curve, awgn_db: float, powers_db: np.ndarray[Any, Any]) -> float:
    needed = np.interp(awgn_db, *curve)
    low, high = awgn_db - 10.0, awgn_db + 30.0
    while high - low > 0.01:
        middle = (low + high) / 2
        reached = np.interp(middle + powers_db, *curve).mean(axis=1) >= needed
        low, high = (low, middle) if reached.mean() >= DECODED_SHARE else (middle, high)
    return round(high, 2)


def main() -> None:
    """Command line: see the module's docstring."""
    parser = argparse.ArgumentParser(description="Measure the thresholds of dekag/link/mcs.json.")
    parser.add_argument("--n", type=int, default=60, help="codewords for each row of the table")
    parser.add_argument("--checks", type=int, default=10, help="images for each row and each checked fading")
    parser.add_argument("--seed", type=int, default=1, help="seeds payloads, noise and fading")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    content = json.dumps(calibrate(arguments.n, arguments.checks, arguments.seed), indent=2)
    Path(__file__).with_name("mcs.json").write_text(content + "\n")


if __name__ == "__main__":
    main()
