"""A sweep: a grid of deliveries, topics, channels, SNRs, rates and seeds, written in YAML.

    name: my-sweep
    deliveries: [unaligned, deka-g, digital]
    topics: [neon, rocket]
    links: [{fading: rayleigh, tau_rms_s: 1.0e-6}]
    snr_db: [0, 10, 20]
    cbr: [1/96, 1/384]

Every combination is a point. Other fields, and what each allows, are those of `Sweep`.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from dekag import plugins
from dekag.api.limits import MAX_CBR
from dekag.documents import read_yaml
from dekag.errors import FileError, InvalidInputError, NotFoundError
from dekag.evaluation.store import content_key
from dekag.files import list_folder
from dekag.link import trace
from dekag.link.conditions import BUILT_IN_TRACES, GivenConditions, LinkConditions
from dekag.makd.topics import read_topics
from dekag.metrics.perceptual import Dists, Lpips
from dekag.pictures import PictureFolder, find_pictures
from dekag.pixel_modules import pixel_codec_hash
from dekag.profile import load_profile
from dekag.schema import Document
from dekag.stickers import TOPICS

DIGITAL = {
    "digital": ("webp", "avif", "jpeg"),
    "digital-webp": ("webp",),
    "digital-avif": ("avif",),
    "digital-jpeg": ("jpeg",),
}
"""Digital deliveries and the formats that their sender picks from."""

DIGITAL_VERSION = 3  # raised when the code changes what a digital sender picks

PIXELS = "pixels"
"""The delivery by the profile's codec of pixels, without an autoencoder."""

PICTURES_ONLY = ("autoencoder", PIXELS)
"""Codecs that send no generated images."""

Codec = Literal[
    "unaligned",
    "base",
    "adapters",
    "prompt",
    "autoencoder",
    "pixels",
    "digital",
    "digital-webp",
    "digital-avif",
    "digital-jpeg",
]

REFERENCE_METRICS = ("clip", "dino", "consistency", "probe")
"""Metrics of the received image against the cloud's; all others are those of `dekag.plugins`."""

WORLD = "world"
"""The topic of prompts that the edge knows without any update."""


class Delivery(Document):
    """A way to deliver images.

    Attributes are what a mapping in YAML holds; the names in DELIVERIES stand for the usual ones.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern="^[a-z0-9-]{1,40}$", description="What results call it.")
    knowledge: bool = Field(default=False, description="Whether the edge draws with the topic's update.")
    codec: Codec = Field(
        default="unaligned",
        description="unaligned: the codec of unaligned deliveries. base: the codec that the profile's "
        "adapters adapt, without them. adapters: with them, CALA. prompt: nothing is sent; the user's device "
        "has the edge's model and draws from prompt and seed. autoencoder: latents arrive unharmed, the "
        "limit of all semantic deliveries; pictures only. pixels: the profile's codec of pixels, without an "
        "autoencoder; pictures only. digital, digital-webp, digital-avif, digital-jpeg: the cloud's image, "
        "or the picture, as a file over LDPC and QAM.",
    )

    restoration: bool = Field(
        default=False,
        description="Whether the receiver improves the latent by one step of the edge's denoiser; with codec "
        "adapters and without knowledge only.",
    )

    @model_validator(mode="after")
    def _adapters_say_how_to_restore(self) -> Self:
        if self.restoration and (self.codec != "adapters" or self.knowledge):
            raise PydanticCustomError("restoration", "restoration needs the codec adapters, and no knowledge")
        return self

    @model_validator(mode="after")
    def _the_cloud_needs_no_update(self) -> Self:
        if self.knowledge and self.codec in DIGITAL:
            raise PydanticCustomError("knowledge", "knowledge is the edge's, a digital delivery the cloud's")
        return self


DELIVERIES: dict[str, Delivery] = {
    each.name: each
    for each in (
        Delivery(name="unaligned"),
        Delivery(name="unaligned-strong", codec="base"),
        Delivery(name="makd", knowledge=True),
        Delivery(name="cala", codec="adapters"),
        Delivery(name="deka-g", knowledge=True, codec="adapters"),
        Delivery(name="cala-restored", codec="adapters", restoration=True),
        Delivery(name="autoencoder", codec="autoencoder"),
        Delivery(name=PIXELS, codec=PIXELS),
        Delivery(name="prompt-only", codec="prompt"),
        Delivery(name="prompt-only-taught", knowledge=True, codec="prompt"),
        *(Delivery(name=name, codec=name) for name in DIGITAL),
    )
}


def _rate(value: Any) -> Any:
    """1/96 as a number."""
    if not isinstance(value, str):
        return value
    try:
        return float(Fraction(value.replace(" ", "")))
    except (ValueError, ZeroDivisionError, OverflowError):
        raise PydanticCustomError("cbr", "must be a number or a fraction such as 1/96") from None


def _delivery(value: Any) -> Any:
    """The delivery of that name."""
    if not isinstance(value, str):
        return value
    if value not in DELIVERIES:
        raise PydanticCustomError(
            "delivery", "must be a mapping or one of {names}", {"names": ", ".join(DELIVERIES)}
        )
    return DELIVERIES[value]


Rate = Annotated[float, BeforeValidator(_rate), Field(gt=0, le=MAX_CBR)]


class PictureSource(Document):
    """Pictures of a user's own, to be sent instead of generated images."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = Field(min_length=1, description="A picture, a folder of pictures, or CIFAR-10.")
    count: int | None = Field(default=None, ge=1, description="Pictures to take at most; null: all.")
    content_hash: str = Field(default="", exclude_if=lambda value: not value, description="Of the pictures.")

    def found(self) -> PictureFolder:
        """The pictures; FileError if there are none."""
        return find_pictures(self.path, count=self.count)


