"""One step of the edge's denoiser on latents that arrived damaged.

A denoiser that is told how noisy its input is returns the mean of the clean latents that it considers
possible. The error of a decoded latent is not Gaussian noise, but resembles it enough for one step to remove
much of it. Our choice; measured beside delivery without it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dekag.errors import MismatchError
from dekag.generation.models import Generator
from dekag.numerics import check_finite


class Restorer:
    """The denoiser and the text encoder of a generator, which it shares. Not for several threads at once.

    Example:
        >>> import torch
        >>> from dekag import load_profile
        >>> from dekag.generation.models import Generator
        >>> from dekag.generation.restorer import Restorer
        >>> restorer = Restorer(Generator.from_profile(load_profile("stickers"), "edge"))
        >>> restorer.restore(torch.randn(1, 4, 32, 32), "a red car on the beach", timestep=300).shape
        torch.Size([1, 4, 32, 32])

    Args:
        generator: the edge's, a Stable Diffusion pipeline.

    Raises:
        MismatchError: the generator's denoiser works in another way.
    """

    def __init__(self, generator: Generator) -> None:
        pipeline = generator.pipeline
        schedule = getattr(pipeline.scheduler, "alphas_cumprod", None)
        self._predicts = pipeline.scheduler.config.get("prediction_type")
        if schedule is None or not hasattr(pipeline, "unet") or self._predicts not in PREDICTIONS:
            raise MismatchError(
                "restoration needs a Stable Diffusion pipeline that predicts noise, v or latents"
            )
        self._signal: torch.Tensor = schedule.double()
        self._pipeline, self._unet = pipeline, pipeline.unet
        self._reader = generator.reader
        self._for_denoiser = generator.for_denoiser
        self.model_hash = generator.model_hash

    @torch.inference_mode()
    def restore(
        self, latents: torch.Tensor, prompt: str = "", *, timestep: int, seeds: Sequence[int] | None = None
    ) -> torch.Tensor:
        """Latents (B, channels, h, w) float32 after one step; unchanged at a timestep of 0.

        Args:
            latents: (B, channels, h, w) float32, of the same prompt.
            prompt: what they show; empty: unknown.
            timestep: how much error to remove, 0 to the last timestep of the denoiser's training.
            seeds: one per latent, for error messages.

        Raises:
            NumericalError: the denoiser produced a value that is not finite.
        """
        if not timestep:
            return latents
        states = self._reader.states([self._reader.windows(prompt)])["prompt_embeds"]
        timestep = min(timestep, len(self._signal) - 1)
        signal = float(self._signal[timestep])
        noisy = latents * signal**0.5
        output = self._unet(
            self._for_denoiser(noisy),
            torch.tensor(timestep),
            encoder_hidden_states=self._for_denoiser(states).expand(len(latents), -1, -1),
        ).sample.to("cpu", torch.float32)
        self._pipeline.maybe_free_model_hooks()  # with offload, the denoiser leaves the GPU again
        restored: torch.Tensor = PREDICTIONS[self._predicts](noisy, output, signal)
        check_finite(restored, "restore", seeds=seeds, model_hash=self.model_hash)
        return restored


PREDICTIONS = {
    "epsilon": lambda noisy, output, signal: (noisy - (1 - signal) ** 0.5 * output) / signal**0.5,
    "v_prediction": lambda noisy, output, signal: signal**0.5 * noisy - (1 - signal) ** 0.5 * output,
    "sample": lambda noisy, output, signal: output,
}
"""Clean latents from the denoiser's input and output, by what it was trained to predict."""
