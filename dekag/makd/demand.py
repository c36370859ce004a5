"""When a knowledge update pays: decisions by demand, and what other policies would have cost.

Nobody knows beforehand how often a topic will be requested. An update costs its bytes once; a file of the
cloud's image costs its bytes every time. The break-even rule sends files until they have cost as much as the
update, and then the update. Whatever follows, it costs less than twice the best choice in hindsight and one
file of each topic, as in the ski rental problem (Karlin, Manasse, Rudolph and Sleator, *Competitive snoopy
caching*, 1988). The best choice is of the topics that are taught: a prompt of two topics needs both updates,
or a file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

DemandPolicy = Literal["off", "auto", "always", "never"]
"""`auto`: the break-even rule; `always`: an update at the first request; `never`: files; `off`: updates that
exist, and no files."""
Action = Literal["update", "distil", "file", "wait"]
"""What a request gets: an image drawn with the update; the cloud's image as a file, while an update is made
(`distil`) or without one (`file`); or an image drawn without the update (`wait`)."""


@dataclass(frozen=True)
class TopicDemand:
    """The demand for one topic so far.

    Attributes:
        requests: requests whose prompt needs the topic.
        files: files that were sent for them.
        file_bytes: bytes of these files, cloud to edge.
        sent: whether the update was sent to the edge.
    """

    requests: int = 0
    files: int = 0
    file_bytes: float = 0.0
    sent: bool = False


@dataclass(frozen=True)
class Decision:
    """What the next request of a topic gets, and why in one sentence."""

    action: Action
    reason: str


def decide(
    policy: DemandPolicy,
    demand: TopicDemand,
    *,
    update_bytes: float,
    next_file_bytes: float,
    available: bool = True,
    cannot_distil: str = "",
    budget_left: float = math.inf,
    planned: float = 0.0,
) -> Decision:
    """What the next request of a topic gets.

    Example:
        >>> from dekag.makd.demand import TopicDemand, decide
        >>> few, many = TopicDemand(files=3, file_bytes=7_500), TopicDemand(files=12, file_bytes=30_000)
        >>> [decide("auto", each, update_bytes=30_000, next_file_bytes=2_500).action for each in (few, many)]
        ['file', 'update']

    Args:
        policy: `off` uses updates that exist and draws without those that do not.
        demand: so far, without this request.
        update_bytes: of the topic's update, or expected of one that would be made.
        next_file_bytes: expected of the next file.
        available: whether there is an update.
        cannot_distil: why none can be made; empty if one can.
        budget_left: bytes, cloud to edge, that may still be spent.
        planned: of these, for updates of other topics of the request, which are not sent if it gets a file.
    """
    if policy == "off":
        reason = "the topic has an update" if available else "the topic has no update"
        return Decision("update" if available else "wait", f"{reason}, and no demand policy is set")
    if available and demand.sent and policy != "never":
        return Decision("update", "the edge has the update")
    fits_file, fits_update = next_file_bytes <= budget_left, update_bytes <= budget_left - planned
    spent = f"{demand.files:,} files took {demand.file_bytes:,.0f} B, the update takes {update_bytes:,.0f} B"
    if policy == "never":
        reason = "the policy never sends updates"
    elif policy == "auto" and demand.file_bytes < update_bytes:
        reason = f"{spent}: an update does not pay yet"
    elif not available and cannot_distil:
        reason = f"an update would pay, but {cannot_distil}"
    elif not fits_update:
        reason = "an update would pay, but the budget does not allow it"
    else:
        reason = "the policy sends updates at once" if policy == "always" else f"{spent}: an update pays"
        if available:
            return Decision("update", reason)
        if fits_file:
            return Decision("distil", reason)
    if fits_file:
        return Decision("file", reason)
    return Decision("wait", f"{reason}; the budget does not allow a file either")


@dataclass(frozen=True)
class ImageDemand:
    """A request in the replay of a load.

    Attributes:
        topics: that the prompt needs.
        image: of two requests for the same image, the second finds the file in the edge's cache.
        file_bytes: of the image's file.
    """

    topics: tuple[str, ...]
    image: str
    file_bytes: float


ReplayedPolicy = Literal["files", "cached files", "always", "auto", "never", "hindsight"]
REPLAYED: dict[ReplayedPolicy, str] = {
    "files": "every image as a file",
    "cached files": "every image as a file, kept in a cache of the edge",
    "never": "topics as cached files, no updates",
    "always": "an update at a topic's first request",
    "auto": "the break-even rule",
    "hindsight": "the cheaper of both for each topic alone, known in hindsight",
}
"""Policies that `replay` knows, and what they do."""


def replay(
    policy: ReplayedPolicy, load: Sequence[ImageDemand], update_bytes: Mapping[str, float]
) -> list[float]:
    """Bytes from cloud to edge after each request, had `policy` served the load from the start.

    Updates exist from the start: the time of a distillation is not counted, nor is a budget. `files` and
    `cached files` send all images as files; otherwise images without a topic are drawn by the edge and take
    no bytes. An update is sent with the first image that is drawn with it, so with none that a second topic
    makes a file.

    `hindsight` compares each topic's update with the files of its images, those of two topics by halves. That
    is the best choice if no prompt needs two topics. Otherwise another choice, and another policy, may take
    less: for such a prompt, an update is of use only with that of the other topic.

    Example:
        >>> from dekag.makd.demand import ImageDemand, replay
        >>> load = [ImageDemand(("neon",), image, 400) for image in "abca"]
        >>> [int(replay(policy, load, {"neon": 1_000})[-1]) for policy in ("never", "always", "auto")]
        [1200, 1000, 2200]

    Args:
        policy: of REPLAYED.
        load: the requests, in order.
        update_bytes: of each topic's update; a topic without one is always sent as files.
    """
    chosen = update_bytes
    if policy == "hindsight":
        worth = _file_bytes_by_topic(load)
        chosen = {topic: size for topic, size in update_bytes.items() if size <= worth.get(topic, 0)}
    demand: dict[str, TopicDemand] = {}
    cached: set[str] = set()
    spent, total = [], 0.0
    for request in load:
        as_file = policy in ("files", "cached files")
        waiting, new = [], []
        for topic in request.topics if not as_file else ():
            before, size = demand.get(topic, TopicDemand()), chosen.get(topic)
            rule: DemandPolicy = "auto" if policy == "auto" else "always"
            decision = decide(
                "never" if size is None or policy == "never" else rule,
                before,
                update_bytes=size or 0.0,
                next_file_bytes=request.file_bytes,
            )
            if decision.action != "update":
                waiting.append(topic)
            elif not before.sent:
                new.append(topic)
            demand[topic] = replace(before, requests=before.requests + 1)
        if as_file or waiting:
            if policy == "files" or request.image not in cached:
                cached.add(request.image)
                total += request.file_bytes
                for topic in waiting:
                    own, each = demand[topic], request.file_bytes / len(waiting)
                    demand[topic] = replace(own, files=own.files + 1, file_bytes=own.file_bytes + each)
        else:
            for topic in new:
                total += chosen[topic]
                demand[topic] = replace(demand[topic], sent=True)
        spent.append(total)
    return spent


def _file_bytes_by_topic(load: Sequence[ImageDemand]) -> dict[str, float]:
    """Bytes of the files of each topic's images, each image once."""
    worth: dict[str, float] = {}
    for request in {each.image: each for each in load}.values():
        for topic in request.topics:
            worth[topic] = worth.get(topic, 0.0) + request.file_bytes / len(request.topics)
    return worth


def crossing(ours: Sequence[float], others: Sequence[float]) -> int | None:
    """The number of requests from which on `ours` stays at or below `others`; None if it does not.

    Example:
        >>> from dekag.makd.demand import crossing
        >>> crossing([100, 100, 100, 100], [40, 80, 120, 160])
        3

    Args:
        ours: bytes after each request.
        others: the same of what it is compared with.
    """
    above = [position for position, pair in enumerate(zip(ours, others, strict=True), 1) if pair[0] > pair[1]]
    first = above[-1] + 1 if above else 1
    return first if first <= len(ours) else None