class TraceSource(Document):
    """The folder of a user's own traces, for one of them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    content_hash: str


def _source(value: Any) -> Any:
    """A path alone as the mapping that it stands for."""
    return {"path": str(value)} if isinstance(value, str | Path) else value


def _path(value: Any) -> Any:
    """A path as text."""
    return str(value) if isinstance(value, Path) else value


class EvaluationPoint(Document):
    """One point of the grid: the test images of one topic, delivered in one way over one channel."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    profile: str
    delivery: Delivery
    topic: str
    link: LinkConditions
    cbr: float
    seed: int
    prompts: int
    metrics: tuple[str, ...]
    pictures: PictureSource | None = Field(default=None, exclude_if=lambda value: value is None)
    pixel_codec: str = Field(default="", exclude_if=lambda value: not value)
    """Hash of the codec of pixels, where the delivery is by it."""
    traces: TraceSource | None = Field(default=None, exclude_if=lambda value: value is None)
    """Where the link's trace is, if it is one of a user's own."""

    @property
    def trace_folder(self) -> Path:
        """The folder of the link's trace."""
        return BUILT_IN_TRACES if self.traces is None else Path(self.traces.path)

    @property
    def model(self) -> tuple[str, ...]:
        """What a worker must have ready; points that share it are best measured by the same worker."""
        return (self.profile, self.topic, str(self.delivery.knowledge), self.delivery.codec)

    def key(self, identity: str) -> str:
        """Hash of the point and of all else that its result depends on."""
        known = self.model_dump(mode="json")
        if self.pictures is not None:
            known["pictures"] = self.pictures.content_hash  # wherever they are
        if self.traces is not None:
            known["traces"] = self.traces.content_hash
        if self.delivery.codec in DIGITAL:
            known["digital"] = DIGITAL_VERSION
            if self.link.fading == "trace":
                known["played"] = 1  # files arrive as the trace lets them, not as their sender expects
            elif self.link.sender_snr_db != self.link.snr_db:
                known["arrives"] = 1  # as the true SNR lets files, not as their sender expects
        elif (self.link.fading, self.link.csi) == ("rayleigh-magnitude", "none"):
            known["told"] = 2  # codecs are told of a direct path, since gains are positive
        return content_key(identity, known, sort_keys=True)


