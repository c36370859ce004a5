"""The simulation of a city: each request passes edge, backhaul, cloud and cell as events on SimPy.

What does not depend on queues (places, SNRs, rates, sizes, quality) is computed for all requests at once
before, so that an event does little.

Example:
    >>> from pathlib import Path
    >>> from dekag.simulation.city import read_city
    >>> from dekag.simulation.simulator import World, simulate
    >>> city = read_city(Path("small"))
    >>> world = World.draw(city, seed=0)
    >>> result = simulate(world, city.strategies[0])
    >>> result.strategy.name, len(result.latency_s) == len(world.requests.time_s)
    ('files', True)
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import simpy

from dekag.link.timing import AirTime
from dekag.simulation.city import City, Strategy
from dekag.simulation.deliveries import KINDS, DeliveryTable
from dekag.simulation.demand import Requests, draw_places, draw_requests
from dekag.simulation.policies import TopicDemand, make_policy
from dekag.simulation.radio import RadioMap
from dekag.simulation.stations import Cell, Station, Storage

Array = npt.NDArray[np.float64]

FILE, CACHED_FILE, LATENT, CACHED_LATENT, LOST = range(5)
PATHS = ("file", "cached file", "latent", "cached latent", "lost file")
"""How a request was answered, by the numbers in `Result.path`."""
Progress = Callable[[int], None]
STEP = 20_000  # requests between two reports of progress


@dataclass(frozen=True)
class World:
    """What all strategies share for one seed.

    Attributes:
        city: the city.
        seed: all randomness comes from it.
        table: cost and quality of deliveries.
        map: cells and SNRs.
        requests: the demand.
        cell: (n,) serving cell of each request.
        snr_db: (n,) mean SNR of each request, dB.
        file_bytes: (n,) size of the file of each request's image.
        update_bytes: (new topics,) sizes of updates.
        handovers: changes of the serving cell between consecutive requests of the same user.
    """

    city: City
    seed: int
    table: DeliveryTable
    map: RadioMap
    requests: Requests
    cell: npt.NDArray[np.int32]
    snr_db: Array
    file_bytes: Array
    update_bytes: Array
    handovers: int

    @classmethod
    def draw(cls, city: City, seed: int) -> World:
        """Draw the radio map, the demand and the users' places."""
        table = city.deliveries()
        rng = np.random.default_rng(seed)
        radio_map = RadioMap.draw(city.radio, rng)
        requests = draw_requests(city, rng)
        low, high = radio_map.sites.min(0), radio_map.sites.max(0)
        if city.radio.cells == 1:
            half = city.radio.site_distance_m / 2
            low, high = low - half, high + half
        places = draw_places(city.mobility, city.demand.users, city.duration_s, low, high, requests, rng)
        cell, snr_db = radio_map.at(places)
        # the same image has the same size in every run
        sizes = table.file_bytes[(requests.image * 2_654_435_761) % 2**32 % len(table.file_bytes)]
        updates = rng.choice(table.update_bytes, size=city.demand.new_topics)
        order = np.lexsort((requests.time_s, requests.user))
        user, own = requests.user[order], cell[order]
        handovers = int(((user[1:] == user[:-1]) & (own[1:] != own[:-1])).sum())
        return cls(
            city, seed, table, radio_map, requests, cell, snr_db.astype(float), sizes, updates, handovers
        )


@dataclass
class Result:
    """What a strategy came to in a world. Arrays have one entry per request, in the order of time.

    Attributes:
        world, strategy: what was simulated.
        edge: edge of each request.
        path: how it was answered, an index into `PATHS`.
        latency_s: from the request until the image is ready, s.
        compute_s, air_s, backhaul_s: its parts, waiting included, s.
        backhaul_bytes: that crossed for it, without updates.
        channel_uses: sent for it.
        psnr_db: received against sent image, dB; NaN for lost files.
        consistency: expected consistency with the cloud's image.
        taught: whether its image was generated with an update.
        updates: (time s, edge, topic, bytes) of each transfer of an update.
        distilled: (start s, end s, topic) of each distillation.
        busy_s: server time by kind of station, s.
        carried_bytes, carried_uses: what the stations carried, to be compared with the sums.
        dropped: entries that edges dropped, by kind of storage.
    """

    world: World
    strategy: Strategy
    edge: npt.NDArray[np.intp]
    path: npt.NDArray[np.uint8]
    latency_s: Array
    compute_s: Array
    air_s: Array
    backhaul_s: Array
    backhaul_bytes: Array
    channel_uses: Array
    psnr_db: Array
    consistency: Array
    taught: npt.NDArray[np.bool_]
    updates: list[tuple[float, int, int, float]] = field(default_factory=list)
    distilled: list[tuple[float, float, int]] = field(default_factory=list)
    busy_s: dict[str, float] = field(default_factory=dict)
    carried_bytes: float = 0.0
    carried_uses: float = 0.0
    dropped: dict[str, int] = field(default_factory=dict)


