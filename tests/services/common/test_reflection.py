"""The gRPC services describe themselves to clients that have no stubs."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from google.protobuf import json_format
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

pytestmark = pytest.mark.asyncio(loop_scope="session")

ALWAYS = {"grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
OPTIONS = [("grpc.enable_http_proxy", 0)]


def call(channel: grpc.Channel, pool: DescriptorPool, service: str, method: str, **fields: Any) -> list[Any]:
    """The answers of a method, as dictionaries; everything known about it comes from ``pool``."""
    described = pool.FindServiceByName(service).FindMethodByName(method)
    request, answer = GetMessageClass(described.input_type), GetMessageClass(described.output_type)
    open_call = channel.unary_stream if described.server_streaming else channel.unary_unary
    answers = open_call(
        f"/{service}/{method}",
        request_serializer=request.SerializeToString,
        response_deserializer=answer.FromString,
    )(json_format.ParseDict(fields, request()), timeout=60)
    messages = list(answers) if described.server_streaming else [answers]
    return [json_format.MessageToDict(message) for message in messages]


@pytest.mark.parametrize(
    ("name", "service", "method", "fields"),
    [
        ("user", "dekag.v1.User", "Receive", ["prompt", "seed", "link"]),
        ("channel", "dekag.v1.Downlink", "Provide", ["prompt", "seed", "link"]),
        ("edge", "dekag.v1.Downlink", "Provide", ["prompt", "seed", "link"]),
        ("cloud", "dekag.v1.Cloud", "Distill", ["topic", "prompts", "rank"]),
    ],
)
async def test_a_service_lists_itself_and_describes_its_messages(
    chain: Any, name: str, service: str, method: str, fields: list[str]
) -> None:
    def look() -> None:
        with grpc.insecure_channel(chain.addresses[name], OPTIONS) as channel:
            database = ProtoReflectionDescriptorDatabase(channel)
            assert set(database.get_services()) == {service, *ALWAYS}
            described = DescriptorPool(database).FindServiceByName(service).FindMethodByName(method)
            assert set(fields) <= set(described.input_type.fields_by_name)

    await asyncio.to_thread(look)


async def test_image_is_requested_through_reflection_alone(chain: Any) -> None:
    def ask() -> tuple[list[Any], list[Any]]:
        with grpc.insecure_channel(chain.addresses["user"], OPTIONS) as channel:
            pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
            received = call(
                channel,
                pool,
                "dekag.v1.User",
                "Receive",
                prompt="a red boat",
                seed=7,
                width=64,
                height=64,
                delivery="DELIVERY_SEMANTIC",
                cbr=1 / 96,
                modulation="MODULATION_QAM64",
                link={
                    "snr_db": 10,
                    "fading": "FADING_RAYLEIGH",
                    "csi": "CSI_PERFECT",
                    "equalizer": "EQUALIZER_MMSE",
                },
            )
        with grpc.insecure_channel(chain.addresses["cloud"], OPTIONS) as channel:
            pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
            return received, call(channel, pool, "dekag.v1.Cloud", "ListKnowledge")

    received, known = await asyncio.to_thread(ask)
    assert received[0]["png"]
    assert received[0]["report"]["channelUses"] == 128
    assert len(known) == 1
