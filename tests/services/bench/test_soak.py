"""The soak's questions are what they are meant to be, and its figure is what it says."""

from __future__ import annotations

import itertools
import random

import pytest

from dekag.api.schemas import ImagesRequest
from dekag.errors import DekagError
from services.bench.soak import growths, random_requests, summary


def test_all_but_the_refused_questions_are_allowed() -> None:
    asked = list(itertools.islice(random_requests(random.Random(0)), 400))
    bodies = [body for _, _, body, _ in asked if body is not None]
    refused = [body for body in bodies if body["link"]["snr_db"] == 99]
    assert 0.02 < len(refused) / len(asked) < 0.09
    for body in bodies:
        if body not in refused:
            ImagesRequest.model_validate(body)
    assert {body.get("delivery") for body in bodies} == {None, "semantic-unaligned", "conventional"}
    assert any(patience_s is not None for *_, patience_s in asked)
    assert {method for method, *_ in asked} == {"GET", "POST"}


def test_growth_is_from_after_the_warm_up_to_the_end() -> None:
    rows = [
        {"at_s": at_s, "service": "all", "rss_gib": rss, "pss_gib": 1.0, "files": 10, "keys": 5}
        for at_s, rss in (
            (0, 0.1),
            (14, 0.1),
            (15, 2.0),
            (29, 2.0),
            (30, 9.0),
            (84, 9.0),
            (85, 2.1),
            (99, 2.3),
        )
    ]
    rows.append({"at_s": 99, "service": "edge", "rss_gib": 50.0, "pss_gib": 1.0, "files": 10})
    assert growths(rows, 100) == pytest.approx({"rss_gib": 10, "pss_gib": 0, "files": 0, "keys": 0})
    with pytest.raises(DekagError, match="too few readings"):
        growths(rows[:2], 100)
    text = summary({"statuses": {"200": 9, "422": 1}, "seconds": 600, "growth_percent": growths(rows, 100)})
    assert text[0] == "10 requests in 10 min: 9 with 200, 1 with 422."
    assert "RSS +10.0 %" in text[1]
