"""Policies of a simulated city, as plug-ins.

A policy is a class with a `name` that derives from one of six bases, each of which is a role in a
`Strategy`: `DemandPolicy` (`distil`), `UpdatePolicy` (`fetch`), `CachePolicy` (`keep`), `RatePolicy`
(`rate`), `SchedulingPolicy` (`share`) and `PlacementPolicy` (`place`). Each run makes its own policies; the
parameters are the arguments of the constructor.

Example:
    >>> from dekag.simulation.policies import DemandPolicy, PolicyChoice, make_policy
    >>> policy = make_policy("distil", PolicyChoice(name="distil-threshold", requests=20))
    >>> policy.requests
    20
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, Field

from dekag import plugins
from dekag.errors import InvalidInputError
from dekag.schema import Document
from dekag.simulation.deliveries import DeliveryTable

Array = npt.NDArray[np.float64]


class PolicyChoice(Document):
    """A policy by name, and its parameters as further fields."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str = Field(description="Name of a built-in policy or a plug-in.")

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters by name."""
        return dict(self.model_extra or {})


class Policy(ABC):
    """Base of all policies."""

    name: ClassVar[str]


@dataclass(frozen=True)
class TopicDemand:
    """The demand for one new topic, past or future.

    Attributes:
        topic: number of the topic.
        first_s: time of its first request, s.
        requests: number of requests.
        file_bytes_by_edge: (edges,) bytes of the distinct files that each edge needs for them.
        update_bytes: size of the topic's update.
    """

    topic: int
    first_s: float
    requests: int
    file_bytes_by_edge: Array
    update_bytes: float

    @property
    def saved_bytes(self) -> float:
        """Backhaul bytes that the update saves at the edges for which it is smaller than their files."""
        return float(np.maximum(self.file_bytes_by_edge - self.update_bytes, 0).sum())


class DemandPolicy(Policy):
    """When to distil a topic."""

    def plan(self, future: Sequence[TopicDemand], distil_s: float) -> list[tuple[float, int]]:
        """Times, s, and topics of distillations that do not wait for demand; only an oracle has any.

        Args:
            future: the demand for each new topic.
            distil_s: duration of a distillation, s.
        """
        return []

    @abstractmethod
    def requested(self, topic: int, edge: int, now_s: float, file_bytes: float, update_bytes: float) -> bool:
        """Whether to distil a topic now: called for each request of it that its update would have served.

        Args:
            topic: number of the topic, which has no update and none on the way.
            edge: number of the edge.
            now_s: simulated time, s.
            file_bytes: bytes that crossed the backhaul for the request; 0 if the edge had the file.
            update_bytes: expected size of an update.
        """


class UpdatePolicy(Policy):
    """Which edges get an update, and when."""

    def published(self, topic: int, edges: int, requested_by: set[int]) -> Sequence[int]:
        """Edges that get a new update at once.

        Args:
            topic: number of the topic.
            edges: number of edges.
            requested_by: edges at which the topic was requested before.
        """
        return ()

    def plan(self, future: Sequence[TopicDemand]) -> None:
        """Look at the future, which only an oracle may."""

    @abstractmethod
    def requested(self, topic: int, edge: int, file_bytes: float, update_bytes: float) -> bool:
        """Whether an edge without the update fetches it for a request; otherwise the request gets a file.

        Args:
            topic: number of the topic.
            edge: number of the edge.
            file_bytes: size of the file that would be sent instead; 0 if the edge has it.
            update_bytes: size of the update.
        """


class CachePolicy(Policy):
    """What a full storage drops: the entry of the lowest priority."""

    @abstractmethod
    def priority(self, now_s: float, uses: int, size: float) -> float:
        """Priority of an entry that is used now.

        Args:
            now_s: simulated time, s.
            uses: how often it has been used since it was stored, this time included.
            size: its size, bytes.
        """


class RatePolicy(Policy):
    """The rate of semantic deliveries."""

    @abstractmethod
    def choose(self, snr_db: Array, table: DeliveryTable) -> npt.NDArray[np.intp]:
        """Indices (n,) into `table.cbrs` for mean SNRs (n,), dB, as the sender knows them."""


class SchedulingPolicy(Policy):
    """How the transmissions of a cell share its channel uses."""

    @abstractmethod
    def shares(self, left: Sequence[float], snr_db: Sequence[float]) -> Sequence[float]:
        """Fractions of the cell, at most 1 in sum, of n transmissions in the order of their start.

        Args:
            left: (n,) channel uses left.
            snr_db: (n,) mean SNRs, dB.
        """


class PlacementPolicy(Policy):
    """Which edge serves a cell."""

    @abstractmethod
    def place(self, sites: Array, load: Array, edges: int) -> npt.NDArray[np.intp]:
        """Edge (cells,) of each cell.

        Args:
            sites: (cells, 2) places of the cells, m.
            load: (cells,) requests of each cell.
            edges: number of edges.
        """


class DistilNever(DemandPolicy):
    """Never distil."""

    name = "distil-never"

    def requested(self, topic: int, edge: int, now_s: float, file_bytes: float, update_bytes: float) -> bool:
        return False


class DistilAlways(DemandPolicy):
    """Distil a topic when it is requested for the first time."""

    name = "distil-always"

    def requested(self, topic: int, edge: int, now_s: float, file_bytes: float, update_bytes: float) -> bool:
        return True


class DistilThreshold(DemandPolicy):
    """Distil a topic after so many requests within a time.

    Args:
        requests: number of requests.
        hours: time in which they come, hours.
    """

    name = "distil-threshold"

    def __init__(self, requests: int = 50, hours: float = 24.0) -> None:
        _require("requests", requests, requests >= 1, "at least 1")
        _require("hours", hours, hours > 0, "above 0")
        self.requests, self.window_s = requests, 3600 * hours
        self._times: dict[int, list[float]] = defaultdict(list)

    def requested(self, topic: int, edge: int, now_s: float, file_bytes: float, update_bytes: float) -> bool:
        times = self._times[topic]
        times.append(now_s)
        if len(times) > self.requests:
            del times[0]
        return len(times) == self.requests and now_s - times[0] <= self.window_s


class DistilBreakEven(DemandPolicy):
    """Distil a topic when its files have cost as much backhaul as its update would at the same edges.

    This is the rule of renting skis: whatever the future brings, rent until the rent equals the price, then
    buy, which costs at most twice the best choice in hindsight (Karlin et al., Competitive snoopy caching,
    Algorithmica 1988).

    Args:
        factor: multiple of the update's cost.
    """

    name = "distil-break-even"

    def __init__(self, factor: float = 1.0) -> None:
        _require("factor", factor, factor > 0, "above 0")
        self.factor = factor
        self._spent: dict[int, float] = defaultdict(float)
        self._edges: dict[int, set[int]] = defaultdict(set)

    def requested(self, topic: int, edge: int, now_s: float, file_bytes: float, update_bytes: float) -> bool:
        self._spent[topic] += file_bytes
        self._edges[topic].add(edge)
        return self._spent[topic] >= self.factor * update_bytes * len(self._edges[topic])


class DistilOracle(DemandPolicy):
    """Distil each topic whose update will save backhaul before its first request; the best topics first.

    It knows the future, so no real system can do it: it bounds the other policies.
    """

    name = "distil-oracle"

    def plan(self, future: Sequence[TopicDemand], distil_s: float) -> list[tuple[float, int]]:
        worth = sorted((each for each in future if each.saved_bytes > 0), key=lambda each: -each.saved_bytes)
        return [(max(each.first_s - 2 * distil_s, 0.0), each.topic) for each in worth]

    def requested(self, topic: int, edge: int, now_s: float, file_bytes: float, update_bytes: float) -> bool:
        return False


class FetchOnDemand(UpdatePolicy):
    """An edge fetches an update with the first request that needs it, as the services do."""

    name = "fetch-on-demand"

    def requested(self, topic: int, edge: int, file_bytes: float, update_bytes: float) -> bool:
        return True


class FetchBreakEven(UpdatePolicy):
    """An edge fetches an update when its files of the topic have cost as much, since the update exists.

    Args:
        factor: multiple of the update's size.
    """

    name = "fetch-break-even"

    def __init__(self, factor: float = 1.0) -> None:
        _require("factor", factor, factor > 0, "above 0")
        self.factor = factor
        self._spent: dict[tuple[int, int], float] = defaultdict(float)

    def requested(self, topic: int, edge: int, file_bytes: float, update_bytes: float) -> bool:
        self._spent[topic, edge] += file_bytes
        return self._spent[topic, edge] >= self.factor * update_bytes


class FetchPush(FetchOnDemand):
    """The cloud sends a new update to all edges at once; an edge that dropped it fetches it on demand."""

    name = "fetch-push"

    def published(self, topic: int, edges: int, requested_by: set[int]) -> Sequence[int]:
        return range(edges)


class FetchPrefetch(FetchOnDemand):
    """The cloud sends a new update to the edges at which the topic was requested; others fetch on demand."""

    name = "fetch-prefetch"

    def published(self, topic: int, edges: int, requested_by: set[int]) -> Sequence[int]:
        return sorted(requested_by)


class FetchOracle(UpdatePolicy):
    """An edge fetches an update if it is smaller than all files of the topic that the edge will need."""

    name = "fetch-oracle"

    def __init__(self) -> None:
        self._future: dict[int, TopicDemand] = {}

    def plan(self, future: Sequence[TopicDemand]) -> None:
        self._future = {each.topic: each for each in future}

    def requested(self, topic: int, edge: int, file_bytes: float, update_bytes: float) -> bool:
        return bool(self._future[topic].file_bytes_by_edge[edge] > update_bytes)


class KeepRecent(CachePolicy):
    """Drop what was used longest ago (LRU)."""

    name = "keep-recent"

    def priority(self, now_s: float, uses: int, size: float) -> float:
        return now_s


class KeepFrequent(CachePolicy):
    """Drop what was used least often (LFU)."""

    name = "keep-frequent"

    def priority(self, now_s: float, uses: int, size: float) -> float:
        return uses


class RateFixed(RatePolicy):
    """The same rate for all.

    Args:
        cbr: channel uses per source value; the nearest rate of the table is taken.
    """

    name = "rate-fixed"

    def __init__(self, cbr: float = 1 / 96) -> None:
        _require("cbr", cbr, 0 < cbr <= 1, "above 0 and at most 1")
        self.cbr = cbr

    def choose(self, snr_db: Array, table: DeliveryTable) -> npt.NDArray[np.intp]:
        nearest = int(np.argmin(np.abs(np.log(table.cbrs / self.cbr))))
        return np.full(len(snr_db), nearest, np.intp)


class RateTarget(RatePolicy):
    """The smallest rate that is expected to reach a PSNR; the largest if none is.

    Args:
        psnr_db: PSNR of the received image against the sent one, dB.
    """

    name = "rate-target"

    def __init__(self, psnr_db: float = 22.0) -> None:
        _require("psnr_db", psnr_db, 0 < psnr_db <= 60, "above 0 and at most 60")
        self.psnr_db = psnr_db

    def choose(self, snr_db: Array, table: DeliveryTable) -> npt.NDArray[np.intp]:
        chosen = np.full(len(snr_db), len(table.cbrs) - 1, np.intp)
        for rate in reversed(range(len(table.cbrs))):
            expected, _ = table.semantic_psnr_db(snr_db, np.full(len(snr_db), rate, np.intp))
            chosen[expected >= self.psnr_db] = rate
        return chosen


class ShareFair(SchedulingPolicy):
    """Equal shares.

    Proportional fair scheduling gives users with equally distributed fading the same fraction of the slots
    (Borst, User-level performance of channel-aware scheduling algorithms, INFOCOM 2003). Its gain from
    serving each user at good moments is left out.
    """

    name = "share-fair"

    def shares(self, left: Sequence[float], snr_db: Sequence[float]) -> Sequence[float]:
        return [1 / len(left)] * len(left)


class ShareFirst(SchedulingPolicy):
    """One after another, in the order of their start."""

    name = "share-first"

    def shares(self, left: Sequence[float], snr_db: Sequence[float]) -> Sequence[float]:
        return [1.0] + [0.0] * (len(left) - 1)


class ShareShortest(SchedulingPolicy):
    """The transmission with the least left, which minimises the mean time."""

    name = "share-shortest"

    def shares(self, left: Sequence[float], snr_db: Sequence[float]) -> Sequence[float]:
        shares = [0.0] * len(left)
        shares[min(range(len(left)), key=left.__getitem__)] = 1.0
        return shares


class ShareStrongest(SchedulingPolicy):
    """The transmission with the highest SNR, which is unfair to users far from a site."""

    name = "share-strongest"

    def shares(self, left: Sequence[float], snr_db: Sequence[float]) -> Sequence[float]:
        shares = [0.0] * len(left)
        shares[max(range(len(left)), key=snr_db.__getitem__)] = 1.0
        return shares


class PlaceNearest(PlacementPolicy):
    """Edges stand at cells that are spread evenly over the city; each cell is served by the nearest."""

    name = "place-nearest"

    def place(self, sites: Array, load: Array, edges: int) -> npt.NDArray[np.intp]:
        return np.asarray(nearest_edges(sites, edges)[1].argmin(axis=1))


class PlaceBalanced(PlacementPolicy):
    """The same edges, but none serves more than its part of the requests, unless a single cell has more.

    Cells choose in the order of their load, the largest first; each takes the nearest edge that has room.
    """

    name = "place-balanced"

    def place(self, sites: Array, load: Array, edges: int) -> npt.NDArray[np.intp]:
        _, distance = nearest_edges(sites, edges)
        room = np.full(edges, 1.1 * load.sum() / edges)
        chosen = np.zeros(len(sites), np.intp)
        for cell in np.argsort(-load, kind="stable"):
            order = np.argsort(distance[cell], kind="stable")
            fits = [edge for edge in order if room[edge] >= load[cell]]
            chosen[cell] = fits[0] if fits else int(np.argmax(room))
            room[chosen[cell]] -= load[cell]
        return chosen


def nearest_edges(sites: Array, edges: int) -> tuple[npt.NDArray[np.intp], Array]:
    """Cells (edges,) at which edges stand, and distances (cells, edges) from them, m.

    Each edge stands at the cell that is farthest from all edges before it.
    """
    places = [0]
    distance = np.hypot(*(sites - sites[0]).T)
    while len(places) < edges:
        places.append(int(distance.argmax()))
        distance = np.minimum(distance, np.hypot(*(sites - sites[places[-1]]).T))
    chosen = np.array(places, np.intp)
    return chosen, np.hypot(*(sites[:, None] - sites[chosen][None]).transpose(2, 0, 1))


ROLES: dict[str, type[Policy]] = {
    "distil": DemandPolicy,
    "fetch": UpdatePolicy,
    "keep": CachePolicy,
    "rate": RatePolicy,
    "share": SchedulingPolicy,
    "place": PlacementPolicy,
}
"""The base of each role of a strategy."""

POLICIES: dict[str, type[Policy]] = {
    policy.name: policy
    for policy in (
        DistilNever, DistilAlways, DistilThreshold, DistilBreakEven, DistilOracle,
        FetchOnDemand, FetchBreakEven, FetchPush, FetchPrefetch, FetchOracle,
        KeepRecent, KeepFrequent, RateFixed, RateTarget,
        ShareFair, ShareFirst, ShareShortest, ShareStrongest, PlaceNearest, PlaceBalanced,
    )
}  # fmt: skip
"""Built-in and plugged-in policies by name."""


def make_policy(role: str, choice: PolicyChoice) -> Any:
    """A new policy of that role.

    Raises:
        InvalidInputError: there is no such policy, it has another role, or its parameters are not valid.
    """
    base = ROLES[role]
    kind: type[Policy] = plugins.get("policy", choice.name)
    if not issubclass(kind, base):
        names = [name for name in plugins.names("policy") if issubclass(POLICIES[name], base)]
        raise InvalidInputError("name", f"one of {', '.join(names)}", choice.name)
    known = [name for name in inspect.signature(kind).parameters if name not in ("args", "kwargs")]
    for name, value in choice.parameters.items():
        if name not in known:
            raise InvalidInputError(name, f"one of {', '.join(known) or 'no parameters'}", name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise InvalidInputError(name, "a finite number", value)
    return kind(**choice.parameters)


def _require(name: str, value: float, valid: bool, allowed: str) -> None:
    if not valid:
        raise InvalidInputError(name, allowed, value)
