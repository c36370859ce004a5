"""Adaptation methods for the codec: CALA and its baselines, behind one interface.

All of them are trained by `dekag.training.cala.train_method` with the same loss, data and steps. `METHODS`
lists them; plug-ins derive from `AdaptedCodec` (`dekag.plugins`). The parameter fraction is the number of
trained parameters (gates included) divided by the codec's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import nn

from dekag import plugins
from dekag.cala.artifact import CALA, TransmissionKnowledge
from dekag.cala.conditions import CONDITION_FEATURES, rate_and_snr_db
from dekag.cala.config import CalaConfig
from dekag.cala.layer import CalaLayer
from dekag.cala.rate import QualityModel
from dekag.cala.restoration import RestorationTable
from dekag.codec import JsccCodec, LatentCodec, Modulation
from dekag.codec.jscc import PromptedLayer, with_text, without_text
from dekag.codec.packed import pack
from dekag.errors import InvalidInputError, MismatchError


def convolutions(codec: JsccCodec) -> list[str]:
    """Names of the codec's convolutions."""
    return [name for name, module in codec.named_modules() if isinstance(module, nn.Conv2d)]


class AdaptedCodec(nn.Module):
    """A codec adapted to conditions; this base class leaves it unchanged.

    Attributes:
        codec: the codec, with any modifications.
        groups: number of groups of conditions with separate parameters; 1 if there are none.
        base_hash: hash of the codec's folder; empty, as it is unknown here.
        quality: the expected PSNR at each rate; None, as it is unknown here.
        restoration: the timesteps for a `Restorer`; None, as they are unknown here.
        name, title: for plug-ins: name for `build`, and label in figures.
        learning_rate: for plug-ins: peak learning rate.
        sized: for plug-ins: whether the constructor takes a codec and a size, 1 to 64, that determines the
            number of trained parameters; otherwise it takes the codec alone.
    """

    groups = 1
    base_hash: str = ""
    quality: QualityModel | None = None
    restoration: RestorationTable | None = None
    name: ClassVar[str]
    title: ClassVar[str] = ""
    learning_rate: ClassVar[float] = 1e-2
    sized: ClassVar[bool] = True

    def __init__(self, codec: JsccCodec) -> None:
        super().__init__()
        self.codec = codec.requires_grad_(False)

    @property
    def text_width(self) -> int:
        """Width of the prompt's states that are read; 0 if none are."""
        return int(self.codec.text_width)

    @property
    def interleaved(self) -> bool:
        """Whether symbols are sent interleaved."""
        return bool(self.codec.interleaved)

    def with_condition(
        self, side: str, condition: torch.Tensor, text: torch.Tensor | None = None
    ) -> AbstractContextManager[None]:
        """Inside the context, the side ("encoder", "decoder") is adapted to conditions (batch, C).

        Args:
            side: "encoder" or "decoder".
            condition: (batch, C).
            text: states of the prompts for the adapter, (batch, tokens, text_width); None if there are none.
        """
        return nullcontext()

    def group_of(self, condition: torch.Tensor) -> torch.Tensor:
        """(batch,) int64: the group of each condition (batch, C); the same at sender and receiver."""
        return torch.zeros(len(condition), dtype=torch.int64)

    def select_group(self, group: int) -> None:
        """Select a group; all conditions of a batch must belong to it."""

    def max_channel_uses(self, latent_shape: tuple[int, int, int]) -> int:
        """The most symbols that a latent of (channels, height, width) can be sent with."""
        most: int = self.codec.max_channel_uses(latent_shape)
        return most

    def encode(
        self,
        latents: torch.Tensor,
        channel_uses: Sequence[int],
        condition: torch.Tensor,
        *,
        modulation: Modulation | None = None,
        text: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Latents (batch, channels, h, w) float32 -> symbols (batch, K) complex64, in one batch.

        Args:
            latents: latents to send.
            channel_uses: symbols for each image; shorter rows end in zeros.
            condition: (batch, C), all of one group.
            modulation: the constellation; default: `modulations` of the conditions.
            text: states of the prompts, (batch, tokens, text_width); None if there are none.
        """
        uses = channel_uses[0] if len(set(channel_uses)) == 1 else channel_uses
        chosen = self.modulations(condition) if modulation is None else modulation
        with self.adapted("encoder", condition, text):
            symbols: torch.Tensor = self.codec.encode(latents, uses, modulation=chosen, text=text)
        return symbols

    def decode(
        self,
        symbols: torch.Tensor,
        latent_shape: tuple[int, int, int],
        condition: torch.Tensor,
        *,
        text: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Equalised symbols (batch, K) complex64 -> latents (batch, channels, h, w) float32; see `encode`."""
        with self.adapted("decoder", condition, text):
            latents: torch.Tensor = self.codec.decode(symbols, latent_shape, text=text)
        return latents

    def modulation_at(self, snr_db: float) -> Modulation:
        """The constellation that is used where none is asked for, at a reported SNR in dB."""
        chosen: Modulation = self.codec.modulation_at(snr_db)
        return chosen

    def modulations(self, condition: torch.Tensor) -> list[Modulation]:
        """The same for the SNR in each condition (batch, C)."""
        return [self.modulation_at(snr_db) for snr_db in rate_and_snr_db(condition)[1].tolist()]

    def adapted(
        self, side: str, condition: torch.Tensor, text: torch.Tensor | None = None
    ) -> AbstractContextManager[None]:
        """As `with_condition`, for conditions of one group, which is selected."""
        if self.groups > 1:
            self.select_group(int(self.group_of(condition)[0]))
        return self.with_condition(side, condition, text)

    def fuse(self) -> None:
        """Prepare for fast inference, after which training is impossible; does nothing unless overridden."""

    def trained_parameters(self) -> int:
        """Number of trained parameters, in all groups together."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    @classmethod
    def method(cls) -> Method:
        """The method of a plug-in."""
        make = _sized(cls) if cls.sized else lambda codec, _, __=0: cls(copy.deepcopy(codec))
        return Method(cls.title or cls.name, make, cls.learning_rate, cls.sized)


class FullFineTune(AdaptedCodec):
    """Trains all of the codec's own parameters."""

    def __init__(self, codec: JsccCodec) -> None:
        super().__init__(codec)
        self.codec.requires_grad_(True)


class Lora(AdaptedCodec):
    """PEFT's own LoRA, one adapter for each group of conditions.

    Args:
        codec: the base codec.
        rank: of each adapter.
        split: "none": one for all. "snr": two, below 5 dB and above. "snr-cbr": four, also by CBR below 1/271
            (the middle of the grid) and above.
    """

    SNR_DB, CBR = 5.0, 1 / 271.5

    def __init__(self, codec: JsccCodec, rank: int, split: str = "none") -> None:
        from peft import LoraConfig, get_peft_model

        super().__init__(codec)
        self.groups = {"none": 1, "snr": 2, "snr-cbr": 4}[split]
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=convolutions(codec))
        self.peft = get_peft_model(self.codec, config, adapter_name="group0")
        for group in range(1, self.groups):
            self.peft.add_adapter(f"group{group}", copy.deepcopy(config))
        for name, parameter in self.peft.named_parameters():
            parameter.requires_grad_("lora_" in name)

    def group_of(self, condition: torch.Tensor) -> torch.Tensor:
        """(batch,) int64."""
        cbr, snr_db = rate_and_snr_db(condition)
        by_snr, by_cbr = (snr_db >= self.SNR_DB).long(), (cbr >= self.CBR).long()
        return {1: 0 * by_snr, 2: by_snr, 4: 2 * by_snr + by_cbr}[self.groups]

    def select_group(self, group: int) -> None:
        """Activate the group's adapter."""
        for module in self.peft.modules():
            if hasattr(module, "lora_A"):
                module._active_adapter = [f"group{group}"]


