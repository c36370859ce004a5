"""`dekag bench ldpc`: the codewords that the LDPC decoder loses and its CPU time, against Sionna's decoder.

Both decode the same soft bits: codewords of random payloads over AWGN, at SNRs at which some are lost.
Both run for at most 50 iterations. Where the link tests the CRC, after every fifth iteration, the bits of
payload and CRC are compared with those that were sent.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from dekag.evaluation.pages import Row
from dekag.evaluation.registry import RESULTS
from dekag.link import LinkConditions
from dekag.link.calibrate import random_bytes
from dekag.link.channel import transmit
from dekag.link.digital import ITERATIONS, TABLE, DigitalLink, code_of, information_bits, whole_codewords
from dekag.link.mcs import CodewordLayout, ModulationAndCoding
from dekag.link.outage import codeword_threshold
from services.bench.results_io import write_bench

CODES = tuple(
    (coding, payload_bytes)
    for payload_bytes in (237, 28, 4)  # of the longest codewords, and of short ones
    for coding in (TABLE[2], TABLE[3], TABLE[6], TABLE[12], TABLE[15], TABLE[19])
)
"""Rates 1/5, 1/3, 2/5, 2/3, 5/6 and 8/9, with all constellations."""
DEVIATIONS = (-1.0, 0.0, 1.0, 2.0)
"""SNRs, in standard deviations from that at which half of the codewords are predicted to be lost."""
_STEP = 5  # iterations between tests of the CRC, as in `LdpcDecoder.decode`
_BATCH = 25


def run_ldpc_bench(*, codewords: int = 200, seed: int = 1, results: Path = RESULTS) -> list[Row]:
    """Decode the same codewords with both decoders.

    Args:
        codewords: of each code and SNR.
        seed: of payloads and noise.
        results: the rows are written into its folder load/.

    Returns:
        A row for each code and SNR: `lost_sionna` and `lost` of `codewords`; `only_sionna` and `only_dekag`
        are those that only one of them decoded, `undetected` those that fulfil all parity checks and are
        wrong. `cpu_s_sionna` and `cpu_s` are the CPU times of all codewords, one thread.
    """
    console = Console()
    torch.set_num_threads(1)
    rows: list[Row] = []
    for coding, payload_bytes in track(CODES, "codes", console=console):
        threshold = codeword_threshold(coding, CodewordLayout.of(payload_bytes, coding).used_bits)
        for deviations in DEVIATIONS:
            snr_db = round(threshold.mean_db + deviations * threshold.deviation_db, 2)
            rows.append(_compare(coding, payload_bytes, snr_db, codewords, seed))
            seed += codewords
    write_bench("ldpc", {"codewords": codewords, "iterations": ITERATIONS}, rows, results)
    return rows


def _compare(coding: ModulationAndCoding, payload_bytes: int, snr_db: float, count: int, seed: int) -> Row:
    from dekag.link.sionna_blocks import LDPC5GDecoder

    layout, link = CodewordLayout.of(payload_bytes, coding), DigitalLink()
    conditions = LinkConditions(snr_db=snr_db, fading="awgn")
    encoder, decoder = code_of(layout.size, layout.mother_bits)
    sionna = LDPC5GDecoder(encoder, return_state=True, device="cpu", precision="single")
    decoded, decoded_sionna, undetected = [], [], 0
    cpu_s = cpu_s_sionna = 0.0
    for first in range(seed, seed + count, _BATCH):
        sent, received = [], []
        for number in range(first, min(first + _BATCH, seed + count)):
            payload = random_bytes(payload_bytes, torch.Generator().manual_seed(number))
            reception = transmit(link.modulate(payload, coding), [conditions], [number])
            sent.append(information_bits(payload, layout))
            received.append(link.soft_bits(reception, coding, payload_bytes))
        information = torch.cat(sent)
        soft_bits = whole_codewords(torch.cat(received), layout)
        begin = time.thread_time()
        steps = [
            (valid, (bits[:, : layout.used_bits] == information).all(1))
            for bits, valid in decoder.decode(soft_bits, ITERATIONS, step=_STEP)
        ]
        middle = time.thread_time()
        decoded_sionna.append(_sionna_decodes(sionna, soft_bits, information))
        cpu_s, cpu_s_sionna = cpu_s + middle - begin, cpu_s_sionna + time.thread_time() - middle
        decoded.append(torch.stack([right for _, right in steps]).any(0))
        undetected += int((steps[-1][0] & ~decoded[-1]).sum())
    ours, theirs = torch.cat(decoded), torch.cat(decoded_sionna)
    return {
        "kind": "errors",
        "qam": 2**coding.bits_per_symbol,
        "rate": str(coding.rate),
        "information_bits": layout.used_bits,
        "snr_db": snr_db,
        "codewords": count,
        "lost_sionna": int((~theirs).sum()),
        "lost": int((~ours).sum()),
        "only_sionna": int((theirs & ~ours).sum()),
        "only_dekag": int((ours & ~theirs).sum()),
        "undetected": undetected,
        "cpu_s_sionna": cpu_s_sionna,
        "cpu_s": cpu_s,
    }


def _sionna_decodes(decoder: Any, soft_bits: torch.Tensor, information: torch.Tensor) -> torch.Tensor:
    """(codewords,) bool: whether the bits of payload and CRC were right after some fifth iteration."""
    decoded = torch.zeros(len(soft_bits), dtype=torch.bool)
    left, state = torch.arange(len(soft_bits)), None
    for _ in range(ITERATIONS // _STEP):
        bits, state = decoder(soft_bits[left], num_iter=_STEP, msg_v2c=state)
        right = (bits[:, : information.shape[1]] == information[left]).all(1)
        decoded[left[right]] = True
        left, state = left[~right], state[~right]
        if not len(left):
            break
    return decoded
