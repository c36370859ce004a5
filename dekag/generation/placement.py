"""Where a generator computes: the devices of its denoiser, its autoencoder and its text encoder.

Only what loads models knows of devices. Latents and pictures come back to the CPU, latents in
float32, so codec, link and services do not. Random numbers are drawn on the CPU: a seed means the same noise
on every device, but devices round differently.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

import torch

from dekag.console import library_log
from dekag.errors import InvalidInputError
from dekag.generation.profile import GeneratorProfile

CPU = torch.device("cpu")
_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d{1,3})?")
VaeDtype = Literal["", "float32", "bfloat16"]
DEVICES = "auto, cpu, cuda, cuda:N or mps"


@dataclass(frozen=True)
class Placement:
    """Where the parts of a generator are.

    Attributes:
        device: of denoiser and autoencoder.
        text_device: of the text encoder.
        offload: whether the parts stay in main memory and move to `device` only while they compute, which
            saves the device's memory and costs time.
        keep_text_encoder: whether the text encoder stays in memory. If not, it is loaded for prompts whose
            states are not known yet, and dropped afterwards.
        vae_dtype: number format of the autoencoder; empty: the model's own.
    """

    device: torch.device = CPU
    text_device: torch.device = CPU
    offload: bool = False
    keep_text_encoder: bool = True
    vae_dtype: VaeDtype = ""

    @property
    def devices(self) -> tuple[str, ...]:
        """The kinds of devices other than the CPU, which round differently; empty if all is on the CPU."""
        if self.device.type == "cpu":
            return ()
        apart = self.text_device.type != self.device.type
        return (self.device.type, *([f"text encoder {self.text_device.type}"] if apart else []))

    def formatted(self, model: GeneratorProfile) -> GeneratorProfile:
        """The model with the number format that its autoencoder has here."""
        return model.with_autoencoder_in(self.vae_dtype)


ON_CPU = Placement()


def place(
    device: str = "cpu",
    *,
    text_device: str = "",
    offload: bool = False,
    keep_text_encoder: bool = True,
    vae_dtype: VaeDtype = "",
) -> Placement:
    """The placement with these names of devices, each of which must be there.

    Example:
        >>> from dekag.generation.placement import place
        >>> place("cpu").device
        device(type='cpu')

    Args:
        device: "cpu", "cuda", "cuda:N", "mps", or "auto": CUDA, else MPS, else the CPU; the choice is logged.
        text_device: of the text encoder: "cpu", or as `device`, which empty means as well.
        offload: as in `Placement`; requires a CUDA device.
        keep_text_encoder, vae_dtype: as in `Placement`.

    Raises:
        InvalidInputError: a device does not exist on this machine, the text encoder is to be on another
            accelerator, or offload has nothing to move parts to or is to leave the text encoder out.
    """
    main = _device("device", device)
    if main.type == "cuda":
        _compute_in_full()
    if offload and main.type != "cuda":
        raise InvalidInputError("offload", "used with a CUDA device", str(main))
    text = _device("text_device", text_device) if text_device else main
    if not _same(text, main):
        if text.type != "cpu":  # the pipelines of diffusers compute on one accelerator
            raise InvalidInputError("text_device", f"cpu or {main}, the device of the other parts", str(text))
        if offload:
            may = f"{main} or empty with offload, which moves the text encoder as well"
            raise InvalidInputError("text_device", may, str(text))
    return Placement(main, text, offload, keep_text_encoder, vae_dtype)


def _compute_in_full() -> None:
    """Make float32 mean float32 on CUDA: PyTorch's convolutions round to TF32, ten bits, if one lets them."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def _same(one: torch.device, other: torch.device) -> bool:
    return (one.type, one.index or 0) == (other.type, other.index or 0)


def _device(field: str, name: str) -> torch.device:
    if not _DEVICE.fullmatch(name):
        raise InvalidInputError(field, DEVICES, name)
    if name == "auto":
        found = "cuda" if torch.cuda.is_available() else "mps" if torch.mps.is_available() else "cpu"
        library_log().info("device chosen", field=field, device=found, name=describe(torch.device(found)))
        return torch.device(found)
    device = torch.device(name)
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.mps.is_available(),
    }[device.type]
    if not there:
        raise InvalidInputError(field, f"a device of this machine ({', '.join(devices())})", name)
    return device


def devices() -> list[str]:
    """The devices of this machine."""
    cuda = (
        [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )
    return ["cpu", *cuda, *(["mps"] if torch.mps.is_available() else [])]


def describe(device: torch.device) -> str:
    """A device's name for people: that of the graphics card, otherwise its type."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def memory_of(device: torch.device) -> tuple[int, int] | None:
    """Bytes of a graphics card that are free, and all that it has; None where they are not known.

    Example:
        >>> import torch
        >>> from dekag.generation.placement import memory_of
        >>> memory_of(torch.device("cpu")) is None
        True
    """
    if device.type != "cuda":
        return None
    try:
        free, total = torch.cuda.mem_get_info(device)
    except RuntimeError:  # the driver does not answer, or has no room for a context
        return None
    return int(free), int(total)


def other_devices(module: Any) -> tuple[str, ...]:
    """The kind of device on which a module computes, for keys of caches; empty on the CPU, as usual."""
    kind = device_and_dtype(module)[0].type
    return () if kind == "cpu" else (kind,)


def device_and_dtype(module: Any) -> tuple[torch.device, torch.dtype]:
    """Device and number format in which a module computes."""
    hook = getattr(module, "_hf_hook", None)  # of offloading: the parameters are elsewhere until it computes
    parameter = next(module.parameters())
    return torch.device(getattr(hook, "execution_device", None) or parameter.device), parameter.dtype
