"""`dekag link`: sends pictures of a user's own over the link in this process, and compares the deliveries."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import typer
from rich.table import Table
from rich.text import Text

from dekag import plugins
from dekag.api.limits import check_seed
from dekag.console import plain_console
from dekag.energy import NO_COUNTERS, POWERCAP, EnergyMeter
from dekag.errors import DekagError, FileError, InvalidInputError
from dekag.files import check_folder
from dekag.link import LinkConditions
from dekag.link.conditions import BUILT_IN_TRACES
from dekag.pictures import PictureFile, find_pictures
from dekag.pictures.folders import ROWS
from services.cli.extras import as_typed

if TYPE_CHECKING:
    from dekag.generation.images import ImageFormat, Pixels
    from dekag.metrics import Metric
    from dekag.pictures import Picture
    from dekag.pipeline import ReceivedPicture, SemanticLink

DELIVERIES = ("semantic", "semantic-unaligned", "pixels", "conventional")
SEMANTIC = "semantic"
"""What names of deliveries by latents start with."""

PIXELS = "pixels"
"""Delivery by the profile's codec of pixels, without an autoencoder."""

_RATE_SHOWN = 0.02
"""Largest relative difference of a rate from the one asked for that is not worth a note: it is rounded."""

Row = dict[str, Any]
_Sent = tuple[str, "ReceivedPicture"]


@dataclass(frozen=True)
class LinkOptions:
    """What `dekag link` sends, and how.

    Attributes:
        deliveries: of DELIVERIES.
        conditions: of the link.
        cbr: rate of semantic deliveries.
        target_psnr_db: or the PSNR that they are to reach, dB.
        prompt: what all pictures show; None: what metadata.jsonl says of each.
        seed: of the first picture's fading and noise; each further picture has the next one.
        restoration: "none" or "denoiser"; of aligned semantic deliveries.
        image_format: "webp", "avif" or "jpeg"; of conventional deliveries.
        count: pictures to send; None: all.
        profile: the models.
        traces: folder of the traces that the conditions may name.
    """

    deliveries: Sequence[str]
    conditions: LinkConditions
    cbr: float
    target_psnr_db: float | None = None
    prompt: str | None = None
    seed: int = 0
    restoration: str = "none"
    image_format: ImageFormat = "webp"
    count: int | None = None
    profile: str = "stickers"
    traces: Path = BUILT_IN_TRACES


def run_link(
    path: Path,
    options: LinkOptions,
    *,
    output: Path,
    force: bool = False,
    as_json: bool = False,
    powercap: Path = POWERCAP,
) -> int:
    """Sends a picture or a folder of pictures, writes what arrives, and prints what it cost.

    Args:
        path: a picture, a folder of pictures, or CIFAR-10.
        options: what to send, and how.
        output: folder for the received pictures, in a folder for each delivery, and for ROWS.
        force: write into a folder that has ROWS of an earlier run.
        as_json: print the rows alone, as JSON lines, to standard output.
        powercap: where the kernel shows the processor's counters of energy.

    Returns:
        The exit status: 1 if a picture could not be sent.

    Raises:
        InvalidInputError: nothing can be sent as asked; names the option.
    """
    out, err = plain_console(), plain_console(stderr=True)
    check_folder(output)
    if (output / ROWS).exists() and not force:
        raise InvalidInputError(
            "--output", f"a folder without {ROWS}, or --force given to write into it", output
        )
    folder = find_pictures(path, count=options.count)
    check_seed(options.seed + len(folder.pictures) - 1)
    if options.conditions.trace is not None:
        from dekag.link import trace

        trace.load(options.conditions.trace, options.traces)
    if folder.skipped:
        err.print(folder.skipped_note, soft_wrap=True)
    with err.status("loading the models"):
        links = _links(options)
    rows: list[Row] = []
    failed, names = 0, _received_names(folder.pictures)
    meter = EnergyMeter(powercap)
    output.mkdir(parents=True, exist_ok=True)
    with (output / ROWS).open("w") as file:
        for number, each in enumerate(folder.pictures, 1):
            with err.status(Text(f"{each.name}: {number} of {len(folder.pictures)}")):
                try:
                    picture = each.read()
                    seed = options.seed + number - 1
                    sent = list(_metered(meter, _sent(each, picture, links, options, seed)))
                    limit_db = _limit_db(picture, links, seed)
                except DekagError as error:
                    failed += 1
                    err.print(_told(each, error), style="red", soft_wrap=True)
                    continue
            for (delivery, received), energy in sent:
                row = {
                    **_row(each, delivery, received, limit_db if delivery.startswith(SEMANTIC) else None),
                    **energy,
                    **_saved(names[each.name], delivery, received, output),
                }
                file.write(json.dumps(row) + "\n")
                rows.append(row)
                if as_json:
                    typer.echo(json.dumps(row))
    if not as_json and rows:
        for note in _notes(rows, options.cbr):
            out.print(note, soft_wrap=True)
        out.print(_table(rows))
        if any(row["autoencoder_psnr_db"] is not None for row in rows):
            out.print("limit: PSNR of the autoencoder alone, without any channel.")
        out.print(f"Received pictures and {ROWS}: {output}", soft_wrap=True)
    if not meter.readable:
        err.print(NO_COUNTERS, soft_wrap=True)
    if failed:
        note = f"Not sent: {failed} of {len(folder.pictures)}."
        err.print(note, style="red")
    return 1 if failed else 0


