"""Bodies that would lose something, or never end, are problems that name the key; over real HTTP."""

from __future__ import annotations

import gzip
from typing import Any

import httpx2
import pytest

from tests.services.answers import PATH, is_problem

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.mark.parametrize("path", [PATH, "/v1/knowledge"])
@pytest.mark.parametrize(
    ("body", "field", "said"),
    [
        ('{"prompt": "a cat", "prompt": "a dog"}', "prompt", "'prompt' stands there twice"),
        ('{"link": {"snr_db": 1,\n"fading": "awgn", "snr_\\u0064b": 2}}', "link.snr_db", "line 2"),
        ('{"prompts": ["a", {"x": [0, {"y": 1, "y": 1}]}]}', "prompts.1.x.1.y", "twice"),
        ('{"prompt": "a cat", "seed": NaN}', "seed", "NaN is no finite number"),
        ('{"prompt": "a cat", "link": {"snr_db": NaN}}', "link.snr_db", "NaN is no finite number"),
        ('{"link": {"snr_db": -1e999}}', "link.snr_db", "no finite number"),
        ('{"prompt": "a \\ud800 cat"}', "prompt", "unpaired surrogate"),
        ("[" * 10_000, "body", "more than 64 levels"),
        ('{"a":' * 5_000 + "1" + "}" * 5_000, "body", "more than 64 levels"),
        ('{"prompt": "a cat",}', "body", "not valid JSON"),
        ('{"seed": ' + "9" * 5000 + "}", "body", "too many digits"),
    ],
)
async def test_json_body_that_cannot_be_read_exactly_is_refused(
    alone: httpx2.AsyncClient, path: str, body: str | bytes, field: str, said: str
) -> None:
    answer = await alone.post(path, content=body, headers={"Content-Type": "application/json"})
    problem: dict[str, Any] = is_problem(answer, 422)
    assert [each["field"] for each in problem["errors"]] == [field]
    assert said in problem["detail"]
    assert "\n" not in problem["detail"]


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
async def test_a_body_of_too_many_values_is_refused(alone: httpx2.AsyncClient, encoding: str) -> None:
    body = b'{"files": [' + b"[]," * 2**20 + b"[]]}"
    answer = await alone.put(
        "/v1/knowledge/neon",
        content=gzip.compress(body) if encoding == "gzip" else body,
        headers={"Content-Type": "application/json", "Content-Encoding": encoding},
    )
    problem: dict[str, Any] = is_problem(answer, 422)
    assert "more than 1000000 values" in problem["detail"]
