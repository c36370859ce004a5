"""Who asks for what, when and over which link: everything follows from one seed. No Locust in here."""

from __future__ import annotations

import bisect
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal, get_args

import torch

from dekag.link import trace
from dekag.makd.topics import expanded, read_topics, world_prompt
from dekag.profile import load_profile
from dekag.stickers import EDGE_STYLES, EDGE_SUBJECTS, TOPICS, caption, random_scene

Shape = Literal["steady", "ramp", "burst"]
SHAPES: tuple[Shape, ...] = get_args(Shape)
_MIN_SNR_DB, _MAX_SNR_DB = -20.0, 40.0  # what the gateway takes


@dataclass(frozen=True)
class Scenario:
    """What all users have in common.

    Attributes:
        seed: seeds the catalogue and, with a user's index, what that user does.
        prompts: different prompts that are asked for.
        zipf_exponent: the prompt of rank r is asked for in proportion to ``r ** -zipf_exponent``.
        topics: of the world that the edge does not know until their updates are distilled.
        templates: of prompts of a profile's own topics, which are asked for instead of those of `topics`.
        topic_share: fraction of the prompts that need one of them.
        seeds_per_prompt: different images of a prompt; an image asked for again may come from a cache.
        rate_hz: arrivals of one user, 1/s; the time between two is exponential.
        conventional_share: fraction of the arrivals, at most 1/2, that ask for what the user asked for last,
            over the same link, as conventional delivery.
        snrs_db: mean SNRs that users meet, dB.
        moving_share: fraction of the users whose SNR follows the trace, around one of those means; the others
            meet any of them with each arrival.
        trace: name of a shipped trace; each moving user starts somewhere in it and it repeats.
        cbrs: channel bandwidth ratios of semantic deliveries.
        measure: whether the quality of the images is measured.

    Raises:
        ValueError: a share or a rate is out of range.
        InvalidInputError: there is no such trace.
    """

    seed: int = 0
    prompts: int = 200
    zipf_exponent: float = 1.0
    topics: tuple[str, ...] = ("neon", "watercolour", "rocket", "jewels")
    templates: tuple[str, ...] = ()
    topic_share: float = 0.4
    seeds_per_prompt: int = 4
    rate_hz: float = 0.2
    conventional_share: float = 0.25
    snrs_db: tuple[float, ...] = (0.0, 5.0, 10.0, 15.0, 20.0)
    moving_share: float = 0.5
    trace: str = "drive"
    cbrs: tuple[float, ...] = (1 / 96, 1 / 192, 1 / 384)
    measure: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.conventional_share <= 0.5:
            raise ValueError("conventional_share must be between 0 and 0.5")
        if not self.rate_hz > 0:
            raise ValueError("rate_hz must be above 0")
        trace.load(self.trace)


def own_templates(profile: str) -> tuple[str, ...]:
    """The templates of all of a profile's own topics; none if it has no topics.

    Raises:
        NotFoundError: there is no such profile.
        FileError: profile or topics cannot be read, or are invalid.
    """
    topics = read_topics(load_profile(profile).topics)
    return tuple(prompt for file in topics.values() for prompt in file.prompts)


@dataclass(frozen=True)
class Arrival:
    """One request at its time.

    Attributes:
        at_s: time since the user's start, s.
        question: what is asked, whichever delivery; the same for the two deliveries that are compared.
        body: of ``POST /v1/images/generations``.
    """

    at_s: float
    question: str
    body: dict[str, Any]


class PromptCatalogue:
    """The prompts, the most popular first; the same for the same scenario."""

    def __init__(self, scenario: Scenario) -> None:
        rng = random.Random(f"catalogue {scenario.seed}")
        prompts: dict[str, None] = {}
        while len(prompts) < scenario.prompts:
            if (scenario.templates or scenario.topics) and rng.random() < scenario.topic_share:
                if scenario.templates:
                    prompts[expanded(rng.choice(scenario.templates), rng)] = None
                else:
                    prompts[world_prompt(TOPICS[rng.choice(scenario.topics)], rng)] = None
            else:
                scene = random_scene(rng, subjects=EDGE_SUBJECTS, styles=EDGE_STYLES)
                prompts[caption(scene, rng)] = None
        self.prompts = tuple(prompts)
        ranks = range(1, scenario.prompts + 1)
        self._heights = list(accumulate(rank**-scenario.zipf_exponent for rank in ranks))

    def draw(self, rng: random.Random) -> str:
        """A prompt, the popular ones more often."""
        return self.prompts[bisect.bisect(self._heights, rng.random() * self._heights[-1])]


class UserProfile:
    """One user: asks at the times of a Poisson process, whether or not what was asked before was answered.

    Args:
        scenario: what all users have in common.
        catalogue: of that scenario.
        index: of the user; the same index does the same.

    Attributes:
        moving: whether the SNR follows the trace.
    """

    def __init__(self, scenario: Scenario, catalogue: PromptCatalogue, index: int) -> None:
        self._scenario, self._catalogue, self._index = scenario, catalogue, index
        self._rng = random.Random(f"visitor {scenario.seed} {index}")
        self.moving = self._rng.random() < scenario.moving_share
        self._mean_snr_db = self._rng.choice(scenario.snrs_db)
        self._trace = trace.load(scenario.trace)
        self._trace_start_s = self._rng.random() * self._trace.period_s

    def snr_db(self, at_s: float) -> float:
        """Mean SNR of a request at that time since the user's start, dB, to a tenth."""
        if not self.moving:
            return self._rng.choice(self._scenario.snrs_db)
        gain = self._trace.at(torch.tensor(self._trace_start_s + at_s)).abs().item()
        varied = self._mean_snr_db + 20 * math.log10(max(gain, 1e-9))
        return round(min(max(varied, _MIN_SNR_DB), _MAX_SNR_DB), 1)

    def arrivals(self) -> Iterator[Arrival]:
        """What the user asks for, without end."""
        scenario, rng = self._scenario, self._rng
        # of two arrivals in a row only the second can repeat the first
        again = scenario.conventional_share / (1 - scenario.conventional_share)
        at_s, count = 0.0, 0
        last: Arrival | None = None
        while True:
            at_s += rng.expovariate(scenario.rate_hz)
            if last is not None and rng.random() < again:
                yield Arrival(at_s, last.question, last.body | {"delivery": "conventional"})
                last = None
                continue
            prompt = self._catalogue.draw(rng)
            body = {
                "prompt": prompt,
                "seed": rng.randrange(scenario.seeds_per_prompt),
                "delivery": "semantic",
                "link": {"snr_db": self.snr_db(at_s), "cbr": rng.choice(scenario.cbrs)},
            }
            if not scenario.measure:
                body["measure"] = False
            last = Arrival(at_s, f"{self._index}-{count}", body)
            count += 1
            yield last


def users_at(shape: Shape, time_s: float, *, users: int, duration_s: float) -> int:
    """How many users there are at that time of a run, at least 1.

    Args:
        shape: ``steady``: all of them; ``ramp``: ever more, all of them in the last tenth; ``burst``: a
            quarter of them, but all of them in the middle third.
        time_s: since the start, s.
        users: at most.
        duration_s: of the run, s.
    """
    progress = time_s / duration_s
    if shape == "steady":
        return users
    if shape == "ramp":
        return min(users, max(1, math.ceil(users * progress / 0.9)))
    return users if 1 / 3 <= progress < 2 / 3 else max(1, users // 4)
