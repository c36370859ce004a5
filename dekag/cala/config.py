"""CALA's configuration, a dataclass like those of PEFT's own methods."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from peft.config import PeftConfig
from peft.utils import PeftType

from dekag.cala.conditions import CONDITION_FEATURES
from dekag.errors import InvalidInputError

GateKind = Literal["sigmoid", "softplus", "softmax", "linear"]
KernelKind = Literal["separable", "pointwise", "full"]
MAX_TEXT_WIDTH = 16384
"""Largest width of a prompt's states."""


def admit_peft_type(name: str) -> None:
    """Add `name` to PEFT's closed enumeration of methods, in which `register_peft_method` looks up names."""
    if name in PeftType.__members__:
        return
    member = str.__new__(PeftType, name)
    member._name_ = member._value_ = name
    type.__setattr__(PeftType, name, member)
    PeftType._member_names_.append(name)
    PeftType._member_map_[name] = member
    PeftType._value2member_map_[name] = member


admit_peft_type("CALA")


@dataclass
class CalaConfig(PeftConfig):  # type: ignore[misc]
    """CALA on the convolutions of a codec: W + s B diag(g(c)) A.

    Raises:
        InvalidInputError: names the field and its allowed values.
    """

    target_modules: list[str] | str | None = field(
        default=None,
        metadata={
            "help": "Names of the convolutions to adapt, or a regular expression that matches them; left "
            "out, all in the sides."
        },
    )
    exclude_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Names, or a regular expression, of those to leave alone."}
    )
    sides: list[str] = field(
        default_factory=lambda: ["encoder", "decoder"],
        metadata={"help": "Parts of the model with a gate and a condition of their own, by their names."},
    )
    rank: int = field(default=8, metadata={"help": "Components of each adapted layer; 1 to 256."})
    rank_pattern: dict[str, int] = field(
        default_factory=dict,
        metadata={"help": "Another rank for the layers whose names end so, such as {'encoder.0': 16}."},
    )
    scale: float = field(default=1.0, metadata={"help": "s, by which the components are multiplied."})
    kernel: KernelKind = field(
        default="separable",
        metadata={
            "help": "What a row of A is: channels times one spatial kernel (separable), channels at the "
            "kernel's centre (pointwise), or a kernel for each channel (full)."
        },
    )
    gate: GateKind = field(
        default="sigmoid",
        metadata={
            "help": "How the gate's numbers g become weights of the components: 2 sigmoid(g); softplus(g); "
            "rank softmax(g); 1 + g (linear). All but the last are soft switches."
        },
    )
    gate_width: int = field(
        default=16, metadata={"help": "Hidden units of the gate's trunk, one trunk a side; 1 to 1024."}
    )
    gated_bias: bool = field(
        default=True, metadata={"help": "Whether each component also adds a constant, gated with it."}
    )
    text_modules: list[str] = field(
        default_factory=list,
        metadata={"help": "Names of the adapted layers that also read the prompt."},
    )
    text_rank: int = field(
        default=16, metadata={"help": "Components of each of these that read the prompt; even, 2 to 256."}
    )
    text_width: int = field(
        default=0, metadata={"help": "Width of the prompt's states; 0 without text_modules."}
    )
    condition_features: int = field(
        default=CONDITION_FEATURES, metadata={"help": "Numbers in a condition vector c."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType["CALA"]
        if isinstance(self.target_modules, (set, tuple)):
            self.target_modules = sorted(self.target_modules)
        for name, value in {"rank": self.rank, **self.rank_pattern}.items():
            if not 1 <= value <= 256:
                raise InvalidInputError(name, "a rank between 1 and 256", value)
        if not 2 <= self.text_rank <= 256 or self.text_rank % 2:
            raise InvalidInputError("text_rank", "an even rank between 2 and 256", self.text_rank)
        if not 0 <= self.text_width <= MAX_TEXT_WIDTH or bool(self.text_width) != bool(self.text_modules):
            raise InvalidInputError(
                "text_width",
                f"between 1 and {MAX_TEXT_WIDTH} with text_modules, and 0 without",
                self.text_width,
            )
        if not 0 < self.scale <= 1000:
            raise InvalidInputError("scale", "above 0 and at most 1000", self.scale)
        for name in ("gate_width", "condition_features"):
            if not 1 <= getattr(self, name) <= 1024:
                raise InvalidInputError(name, "between 1 and 1024", getattr(self, name))
        if not self.sides or len(set(self.sides)) != len(self.sides):
            raise InvalidInputError("sides", "names, each once", self.sides)
        if self.gate not in get_args(GateKind):
            raise InvalidInputError("gate", f"one of {', '.join(get_args(GateKind))}", self.gate)
        if self.kernel not in get_args(KernelKind):
            raise InvalidInputError("kernel", f"one of {', '.join(get_args(KernelKind))}", self.kernel)
