"""What a simulated strategy came to, as rows: traffic, latency, quality, energy, money and break-even."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from dekag.evaluation.pages import Row
from dekag.simulation.demand import HOUR_S
from dekag.simulation.simulator import (
    CACHED_LATENT,
    LATENT,
    LOST,
    PATHS,
    Result,
    bound_bytes,
)

SCHEMA = 1
"""Version of a row; raised when fields change their meaning."""

PERCENTILES = (5, 25, 50, 75, 95, 99)
PARTS = ("latency", "compute", "air", "backhaul")
Array = npt.NDArray[np.float64]


def summarise(result: Result) -> Row:
    """One row for a strategy and a seed.

    Returns:
        `variant` of the city (empty: none), `requests`, `handovers`, `paths` (requests by `PATHS`),
        `file_bytes` and `update_bytes` on the backhaul, `bound_bytes` (no policy needs less backhaul for the
        new topics), `channel_uses`, `latency_s` and its parts as percentiles, `psnr_db` as percentiles over
        received images, `consistency` (mean over all requests; a lost file counts 0), `distilled`,
        `transfers` of updates, `break_even`, `busy_s`, `dropped`, `energy_kwh` and `money` by part.
    """
    world = result.world
    city, updates = world.city, sum(size for *_, size in result.updates)
    energy = energy_kwh(result)
    received = result.psnr_db[result.path != LOST]
    return {
        "schema": SCHEMA,
        "city": city.name,
        "seed": world.seed,
        "strategy": result.strategy.name,
        "requests": len(result.path),
        "handovers": world.handovers,
        "paths": dict(zip(PATHS, np.bincount(result.path, minlength=len(PATHS)).tolist(), strict=True)),
        "file_bytes": float(result.backhaul_bytes.sum()),
        "update_bytes": updates,
        "bound_bytes": bound_bytes(world, result.edge),
        "channel_uses": float(result.channel_uses.sum()),
        **{f"{part}_s": _percentiles(getattr(result, f"{part}_s")) for part in PARTS},
        "snr_db": _percentiles(world.snr_db),
        "psnr_db": _percentiles(received),
        "consistency": float(result.consistency.mean()),
        "distilled": len(result.distilled),
        "transfers": len(result.updates),
        "break_even": break_even(result),
        "busy_s": result.busy_s,
        "dropped": result.dropped,
        "energy_kwh": energy,
        "money": money(result, energy),
    }


def by_hour(result: Result) -> list[Row]:
    """Requests, and bytes and channel uses by hop, in each simulated hour; by the start of a request."""
    hours = int(np.ceil(result.world.city.duration_s / HOUR_S))
    hour = (result.world.requests.time_s / HOUR_S).astype(int)
    updates = np.zeros(hours)
    for time_s, _, _, size in result.updates:
        updates[min(int(time_s / HOUR_S), hours - 1)] += size

    def sums(values: Array | None) -> list[float]:
        return [round(float(each), 1) for each in np.bincount(hour, values, hours)]

    columns = {
        "requests": sums(None),
        "file_bytes": sums(result.backhaul_bytes),
        "update_bytes": updates.round(1).tolist(),
        "channel_uses": sums(result.channel_uses),
        "latency_s": sums(result.latency_s),
    }
    common = {"seed": result.world.seed, "strategy": result.strategy.name}
    return [
        {**common, "hour": index, **{name: column[index] for name, column in columns.items()}}
        for index in range(hours)
    ]


def by_topic(result: Result) -> list[Row]:
    """For each new topic: its requests, what its update cost and what it saved on the backhaul, bytes.

    `saved_bytes` are the distinct files of each edge that the images generated with the update would have
    needed: what an edge with an unlimited cache of files would have fetched.
    """
    known = result.world.city.demand.known_topics
    spent: dict[int, float] = defaultdict(float)
    for _, _, topic, size in result.updates:
        spent[topic] += size
    saved: dict[int, float] = defaultdict(float)
    for (topic, _), sizes in _avoided(result).items():
        saved[topic] += float(sizes.sum())
    requests = np.bincount(result.world.requests.topic, minlength=known + result.world.city.demand.new_topics)
    distilled = {topic: end_s for _, end_s, topic in result.distilled}
    common = {"seed": result.world.seed, "strategy": result.strategy.name}
    return [
        {
            **common,
            "topic": topic,
            "requests": int(requests[known + topic]),
            "distilled_s": distilled.get(topic),
            "spent_bytes": spent[topic],
            "saved_bytes": round(saved[topic], 1),
        }
        for topic in range(result.world.city.demand.new_topics)
        if requests[known + topic]
    ]


def break_even(result: Result) -> dict[str, float | int | None]:
    """How soon an update pays for itself at an edge.

    Returns:
        `pairs` of topic and edge that got the update, `paid` of them, whose files would have been larger, and
        `images`, the median number of images until then over those that paid.
    """
    transferred: dict[tuple[int, int], float] = defaultdict(float)
    for _, edge, topic, size in result.updates:
        transferred[topic, edge] += size
    avoided = _avoided(result)
    images = []
    for pair, size in transferred.items():
        saved = np.cumsum(avoided.get(pair, np.zeros(0)))
        if len(saved) and saved[-1] >= size:
            images.append(int(np.searchsorted(saved, size)) + 1)
    return {
        "pairs": len(transferred),
        "paid": len(images),
        "images": float(np.median(images)) if images else None,
    }


def _avoided(result: Result) -> dict[tuple[int, int], Array]:
    """By topic and edge: the files that images with an update made unnecessary, bytes, in order of time."""
    known = result.world.city.demand.known_topics
    requests = result.world.requests
    aligned = np.isin(result.path, (LATENT, CACHED_LATENT)) & (requests.topic >= known)
    aligned &= result.taught
    index = np.flatnonzero(aligned)
    if not len(index):
        return {}
    keys = np.stack([result.edge[index], requests.image[index]], axis=1)
    _, first = np.unique(keys, axis=0, return_index=True)
    index = index[np.sort(first)]
    topic, edge = requests.topic[index] - known, result.edge[index]
    order = np.lexsort((index, edge, topic))
    index, topic, edge = index[order], topic[order], edge[order]
    starts = np.flatnonzero(np.r_[True, (np.diff(topic) != 0) | (np.diff(edge) != 0)])
    parts = np.split(result.world.file_bytes[index], starts[1:])
    return {(int(topic[start]), int(edge[start])): part for start, part in zip(starts, parts, strict=True)}


def energy_kwh(result: Result) -> dict[str, float]:
    """Energy by part, kWh, of busy servers, devices, cells and the backhaul; idle ones are not counted."""
    prices, radio = result.world.city.prices, result.world.city.radio
    joules = {
        "edge": prices.edge_w * result.busy_s["edge"],
        "cloud": prices.cloud_w * result.busy_s["cloud"],
        "distiller": prices.distiller_w * result.busy_s["distiller"],
        "device": prices.device_w * result.busy_s["device"],
        "radio": prices.cell_w
        * float(result.channel_uses.sum())
        / (radio.carrier_bandwidth_hz * (1 - radio.overhead)),
        "backhaul": 8 * prices.backhaul_j_bit * _backhaul_bytes(result),
    }
    return {part: value / 3.6e6 for part, value in joules.items()}


def money(result: Result, energy: dict[str, float]) -> dict[str, float]:
    """Price by part: hours of servers, bytes, spectrum, and the energy of all but the devices."""
    prices, radio = result.world.city.prices, result.world.city.radio
    mhz_hours = float(result.channel_uses.sum()) / (1 - radio.overhead) / 1e6 / 3600
    return {
        "edge": prices.edge_hour * result.busy_s["edge"] / 3600,
        "cloud": prices.cloud_hour * result.busy_s["cloud"] / 3600,
        "distiller": prices.distiller_hour * result.busy_s["distiller"] / 3600,
        "backhaul": prices.backhaul_gb * _backhaul_bytes(result) / 1e9,
        "spectrum": prices.spectrum_mhz_hour * mhz_hours,
        "energy": prices.kwh * sum(value for part, value in energy.items() if part != "device"),
    }


def _backhaul_bytes(result: Result) -> float:
    return float(result.backhaul_bytes.sum()) + sum(size for *_, size in result.updates)


def _percentiles(values: Array) -> dict[str, float]:
    found = np.percentile(values, PERCENTILES) if len(values) else np.full(len(PERCENTILES), np.nan)
    return {f"p{p}": round(float(value), 6) for p, value in zip(PERCENTILES, found, strict=True)} | {
        "mean": round(float(values.mean()), 6) if len(values) else float("nan")
    }


def names_of(rows: Sequence[Row]) -> list[str]:
    """Names of the strategies, in the order of the rows."""
    return list(dict.fromkeys(row["strategy"] for row in rows))
