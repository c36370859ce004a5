"""The whole chain over real gRPC: determinism, caches, modes, hops, traffic, failures."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import pytest_asyncio
import torch
from redis.asyncio import Redis

from dekag.codec import JsccCodec
from dekag.errors import InvalidInputError, MismatchError, NumericalError, UnavailableError
from dekag.generation.images import from_bytes
from dekag.link import LinkConditions
from dekag.profile import Profile, load_profile
from services.channel.servicer import ChannelServicer
from services.channel.settings import ChannelSettings
from services.cloud.servicer import CloudServicer
from services.cloud.settings import CloudSettings
from services.common import clients, converters
from services.common.converters import DeliveryRequest
from services.common.frames import collect
from services.common.request_context import begin_request
from services.edge.servicer import EdgeServicer
from services.edge.settings import EdgeSettings
from services.proto.cloud_pb2 import GenerateRequest
from services.proto.cloud_pb2_grpc import CloudStub, add_CloudServicer_to_server
from services.proto.downlink_pb2 import IMAGE_FORMAT_PNG, IMAGE_FORMAT_WEBP
from services.proto.downlink_pb2_grpc import DownlinkStub, add_DownlinkServicer_to_server
from services.proto.user_pb2 import ReceivedImage
from services.proto.user_pb2_grpc import UserStub, add_UserServicer_to_server
from services.user.servicer import UserServicer
from services.user.settings import UserSettings
from tests.chain import Chain, Start, latent_channels, running_chain, start_chain

pytestmark = pytest.mark.asyncio(loop_scope="session")
Connect = Callable[[str], Any]


@pytest.fixture(scope="module", params=["dummy_profile", "foreign_profile"])
def profile(request: pytest.FixtureRequest) -> Path:
    """Every test runs with models like the embedded ones, and with models unlike them."""
    found: Path = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="module")
def models(profile: Path) -> Profile:
    return load_profile(profile)


@pytest.fixture(scope="module")
def most(profile: Path, models: Profile) -> int:
    """The most symbols that the codec sends of an image of the profile's size."""
    side = models.size // 8
    return int(JsccCodec.load(models.codec).max_channel_uses((latent_channels(profile), side, side)))


@pytest.fixture(scope="module")
def redis_url(new_database: Callable[[], str]) -> str:
    """Each profile's chain has a database of its own."""
    return new_database()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def chain(own_data: None, profile: Path, redis_url: str) -> AsyncIterator[Chain]:
    async with running_chain(profile, redis_url) as chain:
        yield chain


@pytest.fixture
def asked(asked: DeliveryRequest, models: Profile) -> DeliveryRequest:
    """A plain semantic request for an image of the profile's size."""
    return replace(asked, width=models.size, height=models.size)


@pytest.fixture(autouse=True)
async def no_request() -> None:
    begin_request(None, None)


async def receive(stub: UserStub, asked: DeliveryRequest) -> ReceivedImage:
    return await clients.call(stub.Receive, converters.request_to_proto(asked), "user")


async def start_user(start: Start, connect: Connect, profile: Path, downlink: str) -> UserStub:
    settings = UserSettings(port=0, redis_url="", profile=str(profile), downlink_address=downlink)
    return UserStub(connect(await start(UserServicer(settings), add_UserServicer_to_server, settings)))


async def start_channel(start: Start, downlink: str) -> str:
    settings = ChannelSettings(port=0, downlink_address=downlink)
    return await start(ChannelServicer(settings), add_DownlinkServicer_to_server, settings)


def stages(image: ReceivedImage) -> list[str]:
    return [stage.stage for stage in image.report.stages]


async def test_same_request_same_bits_from_model_and_from_cache(
    chain: Any, asked: DeliveryRequest, redis_url: str
) -> None:
    async with Redis.from_url(redis_url) as redis:
        await redis.flushdb()
        first, second = [await receive(chain.user, asked) for _ in range(2)]
        await redis.flushdb()
        third = await receive(chain.user, asked)
    assert first.png == second.png == third.png
    assert (first.report.cached, second.report.cached, third.report.cached) == (False, True, False)
    assert stages(first) == [
        "edge.generate",
        "edge.encode",
        "channel.transmit",
        "user.decode",
        "user.render",
        "user.png",
        "user.measure",
    ]
    assert stages(second) == stages(first)[1:]
    assert first.report.psnr_db == second.report.psnr_db
    assert first.report.gains == second.report.gains


