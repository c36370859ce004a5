"""What a sweep can know before it measures anything: points that cannot be measured are refused at once."""

from __future__ import annotations

from collections.abc import Sequence

from dekag import plugins
from dekag.console import plain_console
from dekag.errors import InvalidInputError
from dekag.evaluation.models import ModelBank
from dekag.evaluation.sweeps.grid import DIGITAL, PIXELS, WORLD, EvaluationPoint, PictureSource, Sweep
from dekag.inventory import latent_shape
from dekag.pictures import Tiling
from dekag.profile import load_profile

JUDGED = ("clip", "dino", "consistency", "probe")
"""Metrics that need the profile's scorer."""


def check_metrics(sweep: Sweep) -> None:
    """Refuse plug-ins that cannot score here, and the metric probe, if it was asked for, without a probe.

    As one of the usual metrics, probe only has no values then.

    Raises:
        InvalidInputError: names the field of the sweep.
        NotFoundError: there is no such profile, or a plug-in lacks something.
    """
    for name, metric in plugins.plugged_in("metric").items():
        if name in sweep.metrics:
            metric.check()
    if "probe" not in sweep.metrics or "metrics" not in sweep.model_fields_set:
        return
    scorer = load_profile(sweep.profile).scorer
    if scorer is None or scorer.probe is None:
        allowed = f"without probe, as the profile {sweep.profile} names no scorer.probe"
        raise InvalidInputError("metrics", allowed, ", ".join(sweep.metrics))


def check_points(points: Sequence[EvaluationPoint]) -> None:
    """Refuse points that cannot be measured. Loads codecs and adapters, and reads the pictures.

    Args:
        points: of one profile and of the same pictures.

    Raises:
        InvalidInputError: names the field of the sweep and what it allows.
        FileError: pictures are damaged or too large; names all of them.
        NotFoundError: the profile has no scorer, which a metric or a digital delivery needs.
    """
    if not points:
        return
    bank = ModelBank(points[0].profile)
    for point in points:
        _check_models(point, bank)
    _check_rates(points, bank)


def _check_models(point: EvaluationPoint, bank: ModelBank) -> None:
    """What the profile must have for a point."""
    delivery = point.delivery
    if delivery.codec == "adapters" and bank.profile.adapters is None:
        allowed = f"deliveries without adapters, which the profile {point.profile} does not have"
        raise InvalidInputError("deliveries", allowed, delivery.name)
    if delivery.knowledge and point.topic not in (WORLD, *bank.taught):
        allowed = f"of {', '.join([WORLD, *bank.taught])}, as the profile has no other updates"
        raise InvalidInputError("topics", allowed, point.topic)
    if delivery.restoration:
        if bank.adapters.restoration is None or bank.adapters.quality is None:
            allowed = "without restoration: the profile's adapters do not say how to restore"
            raise InvalidInputError("deliveries", allowed, delivery.name)
        if point.link.csi == "none":
            allowed = "perfect or pilots with restoration, which needs to know how good a latent is"
            raise InvalidInputError("links.csi", allowed, "none")
    if set(point.metrics) & {*JUDGED} or (delivery.codec in DIGITAL and point.pictures is None):
        _ = bank.evaluators


def _check_rates(points: Sequence[EvaluationPoint], bank: ModelBank) -> None:
    """Whether the codecs can send at the rates."""
    sizes = [(bank.profile.size, bank.profile.size)]
    if (source := points[0].pictures) is not None:
        sizes = _sizes(source)
    rates = {(point.delivery.codec, point.cbr): point.delivery.name for point in points}
    for (codec, cbr), name in rates.items():
        if codec == PIXELS:
            _check_pixels(name, cbr, sizes, bank)
        elif codec in ("unaligned", "base", "adapters"):
            most = min(_highest(codec, *size, bank) for size in sizes)
            if cbr > most:
                allowed = f"at most {most:.6g} (1/{1 / most:.4g}) for the delivery {name}"
                raise InvalidInputError("cbr", allowed, cbr)


def _sizes(source: PictureSource) -> list[tuple[int, int]]:
    """Width and height of the pictures, each once."""
    read = source.found().read()
    return list(dict.fromkeys((picture.width, picture.height) for _, picture in read))


def _highest(codec: str, width: int, height: int, bank: ModelBank) -> float:
    """The highest rate at which a codec of latents sends an image or a picture of that size."""
    tiling = Tiling.of(width, height, bank.profile.size)
    shape = latent_shape(bank.profile, tiling.tile_width, tiling.tile_height)
    return bank.codecs[codec].max_channel_uses(shape) * tiling.count / tiling.source_values


def _check_pixels(name: str, cbr: float, sizes: Sequence[tuple[int, int]], bank: ModelBank) -> None:
    """The codec of pixels says itself what it allows."""
    if (note := bank.pixel_link.rate_note(cbr)) is not None:
        plain_console(stderr=True).print(f"{name}: {note}", style="yellow", soft_wrap=True)
    for width, height in sizes:
        try:
            bank.pixel_link.rate(width, height, cbr)
        except InvalidInputError as error:
            allowed = f"{error.allowed}, the delivery {name}, with a picture of {width}x{height}"
            raise InvalidInputError(error.field, allowed, cbr) from None