def demand_by_topic(world: World, edge: npt.NDArray[np.intp]) -> list[TopicDemand]:
    """The demand for each new topic that is requested at all, with the distinct files of each edge."""
    known, edges = world.city.demand.known_topics, world.city.edges.count
    requests = world.requests
    new = np.flatnonzero(requests.topic >= known)
    keys = np.stack([requests.topic[new], edge[new], requests.image[new]], axis=1)
    _, first = np.unique(keys, axis=0, return_index=True)
    distinct = new[first]
    sums = np.zeros((world.city.demand.new_topics, edges))
    np.add.at(sums, (requests.topic[distinct] - known, edge[distinct]), world.file_bytes[distinct])
    found = []
    topics, start, counts = np.unique(requests.topic[new], return_index=True, return_counts=True)
    for topic, index, count in zip(topics.tolist(), start.tolist(), counts.tolist(), strict=True):
        number = topic - known
        found.append(
            TopicDemand(
                number, float(requests.time_s[new[index]]), count, sums[number],
                float(world.update_bytes[number]),
            )
        )  # fmt: skip
    return found


def place_edges(world: World, strategy: Strategy) -> npt.NDArray[np.intp]:
    """Edge (n,) of each request, as the placement policy decides."""
    sites = world.map.sites
    load = np.bincount(world.cell, minlength=len(sites)).astype(float)
    policy = make_policy("place", strategy.place)
    return np.asarray(policy.place(sites, load, world.city.edges.count))[world.cell]


def simulate(world: World, strategy: Strategy, progress: Progress | None = None) -> Result:
    """Simulate a strategy in a world.

    Args:
        world: city, demand and radio of one seed.
        strategy: deliveries and policies.
        progress: called with the number of requests that have started since the last call.
    """
    frozen = gc.isenabled()
    gc.disable()  # events are freed by counting; looking for circles would take a third of the time
    try:
        return _Run(world, strategy).run(progress)
    finally:
        if frozen:
            gc.enable()