class AttentionFeature(nn.Module):
    """Channel attention on pooled features and the condition, after ADJSCC (Xu et al., 2022).

    Args:
        channels: number of feature channels.
        hidden: units of the hidden layer.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(channels + CONDITION_FEATURES, hidden)
        self.excite = nn.Linear(hidden, channels)
        nn.init.zeros_(self.excite.weight)
        nn.init.zeros_(self.excite.bias)
        self._condition: torch.Tensor | None = None

    def set_condition(self, condition: torch.Tensor | None) -> None:
        """Set the conditions (batch, C); None disables the attention."""
        self._condition = condition

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features (batch, channels, h, w) scaled by 0..2; 1 when untrained."""
        if self._condition is None:
            return x
        pooled = torch.cat([x.mean(dim=(2, 3)).float(), self._condition], dim=1)
        scales = 2 * torch.sigmoid(self.excite(torch.relu(self.squeeze(pooled))))
        return x * scales[:, :, None, None].to(x.dtype)


class Attended(PromptedLayer):
    """A layer of the codec, and the attention after it."""

    def __init__(self, layer: nn.Module, attention: AttentionFeature) -> None:
        super().__init__()
        self.layer, self.attention = layer, attention

    def forward(self, x: torch.Tensor, text: torch.Tensor | None = None) -> torch.Tensor:
        """The layer's features, scaled."""
        features = self.layer(x, text) if isinstance(self.layer, PromptedLayer) else self.layer(x)
        scaled: torch.Tensor = self.attention(features)
        return scaled


