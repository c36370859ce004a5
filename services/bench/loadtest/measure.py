"""Measures, after a load test, the quality of what it delivered, and files of that quality.

No Locust in here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from dekag.client import Client
from dekag.errors import DekagError
from dekag.generation.images import Pixels, from_bytes
from dekag.profile import load_profile
from services.bench.loadtest.backhaul import EQUAL, USUAL, Group, Quality, group
from services.bench.loadtest.quality import (
    equal_consistency,
    equal_psnr,
    image_files,
    scorer_of,
    spread_over_topics,
)
from services.bench.loadtest.report import Answer


def measured_quality(
    answers: Sequence[Answer],
    bodies: Mapping[str, Mapping[str, Any]],
    url: str,
    profile: str,
    *,
    most: int,
    console: Console,
) -> Quality:
    """Quality of aligned semantic answers, and files that match it.

    Some answers are requested once more, with the same knowledge, and compared with the cloud's image, as the
    edge sent them and as they arrived: the same request gives the same image. Images that the demand policy
    had sent as files are left out, as they cannot be requested by name.

    Args:
        answers: of the run.
        bodies: of their requests, by request id.
        url: of the gateway.
        profile: whose models generate the cloud's images here again.
        most: answers that are measured at most, spread over topics; 0: none.
        console: shows the progress.
    """
    drawn = [each for each in answers if each.error is None and each.delivery == "semantic"]
    chosen = spread_over_topics([each for each in drawn if each.report["source"] == "edge"], most, group)
    if not most or not chosen:
        return Quality({}, {}, {}, missing="the edge drew no image" if most else "it was not asked for")
    received: dict[str, float] = {}
    references: dict[str, bytes] = {}
    psnrs: dict[str, float] = {}
    try:
        with Client(url, timeout_s=90) as client:
            for answer in track(chosen, "quality", console=console):
                body = dict(bodies[answer.request_id]) | {"knowledge": answer.topics or "none"}
                image = client.image(**body | {"consistency": True, "measure": True, "details": True})
                if image.report.psnr_db is not None:
                    psnrs[answer.request_id] = image.report.psnr_db
                if image.consistency is not None:
                    received[answer.request_id] = image.consistency.mean
                if image.reference is not None:
                    references[answer.request_id] = image.reference
        files = image_files(
            list(dict.fromkeys(each.image for each in chosen)),
            profile,
            on_progress=lambda starts: track(starts, "files", console=console),
        )
    except DekagError as error:
        return Quality({}, {}, {}, missing=str(error))
    sent = _scores(references, {each.request_id: files[each.image].pixels for each in chosen}, profile)
    sizes: dict[str, dict[Group, float]] = defaultdict(dict)
    for topics in {group(each) for each in chosen}:
        own = [each for each in chosen if group(each) == topics]
        sizes[USUAL][topics] = float(np.mean([files[each.image].usual_bytes for each in own]))
        scored = [each for each in own if each.request_id in sent]
        equal = equal_consistency(
            [sent[each.request_id] for each in scored],
            [files[each.image].ladders["webp"] for each in scored],
        )
        if equal is not None:
            sizes[EQUAL][topics] = equal
    uses = {
        each.request_id: (
            each.channel_uses,
            equal_psnr(
                {**each.report, "psnr_db": psnrs[each.request_id]}, files[each.image].ladders["webp"]
            ).channel_uses,
        )
        for each in chosen
        if each.request_id in psnrs
    }
    usual = [each.usual_consistency for each in files.values() if each.usual_consistency is not None]
    return Quality(sent, sizes, uses, received, float(np.mean(usual)) if usual else None, psnrs)


def _scores(images: Mapping[str, bytes], references: Mapping[str, Pixels], profile: str) -> dict[str, float]:
    """Consistency of each image, PNG, with its reference; empty without encoders."""
    scorer = scorer_of(load_profile(profile))
    if scorer is None:
        return {}
    found = {}
    for name, png in images.items():
        own, reference = from_bytes(png), references[name]
        found[name] = float(np.mean([*scorer.scores(own[None], reference[None]).values()]))
    return found
