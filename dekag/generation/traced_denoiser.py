"""A U-Net without the cost of Python: TorchScript's trace of its operations.

A small denoiser on a CPU spends a fifth of its time in Python, between operations that take microseconds.
The trace runs the same operations, in the same order and with the same bits, from C++. `torch.export` and
`torch.compile` are its successors: the first runs its graph in Python, the second needs a compiler on the
user's machine (docs/performance.md).
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel, UNet2DConditionOutput

from dekag.console import library_log
from dekag.generation.placement import device_and_dtype

_OTHER_INPUTS = ("class_embed_type", "encoder_hid_dim_type", "time_cond_proj_dim")
MAX_PARAMETERS = 50_000_000
"""A larger model spends its time within its operations."""


def worth_tracing(denoiser: Any) -> bool:
    """Whether Python is a large part of a denoiser's time, and a trace is right for it.

    That is a small U-Net in float32 on the CPU that reads a prompt and nothing else, unlike that of Stable
    Diffusion XL.
    """
    if not isinstance(denoiser, UNet2DConditionModel) or hasattr(denoiser, "_hf_hook"):
        return False
    if denoiser.config.get("addition_embed_type") not in (None, "text"):  # "text" pools the prompt
        return False
    if any(denoiser.config.get(name) is not None for name in _OTHER_INPUTS):
        return False
    if not isinstance(denoiser.config.cross_attention_dim, int):
        return False
    numbers = sum(each.numel() for each in denoiser.parameters())
    return numbers <= MAX_PARAMETERS and device_and_dtype(denoiser) == (torch.device("cpu"), torch.float32)


def traced_if_possible(denoiser: Any, *, training: bool = False) -> TracedDenoiser | None:
    """The trace of a denoiser; None, and a warning in the log, if it has none: it computes without."""
    try:
        return TracedDenoiser(denoiser, training=training)
    except (ValueError, RuntimeError) as error:  # RuntimeError: PyTorch cannot trace its code
        library_log().warning("the denoiser is not traced", reason=str(error))
        return None


class TracedDenoiser:
    """The trace of a denoiser for which `worth_tracing`, for every batch size, image size and prompt length.

    It uses the denoiser's own weights: a change of their `data` is a change of both. The denoiser itself
    computes where it would take other branches: with sides that it cannot halve as often as it wants, and
    with other arguments.

    Args:
        denoiser: see above.
        training: trace what training calls, with a timestep for each image and with gradients, instead of
            what drawing calls, with one timestep and without gradients.

    Example:
        >>> traced = TracedDenoiser(pipeline.unet)  # doctest: +SKIP
        >>> with traced.in_use():
        ...     pipeline(prompt="a red fox", num_inference_steps=6)

    Raises:
        ValueError: the trace does not compute what the denoiser computes.
    """

    def __init__(self, denoiser: UNet2DConditionModel, *, training: bool = False) -> None:
        self._denoiser, self._plain, self._training = denoiser, denoiser.forward, training
        self._lock, self._users = threading.Lock(), 0
        self._before: Any = None
        self._unit = 2 ** int(denoiser.num_upsamplers)
        self._states_width: int = denoiser.config.cross_attention_dim
        # gradients cannot be computed through tensors that were made in inference mode
        with torch.no_grad() if training else torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript is deprecated, and warns of branches in Python
            self._trace = torch.jit.trace(_Positional(denoiser), self._example(2, 4, 4), check_trace=False)
        other = self._example(1, 2, 3)
        with torch.inference_mode():
            expected = self._plain(*other, return_dict=False)[0]
            if not torch.equal(self._forward(*other, return_dict=False)[0], expected):
                raise ValueError("the trace of the denoiser computes something else")

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Inside the context, a call of the denoiser runs the trace; several threads may be inside."""
        with self._lock:
            if not self._users:
                self._before = vars(self._denoiser).get("forward")  # another trace of the same denoiser
                self._denoiser.forward = self._forward
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users and self._before is None:
                    del self._denoiser.forward
                elif not self._users:
                    self._denoiser.forward = self._before

    def _forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        *,
        return_dict: bool = True,
        **others: Any,
    ) -> Any:
        if not self._fits(sample, timestep, others):
            return self._plain(sample, timestep, encoder_hidden_states, return_dict=return_dict, **others)
        # without TorchScript's own optimisation, which takes a second for each new shape and gains nothing
        with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
            found: torch.Tensor = self._trace(sample, timestep, encoder_hidden_states)
        return UNet2DConditionOutput(sample=found) if return_dict else (found,)

    def _fits(self, sample: torch.Tensor, timestep: Any, others: dict[str, Any]) -> bool:
        """Whether the trace took the same branches for such arguments."""
        return (
            (self._training or not torch.is_grad_enabled())
            and sample.dtype == torch.float32
            and all(side % self._unit == 0 for side in sample.shape[2:])
            and isinstance(timestep, torch.Tensor)
            and (timestep.ndim, timestep.dtype) == (int(self._training), torch.int64)
            and not any(each is not None for each in others.values())
        )

    def _example(self, rows: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Arguments for that many rows, with sides in the least unit that the denoiser can halve."""
        noise = torch.Generator().manual_seed(0)
        channels = int(self._denoiser.config.in_channels)
        latents = torch.randn(rows, channels, self._unit * height, self._unit * width, generator=noise)
        states = torch.randn(rows, 7 * rows, self._states_width, generator=noise)
        return latents, torch.full((rows,), 500) if self._training else torch.tensor(500), states


class _Positional(torch.nn.Module):
    """The denoiser with a tensor for each argument, and one as its result."""

    def __init__(self, denoiser: UNet2DConditionModel) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """Noise, data or velocity, as the denoiser predicts."""
        found: torch.Tensor = self.denoiser(sample, timestep, states, return_dict=False)[0]
        return found
