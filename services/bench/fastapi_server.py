"""A plain FastAPI handler around the pipeline: ``python -m services.bench.fastapi_server --help``.

The pipeline is not for several threads at once, so that the handler takes a lock. With several workers,
uvicorn starts as many processes that accept connections at the same port, each with models of its own.
"""

from __future__ import annotations

import argparse
import os
import threading
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from services.bench.pipeline import InProcessPipeline, as_json

_PROFILE = "BENCH_PROFILE"  # variable that tells a worker its models
_HEALTH_S = 3600  # a worker that is paused while others are measured is not taken for dead


class ImageRequest(BaseModel):
    """What is to be drawn."""

    prompt: str
    seed: int


def create_app(pipeline: InProcessPipeline) -> FastAPI:
    """An application that answers ``POST /predict`` and ``GET /health``."""
    app, lock = FastAPI(), threading.Lock()

    @app.post("/predict")
    def predict(request: ImageRequest) -> dict[str, Any]:
        with lock:
            (image,) = pipeline.deliver([request.prompt], [request.seed])
        return as_json(image)

    @app.get("/health")
    def health() -> str:
        return "ok"

    return app


def worker_app() -> FastAPI:
    """The application of one process, with its models."""
    torch.set_num_threads(1)
    return create_app(InProcessPipeline(os.environ[_PROFILE]))


def main() -> None:
    """Serves until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    os.environ[_PROFILE] = options.profile
    uvicorn.run(
        "services.bench.fastapi_server:worker_app",
        factory=True,
        host="127.0.0.1",
        port=options.port,
        workers=options.workers,
        timeout_worker_healthcheck=_HEALTH_S,
        log_level="warning",
    )


if __name__ == "__main__":
    main()
