"""`dekag bench channel`: symbols per second of the channel service against bare Sionna in one process."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path

import torch
from grpc import aio
from rich.console import Console
from rich.progress import Progress

from dekag.errors import DekagError
from dekag.evaluation.pages import Row
from dekag.evaluation.registry import RESULTS, record
from dekag.evaluation.statistics import POSITIVE, mean_ci95
from dekag.link.channel import transmit
from dekag.link.conditions import BLOCKS
from dekag.link.fading import block_correlation
from services.bench.pipeline import CBR, CONDITIONS
from services.bench.processes import server, start
from services.bench.recorded_downlink import SERVICE, name_of
from services.bench.results_io import write_bench
from services.common import clients, converters
from services.common.frames import collect
from services.common.settings import CommonSettings
from services.launcher.stack import LaunchError
from services.proto.downlink_pb2 import DELIVERY_SEMANTIC, ProvideRequest
from services.proto.downlink_pb2_grpc import DownlinkStub

COMMAND = "dekag bench channel"
CHANNEL_USES = (512, 2_048, 8_192, 32_768)  # what requests carry
STREAMS = 4
MOST = 500  # transmissions timed at once


def run_channel_bench(
    *,
    symbols: int = 4_000_000,
    rounds: int = 7,
    streams: int = STREAMS,
    channel_uses: Sequence[int] = CHANNEL_USES,
    results: Path = RESULTS,
) -> list[Row]:
    """Send recorded symbols through Rayleigh fading and noise, by the service and in this process, in turn.

    The service gets them over gRPC from a Downlink that plays recordings and passes them on over gRPC to
    this process, several streams at once. In this process, one thread does with Sionna's own blocks, or
    with the library, what the service does to the symbols, and nothing else.

    Args:
        symbols: sent in each measurement, in as many transmissions as that takes, at most 500.
        rounds: how often; the interval is over them.
        streams: transmissions at once that the service is asked for.
        channel_uses: symbols of one transmission.
        results: where headline.json is.

    Returns:
        A row for each measurement. `bench_channel_ratio` in headline.json is symbols per second of the
        service over bare Sionna's, at the size of transmission where that is lowest.
    """
    console = Console()
    torch.set_num_threads(1)
    rows: list[Row] = []
    recorded = server("recorded", "services.bench.recorded_downlink", *map(str, channel_uses), health="grpc")
    with recorded:
        start(recorded, console)
        channel = server(
            "channel", "services.channel", health="grpc", DEKAG_DOWNLINK_ADDRESS=recorded.address
        )
        with channel, Progress(console=console) as progress:
            start(channel, console)
            asyncio.run(_check(channel.address, channel_uses))
            task = progress.add_task("channel", total=(rounds + 1) * len(channel_uses))
            for number in range(-1, rounds):  # the first round warms up
                for uses in channel_uses:
                    transmissions = max(min(symbols // uses, MOST), streams)
                    ways: dict[str, Callable[[], float]] = {
                        "service": lambda uses=uses, n=transmissions: asyncio.run(  # type: ignore[misc]
                            _through(channel.address, uses, n, streams)
                        ),
                        "sionna": lambda uses=uses, n=transmissions: _bare(uses, n),  # type: ignore[misc]
                        "library": lambda uses=uses, n=transmissions: _library(uses, n),  # type: ignore[misc]
                    }
                    turn = number % len(ways)
                    for way in [*list(ways)[turn:], *list(ways)[:turn]]:
                        seconds = ways[way]()
                        if number >= 0:
                            rows.append(
                                {
                                    "round": number,
                                    "way": way,
                                    "channel_uses": uses,
                                    "transmissions": transmissions,
                                    "symbols_per_s": uses * transmissions / seconds,
                                }
                            )
                    progress.advance(task)
    config = {"rounds": rounds, "streams": streams, "channel_uses": list(channel_uses), "symbols": symbols}
    write_bench("channel", config | {"link": CONDITIONS.model_dump(mode="json")}, rows, results)
    for uses in channel_uses:
        console.print(f"{uses:,} symbols: ratio {statistics.fmean(ratios(rows, uses)):.3f}", highlight=False)
    record_lowest(rows, results)
    return rows


def record_lowest(rows: Sequence[Row], results: Path) -> None:
    """The figure of headline.json: the ratio at the size of transmission where it is lowest."""
    found = [ratios(rows, uses) for uses in dict.fromkeys(row["channel_uses"] for row in rows)]
    lowest = min(found, key=statistics.fmean)
    mean, ci95 = mean_ci95(lowest, POSITIVE)
    record(
        "bench_channel_ratio", mean, "ratio", command=COMMAND, count=len(lowest),
        ci95=ci95, results=results,
    )  # fmt: skip


def values(rows: Sequence[Row], way: str, channel_uses: int) -> list[float]:
    """Symbols per second of one way, for each round."""
    return [row["symbols_per_s"] for row in rows if (row["way"], row["channel_uses"]) == (way, channel_uses)]


def ratios(rows: Sequence[Row], channel_uses: int) -> list[float]:
    """Symbols per second of the service over bare Sionna's, for each round."""
    service, bare = (values(rows, way, channel_uses) for way in ("service", "sionna"))
    return [mine / other for mine, other in zip(service, bare, strict=True)]


