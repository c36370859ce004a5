"""A plain FastAPI handler around the pipeline: ``python -m services.bench.fastapi_server --help``.

The pipeline is not for several threads at once, so that the handler takes a lock.
"""

from __future__ import annotations

import argparse
import threading
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from services.bench.pipeline import InProcessPipeline, as_json


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


def main() -> None:
    """Serves until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", required=True)
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    uvicorn.run(
        create_app(InProcessPipeline(options.profile)),
        host="127.0.0.1",
        port=options.port,
        log_level="warning",
    )


if __name__ == "__main__":
    main()