class Sweep(Document):
    """A grid of points.

    Raises:
        pydantic.ValidationError: names the field and what it allows.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern="^[a-z0-9-]{1,40}$", description="Names the folder of results.")
    profile: str = Field(default="stickers", description="The models.")
    pictures: Annotated[PictureSource | None, BeforeValidator(_source)] = Field(
        default=None,
        description="Pictures of your own to send instead of generated images: a path, or a mapping of path "
        "and count.",
    )
    deliveries: list[Annotated[Delivery, BeforeValidator(_delivery)]] = Field(
        min_length=1, description="Names of DELIVERIES, or mappings with the fields of Delivery."
    )
    traces: Annotated[str | None, BeforeValidator(_path)] = Field(
        default=None,
        description="Folder of the traces and SigMF recordings that links name. null: the traces that ship.",
    )
    topics: list[str] = Field(
        default=[WORLD],
        min_length=1,
        description="Topics of the profile or of the sticker world, world for what the shipped edge knows, "
        "or all: the profile's topics, or the sticker world's if it has none.",
    )
    links: list[dict[str, Any]] = Field(
        default=[{}], min_length=1, description="Channels: fields of LinkConditions, without snr_db."
    )
    snr_db: list[float] = Field(default=[10.0], min_length=1, description="Mean SNRs, dB; -20 to 40.")
    cbr: list[Rate] = Field(default=[1 / 96], min_length=1, description="Rates, above 0, at most 1/6.")
    seeds: list[Annotated[int, Field(ge=0, lt=2**31)]] = Field(
        default=[0], min_length=1, description="Seeds of fades and noise."
    )
    prompts: int = Field(default=16, ge=1, le=1000, description="Test prompts of each topic; 1 to 1000.")
    metrics: list[str] = Field(
        default=["psnr_db", "clip", "dino", "consistency", "probe"],
        min_length=1,
        description="Of JUDGES, psnr_db, ssim, ms_ssim, or a metric that is plugged in.",
    )

    @model_validator(mode="before")
    @classmethod
    def _metrics_of_pictures(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("pictures") is not None:
            return {"metrics": ["psnr_db", "ssim"], **data}
        return data

    @model_validator(mode="after")
    def _pictures_are_not_generated(self) -> Self:
        if self.pictures is None:
            for name in PICTURES_ONLY:
                if any(each.codec == name for each in self.deliveries):
                    raise PydanticCustomError("deliveries", "{name}: is for pictures only", {"name": name})
            return self
        for name in ("topics", "prompts"):
            if name in self.model_fields_set:
                raise PydanticCustomError("pictures", "{name} must be left out with pictures", {"name": name})
        if generated := [each.name for each in self.deliveries if each.knowledge or each.codec == "prompt"]:
            names = {"names": ", ".join(generated)}
            raise PydanticCustomError("pictures", "{names}: no model generates pictures of your own", names)
        if "probe" in self.metrics:
            raise PydanticCustomError("pictures", "probe: is for generated images only")
        return self

    @model_validator(mode="after")
    def _traces_are_played(self) -> Self:
        if self.traces is not None and not any(link.get("trace") for link in self.links):
            raise PydanticCustomError("traces", "traces must be left out unless a link plays a trace")
        return self

    @field_validator("deliveries", "topics", "links", "snr_db", "cbr", "seeds", "metrics")
    @classmethod
    def _each_once(cls, values: list[Any]) -> list[Any]:
        names = [value.name if isinstance(value, Delivery) else repr(value) for value in values]
        if twice := {name for name in names if names.count(name) > 1}:
            raise PydanticCustomError(
                "twice", "{names}: must be there once", {"names": ", ".join(sorted(twice))}
            )
        return values

    @field_validator("topics")
    @classmethod
    def _known_topics(cls, topics: list[str], info: ValidationInfo) -> list[str]:
        own: list[str] = []
        if "profile" in info.data:
            with contextlib.suppress(NotFoundError):  # which whoever measures it is told
                own = list(read_topics(load_profile(info.data["profile"]).topics))
        known = [WORLD, *own, *(name for name in TOPICS if name not in own)]
        if topics == ["all"]:
            return own or list(TOPICS)
        if unknown := [topic for topic in topics if topic not in known]:
            allowed = {"unknown": ", ".join(unknown), "allowed": ", ".join(known)}
            raise PydanticCustomError("topics", "{unknown}: must be all, or of {allowed}", allowed)
        return topics

    @field_validator("metrics")
    @classmethod
    def _known_metrics(cls, metrics: list[str]) -> list[str]:
        known = [*REFERENCE_METRICS, *plugins.names("metric")]
        if unknown := [name for name in metrics if name not in known]:
            allowed = ", ".join(known)
            if ours := [each for each in (Lpips, Dists) if each.name in unknown]:
                options = " ".join(f"--plugin {each.__module__}:{each.__name__}" for each in ours)
                allowed += f", or of a plug-in: dekag {options} sweep ..."
            told = {"unknown": ", ".join(unknown), "allowed": allowed}
            raise PydanticCustomError("metrics", "{unknown}: must be of {allowed}", told)
        return metrics

    @field_validator("links")
    @classmethod
    def _without_snr(cls, links: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for link in links:
            if "snr_db" in link:
                raise PydanticCustomError("links", "snr_db is an axis of its own: list it under snr_db")
            try:
                GivenConditions.model_validate(link)
            except ValidationError as error:
                first = error.errors()[0]
                told = {"field": ".".join(map(str, first["loc"])), "problem": first["msg"]}
                raise PydanticCustomError("links", "{field}: {problem}", told) from None
        return links

    def points(self) -> list[EvaluationPoint]:
        """All points, those that share a model together.

        Raises:
            InvalidInputError: an SNR is out of range, or there is no such trace, or it cannot be read.
            FileError: there are no pictures where the sweep says.
            NotFoundError: a delivery is by a codec of pixels that the profile does not have.
        """
        found = []
        pixel_codec = self._pixel_codec() if any(each.codec == PIXELS for each in self.deliveries) else ""
        topics, count, pictures = self.topics, self.prompts, None
        if self.pictures is not None:
            folder = self.pictures.found()
            topics, count = [folder.name], len(folder.pictures)
            known = {"path": str(folder.path.absolute()), "content_hash": folder.content_hash()}
            pictures = self.pictures.model_copy(update=known)
        axes = (self.deliveries, topics, self.links, self.snr_db, self.cbr, self.seeds)
        for delivery, topic, link, snr_db, cbr, seed in itertools.product(*axes):
            try:
                conditions = LinkConditions.model_validate({**link, "snr_db": snr_db})
            except ValidationError as error:
                raise InvalidInputError("snr_db", _valid(error), snr_db) from None
            found.append(
                EvaluationPoint(
                    profile=self.profile,
                    delivery=delivery,
                    topic=topic,
                    link=conditions,
                    cbr=cbr,
                    seed=seed,
                    prompts=count,
                    metrics=tuple(self.metrics),
                    pictures=pictures,
                    pixel_codec=pixel_codec if delivery.codec == PIXELS else "",
                    traces=self._traces(conditions),
                )
            )
        return found

    def _traces(self, conditions: LinkConditions) -> TraceSource | None:
        """Where the trace of a link is; None for one that ships.

        Raises:
            InvalidInputError: there is no such trace, or it cannot be read.
        """
        if conditions.trace is None:
            return None
        folder = BUILT_IN_TRACES if self.traces is None else Path(self.traces)
        list_folder(folder)
        try:
            trace.load(conditions.trace, folder)
        except FileError:
            raise
        except InvalidInputError as error:
            raise error.named("links.trace") from None
        if self.traces is None:
            return None
        return TraceSource(
            path=str(folder.absolute()), content_hash=trace.content_hash(conditions.trace, folder)
        )

    def _pixel_codec(self) -> str:
        """Hash of the profile's codec of pixels; NotFoundError if it has none."""
        folder = load_profile(self.profile).pixel_codec
        if folder is None:
            raise NotFoundError(
                f"the profile {self.profile} names no pixel_codec, as the delivery {PIXELS} needs"
            )
        return pixel_codec_hash(folder)


