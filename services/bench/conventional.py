"""Conventional deliveries: the CPU time of each step between a file and the file that arrives.

A part of `dekag bench parts`; see docs/performance.md.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import track

from dekag.evaluation.pages import Row
from dekag.evaluation.prompts import edge_prompts
from dekag.evaluation.registry import record
from dekag.evaluation.statistics import POSITIVE, mean_ci95
from dekag.generation.images import to_format
from dekag.generation.models import Generator
from dekag.link import LinkConditions
from dekag.link.channel import transmit
from dekag.link.digital import DecodingError, DigitalLink
from dekag.link.harq import send_with_harq

IMAGES = 24
LINKS: Mapping[str, LinkConditions] = {
    "10 dB": LinkConditions(snr_db=10.0, fading="rayleigh"),
    "-5 dB": LinkConditions(snr_db=-5.0, fading="rayleigh"),
    "10 dB, flat, HARQ": LinkConditions(snr_db=10.0, fading="rayleigh", tau_rms_s=0.0),
}
"""Where the files are sent. With HARQ, the sender risks that every second transmission is lost."""
HARQ = "10 dB, flat, HARQ"
_HARQ_OUTAGE = 0.5
_T = TypeVar("_T")


def conventional_rows(edge: Generator, console: Console, images: int = IMAGES) -> list[Row]:
    """Send WebP files of images over each of LINKS, all of them twice: the second time counts.

    Args:
        edge: draws the images.
        console: shows the progress.
        images: files for each link.

    Returns:
        Rows of kind "conventional": `image`, `bytes` of the file, `link`, `rate` of the code, `lost` and, of
        one thread, the CPU times `coding_s`, `channel_s`, `demodulation_s` and `decoding_s`. With HARQ, they
        hold the number of `transmissions` and `all_s`, the CPU time of these steps together.
    """
    files = [
        to_format(edge.decoder.decode(edge.latents(prompt, seed))[0], "webp")
        for seed, (_, prompt, _) in enumerate(edge_prompts(images))
    ]
    rows: list[Row] = []
    for counts in (False, True):
        for seed, file in enumerate(track(files, "files", console=console, disable=not counts)):
            for name, conditions in LINKS.items():
                send = _with_harq if name == HARQ else _once
                row = send(file, conditions, seed)
                if counts:
                    rows.append({"kind": "conventional", "link": name, "image": seed, **row})
    return rows


def receiving_s(rows: Sequence[Row], link: str) -> list[float]:
    """CPU time to demodulate and decode each file that was sent over a link, s.

    With HARQ, all steps of all transmissions, which are measured together.
    """
    return [
        row["all_s"] if link == HARQ else row["demodulation_s"] + row["decoding_s"]
        for row in rows
        if (row["kind"], row.get("link")) == ("conventional", link)
    ]


def record_receiving(rows: Sequence[Row], results: Path, command: str) -> None:
    """`ldpc_seconds` in headline.json: the mean of `receiving_s` over the link where it is highest."""
    slowest = max((receiving_s(rows, link) for link in LINKS), key=statistics.fmean)
    mean, ci95 = mean_ci95(slowest, POSITIVE)
    record("ldpc_seconds", mean, "s", ci95=ci95, count=len(slowest), command=command, results=results)


def _once(file: bytes, conditions: LinkConditions, seed: int) -> Row:
    link = DigitalLink()
    row: Row = {"bytes": len(file)}

    def timed(step: str, work: Callable[[], _T]) -> _T:
        begin = time.thread_time()
        try:
            return work()
        finally:
            row[step] = time.thread_time() - begin

    def code() -> Any:
        coding = link.choose(conditions, len(file))
        return coding, link.modulate(file, coding)

    coding, symbols = timed("coding_s", code)
    reception = timed("channel_s", lambda: transmit(symbols, [conditions], [seed]))
    soft_bits = timed("demodulation_s", lambda: link.soft_bits(reception, coding, len(file)))
    try:
        lost = timed("decoding_s", lambda: link.decode(soft_bits, coding, len(file))) != file
    except DecodingError:
        lost = True
    return row | {"rate": float(coding.rate), "lost": lost}


def _with_harq(file: bytes, conditions: LinkConditions, seed: int) -> Row:
    begin = time.thread_time()
    coding = DigitalLink().choose(conditions, len(file), outage=_HARQ_OUTAGE)
    delivery = send_with_harq(file, coding, conditions, seed)
    return {
        "bytes": len(file),
        "all_s": time.thread_time() - begin,
        "transmissions": delivery.transmissions,
        "rate": float(coding.rate),
        "lost": delivery.payload != file,
    }