async def test_other_seed_other_bits_concurrent_requests_do_not_mix(
    chain: Any, asked: DeliveryRequest
) -> None:
    many = [replace(asked, seed=seed) for seed in range(100, 106)]
    alone = [(await receive(chain.user, each)).png for each in many]
    together = await asyncio.gather(*(receive(chain.user, each) for each in many))
    assert [image.png for image in together] == alone
    assert len(set(alone)) == len(many)


async def test_semantic_report(chain: Any, asked: DeliveryRequest, models: Profile) -> None:
    image = await receive(chain.user, asked)
    report = image.report
    assert from_bytes(image.png).shape == (models.size, models.size, 3)
    assert report.decoded
    assert report.seed == asked.seed
    assert (report.channel_uses, report.cbr) == (asked.source_values // 96, 1 / 96)
    assert converters.link_from_proto(report.link) == asked.link
    assert report.no == pytest.approx(10**-1.5)
    gains = np.frombuffer(report.gains, "<c8")
    assert gains.shape == (8,)
    snr = 10 * np.log10(np.mean(np.abs(gains) ** 2) / report.no)
    assert report.instantaneous_snr_db == pytest.approx(snr, abs=1e-3)
    assert 0 < report.psnr_db < 100
    assert set(report.model_hashes) == {"edge", "codec", "decoder"}
    assert all(len(value) == 64 for value in report.model_hashes.values())
    assert not report.HasField("coding")


@pytest.mark.parametrize("delivery", ["semantic", "conventional"])
@pytest.mark.parametrize("measure", [True, False])
async def test_traffic_is_what_was_sent_without_the_reference(
    chain: Any, asked: DeliveryRequest, delivery: str, measure: bool
) -> None:
    asked = replace(
        asked, delivery=delivery, measure=measure, cbr=asked.cbr if delivery == "semantic" else 0.0
    )
    await receive(chain.user, asked)  # from here on all of it is cached, so that repetitions are equal
    request = converters.request_to_proto(asked)
    sent = {}
    for hop, stub in (("edge-channel", chain.edge), ("channel-user", chain.channel)):
        frames = [frame async for frame in stub.Provide(request)]
        sent[hop] = len(request.SerializeToString()) + sum(
            len(frame.SerializeToString()) for frame in frames if not frame.HasField("reference")
        )
        assert any(frame.HasField("reference") for frame in frames) == measure
    image = await receive(chain.user, asked)
    sent["user-gateway"] = len(request.SerializeToString()) + len(image.SerializeToString())
    sent["cloud-edge"] = 0
    if delivery == "conventional":
        generate = GenerateRequest(
            prompt=asked.prompt,
            seeds=[asked.seed],
            width=asked.width,
            height=asked.height,
            formats=[2],
            on_long_prompt=1,
        )
        webp = [answer async for answer in chain.cloud.Generate(generate)]
        asks = len(generate.SerializeToString()) + measure
        sent["cloud-edge"] = asks + len(webp[0].SerializeToString())
    assert {hop.hop: hop.sent_bytes for hop in image.report.hops} == sent
    assert image.report.HasField("psnr_db") == measure


async def test_conventional_over_a_good_link_loses_what_webp_loses(
    chain: Any, asked: DeliveryRequest
) -> None:
    asked = replace(asked, delivery="conventional", cbr=0.0, link=LinkConditions(snr_db=30, fading="awgn"))
    first, second = await receive(chain.user, asked), await receive(chain.user, asked)
    assert first.png == second.png
    request = GenerateRequest(
        prompt=asked.prompt, seeds=[asked.seed], formats=[IMAGE_FORMAT_WEBP, IMAGE_FORMAT_PNG]
    )
    webp, png = [answer async for answer in chain.cloud.Generate(request)]
    assert np.array_equal(from_bytes(first.png), from_bytes(webp.image))
    assert not np.array_equal(from_bytes(first.png), from_bytes(png.image))
    report = first.report
    assert report.decoded
    assert report.coding.payload_bytes == len(webp.image)
    assert report.cbr == report.channel_uses / asked.source_values
    assert 10 < report.psnr_db < 100
    assert set(report.model_hashes) == {"cloud"}
    assert stages(second) == [
        "edge.modulate",
        "channel.transmit",
        "user.decode",
        "user.render",
        "user.png",
        "user.measure",
    ]


@pytest.mark.parametrize("image_format", ["avif", "jpeg"])
async def test_conventional_in_another_format(chain: Any, asked: DeliveryRequest, image_format: str) -> None:
    link = LinkConditions(snr_db=30, fading="awgn")
    asked = replace(asked, delivery="conventional", cbr=0.0, link=link, image_format=image_format)
    image = await receive(chain.user, asked)
    number = converters.FORMATS[image_format]
    request = GenerateRequest(prompt=asked.prompt, seeds=[asked.seed], formats=[number])
    (file,) = [answer async for answer in chain.cloud.Generate(request)]
    assert np.array_equal(from_bytes(image.png), from_bytes(file.image))
    assert image.report.image_format == number
    assert image.report.coding.payload_bytes == len(file.image)


async def test_conventional_that_does_not_decode_still_reports(chain: Any, asked: DeliveryRequest) -> None:
    asked = replace(asked, delivery="conventional", cbr=0.0, link=LinkConditions(snr_db=-20, fading="awgn"))
    image = await receive(chain.user, asked)
    assert image.png == b""
    report = image.report
    assert not report.decoded
    assert not report.HasField("psnr_db")
    assert report.channel_uses > 0
    assert report.HasField("coding")
    assert [hop.hop for hop in report.hops] == ["cloud-edge", "edge-channel", "channel-user", "user-gateway"]
    assert "user.decode" in stages(image)


@pytest.mark.parametrize("delivery", ["semantic", "conventional"])
async def test_user_at_the_edge_has_an_ideal_channel(
    chain: Any, start: Start, connect: Connect, asked: DeliveryRequest, profile: Path, delivery: str
) -> None:
    user = await start_user(start, connect, profile, chain.addresses["edge"])
    asked = replace(asked, delivery=delivery, link=LinkConditions(snr_db=-20))
    image = await receive(user, asked)
    assert image.report.decoded
    assert image.report.gains == b""
    assert image.report.no == 0
    assert not image.report.HasField("instantaneous_snr_db")
    assert [hop.hop for hop in image.report.hops][1:] == ["edge-user", "user-gateway"]


async def test_two_channels_draw_apart_and_add_up(
    chain: Any, start: Start, connect: Connect, asked: DeliveryRequest, profile: Path
) -> None:
    second = await start_channel(start, chain.addresses["channel"])
    request = converters.request_to_proto(asked)
    once = await collect(clients.stream(chain.channel.Provide, request, "channel"))
    twice = await collect(clients.stream(DownlinkStub(connect(second)).Provide, request, "channel"))
    assert len(twice.states) == 2
    assert twice.states[0] == once.states[0]
    assert twice.states[1].gains != once.states[0].gains
    user = await start_user(start, connect, profile, second)
    image = await receive(user, asked)
    assert image.report.no == pytest.approx(2 * 10**-1.5)
    assert [hop.hop for hop in image.report.hops] == [
        "cloud-edge",
        "edge-channel",
        "channel-channel",
        "channel-user",
        "user-gateway",
    ]
    direct = await receive(chain.user, asked)
    assert image.png != direct.png


async def test_the_channel_is_transparent_to_what_it_carries(chain: Any, asked: DeliveryRequest) -> None:
    request = converters.request_to_proto(asked)
    sent = await collect(chain.edge.Provide(request))
    bent = await collect(chain.channel.Provide(request))
    assert bent.header == sent.header
    assert bent.reference == sent.reference
    assert sent.symbols.abs().square().mean().item() == pytest.approx(1, abs=1e-4)
    assert not torch.equal(bent.symbols, sent.symbols)
    louder = await collect(
        chain.edge.Provide(converters.request_to_proto(replace(asked, link=LinkConditions(snr_db=0))))
    )
    assert torch.equal(louder.symbols, sent.symbols), "the edge sends the same into every channel"


@pytest.mark.parametrize("excess", [0, 1, 512])
async def test_a_rate_the_codec_has_not_is_named_at_the_far_end(
    chain: Any, asked: DeliveryRequest, most: int, excess: int
) -> None:
    cbr = (most + excess) / asked.source_values if excess else 1e-9
    with pytest.raises(InvalidInputError) as caught:
        await receive(chain.user, replace(asked, cbr=cbr))
    assert caught.value.field == "link.cbr"
    lowest, highest = 1 / asked.source_values, most / asked.source_values
    assert caught.value.allowed == f"between {lowest:.3g} and {highest:.6g} for this size and codec"


@pytest.mark.parametrize("fewer", [0, 1, 64, None])
async def test_any_rate_the_codec_has_works(
    chain: Any, asked: DeliveryRequest, most: int, fewer: int | None
) -> None:
    channel_uses = 1 if fewer is None else most - fewer
    image = await receive(chain.user, replace(asked, cbr=channel_uses / asked.source_values))
    assert image.report.channel_uses == channel_uses


@pytest.mark.parametrize(("width", "height"), [(64, 64), (96, 128), (256, 256)])
@pytest.mark.parametrize("delivery", ["semantic", "conventional"])
async def test_images_come_in_the_requested_size(
    chain: Any, asked: DeliveryRequest, width: int, height: int, delivery: str
) -> None:
    link = LinkConditions(snr_db=30, fading="awgn")
    image = await receive(
        chain.user, replace(asked, width=width, height=height, delivery=delivery, link=link)
    )
    assert from_bytes(image.png).shape == (height, width, 3)


async def test_cloud_draws_seeds_and_formats_in_order_and_caches(chain: Any, redis_url: str) -> None:
    async with Redis.from_url(redis_url) as redis:
        await redis.flushdb()
    request = GenerateRequest(prompt="two owls", seeds=[3, 1, 3], width=64, height=64, formats=[2, 1])
    first = [answer async for answer in chain.cloud.Generate(request)]
    assert [(a.seed, a.format) for a in first] == [(3, 2), (3, 1), (1, 2), (1, 1), (3, 2), (3, 1)]
    assert [a.cached for a in first] == [False] * 4 + [True] * 2
    second = [answer async for answer in chain.cloud.Generate(request)]
    assert [a.image for a in second] == [a.image for a in first]
    assert all(a.cached for a in second)
    assert first[0].image != first[2].image


async def test_chain_works_without_redis(
    start: Start,
    connect: Connect,
    chain: Any,
    asked: DeliveryRequest,
    profile: Path,
    closed_port: int,
) -> None:
    addresses = await start_chain(start, profile, f"redis://127.0.0.1:{closed_port}/0")
    user = UserStub(connect(addresses["user"]))
    images = [await receive(user, asked) for _ in range(2)]
    assert images[0].png == images[1].png == (await receive(chain.user, asked)).png
    assert not any(image.report.cached for image in images)


async def test_a_spoiled_cache_entry_is_drawn_anew(
    chain: Any, asked: DeliveryRequest, redis_url: str
) -> None:
    before = await receive(chain.user, asked)
    async with Redis.from_url(redis_url) as redis:
        keys = await redis.keys("dekag:latent:*")
        assert keys
        for key in keys:
            await redis.set(key, b"\x00\x00\xc0\x7f" * (len(await redis.get(key)) // 4))
    after = await receive(chain.user, asked)
    assert after.png == before.png
    assert not after.report.cached


async def test_a_spoiled_image_in_the_cache_is_drawn_anew(chain: Any, redis_url: str) -> None:
    request = GenerateRequest(prompt="an owl at noon", seeds=[1], width=64, height=64, formats=[1, 2])
    before = [answer async for answer in chain.cloud.Generate(request)]
    small = GenerateRequest(prompt="an owl at noon", seeds=[1], width=64, height=96, formats=[2])
    (other,) = [answer async for answer in chain.cloud.Generate(small)]
    async with Redis.from_url(redis_url) as redis:
        for garbage in (b"", b"no picture", before[1].image[:-20], other.image):
            for key in await redis.keys("dekag:image:*"):
                await redis.set(key, garbage)
            after = [answer async for answer in chain.cloud.Generate(request)]
            assert [each.image for each in after] == [each.image for each in before]
            assert not any(each.cached for each in after)


async def test_another_codec_is_refused(
    chain: Any, start: Start, connect: Connect, asked: DeliveryRequest, profile: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(profile, other)
    torch.manual_seed(99)
    JsccCodec(latent_channels=latent_channels(profile), width=8, blocks=1).save_pretrained(other / "codec")
    user = await start_user(start, connect, other, chain.addresses["channel"])
    with pytest.raises(MismatchError, match="codec"):
        await receive(user, asked)


async def test_conventional_without_a_cloud_is_unavailable_semantic_is_not(
    start: Start, connect: Connect, asked: DeliveryRequest, profile: Path, closed_port: int
) -> None:
    settings = EdgeSettings(
        port=0, redis_url="", profile=str(profile), cloud_address=f"127.0.0.1:{closed_port}"
    )
    edge = await start(EdgeServicer(settings), add_DownlinkServicer_to_server, settings)
    user = await start_user(start, connect, profile, await start_channel(start, edge))
    assert (await receive(user, asked)).png
    with pytest.raises(UnavailableError, match="cloud service cannot be reached"):
        await receive(user, replace(asked, delivery="conventional"))


async def test_a_cloud_that_restarts_is_found_again(
    start: Start, connect: Connect, profile: Path, closed_port: int, tmp_path: Path
) -> None:
    stub = CloudStub(connect(f"127.0.0.1:{closed_port}"))
    request = GenerateRequest(prompt="an owl", seeds=[1], width=64, height=64, formats=[1])
    with pytest.raises(UnavailableError):
        [a async for a in clients.stream(stub.Generate, request, "cloud")]
    settings = CloudSettings(port=closed_port, redis_url="", profile=str(profile), data_dir=tmp_path)
    await start(CloudServicer(settings), add_CloudServicer_to_server, settings)
    for _ in range(40):
        try:
            assert [a async for a in clients.stream(stub.Generate, request, "cloud")]
            return
        except UnavailableError:
            await asyncio.sleep(0.05)
    pytest.fail("not found within 2 s")


async def test_cancelled_generation_stops_early(
    start: Any, connect: Any, asked: DeliveryRequest, profile: Path, tmp_path: Path
) -> None:
    slow = tmp_path / "profile"
    shutil.copytree(profile, slow)
    described = json.loads((slow / "profile.json").read_text())
    described["edge"]["steps"] = 100
    (slow / "profile.json").write_text(json.dumps(described))
    settings = EdgeSettings(port=0, redis_url="", profile=str(slow), cloud_address="127.0.0.1:1")
    servicer = EdgeServicer(settings)
    edge = DownlinkStub(connect(await start(servicer, add_DownlinkServicer_to_server, settings)))
    scheduler = servicer._generator.generator.pipeline.scheduler
    step, steps, begun = scheduler.step, [], asyncio.Event()
    loop = asyncio.get_running_loop()

    def counted(*args: Any, **kwargs: Any) -> Any:
        steps.append(None)
        loop.call_soon_threadsafe(begun.set)
        return step(*args, **kwargs)

    scheduler.step = counted
    request = converters.request_to_proto(asked)
    leaving = asyncio.create_task(collect(clients.stream(edge.Provide, request, "edge")))
    await begun.wait()
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    other = converters.request_to_proto(replace(asked, seed=asked.seed + 1))
    await collect(clients.stream(edge.Provide, other, "edge"))
    assert 100 < len(steps) < 200, "the second one whole, of the first one a part"


def spoil(module: Any) -> None:
    """Makes the first weights of a model NaN."""
    next(module.parameters()).data.fill_(torch.nan)


async def test_a_model_that_is_not_finite_is_told_with_seed_stage_and_hash(
    start: Start, connect: Connect, asked: DeliveryRequest, profile: Path
) -> None:
    settings = EdgeSettings(port=0, redis_url="", profile=str(profile), cloud_address="127.0.0.1:1")
    servicer = EdgeServicer(settings)
    edge = await start(servicer, add_DownlinkServicer_to_server, settings)
    own = UserSettings(port=0, redis_url="", profile=str(profile), downlink_address=edge)
    receiver = UserServicer(own)
    user = UserStub(connect(await start(receiver, add_UserServicer_to_server, own)))
    generator, sender, codec = servicer._generator.generator, servicer._codecs.base, receiver._codecs.base
    asked = replace(
        asked, measure=False
    )  # else the reference is decoded at the same time, and may fail first
    for module, stage, model_hash in (
        (receiver._decoder.vae.decoder, "render", receiver._decoder.model_hash),
        (codec.base.decoder, "decode", codec.base_hash),
        (sender.base.encoder, "encode", sender.base_hash),
        (generator.pipeline.unet, "generate", generator.model_hash),
    ):  # the later in the chain, the earlier spoilt
        spoil(module)
        with pytest.raises(
            NumericalError, match=rf"^{stage} .* for seed 7 with model {model_hash[:12]}$"
        ) as caught:
            await receive(user, asked)
        assert asked.prompt not in str(caught.value)
    with pytest.raises(grpc.aio.AioRpcError) as told:
        await user.Receive(converters.request_to_proto(asked))
    assert told.value.code() is grpc.StatusCode.INTERNAL


async def test_a_cloud_that_is_not_finite_is_told_too(
    start: Start, connect: Connect, profile: Path, tmp_path: Path
) -> None:
    settings = CloudSettings(port=0, redis_url="", profile=str(profile), data_dir=tmp_path)
    servicer = CloudServicer(settings)
    cloud = CloudStub(connect(await start(servicer, add_CloudServicer_to_server, settings)))
    request = GenerateRequest(prompt="an owl", seeds=[5], width=64, height=64, formats=[2])
    for module, stage in (
        (servicer._generator.decoder.vae.decoder, "render"),
        (servicer._generator.pipeline.transformer, "generate"),
    ):
        spoil(module)
        with pytest.raises(NumericalError, match=rf"^{stage} .* seed 5"):
            [answer async for answer in clients.stream(cloud.Generate, request, "cloud")]