class SnrAttention(AdaptedCodec):
    """Attention after each hidden layer, as in ADJSCC; the codec itself is not trained.

    Args:
        codec: the base codec.
        hidden: units of each attention module.
    """

    def __init__(self, codec: JsccCodec, hidden: int) -> None:
        super().__init__(codec)
        width = int(codec.config.width)
        for stack in (codec.encoder, codec.decoder):
            for index in range(len(stack) - 2):  # the first convolution and the residual blocks
                stack[index] = Attended(stack[index], AttentionFeature(width, hidden))

    @contextmanager
    def with_condition(
        self, side: str, condition: torch.Tensor, text: torch.Tensor | None = None
    ) -> Iterator[None]:
        """Inside the context, the side's attention uses these conditions (batch, C)."""
        stack = self.codec.get_submodule(side)
        modules = [module for module in stack.modules() if isinstance(module, AttentionFeature)]
        for module in modules:
            module.set_condition(condition)
        try:
            yield
        finally:
            for module in modules:
                module.set_condition(None)


class Cala(AdaptedCodec):
    """Condition-aware low-rank adaptation, through PEFT."""

    def __init__(self, codec: JsccCodec, config: CalaConfig) -> None:
        from peft import get_peft_model

        super().__init__(codec)
        self.peft: Any = get_peft_model(self.codec, config)

    @classmethod
    def attached(cls, codec: JsccCodec, knowledge: TransmissionKnowledge) -> Self:
        """Attach CALA's knowledge to a codec, which is modified."""
        adapted = cls.__new__(cls)
        AdaptedCodec.__init__(adapted, codec)
        adapted.peft = knowledge.attach(codec)
        return adapted

    @property
    def text_width(self) -> int:
        """Width of the prompt's states that the codec or its adapter reads."""
        (config,) = self.peft.peft_config.values()
        return self.codec.text_width or int(config.text_width)

    def with_condition(
        self, side: str, condition: torch.Tensor, text: torch.Tensor | None = None
    ) -> AbstractContextManager[None]:
        """Inside the context, the side's gates use these conditions (batch, C)."""
        with_condition: AbstractContextManager[None] = self.peft.base_model.with_condition(
            side, condition, text
        )
        return with_condition

    def fuse(self) -> None:
        """Prepare layers and gates for fast inference; the codec's other convolutions are packed.

        Later changes of their weights have no effect.
        """
        self.peft.base_model.fuse()
        pack(self.codec, apart=CalaLayer)


class UngatedCala(Cala):
    """CALA with a constant condition at its gates, which leaves a plain low-rank adapter."""

    def with_condition(
        self, side: str, condition: torch.Tensor, text: torch.Tensor | None = None
    ) -> AbstractContextManager[None]:
        """Inside the context, the side's gates are the same for all conditions (batch, C)."""
        return super().with_condition(side, torch.zeros_like(condition), text)


class Build(Protocol):
    """Builds an adapted codec from a base codec, which is copied."""

    def __call__(self, codec: JsccCodec, fraction: float, text_width: int = 0, /) -> AdaptedCodec:
        """The adapted codec.

        Args:
            codec: the base codec.
            fraction: largest fraction of parameters to train.
            text_width: width of the prompts' states that may be read; 0: none.
        """


@dataclass(frozen=True)
class Method:
    """A method to adapt the codec.

    Attributes:
        title: label in figures.
        build: builds the adapted codec.
        learning_rate: peak learning rate; tuned by short runs on validation latents.
        sized: whether the parameter fraction has an effect.
    """

    title: str
    build: Build
    learning_rate: float
    sized: bool = True


def largest(build: Callable[[int], AdaptedCodec], limit: int, *, most: int = 64) -> AdaptedCodec:
    """`build(n)` for the largest n in 1..most that trains no more than `limit` parameters.

    Raises:
        InvalidInputError: even n = 1 trains more.
    """
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if build(middle).trained_parameters() <= limit:
            low = middle
        else:
            high = middle - 1
    if low == 0:
        raise InvalidInputError("share", "large enough for the smallest adapter", f"{limit} parameters")
    return build(low)


def _sized(make: Callable[..., AdaptedCodec], *, reads_prompts: bool = False) -> Build:
    """Builds with the largest size that keeps to the fraction; `make(codec, size)`, or with a text width."""

    def of_fraction(codec: JsccCodec, fraction: float, text_width: int = 0) -> AdaptedCodec:
        limit = int(fraction * sum(p.numel() for p in codec.parameters()))
        more = (text_width,) if reads_prompts else ()
        return largest(lambda size: make(copy.deepcopy(codec), size, *more), limit)

    return of_fraction


