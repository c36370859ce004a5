"""A city: what `dekag simulate` reads from a YAML file.

    name: my-city
    days: 7
    demand: {users: 10000, requests: 1000000}
    strategies:
      - {name: files, delivery: files}
      - {name: deka-g, distil: distil-break-even}

Every field has a default but `name`; `City` and its sections describe them. docs/city.md lists them all.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from dekag.documents import read_yaml
from dekag.errors import DekagError, InvalidInputError
from dekag.link.timing import BackhaulTime
from dekag.schema import Document
from dekag.simulation.deliveries import DeliveryTable
from dekag.simulation.policies import PolicyChoice, make_policy

CITIES = Path(__file__).parent / "cities"
DAY_S = 86_400.0


class _Section(Document):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


_Positive = Annotated[float, Field(gt=0, le=1e15)]
_Fraction = Annotated[float, Field(ge=0, le=1)]


class Demand(_Section):
    """What users request, and when."""

    users: int = Field(10_000, ge=1, le=10_000_000, description="Number of users.")
    requests: int = Field(
        1_000_000, ge=1, le=100_000_000, description="Expected number of requests in all; they are Poisson."
    )
    hours: list[Annotated[float, Field(ge=0)]] = Field(
        [2, 1, 1, 1, 1, 2, 4, 6, 7, 7, 7, 8, 8, 8, 7, 7, 8, 9, 10, 11, 11, 10, 7, 4],
        min_length=24,
        max_length=24,
        description="Daily curve: relative rate of requests in each hour of the day.",
    )
    known_topics: int = Field(
        50, ge=1, le=10_000, description="Topics that the edges know without an update."
    )
    new_topics: int = Field(
        200, ge=0, le=10_000, description="Topics that only the cloud knows until an update is distilled."
    )
    new_fraction: _Fraction = Field(0.5, description="Fraction of the requests that are for new topics.")
    zipf: float = Field(
        0.9, ge=0, le=3, description="Exponent of the popularity of topics, which is that of Zipf."
    )
    rise_days: _Positive = Field(
        0.5,
        description="Time from a new topic's first appearance until its peak, days; its popularity is "
        "(t / rise) * exp(1 - t / rise).",
    )
    fresh_fraction: _Fraction = Field(
        0.7, description="Fraction of the requests for an image that nobody has requested before."
    )
    popular_images: int = Field(
        200,
        ge=1,
        le=1_000_000,
        description="Images of each topic that all other requests choose from, by the same Zipf exponent.",
    )


class Mobility(_Section):
    """Users stay at places of their own and travel between them in straight lines."""

    places: int = Field(4, ge=1, le=50, description="Places of each user; one of them uniform in the city.")
    hot_spots: int = Field(
        8, ge=1, le=1_000, description="Centres around which the other places lie, with a spread of 300 m."
    )
    stay_hours: _Positive = Field(3.0, description="Mean duration of a stay, hours; it is exponential.")
    walking_fraction: _Fraction = Field(0.5, description="Fraction of the users that walk, at 1.4 m/s.")
    driving_m_s: _Positive = Field(10.0, description="Speed of all others, m/s.")


class Radio(_Section):
    """The cells."""

    cells: int = Field(100, ge=1, le=2_000, description="Number of cells, one per site.")
    scenario: Literal["uma", "umi"] = Field(
        "uma", description="Path loss and shadowing of 3GPP TR 38.901: urban macro or urban micro."
    )
    site_distance_m: float = Field(500.0, ge=20, le=10_000, description="Distance of neighbouring sites, m.")
    carrier_hz: float = Field(3.5e9, ge=5e8, le=1e11, description="Carrier frequency, Hz.")
    carrier_bandwidth_hz: _Positive = Field(20e6, description="Bandwidth of a carrier, Hz; sets the noise.")
    power_dbm: float = Field(46.0, ge=-20, le=80, description="Transmitted power of a cell, dBm.")
    antenna_gain_db: float = Field(8.0, ge=-20, le=40, description="Gain of antennas, dB.")
    noise_figure_db: float = Field(9.0, ge=0, le=30, description="Noise figure of the receiver, dB.")
    interference: _Fraction = Field(
        0.3, description="Fraction of the time that each other cell transmits on the same resources."
    )
    raster_m: float = Field(25.0, ge=1, le=500, description="Distance of the points of the SNR map, m.")
    bandwidth_hz: _Positive = Field(
        1e6, description="Bandwidth of a cell that is reserved for images, Hz; all its users share it."
    )
    slot_s: float = Field(1e-3, gt=0, le=1, description="Duration of a slot, s.")
    overhead: float = Field(
        0.2, ge=0, lt=1, description="Fraction of the channel uses that carry no data, as DEKAG_AIR_OVERHEAD."
    )
    attempts: int = Field(4, ge=1, le=16, description="Transmissions of a file until it counts as lost.")


class Edges(_Section):
    """The edge servers; each serves the cells around it."""

    count: int = Field(10, ge=1, le=1_000, description="Number of edges.")
    servers: int = Field(2, ge=1, le=10_000, description="Images that an edge generates at a time.")
    speed: _Positive = Field(
        1.0, description="Speed of a server relative to the machine on which the table was measured."
    )
    update_storage_mb: float = Field(50.0, ge=0, le=1e9, description="Storage for updates at an edge, MB.")
    file_cache_mb: float = Field(
        50.0,
        ge=0,
        le=1e9,
        description="Cache of an edge for latents and, in strategies with a file cache, for image files, MB.",
    )
    latent_bytes: int = Field(8_192, ge=1, le=10**9, description="Size of a cached latent, bytes.")


class Cloud(_Section):
    """The cloud."""

    servers: int = Field(16, ge=1, le=100_000, description="Images that the cloud generates at a time.")
    speed: _Positive = Field(
        1.0, description="Speed of a server relative to the machine on which the table was measured."
    )
    distillers: int = Field(2, ge=1, le=10_000, description="Distillations at a time.")
    distil_speed: _Positive = Field(
        1.0, description="Speed of a distiller relative to the machine on which the table was measured."
    )


class Backhaul(_Section):
    """The hop between the cloud and each edge."""

    rate_bit_s: _Positive = Field(1e8, description="Rate towards each edge, bit/s.")
    delay_s: float = Field(0.010, ge=0, le=60, description="Delay in one direction, s.")
    jitter_s: float = Field(0.002, ge=0, le=60, description="Mean of the additional random delay, s.")
    loss: float = Field(0.0, ge=0, le=0.5, description="Probability that a packet is lost and sent again.")

    @property
    def hop(self) -> BackhaulTime:
        """The model of time of one hop."""
        return BackhaulTime(self.rate_bit_s, self.delay_s, self.jitter_s, self.loss)


class Prices(_Section):
    """Energy and money. These are assumptions, not measurements: set them to your own."""

    edge_w: float = Field(100.0, ge=0, le=1e6, description="Power of a busy edge server, W.")
    cloud_w: float = Field(300.0, ge=0, le=1e6, description="Power of a busy cloud server, W.")
    distiller_w: float = Field(300.0, ge=0, le=1e6, description="Power of a busy distiller, W.")
    device_w: float = Field(3.0, ge=0, le=1e6, description="Power of a user's device that decodes, W.")
    cell_w: float = Field(
        160.0, ge=0, le=1e6, description="Power of a cell that transmits on its whole carrier, W."
    )
    backhaul_j_bit: float = Field(5e-8, ge=0, le=1, description="Energy of the backhaul, J/bit.")
    edge_hour: float = Field(0.10, ge=0, le=1e6, description="Price of a busy hour of an edge server.")
    cloud_hour: float = Field(0.40, ge=0, le=1e6, description="Price of a busy hour of a cloud server.")
    distiller_hour: float = Field(0.40, ge=0, le=1e6, description="Price of a busy hour of a distiller.")
    backhaul_gb: float = Field(0.05, ge=0, le=1e6, description="Price of a GB (10^9 bytes) on the backhaul.")
    spectrum_mhz_hour: float = Field(
        0.02, ge=0, le=1e6, description="Price of 1 MHz of one cell for an hour of transmission."
    )
    kwh: float = Field(0.20, ge=0, le=1e6, description="Price of a kWh.")


def _choice(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


_Policy = Annotated[PolicyChoice, BeforeValidator(_choice)]


class Strategy(_Section):
    """A way to deliver images, with its policies; the strategies of a city are compared.

    A policy is a name, or a mapping with `name` and its parameters.
    """

    name: str = Field(pattern="^[a-z0-9-]{1,40}$", description="What results call it.")
    delivery: Literal["deka-g", "files"] = Field(
        "deka-g",
        description="files: the cloud generates every image and sends a file. deka-g: the edge generates "
        "what it knows or has an update for.",
    )
    untaught: Literal["file", "generate"] = Field(
        "file",
        description="What an edge without the update does: request a file from the cloud, or generate the "
        "image without the update, in poor consistency.",
    )
    file_cache: bool = Field(True, description="Whether edges keep files.")
    distil: _Policy = Field(
        PolicyChoice(name="distil-break-even"), description="Demand policy: when to distil a topic."
    )
    fetch: _Policy = Field(
        PolicyChoice(name="fetch-on-demand"),
        description="Update policy: which edges get updates, and when.",
    )
    keep: _Policy = Field(
        PolicyChoice(name="keep-recent"), description="Cache policy: what a full storage drops."
    )
    rate: _Policy = Field(PolicyChoice(name="rate-fixed"), description="Rate policy: rate by SNR.")
    share: _Policy = Field(
        PolicyChoice(name="share-fair"), description="Scheduling policy: who gets which part of a cell."
    )
    place: _Policy = Field(
        PolicyChoice(name="place-nearest"), description="Placement policy: which edge serves a cell."
    )

    @model_validator(mode="after")
    def _policies_exist(self) -> Self:
        for role in ("distil", "fetch", "keep", "rate", "share", "place"):
            choice: PolicyChoice = getattr(self, role)
            try:
                make_policy(role, choice)
            except DekagError as error:
                raise PydanticCustomError("policy", "{problem}", {"problem": f"{role}: {error}"}) from None
        return self


class Variant(_Section):
    """A change of the city, under which all strategies are compared once more.

    Each section holds the fields that differ.
    """

    name: str = Field(pattern="^[a-z0-9-]{1,40}$", description="What results call it.")
    demand: dict[str, Any] = Field({}, description="Fields of `demand`.")
    mobility: dict[str, Any] = Field({}, description="Fields of `mobility`.")
    radio: dict[str, Any] = Field({}, description="Fields of `radio`.")
    edges: dict[str, Any] = Field({}, description="Fields of `edges`.")
    cloud: dict[str, Any] = Field({}, description="Fields of `cloud`.")
    backhaul: dict[str, Any] = Field({}, description="Fields of `backhaul`.")


class City(_Section):
    """A city and the strategies that are compared in it."""

    name: str = Field(pattern="^[a-z0-9-]{1,40}$", description="Name of the folder of results.")
    days: float = Field(7.0, gt=0, le=366, description="Simulated time, days.")
    seeds: list[Annotated[int, Field(ge=0, lt=2**31)]] = Field(
        [0, 1, 2], min_length=1, max_length=1_000, description="Seeds; each is a city of its own."
    )
    demand: Demand = Field(Demand(), description="What users request, and when.")
    mobility: Mobility = Field(Mobility(), description="How users move.")
    radio: Radio = Field(Radio(), description="The cells.")
    edges: Edges = Field(Edges(), description="The edge servers.")
    cloud: Cloud = Field(Cloud(), description="The cloud.")
    backhaul: Backhaul = Field(Backhaul(), description="The hop between the cloud and each edge.")
    prices: Prices = Field(Prices(), description="Energy and money.")
    strategies: list[Strategy] = Field(
        [Strategy(name="files", delivery="files"), Strategy(name="deka-g")],
        min_length=1,
        max_length=100,
        description="What is compared; the first is what savings refer to.",
    )
    variants: list[Variant] = Field(
        [], max_length=100, description="Changes under which all strategies are compared once more."
    )
    table: Path | None = Field(
        None, description="Table of `dekag bench deliveries`; by default that of the shipped models."
    )

    @field_validator("strategies")
    @classmethod
    def _each_once(cls, strategies: list[Strategy]) -> list[Strategy]:
        names = [each.name for each in strategies]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise PydanticCustomError("twice", "{names}: must be there once", {"names": ", ".join(twice)})
        return strategies

    @field_validator("seeds")
    @classmethod
    def _seeds_once(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds):
            raise PydanticCustomError("twice", "each seed must be there once")
        return seeds

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.edges.count > self.radio.cells:
            allowed = {"cells": self.radio.cells}
            raise PydanticCustomError("edges", "edges.count must be at most radio.cells, {cells}", allowed)
        if self.demand.new_fraction > 0 and self.demand.new_topics == 0:
            raise PydanticCustomError("demand", "demand.new_fraction must be 0 without new topics")
        if not any(self.demand.hours):
            raise PydanticCustomError("demand", "demand.hours must have an hour above 0")
        return self

    @model_validator(mode="after")
    def _variants_fit(self) -> Self:
        for variant in self.variants:
            try:
                self.with_variant(variant)
            except ValidationError as error:
                first = error.errors()[0]
                place = ".".join(str(part) for part in first["loc"])
                problem = {"name": variant.name, "place": place, "problem": first["msg"]}
                raise PydanticCustomError("variants", "{name}: {place}: {problem}", problem) from None
        return self

    @property
    def duration_s(self) -> float:
        """Simulated time, s."""
        return self.days * DAY_S

    def with_variant(self, variant: Variant) -> City:
        """The city with the changes of a variant, and without variants of its own."""
        merged = self.model_dump(exclude={"variants"})
        for section, changes in variant.model_dump(exclude={"name"}).items():
            merged[section] |= changes
        return City.model_validate(merged)

    def deliveries(self) -> DeliveryTable:
        """The table of deliveries."""
        return DeliveryTable.load() if self.table is None else DeliveryTable.load(self.table)


def shipped_city(path: Path) -> Path:
    """The city at that path, else the shipped one of that name: ``week``, ``week.yaml``."""
    shipped = CITIES / path.with_suffix(".yaml").name
    return shipped if not path.exists() and path.parent == Path() and shipped.is_file() else path


def read_city(path: Path) -> City:
    """The city in a YAML file, or the shipped one of that name.

    Raises:
        FileError, DocumentError: the file cannot be read.
        InvalidInputError: a field is not valid; names the field and what it allows.

    Example:
        >>> from pathlib import Path
        >>> from dekag.simulation.city import read_city
        >>> read_city(Path("week")).radio.cells
        100
    """
    raw = read_yaml(shipped_city(path))
    if not isinstance(raw, dict):
        raise InvalidInputError(str(path), "a mapping with the fields of a city", type(raw).__name__)
    try:
        return City.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or str(path)
        raise InvalidInputError(place, f"valid ({first['msg']})", first["input"]) from None
