"""Settings of the machine: where models compute, and how trainings save memory. Imports no torch.

Services read these variables with their other settings. Everything else, the command line and the library
alike, takes them with `machine_placement` and `read`. On each machine of a cluster, its own apply.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError

from dekag.errors import InvalidInputError
from dekag.generation.profile import Role

if TYPE_CHECKING:
    from dekag.generation.placement import Placement

PREFIX = "DEKAG_"
MOST = 1024
"""Bound of DEKAG_DISTILL_MICRO_BATCH: more is a typing error."""


class Machine(BaseModel):
    """Where the models of a machine compute."""

    device: str = Field(
        "cpu",
        description="Device of denoiser and autoencoder: cpu, cuda, cuda:N, mps, or auto, which takes what "
        "is there and logs it. Codec and link always compute on the CPU.",
    )
    text_device: str = Field(
        "",
        description="Device of the text encoder: cpu, or empty for the device in DEKAG_DEVICE. With "
        "DEKAG_OFFLOAD it must be empty.",
    )
    offload: bool = Field(
        False,
        description="Keep the parts of a generator in main memory and move each to the CUDA device only "
        "while it computes: less memory there, more time. The edge that a distillation trains stays there.",
    )
    keep_text_encoder: bool = Field(
        True,
        description="Keep the cloud's text encoder in memory. If false, it is loaded for new prompts and "
        "dropped afterwards; the states of 256 prompts are kept.",
    )
    vae_dtype: Literal["", "float32", "bfloat16"] = Field(
        "",
        description="Number format of the autoencoder: float32, or bfloat16, which takes about half the "
        "time on a processor with AVX-512 BF16 or AMX and changes few pixels by more than a level. Empty: "
        "as the profile says.",
    )

    def placement(self, *, keep_text_encoder: bool = True, trained: bool = False) -> Placement:
        """Where models compute. Imports torch.

        A model that is trained stays on its device: offload moves parts for a forward pass alone.

        Raises:
            InvalidInputError: a device is not there; names the setting.
        """
        from dekag.generation.placement import place

        try:
            return place(
                self.device,
                text_device=self.text_device,
                offload=self.offload and not trained,
                keep_text_encoder=keep_text_encoder,
                vae_dtype=self.vae_dtype,
            )
        except InvalidInputError as error:
            raise error.named(PREFIX + error.field.upper()) from None


class TrainingMachine(BaseModel):
    """How distillations save memory on a machine."""

    distill_micro_batch: int = Field(
        0,
        ge=0,
        le=MOST,
        description="Upper limit of latents that the edge's denoiser reads at once in a training step: less "
        "memory, the same result up to rounding. 0: the whole batch, or a part in each of "
        "`DEKAG_DISTILL_THREADS`.",
    )
    gradient_checkpointing: bool = Field(
        False,
        description="Compute activations again in the backward pass instead of keeping them: less memory, "
        "more time.",
    )


_FLAG = "true or false"
_ALLOWED = {
    "offload": _FLAG,
    "keep_text_encoder": _FLAG,
    "vae_dtype": "float32 or bfloat16",
    "distill_micro_batch": f"between 0 and {MOST}",
    "gradient_checkpointing": _FLAG,
}
"""Of the settings that are no names of devices."""
_Settings = TypeVar("_Settings", Machine, TrainingMachine)


def read(kind: type[_Settings], environment: Mapping[str, str] = os.environ) -> _Settings:
    """What the environment says; a variable that is blank is as good as none.

    Raises:
        InvalidInputError: a variable has a value that is not allowed; names it.
    """
    there = {name.upper(): value for name, value in environment.items() if value and not value.isspace()}
    variables = {name: PREFIX + name.upper() for name in kind.model_fields}
    try:
        return kind.model_validate(
            {name: there[variable] for name, variable in variables.items() if variable in there}
        )
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        raise InvalidInputError(variables[name], _ALLOWED[name], first["input"]) from None


def machine_placement(role: Role = "edge", *, trained: bool = False, device: str | None = None) -> Placement:
    """Where a generator computes on this machine.

    Example:
        >>> from dekag.generation.machine import machine_placement
        >>> machine_placement(device="cpu").device
        device(type='cpu')

    Args:
        role: the cloud's text encoder leaves memory if DEKAG_KEEP_TEXT_ENCODER says so, the edge's never.
        trained: whether it is trained, and thus stays on its device whatever DEKAG_OFFLOAD says.
        device: replaces DEKAG_DEVICE, DEKAG_TEXT_DEVICE and DEKAG_OFFLOAD.

    Raises:
        InvalidInputError: a device is not there, or a variable is invalid; names the variable.
    """
    machine = read(Machine)
    if device is not None:  # what belongs to another device does not apply
        machine = machine.model_copy(update={"device": device, "text_device": "", "offload": False})
    kept = machine.keep_text_encoder or role != "cloud"
    return machine.placement(keep_text_encoder=kept, trained=trained)
