"""Measures the SNR that every modulation and coding needs, and writes dekag/link/mcs.json.

    python -m dekag.link.calibrate [--n 24] [--checks 4] [--seed 1]

For each row of the table and each of a few lengths, `n` codewords of random payloads cross AWGN, each with a
noise of its own whose power is halved between what decodes and what does not, down to 0.125 dB. Mean and
standard deviation of the SNRs so needed are kept. Rows below rate 1/5 send every bit of the code of rate 1/5
several times, which on AWGN is that code at as many times its SNR, so they need no measurement of their own.
`dekag.link.outage` predicts every loss from this and from the mutual information of each constellation's
bits, which is kept too.

Neither the normal distribution nor the mutual information of fading slots is trusted: `checks` says how many
images of 150 and of 900 bytes were really lost, beside how many were expected to be, when every row was used
at the mean SNR at which it is predicted to lose 10 %.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from dekag.link.channel import Reception
from dekag.link.conditions import LinkConditions
from dekag.link.digital import ITERATIONS, DigitalLink, _constellation, code_of, whole_codewords
from dekag.link.mcs import INFORMATION_BITS, MOTHER_RATE, TABLE, CodewordLayout, ModulationAndCoding
from dekag.link.outage import FADING_DRAWS, loss_probability

STEP_DB = 0.125
SEARCH_DB = 12.0  # widest gap to Shannon's limit that is searched
CODEWORD_BYTES = (4, 16, 60, 237)
IMAGE_BYTES = (150, 900)
CHECKED: tuple[dict[str, Any], ...] = (
    {"fading": "awgn"},
    {"fading": "rayleigh", "tau_rms_s": 0.0},
    {"fading": "rayleigh", "tau_rms_s": 1e-7},
    {"fading": "rayleigh", "tau_rms_s": 1e-6},
)
GRID_DB = tuple(range(-40, 51))


def random_bytes(count: int, generator: torch.Generator) -> bytes:
    """A payload."""
    return bytes(torch.randint(0, 256, (count,), generator=generator).tolist())


def needed_db(coding: ModulationAndCoding, payload_bytes: int, n: int, seed: int) -> list[float]:
    """AWGN SNR, dB, that each of `n` codewords of such a payload needs."""
    generator = torch.Generator().manual_seed(seed)
    layout = CodewordLayout.of(payload_bytes, coding)
    if layout.codewords != 1:
        raise ValueError(f"{payload_bytes} bytes are not one codeword")
    link = DigitalLink()
    payloads = [random_bytes(payload_bytes, generator) for _ in range(n)]
    symbols = torch.cat([link.modulate(payload, coding) for payload in payloads])
    noise = torch.randn(symbols.shape, dtype=torch.complex64, generator=generator)
    low = torch.full((n,), math.floor(10 * math.log10(2**coding.efficiency - 1)) - 1.0)
    high = low + SEARCH_DB
    while (high - low).max() > STEP_DB:
        middle = (low + high) / 2
        fine = _decodes(symbols, noise, middle, payloads, coding)
        low, high = torch.where(fine, low, middle), torch.where(fine, middle, high)
    needed: list[float] = ((low + high) / 2).tolist()
    return needed


def _decodes(
    symbols: torch.Tensor,
    noise: torch.Tensor,
    snr_db: torch.Tensor,
    payloads: list[bytes],
    coding: ModulationAndCoding,
) -> torch.Tensor:
    """(n,) whether each codeword is decoded at its SNR; all of them in one run of the decoder."""
    link, layout = DigitalLink(), CodewordLayout.of(len(payloads[0]), coding)
    no = 10 ** (-snr_db / 10)
    received, gain = symbols + noise * no.sqrt()[:, None], torch.ones(1, 1, dtype=torch.complex64)
    receptions = [Reception(received[i : i + 1], gain, no[i : i + 1]) for i in range(len(payloads))]
    soft_bits = torch.cat([link.soft_bits(each, coding, len(payloads[0])) for each in receptions])
    _, decoder = code_of(layout.size, layout.mother_bits)
    *_, (decoded, _) = decoder.decode(whole_codewords(soft_bits, layout), ITERATIONS)
    sent = torch.from_numpy(np.stack([np.unpackbits(np.frombuffer(p, np.uint8)) for p in payloads]))
    fine: torch.Tensor = (decoded[:, : sent.shape[1]] == sent).all(dim=1)
    return fine


def mutual_information(bits_per_symbol: int, seed: int, symbols: int = 20_000) -> list[float]:
    """At each SNR of GRID_DB the mean mutual information (bit) of a bit and its soft value."""
    from dekag.link.sionna_blocks import complex_normal

    generator = torch.Generator().manual_seed(seed)
    bits = torch.randint(0, 2, (symbols * bits_per_symbol,), generator=generator).float()
    noise = complex_normal((symbols,), precision="single", device="cpu", generator=generator)
    mapper, demapper = _constellation(bits_per_symbol)
    sent = mapper(bits)
    information = []
    for snr_db in GRID_DB:
        no = 10 ** (-snr_db / 10)
        llrs = demapper(sent + math.sqrt(no) * noise, torch.full((symbols,), no))
        loss = torch.nn.functional.softplus((1 - 2 * bits) * llrs).mean().item() / math.log(2)
        information.append(max(0.0, 1 - loss))
    return [round(float(value), 5) for value in np.maximum.accumulate(information)]


def measure(n: int, seed: int) -> dict[str, Any]:
    """The measured part of mcs.json."""
    rows = []
    measured = cache(needed_db)
    for coding in tqdm(TABLE, desc="rows"):
        repeats = max(1.0, float(MOTHER_RATE / coding.rate))
        mother = coding if repeats == 1 else next(c for c in TABLE if c.rate == MOTHER_RATE)
        needs = []
        for payload_bytes in CODEWORD_BYTES:
            needed = measured(mother, payload_bytes, n, seed)
            mean = statistics.mean(needed) - 10 * math.log10(repeats)
            size = CodewordLayout.of(payload_bytes, coding).used_bits
            needs.append([size, round(mean, 3), round(max(statistics.stdev(needed), STEP_DB / 2), 3)])
        rows.append(
            {
                "bits_per_symbol": coding.bits_per_symbol,
                "codeword_bits": coding.codeword_bits,
                "information_bits": INFORMATION_BITS,
                "needs_db": needs,
            }
        )
    orders = sorted({coding.bits_per_symbol for coding in TABLE})
    curves = {str(order): mutual_information(order, seed) for order in orders}
    return {"mutual_information": {"snr_db": list(GRID_DB), **curves}, "rows": rows}


def threshold_db(coding: ModulationAndCoding, payload_bytes: int, conditions: LinkConditions) -> float:
    """Mean SNR, dB, within -20 to 40, at which such a payload is predicted to be lost in 10 % of slots."""
    low, high = -20.0, 40.0
    while high - low > 0.01:
        middle = (low + high) / 2
        loss = loss_probability(coding, payload_bytes, conditions.model_copy(update={"snr_db": middle}))
        low, high = (low, middle) if loss <= 0.1 else (middle, high)
    return high


def check(checks: int, seed: int) -> list[dict[str, Any]]:
    """Images really lost at the thresholds, beside what is expected, for each channel of CHECKED."""
    from dekag.link.harq import send_with_harq

    found = []
    number = seed
    for channel in tqdm(CHECKED, desc="checks"):
        sent = lost = 0
        expected = 0.0
        for coding, payload_bytes in itertools.product(TABLE, IMAGE_BYTES):
            conditions = LinkConditions.model_validate(channel)
            snr_db = threshold_db(coding, payload_bytes, conditions)
            conditions = conditions.model_copy(update={"snr_db": snr_db})
            for _ in range(checks):
                number += 1  # fades of its own for every image
                payload = random_bytes(payload_bytes, torch.Generator().manual_seed(number))
                delivery = send_with_harq(payload, coding, conditions, number, max_transmissions=1)
                sent, lost = sent + 1, lost + (delivery.payload != payload)
                expected += loss_probability(coding, payload_bytes, conditions)
        found.append({**channel, "images": sent, "lost": lost, "expected": round(expected, 1)})
    return found


def main() -> None:
    """Command line: see the module's docstring."""
    parser = argparse.ArgumentParser(description="Measure the needs of dekag/link/mcs.json.")
    parser.add_argument("--n", type=int, default=24, help="codewords for each row and length")
    parser.add_argument("--checks", type=int, default=4, help="images for each row, length and channel")
    parser.add_argument("--seed", type=int, default=1, help="seeds payloads, noise and fading")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    path = Path(__file__).with_name("mcs.json")
    content: dict[str, Any] = {
        "command": f"python -m dekag.link.calibrate --n {arguments.n} --checks {arguments.checks} "
        f"--seed {arguments.seed}",
        "n": arguments.n,
        "seed": arguments.seed,
        "fading_draws": FADING_DRAWS,
        **measure(arguments.n, arguments.seed),
    }
    path.write_text(_pretty({**content, "checks": []}))  # what follows reads it
    content["checks"] = check(arguments.checks, arguments.seed)
    path.write_text(_pretty(content))


def _pretty(content: dict[str, Any]) -> str:
    """JSON with one line for each row and curve."""
    lines = [f"  {json.dumps(key)}: " + _lines(value) for key, value in content.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _lines(value: Any) -> str:
    if isinstance(value, list):
        return "[\n" + ",\n".join(f"    {json.dumps(each)}" for each in value) + "\n  ]"
    if isinstance(value, dict):
        return "{\n" + ",\n".join(f"    {json.dumps(k)}: {json.dumps(v)}" for k, v in value.items()) + "\n  }"
    return json.dumps(value)


if __name__ == "__main__":
    main()
