"""What the metrics of this process count."""

from __future__ import annotations

from prometheus_client import generate_latest


class Counted:
    """How much the samples of this process's metrics have grown since this was made."""

    def __init__(self) -> None:
        self._before = self._samples()

    @staticmethod
    def _samples() -> dict[str, float]:
        lines = generate_latest().decode().splitlines()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line[0] != "#"}

    def __call__(self, sample: str) -> float:
        return self._samples().get(sample, 0) - self._before.get(sample, 0)
