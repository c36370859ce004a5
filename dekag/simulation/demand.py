"""Demand: when users request which images. Everything is drawn before the simulation starts."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from dekag.simulation.city import City, Demand, Mobility

Array = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
HOUR_S = 3_600.0
HOT_SPOT_M = 300.0
WALKING_M_S = 1.4


@dataclass(frozen=True)
class Requests:
    """Requests in the order of time.

    Attributes:
        time_s: (n,) s since the start.
        user: (n,) numbers of users.
        topic: (n,) numbers of topics; those from `known_topics` on are new.
        image: (n,) numbers of images; equal numbers are the same prompt and seed.
    """

    time_s: Array
    user: npt.NDArray[np.int32]
    topic: npt.NDArray[np.int32]
    image: Integers


def draw_requests(city: City, rng: np.random.Generator) -> Requests:
    """Requests of a city: Poisson arrivals with the daily curve, and topics that rise and fall."""
    demand = city.demand
    time_s = _arrivals(demand, city.duration_s, rng)
    count = len(time_s)
    user = rng.integers(demand.users, size=count, dtype=np.int32)
    new = rng.random(count) < demand.new_fraction
    topic = np.empty(count, np.int32)
    known = _zipf(demand.known_topics, demand.zipf)
    topic[~new] = rng.choice(demand.known_topics, size=int((~new).sum()), p=known)
    if demand.new_topics:
        topic[new] = demand.known_topics + _new_topics(demand, city.duration_s, time_s[new], rng)
    popular = _zipf(demand.popular_images, demand.zipf)
    image = topic * np.int64(demand.popular_images)
    image += rng.choice(demand.popular_images, size=count, p=popular)
    fresh = rng.random(count) < demand.fresh_fraction
    first = (demand.known_topics + demand.new_topics) * demand.popular_images
    image[fresh] = first + np.arange(int(fresh.sum()))
    return Requests(time_s, user, topic, image)


def hourly_rates(demand: Demand, duration_s: float) -> Array:
    """(hours,) fraction of all requests in each hour of the simulated time; the last one may be partial."""
    hours = int(np.ceil(duration_s / HOUR_S))
    part = np.minimum(duration_s / HOUR_S - np.arange(hours), 1.0)
    weights = np.resize(np.array(demand.hours, float), hours) * part
    return np.asarray(weights / weights.sum()) if weights.any() else part / part.sum()


def popularity(age_days: Array, rise_days: float) -> Array:
    """Popularity of a topic by age, days, relative to its peak; 0 before it appears."""
    relative = np.maximum(age_days, 0) / rise_days
    return np.asarray(relative * np.exp(1 - relative))


def _arrivals(demand: Demand, duration_s: float, rng: np.random.Generator) -> Array:
    """Times of a Poisson process whose rate is constant in each hour."""
    counts = rng.poisson(demand.requests * hourly_rates(demand, duration_s))
    hour = np.repeat(np.arange(len(counts)), counts)
    length_s = np.minimum(duration_s - hour * HOUR_S, HOUR_S)
    return np.sort(hour * HOUR_S + rng.random(len(hour)) * length_s)


def _zipf(count: int, exponent: float) -> Array:
    weights = np.arange(1, count + 1, dtype=float) ** -exponent
    return np.asarray(weights / weights.sum())


def _new_topics(
    demand: Demand, duration_s: float, time_s: Array, rng: np.random.Generator
) -> npt.NDArray[np.int32]:
    """Topics (n,) of requests at times (n,), s, rising; popularity is that of the middle of the hour."""
    days = duration_s / 86_400
    # some topics are on the decline when the simulation starts
    born = rng.uniform(-4 * demand.rise_days, days, demand.new_topics)
    rank = rng.permutation(demand.new_topics)
    weight = _zipf(demand.new_topics, demand.zipf)[rank]
    chosen = np.empty(len(time_s), np.int32)
    hour = (time_s / HOUR_S).astype(int)
    bounds = np.searchsorted(hour, np.arange(int(np.ceil(duration_s / HOUR_S)) + 1))
    for index, (low, high) in enumerate(itertools.pairwise(bounds)):
        if low == high:
            continue
        now = weight * popularity((index + 0.5) / 24 - born, demand.rise_days)
        if not now.any():  # no topic has appeared yet: the first ones do now
            now = weight * (born == born.min())
        chosen[low:high] = rng.choice(demand.new_topics, size=high - low, p=now / now.sum())
    return chosen


def draw_places(
    mobility: Mobility, users: int, duration_s: float, low: Array, high: Array, requests: Requests,
    rng: np.random.Generator,
) -> Array:  # fmt: skip
    """Places (n, 2), m, of the users at their requests.

    Each user has places of its own, stays at one for an exponential time, and travels to another in a
    straight line.

    Args:
        mobility: how users move.
        users: how many.
        duration_s: simulated time, s.
        low, high: (2,) corners of the city, m.
        requests: whose users and times are meant.
        rng: source of randomness.
    """
    size = high - low
    spots = low + size * rng.random((mobility.hot_spots, 2))
    own = low + size * rng.random((users, mobility.places, 2))
    others = (users, mobility.places - 1)
    near = spots[rng.integers(mobility.hot_spots, size=others)]
    own[:, 1:] = np.clip(near + HOT_SPOT_M * rng.standard_normal((*others, 2)), low, high)
    speed = np.where(rng.random(users) < mobility.walking_fraction, WALKING_M_S, mobility.driving_m_s)
    stay_s = mobility.stay_hours * HOUR_S
    legs = int(np.ceil(duration_s / stay_s + 6 * np.sqrt(duration_s / stay_s) + 4))
    # visits (users, legs): a stay, then a journey to the next visit's place
    place = own[np.arange(users)[:, None], rng.integers(mobility.places, size=(users, legs + 1))]
    stays = rng.exponential(stay_s, (users, legs))
    journeys = np.linalg.norm(np.diff(place, axis=1), axis=2) / speed[:, None]
    ends = np.cumsum(stays + journeys, axis=1)
    starts = np.concatenate([np.zeros((users, 1)), ends[:, :-1]], axis=1)
    # one search for all users: their times are laid one after another
    span = float(max(ends.max(), duration_s)) + 1
    keys = (starts + span * np.arange(users)[:, None]).ravel()
    index = np.searchsorted(keys, requests.time_s + span * requests.user, side="right") - 1
    user, leg = index // legs, index % legs
    since_s = requests.time_s - starts[user, leg] - stays[user, leg]
    way = np.clip(since_s / np.maximum(journeys[user, leg], 1e-9), 0, 1)[:, None]
    return np.asarray(place[user, leg] * (1 - way) + place[user, leg + 1] * way)