async def _check(address: str, channel_uses: Sequence[int]) -> None:
    """Raises unless the service sends back as many symbols as went in, with gains and other values."""
    async with clients.open_channel(address, CommonSettings()) as channel:
        for uses in channel_uses:
            request = request_for(uses, 1)
            came = await collect(clients.stream(DownlinkStub(channel).Provide, request, "channel"))
            if came.symbols.shape != (1, uses) or len(came.states) != 1:
                raise LaunchError(f"{tuple(came.symbols.shape)} symbols came of {uses}")


def request_for(channel_uses: int, seed: int) -> ProvideRequest:
    """Asks for the recording of so many symbols, bent by the channel of that seed."""
    return ProvideRequest(
        prompt=name_of(channel_uses),
        seed=seed,
        delivery=DELIVERY_SEMANTIC,
        cbr=CBR,
        link=converters.link_to_proto(CONDITIONS),
    )


async def _through(address: str, channel_uses: int, transmissions: int, streams: int) -> float:
    """Seconds that the service takes, asked for several transmissions at once."""
    async with clients.open_channel(address, CommonSettings()) as channel:
        await channel.channel_ready()
        # frames stay bytes: what a receiver makes of them is not the channel's cost
        provide: aio.UnaryStreamMultiCallable[ProvideRequest, bytes] = channel.unary_stream(
            f"/{SERVICE}/Provide", ProvideRequest.SerializeToString
        )
        seeds: Iterator[int] = iter(range(transmissions))

        async def stream() -> None:
            for seed in seeds:
                received = 0
                async for frame in provide(request_for(channel_uses, seed)):
                    received += len(frame)
                if received < 8 * channel_uses:
                    raise DekagError(f"{received} bytes came of {channel_uses} symbols")

        start_s = time.perf_counter()
        await asyncio.gather(*(stream() for _ in range(streams)))
        return time.perf_counter() - start_s


def _bare(channel_uses: int, transmissions: int) -> float:
    """Seconds that Sionna's blocks take: J correlated gains, each times its block of symbols, and noise."""
    import dekag.link.sionna_blocks  # noqa: F401, I001 - imports Sionna without reseeding the caller's generators
    from sionna.phy.channel import AWGN, GenerateFlatFadingChannel, KroneckerModel

    symbols = _symbols(channel_uses).view(BLOCKS, -1)
    correlation = block_correlation(CONDITIONS.tau_rms_s)
    correlated = KroneckerModel(None, correlation.to(torch.complex64), precision="single", device="cpu")
    fading = GenerateFlatFadingChannel(1, BLOCKS, correlated, precision="single", device="cpu")
    awgn = AWGN(precision="single", device="cpu")
    start_s = time.perf_counter()
    for _ in range(transmissions):
        awgn(fading(1)[0] * symbols, CONDITIONS.no)
    return time.perf_counter() - start_s


def _library(channel_uses: int, transmissions: int) -> float:
    """Seconds that `dekag.link.channel.transmit` takes, as the service calls it."""
    symbols, seeds = _symbols(channel_uses), count()
    start_s = time.perf_counter()
    for _ in range(transmissions):
        transmit(symbols, [CONDITIONS], [next(seeds)])
    return time.perf_counter() - start_s


def _symbols(channel_uses: int) -> torch.Tensor:
    """(1, K) complex64 of mean power 1."""
    draw = torch.Generator().manual_seed(channel_uses)
    return torch.randn(1, channel_uses, dtype=torch.complex64, generator=draw)
