"""Measure which timestep of the denoiser fits the errors of a codec, for `Restorer`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from tqdm import tqdm

from dekag.cala.restoration import RestorationTable
from dekag.errors import InvalidInputError
from dekag.generation.restorer import Restorer
from dekag.link.conditions import LinkConditions
from dekag.pipeline import SemanticLink
from dekag.training.cala import GRID_CBRS, source_values

TIMESTEPS = (0, 15, 25, 35, 50, 75, 100, 150, 200, 300, 450, 600, 750)
FIT_CHANNELS = (LinkConditions(fading="awgn"), LinkConditions(fading="rayleigh", tau_rms_s=1e-6))
FIT_SNRS_DB = (-7.5, -5.0, -2.5, 0.0, 2.5, 5.0, 7.5, 10.0, 15.0, 20.0)
BIN_DB = 1.0
"""Width of the ranges of the expected PSNR that share a timestep before the fit, dB."""


@torch.inference_mode()
def fit_restoration(
    link: SemanticLink,
    restorer: Restorer,
    latents: torch.Tensor,
    prompts: Sequence[str],
    *,
    cbrs: Sequence[float] = GRID_CBRS,
    snrs_db: Sequence[float] = FIT_SNRS_DB,
    timesteps: Sequence[int] = TIMESTEPS,
    seed: int = 0,
    show: bool = True,
) -> RestorationTable:
    """Send latents over many channels and find the timestep that leaves the smallest error.

    In each range of the expected PSNR, it is the timestep with the smallest mean logarithm of the latents'
    squared error, so that every transmission counts alike.

    Args:
        link: sender and receiver; the codec must have a quality table.
        restorer: of the edge's generator.
        latents: (n, channels, h, w), not those of an evaluation.
        prompts: one per latent.
        cbrs, snrs_db: rates and mean SNRs, dB, at which they are sent.
        timesteps: to choose from; 0: no restoration.
        seed: of fading and noise.
        show: show a progress bar.

    Raises:
        InvalidInputError: the codec has no quality table.
    """
    if link.receiver.codec.quality is None:
        raise InvalidInputError("link", "of a codec whose quality was measured", None)
    values = source_values(latents)
    expected: list[float] = []
    errors: list[list[float]] = []
    cells = [(channel, snr, cbr) for channel in FIT_CHANNELS for snr in snrs_db for cbr in cbrs]
    for number, (channel, snr_db, cbr) in enumerate(tqdm(cells, desc="restoration", disable=not show)):
        conditions = channel.model_copy(update={"snr_db": snr_db})
        seeds = [seed + number * len(latents) + i for i in range(len(latents))]
        sent = link.send(
            latents.float(),
            [conditions] * len(latents),
            seeds,
            source_values=values,
            cbr=cbr,
            text=[link.side_information(prompt) for prompt in prompts],
        )
        for i, prompt in enumerate(prompts):
            received, clean = sent.latents[i : i + 1], latents[i : i + 1].float()
            expected.append(link.receiver.expected_psnr_db(sent.receptions[i], source_values=values))
            restored = [restorer.restore(received, prompt, timestep=each) for each in timesteps]
            errors.append([float((each - clean).square().mean().log()) for each in restored])
    return _fitted(np.array(expected), np.array(errors), timesteps)


def _fitted(expected: np.ndarray, errors: np.ndarray, timesteps: Sequence[int]) -> RestorationTable:
    """The table of transmissions with expected PSNRs (n,) and errors (n, timesteps)."""
    bins = np.floor(expected / BIN_DB)
    psnrs, best = [], []
    for each in np.unique(bins):
        inside = bins == each
        psnrs.append(round(float(expected[inside].mean()), 4))
        best.append(timesteps[int(errors[inside].mean(0).argmin())])
    return RestorationTable.fitted(psnrs, best)
