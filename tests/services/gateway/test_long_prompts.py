"""Prompts that the models do not read at once, over real HTTP and through the real chain with tiny models."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from tests.services.answers import PATH, is_problem, pixels

pytestmark = pytest.mark.asyncio(loop_scope="session")

LONG = "a red boat on the beach and " * 15


async def ask(client: httpx2.AsyncClient, prompt: str, **more: Any) -> httpx2.Response:
    body = {"prompt": prompt, "seed": 3, "size": "64x64", "link": {"snr_db": 40, "fading": "awgn"}, **more}
    return await client.post(PATH, json=body)


@pytest.mark.parametrize(("delivery", "side"), [("semantic", "edge"), ("conventional", "cloud")])
async def test_a_long_prompt_is_read_whole_and_the_report_says_so(
    client: httpx2.AsyncClient, delivery: str, side: str
) -> None:
    answers = [await ask(client, LONG + end, delivery=delivery) for end in ("a neon cat", "a snowy hill")]
    images = [answer.json()["data"][0] for answer in answers]
    for image in images:
        read = image["link_report"]["prompt_read"]
        assert list(read) == [side]
        assert read[side]["tokens"] == read[side]["tokens_read"] > read[side]["tokens_at_once"] > 0
    assert (pixels(images[0]) != pixels(images[1])).any(), "what stands last counts"
    report = await client.get(f"/v1/reports/{answers[0].headers['x-request-id']}")
    assert report.json()["link_reports"][0]["prompt_read"] == images[0]["link_report"]["prompt_read"]


@pytest.mark.parametrize("delivery", ["semantic", "semantic-unaligned", "conventional"])
async def test_a_long_prompt_is_refused_if_that_is_asked_for(
    client: httpx2.AsyncClient, delivery: str
) -> None:
    assert (await ask(client, LONG, delivery=delivery)).status_code == 200  # and is in the caches now
    problem = is_problem(await ask(client, LONG, delivery=delivery, on_long_prompt="refuse"), 422)
    (error,) = problem["errors"]
    assert error["field"] == "prompt"
    assert 'as on_long_prompt is "refuse"' in error["allowed"]
    short = await ask(client, "a red boat", delivery=delivery, on_long_prompt="refuse")
    assert short.status_code == 200, short.text
    (read,) = short.json()["data"][0]["link_report"]["prompt_read"].values()
    assert 0 < read["tokens"] == read["tokens_read"] <= read["tokens_at_once"]


async def test_unknown_policy_for_long_prompts_is_refused(alone: httpx2.AsyncClient) -> None:
    (error,) = is_problem(await ask(alone, "a boat", on_long_prompt="cut"), 422)["errors"]
    assert (error["field"], error["allowed"]) == ("on_long_prompt", "one of read, refuse")