def _links(options: LinkOptions) -> Mapping[str, SemanticLink]:
    """The links of the deliveries that have one; the semantic ones share a generator."""
    from dekag.cala.aligned_codec import AlignedCodec
    from dekag.evaluation.models import load_quietly
    from dekag.generation.models import Generator
    from dekag.inventory import check_latents
    from dekag.pipeline import PixelLink, SemanticLink
    from dekag.profile import load_profile

    links: dict[str, SemanticLink] = {}
    semantic = [name for name in options.deliveries if name.startswith(SEMANTIC)]
    if not semantic and PIXELS not in options.deliveries:
        return links
    load_quietly()
    profile = load_profile(options.profile)
    if PIXELS in options.deliveries:
        if profile.pixel_codec is None:
            raise InvalidInputError("--delivery", "another one: the profile names no pixel_codec", PIXELS)
        links[PIXELS] = pixels = PixelLink.load(profile)
        if (note := pixels.rate_note(options.cbr)) is not None:
            plain_console(stderr=True).print(f"{PIXELS}: {note}", style="yellow", soft_wrap=True)
    if not semantic:
        return links
    check_latents(profile)
    generator = Generator.from_profile(profile, "edge")
    folders = {
        "semantic": (profile.codec, profile.adapters),
        "semantic-unaligned": (profile.codec_without_alignment, None),
    }
    return links | {name: SemanticLink(AlignedCodec.load(*folders[name]), generator) for name in semantic}


def _sent(
    file: PictureFile, picture: Picture, links: Mapping[str, SemanticLink], options: LinkOptions, seed: int
) -> Iterator[tuple[str, ReceivedPicture]]:
    """What arrives of a picture with each delivery."""
    from dekag.pipeline import send_file

    for delivery in options.deliveries:
        if delivery == "conventional":
            yield (
                delivery,
                send_file(
                    picture,
                    options.conditions,
                    image_format=options.image_format,
                    seed=seed,
                    traces=options.traces,
                ),
            )
            continue
        aligned = delivery == "semantic"
        yield (
            delivery,
            links[delivery].picture(
                picture,
                options.conditions,
                prompt=file.prompt if options.prompt is None else options.prompt,
                seed=seed,
                cbr=options.cbr,
                target_psnr_db=options.target_psnr_db if aligned else None,
                restoration=options.restoration if aligned else "none",  # type: ignore[arg-type]
                traces=options.traces,
                measure=False,  # which is no part of the delivery, whose energy is metered
            ),
        )


def _limit_db(picture: Picture, links: Mapping[str, SemanticLink], seed: int) -> float | None:
    """PSNR of the autoencoder alone, dB, which all semantic deliveries share; None without any."""
    link = next((link for name, link in links.items() if name.startswith(SEMANTIC)), None)
    return None if link is None else link.autoencoder_psnr_db(picture, seed)


def _metered(meter: EnergyMeter, work: Iterator[_Sent]) -> Iterator[tuple[_Sent, Row]]:
    """Each result with the energy that it took; without that where it is not known."""
    meter.joules()  # what was used before
    for each in work:
        joules = meter.joules()
        yield each, {} if joules is None else {"joules": round(joules, 6)}
        meter.joules()


def _row(file: PictureFile, delivery: str, received: ReceivedPicture, limit_db: float | None) -> Row:
    picture, tiling = received.picture, received.tiling
    return {
        "picture": file.name,
        "delivery": delivery,
        "seed": received.seed,
        "width": picture.width,
        "height": picture.height,
        "format": picture.format,
        "notes": list(picture.notes),
        "tiling": None if tiling is None else str(tiling),
        "channel_uses": received.channel_uses,
        "pilot_uses": received.pilot_uses,
        "cbr": received.cbr,
        "decoded": received.pixels is not None,
        "psnr_db": received.psnr_db,
        "ssim": received.ssim,
        "scores": _scores(received),
        "autoencoder_psnr_db": limit_db,
        "expected_psnr_db": received.expected_psnr_db,
        "file_bytes": received.file_bytes,
    }


def _scores(received: ReceivedPicture) -> dict[str, float | None]:
    """By each plug-in metric that can score pictures of that size; None: not finite, or nothing arrived."""
    sent, pixels = received.picture.pixels, received.pixels
    scores: dict[str, float | None] = {}
    for name, metric in plugins.plugged_in("metric").items():
        if min(sent.shape[:2]) < metric.smallest_side:
            continue
        value = math.nan if pixels is None else _score(metric, pixels, sent)
        scores[name] = value if math.isfinite(value) else None
    return scores


