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
from services.bench.loadtest.backhaul import EQUAL, USUAL, Group, Quality, group
from services.bench.loadtest.quality import equal_consistency, equal_psnr, image_files, spread_over_topics
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

    Some answers are requested once more, with the same knowledge, and compared with the cloud's image: the
    same request gives the same image. Images that the demand policy had sent as files are left out, as they
    cannot be requested by name.

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
    consistency: dict[str, float] = {}
    try:
        with Client(url, timeout_s=90) as client:
            for answer in track(chosen, "quality", console=console):
                body = dict(bodies[answer.request_id]) | {"knowledge": answer.topics or "none"}
                image = client.image(**body, consistency=True)
                if image.consistency is not None:
                    consistency[answer.request_id] = image.consistency.mean
        files = image_files(
            list(dict.fromkeys(each.image for each in chosen)),
            profile,
            on_progress=lambda starts: track(starts, "files", console=console),
        )
    except DekagError as error:
        return Quality(consistency, {}, {}, missing=str(error))
    sizes: dict[str, dict[Group, float]] = defaultdict(dict)
    for topics in {group(each) for each in chosen}:
        own = [each for each in chosen if group(each) == topics]
        sizes[USUAL][topics] = float(np.mean([files[each.image].usual_bytes for each in own]))
        scored = [each for each in own if each.request_id in consistency]
        equal = equal_consistency(
            [consistency[each.request_id] for each in scored],
            [files[each.image].ladders["webp"] for each in scored],
        )
        if equal is not None:
            sizes[EQUAL][topics] = equal
    uses = {
        each.request_id: (
            each.channel_uses,
            equal_psnr(each.report, files[each.image].ladders["webp"]).channel_uses,
        )
        for each in chosen
        if each.report["psnr_db"] is not None
    }
    usual = [each.usual_consistency for each in files.values() if each.usual_consistency is not None]
    return Quality(consistency, sizes, uses, float(np.mean(usual)) if usual else None)
