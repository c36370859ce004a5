"""States of prompts at the edge and at the user, for a codec that reads them.

Imports no torch, so that the gateway can use the package.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dekag.errors import MismatchError
from services.common.worker import ModelWorker

if TYPE_CHECKING:
    import torch

    from dekag.generation.side_information import SideInformation
    from dekag.pipeline import ConditionedCodec
    from dekag.profile import Profile
    from services.common.converters import DeliveryRequest
    from services.common.settings import CodecSettings
    from services.common.transmission import CodecCache


class PromptStates:
    """The edge's text encoder, loaded at the start if the profile's codec reads prompts, else when one does.

    Args:
        settings: threads and queue of the text encoder, and where it runs.
    """

    def __init__(self, settings: CodecSettings) -> None:
        self._settings = settings
        self._worker = ModelWorker("prompts", threads=settings.threads, max_queue=settings.max_queue)
        self._known: SideInformation | None = None
        self._profile: Profile

    def load(self, profile: Profile, codecs: CodecCache) -> None:
        """Remember whose text encoder it is, and load it if `codecs` need it."""
        self._profile = profile
        loaded = (codecs.base, codecs.unaligned, codecs.own)
        if any(codec is not None and codec.text_width for codec in loaded):
            self._load()

    def close(self) -> None:
        """Ends the thread."""
        self._worker.close()

    async def states(self, request: DeliveryRequest, codec: ConditionedCodec) -> torch.Tensor | None:
        """The states (tokens, text_width) of a request's prompt; None without one, or where it is withheld.

        Raises:
            MismatchError: the codec reads states of another width than this text encoder's.
        """
        if not codec.text_width or request.side_information == "none" or not request.prompt:
            return None
        found, _ = await self._worker.run(self._states, request.prompt)
        if found.shape[1] != codec.text_width:
            raise MismatchError(
                f"the codec reads prompts in {codec.text_width} numbers a token, "
                f"but the edge's text encoder has {found.shape[1]}"
            )
        return found

    def _states(self, prompt: str) -> torch.Tensor:
        return (self._known or self._load()).states(prompt)

    def _load(self) -> SideInformation:
        from dekag.generation.side_information import SideInformation

        self._known = SideInformation.load(self._profile.edge, self._settings.placement())
        return self._known
