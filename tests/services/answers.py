"""Answers of the gateway, read as the tests need them."""

from __future__ import annotations

import base64
import io
from typing import Any

import httpx2
import numpy as np
from PIL import Image

PATH = "/v1/images/generations"


def is_problem(answer: httpx2.Response, status: int) -> dict[str, Any]:
    """The body, after checking that it is a problem of that status."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert body["status"] == status
    assert body["type"].startswith("urn:dekag:problem:")
    assert body["request_id"] == answer.headers["x-request-id"]
    assert "Traceback" not in answer.text
    return body


def pixels(image: dict[str, Any]) -> np.ndarray:
    """The picture of an answer, as an array of shape (height, width, 3)."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(image["b64_json"]))))
