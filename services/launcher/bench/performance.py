"""docs/performance.md: where the time of a picture goes and what was done about it, from bench-parts.json."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dekag.errors import NotFoundError
from dekag.experiments.headline import RESULTS, mean_ci95
from services.launcher.bench.page import origin
from services.launcher.bench.parts import PICTURES, STEPS
from services.launcher.bench.rows import Row, read_bench

PAGE = Path("docs/performance.md")
Lines = list[str]

_TEXT = """# Performance

Written by `dekag bench parts` from `results/load/bench-parts.json`; do not edit. Times are medians, in one
process with one thread. What the services add to them, and how many pictures a second they make, is in
[Load](results-load.md).

## Where the time of a picture goes

| part | | ms |
|---|---|---:|
{alone}

The denoiser, called twice a step with guidance, is most of it, and the autoencoder most of the rest, which
runs once for the picture and once for what it is compared with.

## Denoiser: rows share a call

A call for one row costs as much as its many small layers take to be started. Rows that share it cost less
each, so edge and cloud draw what waits for them at once, each row with its own prompt, seed and updates
(`DEKAG_GENERATE_BATCH`). The same picture asked for twice at once is drawn once. A model that is free starts
at once: nobody waits for a batch to fill unless `DEKAG_BATCH_WAIT_S` says so.

| rows | ms | ms a row |
|---:|---:|---:|
{rows}

More at once also keeps the decoder waiting, whose work otherwise overlaps with the next batch: the default is
a compromise, found by trying.

## Updates: each row its own

PEFT runs the adapters of a batch one after another in every layer. Here the factors of all updates in a batch
are stacked, and a mask leaves each row its own (`dekag/makd/rows.py`): two products a layer, however many
topics there are. The result is the same. Milliseconds a picture:

| pictures at once | no update | one topic | the same, PEFT | four topics | the same, PEFT |
|---:|---:|---:|---:|---:|---:|
{drawings}

## Autoencoder: layout, precision, batches

| | ms a picture, alone | ms a picture, of four | PSNR against the first, dB |
|---|---:|---:|---:|
{decoders}

Channels last is what the services use. bfloat16 is quicker where the processor has it, but then what is shown
depends on the processor, so it is left out. Pictures are decoded one by one: a batch is hardly quicker, and
bits would depend on who else is decoded.

## A traced denoiser

{traced}
What is saved is the interpreter. It is not used: a trace holds for one shape and without updates, torch calls
it outdated, and what is to replace it compiles at the start and wants a compiler beside it.

## Steps of the sampler

Consistency with the cloud's pictures of {prompts} held-out prompts, without updates, and its 95 % interval:

| steps | consistency |
|---:|---:|
{steps}

The profile's `steps` decides; fewer that score alike make pictures quicker by as much. Pictures with
updates were not judged here, and all results of this book are with the default.

## What else was looked at

- **Threads**: one for each model is the quickest for models this small, and processes, one for each service,
  do what threads would do: `DEKAG_THREADS`.
- **Hops**: symbols and latents cross as raw little-endian bytes. A hop of gRPC in Python costs the
  milliseconds above whatever it carries; the cached picture, which does little else, shows it most.
- **Caches**: latents by prompt, seed, model and updates, pictures by prompt, seed, model and format, both in
  Redis; merged adapter weights of the conditions seen last, in memory.
- **Overload**: the gateway lets so many requests in at a time, lets a few wait and refuses the others with
  status 429 and a time to come back (`DEKAG_MAX_IN_FLIGHT`, `DEKAG_MAX_WAITING`). Slots go round the clients
  that wait. A model turns away what would wait longer than its request has time, and stops drawing when
  nobody waits for the picture any more.

{origin}
"""


def write_performance_page(page: Path = PAGE, results: Path = RESULTS) -> None:
    """Write the page from what was measured.

    Raises:
        NotFoundError: nothing was.
    """
    bench = read_bench("parts", results)
    if bench is None:
        raise NotFoundError("nothing was measured yet: dekag bench parts")
    rows: list[Row] = bench["rows"]
    times = [row for row in rows if row["kind"] == "time"]
    text = _TEXT.format(
        alone="\n".join(_alone(times)),
        rows="\n".join(
            f"| {row['pictures']} | {row['ms']:.1f} | {row['ms_each']:.1f} |"
            for row in _of(times, "denoiser", "as it is")
        ),
        drawings="\n".join(_drawings(times)),
        decoders="\n".join(_decoders(rows)),
        traced=_traced(times),
        prompts=bench["config"]["prompts"],
        steps="\n".join(_steps(rows)),
        origin=origin(bench, "parts"),
    )
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(text)


def _alone(times: Sequence[Row]) -> Lines:
    shown = [
        row
        for row in times
        if row["pictures"] == 1
        and (row["part"], row["variant"])
        not in {("denoiser", "traced and frozen"), ("drawing", "four topics")}
        and "PEFT" not in row["variant"]
        and row["variant"] not in ("contiguous", "channels last, bfloat16")
    ]
    return [f"| {row['part']} | {row['variant']} | {row['ms']:.2f} |" for row in shown]


def _of(times: Sequence[Row], part: str, variant: str) -> list[Row]:
    return [row for row in times if (row["part"], row["variant"]) == (part, variant)]


def _drawings(times: Sequence[Row]) -> Lines:
    variants = (
        "no update",
        "one topic",
        "one topic, PEFT's layers",
        "four topics",
        "four topics, PEFT's layers",
    )
    lines = []
    for pictures in PICTURES:
        found = [
            [row["ms_each"] for row in _of(times, "drawing", variant) if row["pictures"] == pictures]
            for variant in variants
        ]
        cells = [f"{each[0]:.0f}" if each else "" for each in found]
        lines.append(f"| {pictures} | {' | '.join(cells)} |")
    return lines


def _decoders(rows: Sequence[Row]) -> Lines:
    lines = []
    for error in (row for row in rows if row["kind"] == "decoder"):
        alone, four = (
            next(
                row["ms_each"]
                for row in rows
                if row["kind"] == "time"
                and (row["part"], row["variant"], row["pictures"]) == ("decoder", error["variant"], pictures)
            )
            for pictures in (1, 4)
        )
        psnr = error["psnr_db"]
        lines.append(f"| {error['variant']} | {alone:.1f} | {four:.1f} | {psnr:.1f} |")
    return lines


def _traced(times: Sequence[Row]) -> str:
    (traced,) = _of(times, "denoiser", "traced and frozen")
    plain = next(row for row in _of(times, "denoiser", "as it is") if row["pictures"] == 2)
    return f"Traced and frozen, two rows take {traced['ms']:.1f} ms and not {plain['ms']:.1f}."


def _steps(rows: Sequence[Row]) -> Lines:
    lines = []
    for steps in STEPS:
        values = [row["consistency"] for row in rows if row["kind"] == "steps" and row["steps"] == steps]
        if values:
            mean, ci95 = mean_ci95(values)
            interval = "" if ci95 is None else " ({:.3f} .. {:.3f})".format(*ci95)
            lines.append(f"| {steps} | {mean:.3f}{interval} |")
    return lines
