"""Messages to library types: what fits goes through unchanged, what does not is named."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest

from dekag.api.schemas import Modulation
from dekag.codec import MODULATIONS
from dekag.errors import InvalidInputError
from dekag.link import LinkConditions
from dekag.link.conditions import Fading
from dekag.link.digital import TABLE
from services.common import converters
from services.common.converters import DeliveryRequest
from services.proto.cloud_pb2 import GenerateRequest
from services.proto.downlink_pb2 import LinkConditions as LinkMessage
from services.proto.downlink_pb2 import ModulationAndCoding as CodingMessage
from services.proto.downlink_pb2 import ProvideRequest
from tests.profiles import PROFILE


def test_request_round_trip(asked: DeliveryRequest) -> None:
    assert converters.request_from_proto(converters.request_to_proto(asked), PROFILE) == asked
    conventional = replace(
        asked, delivery="conventional", cbr=0.0, seed=2**63 - 1, measure=False, image_format="avif"
    )
    assert converters.request_from_proto(converters.request_to_proto(conventional), PROFILE) == conventional
    chosen = replace(asked, cbr=0.0, target_psnr_db=20.5, modulation="qam256", side_information="none")
    assert converters.request_from_proto(converters.request_to_proto(chosen), PROFILE) == chosen
    unaligned = replace(asked, delivery="semantic-unaligned", knowledge=None)
    found = converters.request_from_proto(converters.request_to_proto(unaligned), PROFILE)
    assert found == replace(unaligned, knowledge=()), "it goes without any"


def test_modulations_are_the_codecs_own() -> None:
    assert get_args(Modulation) == tuple(MODULATIONS)


def test_unset_size_and_link_take_defaults() -> None:
    found = converters.request_from_proto(
        ProvideRequest(prompt="fox", delivery="DELIVERY_SEMANTIC", cbr=0.01),
        PROFILE.model_copy(update={"size": 96}),
    )
    assert (found.width, found.height, found.link) == (96, 96, LinkConditions())


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("prompt", {"prompt": ""}),
        ("prompt", {"prompt": " \n\t"}),
        ("prompt", {"prompt": "x" * 1001}),
        ("seed", {"seed": 2**63}),
        ("seed", {"seed": 2**64 - 1}),
        ("size", {"width": 63}),
        ("size", {"width": 72}),
        ("size", {"height": 272}),
        ("size", {"width": 2**32 - 1}),
        ("delivery", {"delivery": 0}),
        ("delivery", {"delivery": 77}),
        ("knowledge", {"knowledge": ("neon",), "delivery": "DELIVERY_CONVENTIONAL"}),
        ("knowledge", {"knowledge": ("neon", "snail"), "delivery": "DELIVERY_SEMANTIC_UNALIGNED"}),
        ("image_format", {"image_format": 1}),
        ("image_format", {"image_format": 77}),
        ("link.cbr", {"cbr": 0.0}),
        ("link.cbr", {"cbr": 0.01, "target_psnr_db": 20}),
        ("link.target_psnr_db", {"cbr": 0, "target_psnr_db": 4.9}),
        ("link.target_psnr_db", {"cbr": 0, "target_psnr_db": float("nan")}),
        ("link.target_psnr_db", {"cbr": 0, "target_psnr_db": 20, "delivery": "DELIVERY_CONVENTIONAL"}),
        ("link.target_psnr_db", {"cbr": 0, "target_psnr_db": 20, "delivery": "DELIVERY_SEMANTIC_UNALIGNED"}),
        ("link.modulation", {"modulation": 6}),
        ("link.side_information", {"side_information": 3}),
        ("link.cbr", {"cbr": -0.01}),
        ("link.cbr", {"cbr": 0.167}),
        ("link.cbr", {"cbr": float("nan")}),
        ("link.cbr", {"cbr": float("inf")}),
        ("link.fading", {"link": LinkMessage(snr_db=10)}),
        ("link.fading", {"link": LinkMessage(fading=12)}),
        ("link.fading", {"link": LinkMessage(fading="FADING_CUSTOM")}),
        ("link.fading", {"link": LinkMessage(fading="FADING_CUSTOM", custom_fading="fog")}),
        ("link.fading", {"link": LinkMessage(fading="FADING_CUSTOM", custom_fading="os:system")}),
        ("link.fading", {"link": LinkMessage(fading="FADING_CUSTOM", custom_fading="../my_channel.py:Mine")}),
        ("link.fading", {"link": LinkMessage(fading="FADING_CUSTOM", custom_fading="x" * 10_000)}),
        ("link.snr_db", {"link": LinkMessage(snr_db=40.1, fading="FADING_AWGN")}),
        ("link.snr_db", {"link": LinkMessage(snr_db=float("nan"), fading="FADING_AWGN")}),
        ("link.snr_db", {"link": LinkMessage(snr_db=float("-inf"), fading="FADING_AWGN")}),
        ("link.tau_rms_s", {"link": LinkMessage(tau_rms_s=-1e-9, fading="FADING_RAYLEIGH")}),
        ("link.tau_rms_s", {"link": LinkMessage(tau_rms_s=float("nan"), fading="FADING_RAYLEIGH")}),
        ("link.rician_k_db", {"link": LinkMessage(rician_k_db=41, fading="FADING_RICIAN")}),
        ("link.speed_m_s", {"link": LinkMessage(speed_m_s=-1, fading="FADING_TDL_A")}),
        ("link.trace", {"link": LinkMessage(fading="FADING_TRACE")}),
        ("link.trace", {"link": LinkMessage(fading="FADING_TRACE", trace="../secret")}),
        ("link.trace", {"link": LinkMessage(fading="FADING_AWGN", trace="walk")}),
        ("link.trace_start_s", {"link": LinkMessage(fading="FADING_TRACE", trace="a", trace_start_s=1e6)}),
        ("link.csi", {"link": LinkMessage(fading="FADING_AWGN", csi=9)}),
        ("link.equalizer", {"link": LinkMessage(fading="FADING_AWGN", equalizer=9)}),
        ("link.reported_snr_db", {"link": LinkMessage(fading="FADING_AWGN", reported_snr_db=-21)}),
    ],
)
def test_hostile_request_names_the_field(asked: DeliveryRequest, field: str, changes: dict[str, Any]) -> None:
    message = converters.request_to_proto(asked)
    for name, value in changes.items():
        if name == "knowledge":
            message.knowledge.extend(value)
        else:
            message.link.CopyFrom(value) if name == "link" else setattr(message, name, value)
    with pytest.raises(InvalidInputError) as caught:
        converters.request_from_proto(message, PROFILE)
    assert caught.value.field == field
    assert caught.value.allowed


@pytest.mark.parametrize(
    "link",
    [
        LinkConditions(),
        LinkConditions(fading="rician", rician_k_db=0, csi="none", equalizer="zf"),
        LinkConditions(fading="tdl-d", tau_rms_s=3e-7, speed_m_s=30, csi="pilots", reported_snr_db=0),
        LinkConditions(fading="trace", trace="walk", trace_start_s=1.5),
    ],
)
def test_link_round_trip(link: LinkConditions) -> None:
    assert converters.link_from_proto(converters.link_to_proto(link)) == link


@pytest.mark.parametrize("fading", get_args(Fading))
def test_every_fading_has_its_number(fading: Fading) -> None:
    link = LinkConditions(fading=fading, trace="walk" if fading == "trace" else None)
    assert converters.link_from_proto(converters.link_to_proto(link)) == link


def test_what_an_older_client_leaves_out_takes_the_defaults() -> None:
    message = LinkMessage(snr_db=3, fading="FADING_RICIAN", tau_rms_s=1e-7)
    assert converters.link_from_proto(message) == LinkConditions(snr_db=3, fading="rician", tau_rms_s=1e-7)


def test_limits_are_told_with_units() -> None:
    with pytest.raises(InvalidInputError, match="between 0 and 150 m/s"):
        converters.link_from_proto(LinkMessage(speed_m_s=200, fading="FADING_TDL_A"))
    with pytest.raises(InvalidInputError, match=r"between 0 and 0\.0001 s"):
        converters.link_from_proto(LinkMessage(tau_rms_s=1, fading="FADING_TDL_A"))
    with pytest.raises(InvalidInputError, match="between -20 and 40 dB"):
        converters.link_from_proto(LinkMessage(snr_db=99, fading="FADING_AWGN"))


@pytest.mark.parametrize("coding", TABLE)
def test_every_coding_round_trips(coding: Any) -> None:
    message = converters.coding_to_proto(coding, 900)
    assert converters.coding_from_proto(message) == coding
    assert message.payload_bytes == 900


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("bits_per_symbol", 0),
        ("bits_per_symbol", 31),
        ("codeword_bits", 0),
        ("codeword_bits", 2**32 - 1),
        ("information_bits", 0),
        ("information_bits", 9600),
        ("payload_bytes", 0),
        ("payload_bytes", 2**32 - 1),
    ],
)
def test_hostile_coding(field: str, value: int) -> None:
    message = CodingMessage(bits_per_symbol=2, codeword_bits=9600, information_bits=1920, payload_bytes=10)
    setattr(message, field, value)
    with pytest.raises(InvalidInputError, match=f"coding.{field}"):
        converters.coding_from_proto(message)


def test_latents_are_little_endian_float32_bit_for_bit() -> None:
    latents = np.random.default_rng(1).standard_normal((1, 4, 16, 16)).astype(np.float32)
    data = converters.latents_to_bytes(latents)
    assert data == latents.astype("<f4").tobytes()
    assert converters.latents_from_bytes(data, latents.shape).tobytes() == latents.tobytes()


@pytest.mark.parametrize("data", [b"", b"123", bytes(4 * 1023), bytes(4 * 1025), b"\x00\x00\xc0\x7f" * 1024])
def test_hostile_latents(data: bytes) -> None:
    with pytest.raises(InvalidInputError, match="latents"):
        converters.latents_from_bytes(data, (1, 4, 16, 16))


@pytest.mark.parametrize("formats", [[], [0], [9], [1, 1], [1, 2, 1]])
def test_hostile_formats(formats: list[Any]) -> None:
    with pytest.raises(InvalidInputError, match="formats"):
        converters.image_formats(GenerateRequest(formats=formats))


@pytest.mark.parametrize(("field", "seeds"), [("seeds", []), ("seeds", [1] * 65), ("seed", [1, 2**63])])
def test_hostile_seeds(field: str, seeds: list[int]) -> None:
    with pytest.raises(InvalidInputError) as caught:
        converters.seeds(GenerateRequest(seeds=seeds))
    assert caught.value.field == field


def test_what_the_gateway_imports_leaves_torch_out() -> None:
    code = (
        "import sys\n"
        "from services.common import cache, clients, converters, errors, request_context, settings\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
