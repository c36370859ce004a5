"""The request for one image."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GenerationRequest:
    """One image; equal requests give the same image.

    Attributes:
        prompt: text prompt.
        seed: 0 to 2**63 - 1.
        width, height: pixels.
        updates: content hashes of the knowledge updates to use; the generator must have loaded them.
    """

    prompt: str
    seed: int
    width: int
    height: int
    updates: tuple[str, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """Width and height; images of one size may share a batch."""
        return self.width, self.height