def _score(metric: Metric, pixels: Pixels, sent: Pixels) -> float:
    """The score of one image; NaN, and a note, if the code of the metric fails."""
    try:
        # copies, as the code of a plug-in may write to them
        return float(metric.score(pixels[None].copy(), sent[None].copy())[0])
    except Exception as error:  # anything that a plug-in raises
        said = f"the metric {metric.name} failed: {type(error).__name__}: {error}"
        plain_console(stderr=True).print(said, style="red", soft_wrap=True)
        return math.nan


def _told(file: PictureFile, error: DekagError) -> str:
    """Why a picture could not be sent; errors of its file name that themselves."""
    return str(error) if isinstance(error, FileError) else f"{file.name}: {as_typed(error)}"


def _received_names(pictures: Iterable[PictureFile]) -> dict[str, str]:
    """What the received picture of each is called, a PNG: no two alike."""
    sent = [each.name for each in pictures]
    names = {name: name for name in sent if name.lower().endswith(".png")}
    taken = set(names)
    for name in sent:
        if name not in names:
            received = f"{name}.png"
            while received in taken:
                received += ".png"
            taken.add(received)
            names[name] = received
    return names


def _saved(name: str, delivery: str, received: ReceivedPicture, output: Path) -> Row:
    """Where the received picture was written, under that name."""
    if received.pixels is None:
        return {"received": None}
    path = output / delivery / name
    path.parent.mkdir(parents=True, exist_ok=True)
    received.save(path)
    return {"received": str(path)}


def _notes(rows: Sequence[Row], cbr: float) -> Iterator[str]:
    """How each picture was sent, what was done to its samples, and which rate is not the one asked for."""
    for name in dict.fromkeys(row["picture"] for row in rows):
        own = [row for row in rows if row["picture"] == name]
        ways = dict.fromkeys(row["tiling"] or f"a file of {row['file_bytes']:,} bytes" for row in own)
        yield f"{name}: {'; '.join([*own[0]['notes'], *ways])}"
        for row in own:
            if cbr and row["tiling"] is not None and abs(row["cbr"] / cbr - 1) > _RATE_SHOWN:
                sent = f"sent at CBR {_rate(row['cbr'])} instead of {_rate(cbr)}"
                yield f"{name}, {row['delivery']}: {sent}, which codec and size do not have"


def _table(rows: Sequence[Row]) -> Table:
    """One line for each picture and delivery; for several pictures, their means."""
    scored = dict.fromkeys(name for row in rows for name in row["scores"])
    energy = ["energy"] * any("joules" in row for row in rows)
    numbers = ("channel\nuses", "CBR", "PSNR,\ndB", "limit,\ndB", "SSIM")  # narrow: terminals have 80 columns
    table = Table("picture", "delivery", *numbers, *scored, *energy)
    table.columns[0].overflow = "fold"  # names of batches differ at their ends
    table.columns[1].no_wrap = True
    for column in table.columns[2:]:
        column.justify, column.no_wrap = "right", True
    for row in rows:
        table.add_row(row["picture"], row["delivery"], *_numbers([row], scored))
    if len({row["picture"] for row in rows}) > 1:
        table.add_section()
        for delivery in dict.fromkeys(row["delivery"] for row in rows):
            own = [row for row in rows if row["delivery"] == delivery]
            there = sum(row["decoded"] for row in own)
            lost = "" if there == len(own) else f", {len(own) - there} not decoded"
            table.add_row(f"mean of {there}{lost}", delivery, *_numbers(own, scored))
    return table


def _numbers(rows: Sequence[Row], scored: Iterable[str]) -> list[str]:
    """Means over rows, as the table shows them; at its end, those of plug-in metrics."""

    def mean(name: str) -> float | None:
        return _mean([row[name] for row in rows])

    uses, cbr, psnr, ssim, ceiling = map(
        mean, ("channel_uses", "cbr", "psnr_db", "ssim", "autoencoder_psnr_db")
    )
    scores = [_mean([row["scores"].get(name) for row in rows]) for name in scored]
    joules = _mean([row.get("joules") for row in rows])
    return [
        f"{uses:,.0f}",
        _rate(cbr),
        "lost" if psnr is None else f"{psnr:.2f}",
        "-" if ceiling is None else f"{ceiling:.2f}",
        "-" if ssim is None else f"{ssim:.3f}",
        *("-" if score is None else f"{score:.4g}" for score in scores),
        *([] if joules is None else [f"{joules:.3g} J"]),
    ]


def _rate(cbr: float | None) -> str:
    """A rate as a fraction; as a number where a value takes more than one channel use."""
    if not cbr:
        return "-"
    return f"{cbr:.1f}" if cbr > 1 else f"1/{1 / cbr:.1f}"


def _mean(values: Iterable[float | None]) -> float | None:
    """The mean of those that there are; None if there are none."""
    there = [value for value in values if value is not None]
    return fmean(there) if there else None