def read_sweep(
    path: Path,
    *,
    profile: str | None = None,
    pictures: Path | None = None,
    traces: Path | None = None,
    metrics: Sequence[str] | None = None,
) -> Sweep:
    """The sweep that a YAML file defines.

    Args:
        path: the file.
        profile: the models, instead of those that the file names.
        pictures: all pictures at this path, instead of what the file sends.
        traces: the folder of the links' traces, instead of what the file says.
        metrics: instead of those of the file.

    Raises:
        InvalidInputError: names the field and what it allows.
    """
    raw = read_yaml(path)
    if not isinstance(raw, dict):
        raise InvalidInputError(str(path), "a mapping with the fields of a sweep", type(raw).__name__)
    try:
        given = {"profile": profile, "pictures": pictures, "traces": traces, "metrics": metrics}
        return Sweep.model_validate(
            {**raw, **{name: value for name, value in given.items() if value is not None}}
        )
    except ValidationError as error:
        first = error.errors()[0]
        of_all = first["type"] if first["type"] in Sweep.model_fields else str(path)
        place = ".".join(str(part) for part in first["loc"]) or of_all
        raise InvalidInputError(place, _valid(error), first["input"]) from None


def _valid(error: ValidationError) -> str:
    return f"valid ({error.errors()[0]['msg']})"


def grouped(points: Sequence[EvaluationPoint]) -> list[list[EvaluationPoint]]:
    """The points by the model that they need, in the order of first need."""
    groups: dict[tuple[str, ...], list[EvaluationPoint]] = {}
    for point in points:
        groups.setdefault(point.model, []).append(point)
    return list(groups.values())