def cala_config(codec: JsccCodec, rank: int, text_width: int = 0, **changes: Any) -> CalaConfig:
    """The best configuration of CALA for a codec at that rank, from docs/decisions/0008.

    Every second convolution is adapted. Of these, every second one also reads the prompt, if it is there and
    the codec does not read it already.
    """
    layers, reading = [], []
    for side in ("encoder", "decoder"):
        own = [name for name in convolutions(codec) if name.startswith(f"{side}.") and "spoken" not in name]
        # the decoder's first layer and the encoder's last are nearest to the channel
        chosen = own[::2] if side == "decoder" else own[1::2]
        layers += chosen
        reading += chosen[1::2]
    of_text: dict[str, Any] = {}
    if text_width and not codec.text_width:
        of_text = {"text_modules": reading, "text_width": text_width}
    return CalaConfig(**{"rank": rank, "gate_width": 16, "target_modules": layers, **of_text, **changes})


METHODS: dict[str, Method] = {
    "none": Method("unaligned", lambda codec, _, __=0: AdaptedCodec(copy.deepcopy(codec)), 0.0, sized=False),
    "cala": Method(
        "CALA",
        _sized(lambda codec, rank, width: Cala(codec, cala_config(codec, rank, width)), reads_prompts=True),
        1e-2,
    ),
    "cala-unprompted": Method(
        "CALA without the prompt",
        _sized(lambda codec, rank: Cala(unprompted := without_text(codec), cala_config(unprompted, rank))),
        1e-2,
    ),
    "cala-ungated": Method(
        "CALA without conditions",
        _sized(
            lambda codec, rank, width: UngatedCala(codec, cala_config(codec, rank, width)), reads_prompts=True
        ),
        1e-2,
    ),
    "lora": Method("one shared LoRA", _sized(Lora), 1e-2),
    "lora-groups": Method(
        "LoRA per SNR group, equal bytes in all", _sized(lambda codec, rank: Lora(codec, rank, "snr")), 1e-2
    ),
    "lora-groups-large": Method(
        "LoRA per SNR and rate group, equal bytes each",
        lambda codec, fraction, _=0: _sized(lambda c, rank: Lora(c, rank, "snr-cbr"))(codec, 4 * fraction),
        1e-2,
    ),
    "snr-attention": Method("SNR attention", _sized(SnrAttention), 1e-2),
    "fine-tune": Method(
        "shared full fine-tune",
        lambda codec, _, width=0: FullFineTune(with_text(codec, width) if width else copy.deepcopy(codec)),
        3e-3,
        sized=False,
    ),
}


def build(name: str, codec: JsccCodec, fraction: float, text_width: int = 0) -> AdaptedCodec:
    """The method of that name over a copy of `codec`.

    Args:
        name: a name in METHODS, or of a plug-in.
        codec: the base codec.
        fraction: largest fraction of parameters to train.
        text_width: width of the prompts' states, for methods that read them; 0: they are not read.

    Raises:
        InvalidInputError: the method is unknown, or the fraction is too small for it.
    """
    method: Method = plugins.get("method", name)
    return method.build(codec, fraction, text_width)


def attached(codec: LatentCodec, knowledge: TransmissionKnowledge) -> AdaptedCodec:
    """A copy of `codec` with that knowledge, of any method; for inference only.

    Raises:
        MismatchError: the knowledge does not fit the codec, or its method is unknown.
    """
    if not isinstance(codec, JsccCodec):
        raise MismatchError(f"transmission knowledge is for a JsccCodec, not for a {type(codec).__name__}")
    if knowledge.method == CALA:
        return Cala.attached(copy.deepcopy(codec), knowledge)
    try:
        adapted = build(knowledge.method, codec, knowledge.parameter_fraction, knowledge.text_width)
    except InvalidInputError as error:
        raise MismatchError(f"transmission knowledge of the method {knowledge.method}: {error}") from error
    trained = {name: values for name, values in adapted.named_parameters() if values.requires_grad}
    tensors = knowledge.tensors()
    if {name: v.shape for name, v in trained.items()} != {name: v.shape for name, v in tensors.items()}:
        raise MismatchError(f"the transmission knowledge does not fit what {knowledge.method} trains")
    with torch.no_grad():
        for name, values in trained.items():
            values.copy_(tensors[name])
    return adapted.requires_grad_(False).eval()