class _Run:
    """One simulation: its stations, storages and policies."""

    def __init__(self, world: World, strategy: Strategy) -> None:
        city, table = world.city, world.table
        self.world, self.strategy, self.city, self.table = world, strategy, city, table
        self.env = simpy.Environment()
        self.rng = np.random.default_rng([world.seed, 1])
        self.edge = place_edges(world, strategy)
        self.known, edges = city.demand.known_topics, city.edges.count
        self.distil = make_policy("distil", strategy.distil)
        self.fetch = make_policy("fetch", strategy.fetch)
        share = make_policy("share", strategy.share)
        air = AirTime(city.radio.bandwidth_hz, city.radio.slot_s, city.radio.overhead)
        self.cells = [Cell(self.env, air.uses_per_s, air.slot_s, share) for _ in range(city.radio.cells)]
        self.servers = [Station(self.env, city.edges.servers) for _ in range(edges)]
        self.links = [Station(self.env) for _ in range(edges)]
        self.cloud = Station(self.env, city.cloud.servers)
        self.distillers = Station(self.env, city.cloud.distillers)
        self.hop = city.backhaul.hop

        def storages(megabytes: float) -> list[Storage]:
            return [Storage(1e6 * megabytes, make_policy("keep", strategy.keep)) for _ in range(edges)]

        # files and latents share an edge's cache, so that no strategy has more of it than another
        self.latents = storages(city.edges.file_cache_mb)
        self.files = self.latents if strategy.file_cache else storages(0)
        self.stored = storages(city.edges.update_storage_mb)
        self.carried_bytes = 0.0
        self.published: set[int] = set()
        self.started: set[int] = set()
        self.requested_by: dict[int, set[int]] = {}
        self.coming: dict[tuple[int, int], simpy.Event] = {}  # updates on the way to an edge
        self.expected_update = float(table.update_bytes.mean())
        self._prepare()

    def _prepare(self) -> None:
        """Compute for all requests what does not depend on queues."""
        world, table, city = self.world, self.table, self.city
        count = len(world.requests.time_s)
        rng = np.random.default_rng([world.seed, 2])
        rate = np.asarray(make_policy("rate", self.strategy.rate).choose(world.snr_db, table), np.intp)
        mean, spread = table.semantic_psnr_db(world.snr_db, rate)
        self.latent_psnr = mean + spread * rng.standard_normal(count)
        self.latent_consistency = {
            kind: table.semantic_consistency(kind, world.snr_db, rate) for kind in KINDS
        }
        self.latent_uses = table.channel_uses[rate]
        success = np.clip(table.file_success(world.snr_db), 1e-9, 1)
        attempts = rng.geometric(success)
        self.lost = attempts > city.radio.attempts
        attempts = np.minimum(attempts, city.radio.attempts)
        relative = world.file_bytes / table.file_bytes.mean()
        self.file_uses = table.file_uses(world.snr_db) * relative * attempts
        seconds = table.seconds
        self.generate_s = {
            taught: seconds[stage] / city.edges.speed
            for taught, stage in ((False, "edge.generate"), (True, "edge.generate_taught"))
        }
        self.encode_s = seconds["edge.encode"] / city.edges.speed
        self.modulate_s = seconds["edge.modulate"] / city.edges.speed
        self.cloud_s = seconds["cloud.generate"] / city.cloud.speed
        self.distil_s = seconds["distil"] / city.cloud.distil_speed
        blank: Array = np.zeros(count)
        self.result = Result(
            world, self.strategy, self.edge, np.zeros(count, np.uint8), blank, blank.copy(), blank.copy(),
            blank.copy(), blank.copy(), blank.copy(), blank.copy(), blank.copy(), np.zeros(count, bool),
        )  # fmt: skip
        # the loop reads lists, which is quicker than reading arrays entry by entry
        self.topic = world.requests.topic.tolist()
        self.image = world.requests.image.tolist()
        self.edge_of = self.edge.tolist()
        self.cell_of = world.cell.tolist()
        self.snr_of = world.snr_db.tolist()

    def run(self, progress: Progress | None) -> Result:
        if self.strategy.delivery == "deka-g":
            self._look_ahead()
        self.env.process(self._arrivals(progress))
        self.env.run()
        return self._finish()

    def _look_ahead(self) -> None:
        future = demand_by_topic(self.world, self.edge)
        self.fetch.plan(future)
        for time_s, topic in self.distil.plan(future, self.distil_s):
            self.started.add(topic)
            self.env.process(self._distil(topic, time_s))

    def _arrivals(self, progress: Progress | None) -> Generator[simpy.Event, Any, None]:
        env, request = self.env, self._request
        for index, time_s in enumerate(self.world.requests.time_s.tolist()):
            if time_s > env.now:
                yield env.timeout(time_s - env.now)
            env.process(request(index))
            if progress is not None and (index + 1) % STEP == 0:
                progress(STEP)
        if progress is not None:
            progress(len(self.topic) % STEP)

    def _request(self, index: int) -> Generator[simpy.Event, Any, None]:
        """One request, until its image is ready."""
        env, result = self.env, self.result
        start = env.now
        edge, topic, image = self.edge_of[index], self.topic[index] - self.known, self.image[index]
        backhaul_s = 0.0
        aligned = self.strategy.delivery == "deka-g"
        if aligned and topic >= 0:
            aligned = yield from self._has_update(index, edge, topic, image)
            backhaul_s = env.now - start
        semantic = aligned or (self.strategy.delivery == "deka-g" and self.strategy.untaught == "generate")
        if semantic:
            # an image that was generated without the update is not the one with it
            key = (image, aligned)
            if self.latents[edge].use(key, env.now):
                path, work_s = CACHED_LATENT, self.encode_s
            else:
                path, work_s = LATENT, self.generate_s[aligned and topic >= 0] + self.encode_s
                self.latents[edge].add(key, self.city.edges.latent_bytes, env.now)
            yield env.timeout(self.servers[edge].delay(work_s))
            uses, decode_s = self.latent_uses[index], self.table.seconds["user.latent"]
        else:
            if self.files[edge].use(image, env.now):
                path = CACHED_FILE
            else:
                path = FILE
                backhaul_s += yield from self._file(index, edge)
            yield env.timeout(self.servers[edge].delay(self.modulate_s))
            uses, decode_s = self.file_uses[index], self.table.seconds["user.file"]
            if self.lost[index]:
                path = LOST
        on_air = env.now
        cell = self.cells[self.cell_of[index]]
        yield cell.send(uses, self.snr_of[index])
        air_s = env.now - on_air + cell.until_slot()
        latency_s = on_air - start + air_s + decode_s
        result.path[index] = path
        result.latency_s[index] = latency_s
        result.air_s[index] = air_s
        result.backhaul_s[index] = backhaul_s
        result.channel_uses[index] = uses
        if semantic:
            result.psnr_db[index] = self.latent_psnr[index]
            kind = "untaught" if not aligned else "known" if topic < 0 else "taught"
            result.taught[index] = kind == "taught"
            result.consistency[index] = self.latent_consistency[kind][index]
        else:
            lost = path == LOST
            result.psnr_db[index] = np.nan if lost else self.table.file_psnr_db
            result.consistency[index] = 0.0 if lost else self.table.file_consistency

    def _has_update(self, index: int, edge: int, topic: int, image: int) -> Generator[simpy.Event, Any, bool]:
        """Whether the edge has the update of a new topic, which it may fetch, and which may be distilled."""
        now = self.env.now
        file_bytes = 0.0 if image in self.files[edge] else float(self.world.file_bytes[index])
        if topic not in self.published:
            self.requested_by.setdefault(topic, set()).add(edge)
            if topic not in self.started and self.distil.requested(
                topic, edge, now, file_bytes, self.expected_update
            ):
                self.started.add(topic)
                self.env.process(self._distil(topic, now))
            return False
        if self.stored[edge].use(topic, now):
            return True
        size = float(self.world.update_bytes[topic])
        if (topic, edge) in self.coming:
            yield self.coming[topic, edge]
        elif self.fetch.requested(topic, edge, file_bytes, size):
            yield self.env.process(self._transfer(topic, edge))
        else:
            return False
        return topic in self.stored[edge]

    def _distil(self, topic: int, time_s: float) -> Generator[simpy.Event, Any, None]:
        if time_s > self.env.now:
            yield self.env.timeout(time_s - self.env.now)
        yield self.env.timeout(self.distillers.delay(self.distil_s))
        self.result.distilled.append((self.env.now - self.distil_s, self.env.now, topic))
        self.published.add(topic)
        requested_by = self.requested_by.get(topic, set())
        for edge in self.fetch.published(topic, self.city.edges.count, requested_by):
            if topic not in self.stored[edge] and (topic, edge) not in self.coming:
                self.env.process(self._transfer(topic, edge))

    def _transfer(self, topic: int, edge: int) -> Generator[simpy.Event, Any, None]:
        """An update on its way to an edge."""
        self.coming[topic, edge] = done = self.env.event()
        size = float(self.world.update_bytes[topic])
        self.result.updates.append((self.env.now, edge, topic, size))
        yield from self._carry(edge, size)
        self.stored[edge].add(topic, size, self.env.now)
        del self.coming[topic, edge]
        done.succeed()

    def _file(self, index: int, edge: int) -> Generator[simpy.Event, Any, float]:
        """The cloud's image on its way to an edge; the time on the backhaul, s."""
        env, image = self.env, self.image[index]
        size = float(self.world.file_bytes[index]) + self.table.request_bytes
        request_s = self.hop.delay_s
        yield env.timeout(self.cloud.delay(self.cloud_s, request_s))
        start = env.now
        yield from self._carry(edge, size)
        self.result.backhaul_bytes[index] = size
        self.files[edge].add(image, float(self.world.file_bytes[index]), env.now)
        return request_s + env.now - start

    def _carry(self, edge: int, size: float) -> Generator[simpy.Event, Any, None]:
        """Bytes over the backhaul to an edge: they wait for those before, and then take their own time."""
        own_s = 8 * size / self.hop.rate_bit_s
        late_s = self.hop.seconds(int(size), self.rng) - own_s
        self.carried_bytes += size
        yield self.env.timeout(self.links[edge].delay(own_s) + max(late_s, 0.0))

    def _finish(self) -> Result:
        result = self.result
        result.compute_s = np.maximum(result.latency_s - result.air_s - result.backhaul_s, 0.0)
        semantic = np.isin(result.path, (LATENT, CACHED_LATENT))
        seconds = self.table.seconds
        result.busy_s = {
            "edge": sum(each.busy_s for each in self.servers),
            "cloud": self.cloud.busy_s,
            "distiller": self.distillers.busy_s,
            "device": float(np.where(semantic, seconds["user.latent"], seconds["user.file"]).sum()),
        }
        result.carried_bytes = self.carried_bytes
        result.carried_uses = sum(cell.sent_uses for cell in self.cells)
        result.dropped = {
            "cache": sum(each.dropped for each in self.latents),
            "updates": sum(each.dropped for each in self.stored),
        }
        return result


def bound_bytes(world: World, edge: npt.NDArray[np.intp]) -> float:
    """Least backhaul bytes that any policy can reach, if updates of all topics exist at once, from the start.

    Each edge takes the smaller of a topic's update and all its distinct files, which it keeps for ever.
    """
    extra = world.table.request_bytes / world.table.file_bytes.mean()
    return float(
        sum(
            np.minimum(each.update_bytes, each.file_bytes_by_edge * (1 + extra)).sum()
            for each in demand_by_topic(world, edge)
        )
    )


def run_strategies(
    world: World, strategies: Sequence[Strategy], progress: Progress | None = None
) -> list[Result]:
    """Simulate several strategies in one world."""
    return [simulate(world, strategy, progress) for strategy in strategies]
