"""The pipeline behind LitServe: ``python -m services.bench.litserve_server --help``.

Written as LitServe's documentation has it: the model is loaded in ``setup``, ``predict`` runs it. With a
batch size above 1, LitServe hands ``predict`` a list of what waits.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from litserve import LitAPI, LitServer

from services.bench.pipeline import InProcessPipeline, ReceivedImage, as_json

ImageRequest = dict[str, Any]
"""The body of a request: prompt and seed. LitServe hands it on as it is."""
BATCH_TIMEOUT_S = 0.01  # that LitServe waits for a batch to fill


class DeliveryApi(LitAPI):  # type: ignore[misc]
    """An image for each request."""

    def __init__(self, profile: str, **options: Any) -> None:
        super().__init__(**options)
        self._profile = profile

    def setup(self, device: str) -> None:
        """Loads the models, once in each worker."""
        torch.set_num_threads(1)
        self._pipeline = InProcessPipeline(self._profile)

    def predict(self, request: ImageRequest) -> ReceivedImage:
        """The image of one request."""
        (image,) = self._pipeline.deliver([request["prompt"]], [request["seed"]])
        return image

    def encode_response(self, output: ReceivedImage) -> dict[str, Any]:
        """The body of the answer."""
        return as_json(output)


class BatchedDeliveryApi(DeliveryApi):
    """An image for each request, drawn together with those of the requests that waited beside it."""

    def batch(self, inputs: list[ImageRequest]) -> list[ImageRequest]:
        """What waits, as it is."""
        return inputs

    def predict(self, requests: Sequence[ImageRequest]) -> list[ReceivedImage]:  # type: ignore[override]
        """An image for each request."""
        return self._pipeline.deliver(
            [each["prompt"] for each in requests], [each["seed"] for each in requests]
        )

    def unbatch(self, output: list[ReceivedImage]) -> list[ReceivedImage]:
        """An answer for each request."""
        return output


def main() -> None:
    """Serves until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--max-batch", type=int, default=1)
    options = parser.parse_args()
    api = DeliveryApi(options.profile)
    if options.max_batch > 1:
        api = BatchedDeliveryApi(
            options.profile, max_batch_size=options.max_batch, batch_timeout=BATCH_TIMEOUT_S
        )
    server = LitServer(api, accelerator="cpu", workers_per_device=options.workers)
    server.run(host="127.0.0.1", port=options.port, generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    main()
