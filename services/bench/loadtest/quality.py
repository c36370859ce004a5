"""Files of the same quality as what a load test delivered: their bytes, and their channel uses.

The cloud's image of a request is generated again and encoded at many qualities and scales. Backhaul and radio
link are compared each at its own quality. A file is of *equal consistency* if it is as consistent with the
cloud's image as the image that the edge sent; of *equal PSNR* if it shows the cloud's image with no lower
PSNR than the delivery showed the edge's. No Locust in here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dekag.evaluation.studies.digital import Ladder, scored_ladder
from dekag.evaluation.studies.end_to_end import file_bytes
from dekag.generation.images import Pixels, from_bytes, to_webp
from dekag.generation.models import Generator
from dekag.link import LinkConditions
from dekag.link.digital import DigitalLink
from dekag.link.image_coding import ladders
from dekag.metrics.features import ImageScorer
from dekag.profile import Profile, load_profile

BATCH = 8
LINK_FIELDS = (
    "snr_db", "fading", "tau_rms_s", "rician_k_db", "speed_m_s", "trace", "trace_start_s", "csi", "equalizer"
)  # fmt: skip
Image = tuple[str, int]
"""Prompt and seed."""


@dataclass(frozen=True)
class ImageFiles:
    """Files of one image of the cloud.

    Attributes:
        pixels: (height, width, 3) uint8, of the image itself.
        ladders: by format, whole files by rising bytes.
        usual_bytes: of the file that a conventional delivery sends, WebP of quality 75.
        usual_consistency: of that file with the image itself; None without encoders.
    """

    pixels: Pixels
    ladders: Mapping[str, Ladder]
    usual_bytes: int
    usual_consistency: float | None


@dataclass(frozen=True)
class EqualFile:
    """The smallest file of at least a PSNR, or the best there is, and its delivery over a link."""

    size_bytes: int
    psnr_db: float
    channel_uses: int


def scorer_of(profile: Profile) -> ImageScorer | None:
    """The encoders of a profile; None if it has none."""
    return None if profile.scorer is None else ImageScorer.load(**profile.scorer.encoders)


def image_files(
    images: Sequence[Image],
    profile: str,
    *,
    formats: Sequence[Any] = ("webp",),
    on_progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> dict[Image, ImageFiles]:
    """Files of the cloud's images of these prompts and seeds, with their consistency.

    Args:
        images: prompts and seeds.
        profile: whose models generate and score; of one without encoders, files have only their PSNR.
        formats: of the ladders.
        on_progress: wraps the loop over the batches, to show progress.

    Raises:
        NotFoundError: there is no such profile.
    """
    models = load_profile(profile)
    cloud = Generator.from_profile(models, "cloud")
    scorer = scorer_of(models)
    found = {}
    for start in on_progress(range(0, len(images), BATCH)):
        part = images[start : start + BATCH]
        latents = cloud.batch([prompt for prompt, _ in part], [seed for _, seed in part])
        for image, pixels in zip(part, cloud.decoder.decode(latents), strict=True):
            by_format = {}
            for name in formats:
                if scorer is not None:
                    by_format[name] = scored_ladder(pixels, name, scorer)
                    continue
                rungs, _ = ladders(pixels, name)
                by_format[name] = Ladder(
                    [len(rung.data) for rung in rungs],
                    [(rung.quality, rung.scale) for rung in rungs],
                    np.array([[rung.psnr_db] for rung in rungs]),
                )
            usual = to_webp(pixels)
            score = None
            if scorer is not None:
                shown = from_bytes(usual, max_side=max(pixels.shape))
                score = float(np.mean([*scorer.scores(shown[None], pixels[None]).values()]))
            found[image] = ImageFiles(pixels, by_format, len(usual), score)
    return found


def equal_psnr(report: Mapping[str, Any], ladder: Ladder) -> EqualFile:
    """The smallest file of at least the PSNR of a link report, delivered over the same link."""
    psnrs = ladder.values[:, 0]
    enough = np.flatnonzero(psnrs >= report["psnr_db"])
    rung = int(enough[0]) if len(enough) else int(psnrs.argmax())
    link, size = DigitalLink(), ladder.sizes[rung]
    # null: of no matter to that kind of fading
    given = {name: report[name] for name in LINK_FIELDS if report[name] is not None}
    coding = link.choose(LinkConditions.model_validate(given), size)
    return EqualFile(size, float(psnrs[rung]), link.channel_uses(size, coding))


def equal_consistency(consistencies: Sequence[float], rungs: Sequence[Ladder]) -> float | None:
    """Mean bytes of files whose mean consistency is that of the edge's images; None of unscored files.

    Args:
        consistencies: of the images that the edge sent, with the cloud's own.
        rungs: of the cloud's images of the same requests.
    """
    if not consistencies or any(ladder.values.shape[1] < 2 for ladder in rungs):
        return None
    return file_bytes(rungs, float(np.mean(consistencies)))


def spread_over_topics(
    answers: Sequence[Any], most: int, topics: Callable[[Any], tuple[str, ...]]
) -> list[Any]:
    """At most so many answers, as evenly as there are over their topics and over the run.

    Args:
        answers: in the order of the run.
        most: as many as are wanted, or one for each group of topics if there are more groups.
        topics: that an answer is counted under.
    """
    groups: dict[tuple[str, ...], list[Any]] = defaultdict(list)
    for answer in answers:
        groups[topics(answer)].append(answer)
    wanted, left = [], max(most, len(groups))
    by_size = sorted(groups.values(), key=len)
    for position, own in enumerate(by_size):
        count = min(len(own), left // (len(by_size) - position))
        left -= count
        wanted += [own[int(i)] for i in np.linspace(0, len(own) - 1, count).round()]
    return wanted
