"""Bytes from cloud to edge in a load test, beside what files would have taken. No Locust in here.

Aligned semantic delivery takes bytes for knowledge updates, for files that the demand policy sends, and for
the questions of that policy. It is compared with sending the cloud's image of every request as a file: of
equal consistency, and of the quality that conventional delivery sends; to an edge that keeps the files in a
cache, and to one that does not.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from dekag.makd.demand import REPLAYED, ImageDemand, crossing, replay

if TYPE_CHECKING:
    from services.bench.loadtest.report import Answer

BACKHAUL = "cloud-edge"
EQUAL, USUAL = "webp_equal_consistency", "webp_q75"
FILES = {EQUAL: "WebP of equal consistency", USUAL: "WebP of quality 75, as conventional delivery sends it"}
NO_TOPIC = ""
_CURVE_POINTS = 400
Group = tuple[str, ...]


@dataclass(frozen=True)
class Quality:
    """What was measured after a run, on some of its answers.

    Attributes:
        consistency: of the images that the edge sent with the cloud's own, by request id.
        file_bytes: mean bytes of a file, by kind of FILES and by the topics of its request.
        equal_psnr_uses: channel uses of the delivery and of a WebP of equal PSNR over the same link, by
            request id.
        received_consistency: of the images that arrived, by request id.
        usual_consistency: of files of quality 75 with the image itself, on average; None if unknown.
        psnr_db: of the images that arrived, against those that the edge sent, by request id.
        missing: why nothing was measured; empty if it was.
    """

    consistency: Mapping[str, float]
    file_bytes: Mapping[str, Mapping[Group, float]]
    equal_psnr_uses: Mapping[str, tuple[int, int]]
    received_consistency: Mapping[str, float] = field(default_factory=dict)
    usual_consistency: float | None = None
    psnr_db: Mapping[str, float] = field(default_factory=dict)
    missing: str = ""


def psnrs(answers: Iterable[Answer]) -> list[float]:
    """Of the images that decoded and were measured, each against what was sent, dB."""
    found = [each.report["psnr_db"] for each in answers]
    return [psnr for psnr in found if psnr is not None]


def group(answer: Answer) -> Group:
    """The topics that an answer is counted under: those that its prompt needs."""
    return answer.needs


def compared(
    answers: Sequence[Answer], updates: Mapping[str, int], quality: Quality, *, load_s: float
) -> dict[str, Any]:
    """The traffic of aligned semantic deliveries beside files.

    Args:
        answers: those that were answered; others than semantic ones only tell the size of files.
        updates: bytes of each topic's current update. An edge that held one before the run is charged with it
            at its first use.
        quality: of the answers.
        load_s: how long requests were sent, s.

    Returns:
        What report.json holds as `backhaul`: bytes and channel uses; break-even in images and in minutes at
        this load, null where there is none.
    """
    own = sorted((each for each in answers if each.delivery == "semantic"), key=lambda each: each.planned_s)
    spent, charged = _spent(own, updates)
    total, per_min = sum(spent), 60 * len(own) / load_s if load_s > 0 else 0.0
    curves: dict[str, list[float]] = {"ours": np.cumsum(spent).tolist() if spent else []}
    sizes = dict(quality.file_bytes)
    if USUAL not in sizes and (usual := _conventional(answers)):
        sizes[USUAL] = usual
    files = {}
    for kind, by_group in sizes.items():
        every = [by_group.get(group(each), _mean(by_group)) for each in own]
        if not sum(every):
            continue  # nothing to save on
        once = _cached(own, every)
        curves |= {kind: np.cumsum(every).tolist(), f"{kind}_cached": np.cumsum(once).tolist()}
        files[kind] = {
            "bytes": sum(every),
            "cached_bytes": sum(once),
            "saved_percent": _saved(total, sum(every)),
            "saved_percent_cached": _saved(total, sum(once)),
            "policies": _policies(own, updates, by_group),
            **_break_even(curves["ours"], curves[kind], charged, per_min),
        }
    main = next((kind for kind in FILES if kind in files), None)
    radio = list(quality.equal_psnr_uses.values())
    return {
        "requests": len(own),
        "bytes": total,
        "update_bytes": charged,
        "requests_per_minute": per_min,
        "consistency": _consistency(own, quality.consistency),
        "received_consistency": _consistency(own, quality.received_consistency),
        "usual_consistency": quality.usual_consistency,
        "psnr_db": _measured(psnrs(own)),
        "usual_psnr_db": _measured(psnrs([each for each in answers if each.delivery == "conventional"])),
        "channel_uses": sum(each.channel_uses for each in own),
        "radio_saved_percent": _saved(sum(ours for ours, _ in radio), sum(theirs for _, theirs in radio)),
        "radio_compared": len(radio),
        "radio_psnr_db": _measured(
            [quality.psnr_db[each.request_id] for each in own if each.request_id in quality.equal_psnr_uses]
        )["mean"],
        "quality_missing": quality.missing,
        "files": files,
        "main": main,
        "topics": _topics(own, spent, updates, quality, sizes, per_min),
        "curves": {name: _thinned(curve) for name, curve in curves.items()},
    }


def _spent(own: Sequence[Answer], updates: Mapping[str, int]) -> tuple[list[float], float]:
    """Bytes of each answer in turn, and those of updates among them.

    An update that an edge fetched before the run, or that Redis gave it, is charged at its first use.
    """
    fetched: dict[str, float] = defaultdict(float)
    for answer in own:
        for topic in answer.topics:
            # not the sum: other answers took only a question to the demand policy
            fetched[topic] = max(fetched[topic], answer.hop_bytes(BACKHAUL) / len(answer.topics))
    spent, seen, charged = [], set(), 0.0
    for answer in own:
        cost = float(answer.hop_bytes(BACKHAUL))
        for topic in answer.topics:
            if topic not in seen:
                seen.add(topic)
                size = max(float(updates.get(topic, 0)), fetched[topic])  # names and messages included
                charged += size
                cost += max(0.0, size - fetched[topic])
        spent.append(cost)
    return spent, charged


def _conventional(answers: Sequence[Answer]) -> dict[Group, float]:
    """Mean bytes that conventional deliveries took, by topics; empty without any."""
    sizes: dict[Group, list[int]] = defaultdict(list)
    for answer in answers:
        if answer.delivery == "conventional":
            sizes[group(answer)].append(answer.hop_bytes(BACKHAUL))
    return {topics: float(np.mean(own)) for topics, own in sizes.items()}


def _cached(own: Sequence[Answer], sizes: Sequence[float]) -> list[float]:
    """The bytes of files to an edge that keeps them: each image costs something once."""
    seen: set[tuple[str, int]] = set()
    costs = []
    for answer, size in zip(own, sizes, strict=True):
        costs.append(0.0 if answer.image in seen else size)
        seen.add(answer.image)
    return costs


def _policies(
    own: Sequence[Answer], updates: Mapping[str, int], sizes: Mapping[Group, float]
) -> dict[str, float]:
    """Bytes of the same requests under each policy that can be replayed, with files of these sizes."""
    load = [
        ImageDemand(each.needs, "{} {}".format(*each.image), sizes.get(group(each), _mean(sizes)))
        for each in own
    ]
    return _replayed(load, updates)


def _replayed(load: Sequence[ImageDemand], updates: Mapping[str, int]) -> dict[str, float]:
    curves = {policy: replay(policy, load, updates) for policy in REPLAYED}
    return {str(policy): curve[-1] if curve else 0.0 for policy, curve in curves.items()}


def policies(found: Mapping[str, Any], updates: Mapping[str, int]) -> dict[str, dict[str, float]]:
    """Bytes of a load test's requests under each policy, by kind of FILES.

    Earlier reports hold them for one kind only. For these, the counts of each group of topics are replayed:
    first its different images, then their repeats, each with the mean file of the group. With prompts of one
    topic each, this takes the same bytes as the order of the run, unless a topic has exactly as many images
    as the break-even rule sends files of it.

    Args:
        found: what `compared` returned.
        updates: bytes of each topic's update.
    """
    by_kind = {}
    for kind in FILES:
        if (own := found.get("files", {}).get(kind)) is not None:
            by_kind[kind] = own["policies"] if "policies" in own else _of_counts(found, kind, updates)
    return by_kind


def _of_counts(found: Mapping[str, Any], kind: str, updates: Mapping[str, int]) -> dict[str, float]:
    load = []
    for each in found["topics"]:
        topics, size = tuple(each["topics"]), each["files"][kind]["bytes_each"]
        names = [f"{topics} {n % each['images']}" for n in range(each["requests"])]
        load += [ImageDemand(topics, name, size) for name in names]
    return _replayed(load, updates)


def _topics(
    own: Sequence[Answer],
    spent: Sequence[float],
    updates: Mapping[str, int],
    quality: Quality,
    sizes: Mapping[str, Mapping[Group, float]],
    per_min: float,
) -> list[dict[str, Any]]:
    """For each group of topics, and for images without one, what it took and what files would have taken."""
    counts = Counter(group(each) for each in own)
    found = []
    for topics, requests in sorted(counts.items()):
        mine = [each for each in own if group(each) == topics]
        update = sum(updates.get(topic, 0) for topic in topics)
        images = len({each.image for each in mine})
        row: dict[str, Any] = {
            "topics": list(topics),
            "requests": requests,
            "images": images,
            "update_bytes": update if topics else None,
            "drawn_with_update": sum(bool(each.topics) for each in mine),
            "files_sent": sum(each.report.get("source") == "cloud" for each in mine),
            "bytes": sum(cost for each, cost in zip(own, spent, strict=True) if group(each) == topics),
            "consistency": _measured(_scores(mine, quality.consistency)),
            "received_consistency": _measured(_scores(mine, quality.received_consistency)),
            "files": {},
        }
        for kind, by_group in sizes.items():
            size = by_group.get(topics, _mean(by_group))
            pays = math.ceil(update / size) if size > 0 else None
            rate = per_min * requests / len(own)
            row["files"][kind] = {
                "bytes": size * requests,
                "bytes_each": size,
                "saved_by_cache": size * (requests - images),
                "saved_percent": _saved(row["bytes"], size * requests),
                "break_even_images": pays,
                "break_even_minutes": pays / rate if pays is not None and rate else None,
            }
        found.append(row)
    return found


def _break_even(
    ours: Sequence[float], theirs: Sequence[float], charged: float, per_min: float
) -> dict[str, Any]:
    """From which image on ours stays the cheaper, in the run or, by its means, after it."""
    reached = crossing(ours, theirs)
    images = reached
    if reached is None and ours:
        each = (ours[-1] - charged) / len(ours)
        gain = theirs[-1] / len(ours) - each
        images = math.ceil(charged / gain) if gain > 0 else None
    return {
        "break_even_images": images,
        "break_even_minutes": images / per_min if images is not None and per_min > 0 else None,
        "break_even_in_run": reached is not None,
    }


def _scores(answers: Sequence[Answer], scores: Mapping[str, float]) -> list[float]:
    return [scores[each.request_id] for each in answers if each.request_id in scores]


def _consistency(own: Sequence[Answer], by_id: Mapping[str, float]) -> dict[str, Any]:
    """The mean over requests, from the means of those that were measured of each group of topics."""
    counts = Counter(group(each) for each in own)
    means = {
        topics: scores
        for topics in counts
        if (scores := _scores([each for each in own if group(each) == topics], by_id))
    }
    total = sum(counts[topics] for topics in means)
    mean = sum(counts[topics] * float(np.mean(scores)) for topics, scores in means.items())
    return {"n": sum(map(len, means.values())), "mean": mean / total if total else None}


def _measured(values: Sequence[float]) -> dict[str, Any]:
    return {"n": len(values), "mean": float(np.mean(values)) if values else None}


def _mean(by_group: Mapping[Group, float]) -> float:
    return float(np.mean(list(by_group.values()))) if by_group else 0.0


def _saved(ours: float, theirs: float) -> float | None:
    return 100 * (1 - ours / theirs) if theirs > 0 else None


def _thinned(curve: Sequence[float]) -> list[list[float]]:
    """Points [images, bytes] of a curve, evenly spaced, the first and the last among them."""
    chosen = np.unique(np.linspace(0, len(curve) - 1, min(len(curve), _CURVE_POINTS)).round().astype(int))
    return [[int(i) + 1, round(curve[i], 1)] for i in chosen] if len(curve) else []


def verdict(found: Mapping[str, Any]) -> str:
    """The traffic in one line: totals, what was saved at equal quality, and the break-even."""
    if not found["requests"]:
        return "No aligned semantic image was delivered."
    main = found["main"]
    parts = [f"**{found['bytes']:,.0f} B** cloud-edge"]
    if main is not None:
        own = found["files"][main]
        quality = found["consistency"]
        at = f" ({quality['mean']:.2f})" if main == EQUAL and quality["mean"] is not None else ""
        usual = f"WebP of quality 75 ({_compared(found['usual_psnr_db']['mean'], found['psnr_db']['mean'])})"
        named = f"WebP of equal consistency{at}" if main == EQUAL else usual
        parts[0] += f", {_more_or_less(own['saved_percent'])} than {named}"
    parts.append(f"**{found['channel_uses']:,} channel uses** edge-user")
    if found["radio_saved_percent"] is not None:
        psnr = found["radio_psnr_db"]
        saved = _more_or_less(found["radio_saved_percent"], "fewer")
        parts[-1] += f", {saved} than WebP of equal PSNR ({psnr:.1f} dB)"
    if main is not None:
        parts.append(_break_even_text(found["files"][main]))
    if untaught := _untaught(found["topics"]):
        parts.append(f"**no update of {', '.join(untaught)}**: their images are those of the untaught edge")
    return "; ".join(parts) + "."


def _compared(theirs: float | None, ours: float | None) -> str:
    """What is known of the quality of files as conventional delivery sends them, and of ours."""
    if theirs is None or ours is None:
        return "quality not measured"
    word = "better" if theirs > ours else "worse"
    said = [f"{each:.1f} dB" for each in (theirs, ours)]
    quality = "equally good images" if said[0] == said[1] else f"{word} images"
    return f"{quality}: PSNR {said[0]}, ours {said[1]}"


def _untaught(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Topics whose images were neither drawn with an update nor sent as files: nothing was spent on them."""
    drawn_so = [row for row in rows if not row["drawn_with_update"] and not row["files_sent"]]
    return sorted({topic for row in drawn_so for topic in row["topics"]})


def _more_or_less(saved: float, fewer: str = "less") -> str:
    return f"{saved:.0f} % {fewer}" if saved >= 0 else f"{-saved:.0f} % **more**"


def _break_even_text(own: Mapping[str, Any]) -> str:
    images, minutes = own["break_even_images"], own["break_even_minutes"]
    if images is None:
        return "no break-even at this load"
    when = f" ({minutes:,.1f} min at this load)" if minutes is not None else ""
    reached = "break-even after" if own["break_even_in_run"] else "not yet paid: break-even after about"
    return f"{reached} {images:,} images{when}"
