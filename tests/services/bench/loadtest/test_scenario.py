"""What the load test's users do: the same for the same seed, and as random as it is meant to be."""

from __future__ import annotations

import math
import random
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
import torch

from dekag.errors import InvalidInputError
from dekag.link import trace
from dekag.makd.topics import matching
from dekag.stickers import TOPICS
from services.bench.loadtest.scenario import (
    SHAPES,
    Arrival,
    PromptCatalogue,
    Scenario,
    UserProfile,
    own_templates,
    users_at,
)
from tests.chain import with_topics

ROOT = Path(__file__).resolve().parents[4]


def arrivals(scenario: Scenario, index: int, count: int) -> list[Arrival]:
    return list(islice(UserProfile(scenario, PromptCatalogue(scenario), index).arrivals(), count))


def test_everything_follows_from_the_seed() -> None:
    scenario = Scenario(seed=3)
    assert arrivals(scenario, 1, 50) == arrivals(scenario, 1, 50)
    assert arrivals(scenario, 1, 50) != arrivals(scenario, 2, 50)
    assert PromptCatalogue(scenario).prompts == PromptCatalogue(scenario).prompts
    assert PromptCatalogue(scenario).prompts != PromptCatalogue(Scenario(seed=4)).prompts


def test_a_load_of_serving_alone_leaves_out_the_measurement_and_changes_nothing_else() -> None:
    measured, alone = (arrivals(Scenario(seed=3, measure=measure), 1, 50) for measure in (True, False))
    assert [each.body for each in alone] == [each.body | {"measure": False} for each in measured]
    assert not any("measure" in each.body for each in measured)


def test_popular_prompts_are_asked_for_as_zipf_says() -> None:
    catalogue, rng, draws = PromptCatalogue(Scenario(prompts=50)), random.Random(0), 20_000
    drawn = Counter(catalogue.draw(rng) for _ in range(draws))
    harmonic = sum(1 / rank for rank in range(1, 51))
    for rank in (1, 2, 10, 50):
        expected = draws / rank / harmonic
        assert abs(drawn[catalogue.prompts[rank - 1]] - expected) < 4 * math.sqrt(expected)


def test_some_prompts_need_a_topic_and_the_others_none() -> None:
    scenario = Scenario(prompts=400)
    triggers = {name: topic.triggers for name, topic in TOPICS.items()}
    found = [matching(prompt, triggers) for prompt in PromptCatalogue(scenario).prompts]
    assert len(found) == 400
    assert {tuple(topics) for topics in found} == {(), *((name,) for name in scenario.topics)}
    assert abs(sum(map(bool, found)) / 400 - scenario.topic_share) < 0.1


def test_the_documentation_names_prompts_and_topics() -> None:
    page = (ROOT / "docs/loadtest.md").read_text()
    scenario = Scenario()
    *most, last = scenario.topics
    assert f"{scenario.prompts} captions" in page
    assert f"({', '.join(most)} or {last})" in page


def test_a_profiles_own_topics_are_asked_for(dummy_profile: Path, tmp_path: Path) -> None:
    assert own_templates(str(dummy_profile)) == ()
    scenario = Scenario(prompts=100, templates=own_templates(str(with_topics(dummy_profile, tmp_path / "p"))))
    prompts = PromptCatalogue(scenario).prompts
    triggers = {name: topic.triggers for name, topic in TOPICS.items()}
    assert len(prompts) == 100
    assert sum("glow" in prompt for prompt in prompts) > 20
    assert not any(matching(prompt, triggers) or "{" in prompt for prompt in prompts)


def test_arrivals_are_a_poisson_process() -> None:
    times = [arrival.at_s for arrival in arrivals(Scenario(rate_hz=0.5), 0, 4000)]
    waits = [after - before for before, after in zip([0.0, *times], times, strict=False)]
    assert sum(waits) / len(waits) == pytest.approx(2.0, rel=0.06)
    # an exponential's deviation is its mean, and it has no memory
    assert math.sqrt(sum((wait - 2) ** 2 for wait in waits) / len(waits)) == pytest.approx(2.0, rel=0.1)
    long = [wait for wait in waits if wait > 2]
    assert sum(long) / len(long) - 2 == pytest.approx(2.0, rel=0.1)


def test_a_conventional_request_repeats_a_semantic_one() -> None:
    asked = arrivals(Scenario(conventional_share=0.25), 5, 4000)
    conventional = [i for i, arrival in enumerate(asked) if arrival.body["delivery"] == "conventional"]
    assert len(conventional) / len(asked) == pytest.approx(0.25, abs=0.03)
    for i in conventional:
        before = asked[i - 1]
        assert asked[i].question == before.question
        assert asked[i].body == before.body | {"delivery": "conventional"}
        assert before.body["delivery"] == "semantic"
    questions = [arrival.question for arrival in asked if arrival.body["delivery"] == "semantic"]
    assert len(set(questions)) == len(questions)


def test_a_moving_user_follows_the_trace() -> None:
    scenario = Scenario(moving_share=1.0, snrs_db=(10.0,), conventional_share=0.0)
    profile = UserProfile(scenario, PromptCatalogue(scenario), 0)
    drive = trace.load("drive")
    snrs_db = [profile.snr_db(at_s) for at_s in range(30)]
    assert max(snrs_db) - min(snrs_db) > 5
    again = [profile.snr_db(at_s + drive.period_s) for at_s in range(30)]
    assert snrs_db == pytest.approx(again, abs=0.1)
    # the trace from some start on, around 10 dB
    starts = torch.arange(0, drive.period_s, 0.1) + 0.05
    shifted = [
        10 + 20 * drive.at(start + torch.arange(30.0)).abs().log10() for start in starts.to(torch.float64)
    ]
    assert min((each - torch.tensor(snrs_db)).abs().max().item() for each in shifted) < 0.06
    assert [each.body["link"]["snr_db"] for each in islice(profile.arrivals(), 20)] != [10.0] * 20


def test_others_meet_any_snr_and_rate() -> None:
    scenario = Scenario(moving_share=0.0)
    links = [arrival.body["link"] for arrival in arrivals(scenario, 0, 200)]
    assert {link["snr_db"] for link in links} == set(scenario.snrs_db)
    assert {link["cbr"] for link in links} == set(scenario.cbrs)


def test_load_follows_the_named_shape() -> None:
    times = [0, 10, 29.9, 30, 45, 60, 81, 89.9]
    found = {shape: [users_at(shape, t, users=8, duration_s=90) for t in times] for shape in SHAPES}
    assert found == {
        "steady": [8] * 8,
        "ramp": [1, 1, 3, 3, 5, 6, 8, 8],
        "burst": [2, 2, 2, 8, 8, 2, 2, 2],
    }
    assert [users_at(shape, 0, users=1, duration_s=5) for shape in SHAPES] == [1, 1, 1]


@pytest.mark.parametrize("wrong", [{"conventional_share": 0.6}, {"rate_hz": 0.0}])
def test_impossible_scenario_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Scenario(**wrong)  # type: ignore[arg-type]


def test_unknown_trace_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="drive"):
        Scenario(trace="nowhere")
