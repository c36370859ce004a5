"""`dekag bench parts`: what each part of an image costs, and what its alternatives would.

All of it in this process with one thread, but for a hop of gRPC, which needs a second process.
docs/performance.md says what follows from it.
"""

from __future__ import annotations

import asyncio
import copy
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from rich.console import Console
from rich.progress import track

from dekag.cala.aligned_codec import AlignedCodec
from dekag.evaluation.pages import Row
from dekag.evaluation.registry import RESULTS, record
from dekag.evaluation.statistics import POSITIVE, mean_ci95
from dekag.generation.autoencoder import decode
from dekag.generation.images import to_png
from dekag.generation.models import Generator
from dekag.generation.placement import ON_CPU
from dekag.generation.prompts import PromptReader
from dekag.generation.request import GenerationRequest, Sampling
from dekag.generation.traced_denoiser import TracedDenoiser, worth_tracing
from dekag.makd.aligned_generator import AlignedGenerator
from dekag.makd.metaword import encode_prompts
from dekag.makd.update import PREFIX, KnowledgeUpdate
from dekag.metrics.image import psnr_db
from dekag.pipeline import SemanticLink, apply_channel
from dekag.profile import Profile, load_profile
from services.bench.channel import request_for
from services.bench.conventional import IMAGES, conventional_rows, record_receiving
from services.bench.pipeline import CBR, CONDITIONS
from services.bench.processes import server, start
from services.bench.results_io import write_bench
from services.common import clients
from services.common.settings import CommonSettings
from services.proto.downlink_pb2_grpc import DownlinkStub

ROWS = (1, 2, 4, 8, 12, 16)  # of the denoiser; with guidance an image is two
IMAGES_AT_ONCE = (1, 2, 4, 6, 8)  # drawn at once
COMMAND = "dekag bench parts"
_NO_ADAPTER = "__base__"  # PEFT's name for a row without one
UNALIGNED, GUIDED, FOUR_TOPICS = "no update", "no update, with guidance", "four topics"
TOPICS = ("neon", "jewels", "rocket", "vaporwave")
PROMPT = "a large red car in the middle of the beach, pastel style"


@dataclass(frozen=True)
class Part:
    """Something that is timed.

    Attributes:
        part: what it is a part of.
        variant: of it.
        images: that it works on at once; of the denoiser, rows.
        work: does it once.
    """

    part: str
    variant: str
    images: int
    work: Callable[[], object]


def run_parts_bench(
    *, repeats: int = 9, images: int = IMAGES, profile: str = "stickers", results: Path = RESULTS
) -> list[Row]:
    """Time every part on the CPU, all of them in turn in each repeat.

    Args:
        repeats: times that each part is timed; one more comes first and does not count.
        images: conventional deliveries over each link.
        profile: the models; topics' updates are timed if it has some.
        results: the rows are written into its folder load/.

    Returns:
        Rows of kind "time": median `ms` of each part, and per image; and those of `conventional_rows`. In
        headline.json, `bench_topics_ratio` is the time of a batch of eight images of four topics, relative to
        eight images without an update at the same guidance, and `ldpc_seconds` the mean CPU time, s, to
        demodulate and decode a file over the slowest link.
    """
    console = Console()
    torch.set_num_threads(1)
    models = load_profile(profile)
    edge = Generator.from_profile(models, "edge", ON_CPU)
    parts = [*_network_parts(edge), *_drawing_parts(edge, models), *_link_parts(edge, models)]
    seconds: dict[int, list[float]] = {index: [] for index in range(len(parts))}
    for number in track(range(-1, repeats), "parts", console=console):
        for index, part in enumerate(parts):
            begin = time.perf_counter()
            part.work()
            if number >= 0:
                seconds[index].append(time.perf_counter() - begin)
    rows: list[Row] = [
        _timed(part.part, part.variant, part.images, statistics.median(seconds[index]))
        for index, part in enumerate(parts)
    ]
    unaligned = GUIDED if any(part.variant == GUIDED for part in parts) else UNALIGNED
    topics, plain = (
        [
            each
            for index, part in enumerate(parts)
            if (part.variant, part.images) == (name, 8)
            for each in seconds[index]
        ]
        for name in (FOUR_TOPICS, unaligned)
    )
    if topics:
        value, ci95 = mean_ci95([ours / theirs for ours, theirs in zip(topics, plain, strict=True)], POSITIVE)
        record(
            "bench_topics_ratio",
            value,
            "ratio",
            ci95=ci95,
            count=len(topics),
            command=COMMAND,
            results=results,
        )
    rows.append(_timed("hop of gRPC", "512 symbols in three messages", 1, _hop_s(repeats, console)))
    rows += _decoder_errors(edge)
    rows += conventional_rows(edge, console, images)
    record_receiving(rows, results, COMMAND)
    config = {"profile": profile, "repeats": repeats, "images": images, "threads": 1}
    write_bench("parts", config, rows, results)
    for row in rows:
        if row["kind"] == "time":
            console.print(f"{row['part']}, {row['variant']}, {row['pictures']}: {row['ms']:.2f} ms")
    return rows


def _timed(part: str, variant: str, images: int, seconds: float) -> Row:
    return {
        "kind": "time", "part": part, "variant": variant, "pictures": images, "ms": 1e3 * seconds,
        "ms_each": 1e3 * seconds / images,
    }  # fmt: skip


def _network_parts(edge: Generator) -> Iterator[Part]:
    """Text encoder, denoiser and autoencoder, each alone."""
    pipeline, unet = edge.pipeline, edge.pipeline.unet
    channels, height, width = edge.latent_shape(edge.size, edge.size)
    states = torch.randn(1, pipeline.tokenizer.model_max_length, unet.config.cross_attention_dim)
    timestep = torch.tensor(500)
    traced = TracedDenoiser(unet) if worth_tracing(unet) else None

    def inference(work: Callable[[], object]) -> Callable[[], object]:
        return torch.inference_mode()(work)

    yield Part(
        "text",
        "prompt and empty prompt",
        1,
        inference(lambda: pipeline.encode_prompt(PROMPT, "cpu", 1, True)),
    )
    for rows in ROWS:
        x = edge.for_denoiser(torch.randn(rows, channels, height, width))
        read = edge.for_denoiser(states.expand(rows, -1, -1).contiguous())
        call = inference(lambda x=x, read=read: unet(x, timestep, encoder_hidden_states=read))  # type: ignore[misc]
        yield Part("denoiser", "as it is", rows, call)
        if traced is not None:
            yield Part("denoiser", "traced", rows, traced.in_use()(call))
    latents = torch.randn(4, channels, height, width)
    for variant, (vae, cast) in _decoders(edge).items():
        for images in (1, 4):
            yield Part(
                "decoder", variant, images,
                inference(lambda vae=vae, cast=cast, n=images: _decoded(vae, cast, latents[:n])),  # type: ignore[misc]
            )  # fmt: skip


def _decoders(edge: Generator) -> dict[str, tuple[Any, bool]]:
    """Autoencoders by layout, and whether they run in bfloat16; the others in float32 whatever their own."""
    last = edge.decoder.vae
    if last.dtype != torch.float32:
        last = copy.deepcopy(last).float()
    plain = copy.deepcopy(last).to(memory_format=torch.contiguous_format)
    return {
        "contiguous": (plain, False),
        "channels last": (last, False),
        "channels last, bfloat16": (last, True),
    }


def _decoded(vae: Any, cast: bool, latents: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=cast):
        image = decode(vae, latents)
    return image.float()


@torch.inference_mode()
def _decoder_errors(edge: Generator) -> list[Row]:
    """PSNR of what each layout shows against the contiguous one, dB."""
    latents = edge.latents(PROMPT, 1)
    shown = {
        name: _decoded(vae, cast, latents).add(1).mul(127.5).clamp(0, 255).round().to(torch.uint8)
        for name, (vae, cast) in _decoders(edge).items()
    }
    reference = shown["contiguous"].numpy()
    return [
        {"kind": "decoder", "variant": name, "psnr_db": psnr_db(pixels.numpy(), reference)}
        for name, pixels in shown.items()
    ]


def _drawing_parts(edge: Generator, models: Profile) -> Iterator[Part]:
    """Images drawn as the services draw them: by the base model, of one topic, and of four topics."""
    edge.trace()
    aligned = AlignedGenerator(edge)
    for images in IMAGES_AT_ONCE:
        drawings = [GenerationRequest(PROMPT, seed, edge.size, edge.size) for seed in range(images)]
        yield Part("drawing", UNALIGNED, images, lambda d=drawings: aligned.batch(d))  # type: ignore[misc]
    updates = updates_of(models)
    if not updates:
        return
    for update in updates:
        aligned.add(update)
    guided = Sampling(guidance_scale=updates[0].guidance_scale)
    for images in IMAGES_AT_ONCE if guided.guidance_scale != edge.guidance_scale else ():
        drawings = [
            GenerationRequest(PROMPT, seed, edge.size, edge.size, sampling=guided) for seed in range(images)
        ]
        yield Part("drawing", GUIDED, images, lambda d=drawings: aligned.batch(d))  # type: ignore[misc]
    theirs = _PeftGenerator(Generator.from_profile(models, "edge", ON_CPU), updates)
    for images in IMAGES_AT_ONCE:
        for variant, of in (("one topic", updates[:1]), (FOUR_TOPICS, updates))[: len(updates)]:
            chosen = [of[index % len(of)] for index in range(images)]
            drawings = [
                GenerationRequest(PROMPT, i, edge.size, edge.size, (each.content_hash,))
                for i, each in enumerate(chosen)
            ]
            yield Part("drawing", variant, images, lambda d=drawings: aligned.batch(d))  # type: ignore[misc]
            yield Part(
                "drawing", f"{variant}, PEFT's layers", images,
                lambda c=chosen: theirs.batch(PROMPT, c),  # type: ignore[misc]
            )  # fmt: skip


def updates_of(models: Profile) -> list[KnowledgeUpdate]:
    """Four of the profile's updates; only one, or none, if it has fewer."""
    if models.knowledge is None:
        return []
    there = sorted(path.parent.name for path in Path(models.knowledge).glob("*/knowledge.json"))
    first = [topic for topic in TOPICS if topic in there]
    chosen = [*first, *(topic for topic in there if topic not in first)][: len(TOPICS)]
    if len(chosen) < len(TOPICS):
        chosen = chosen[:1]
    return [KnowledgeUpdate.load(f"{models.knowledge}/{topic}") for topic in chosen]


class _PeftGenerator:
    """Draws with updates as diffusers loads them and PEFT mixes them, to be compared with."""

    def __init__(self, generator: Generator, updates: Sequence[KnowledgeUpdate]) -> None:
        self._generator = generator
        pipeline = generator.pipeline
        self._loaded = {update.content_hash for update in updates if update.lora}
        for update in updates:
            if not update.lora:  # a metaword alone
                continue
            factors = {PREFIX + name: factor.float() for name, factor in update.lora.items()}
            pipeline.load_lora_into_unet(
                factors, network_alphas=None, unet=pipeline.unet, adapter_name=update.content_hash
            )

    @torch.inference_mode()
    def batch(self, prompt: str, updates: Sequence[KnowledgeUpdate]) -> torch.Tensor:
        """Latents of the prompt, a row with each update."""
        pipeline = self._generator.pipeline
        width = pipeline.text_encoder.get_input_embeddings().weight.shape[1]
        reader = PromptReader(pipeline)
        states = [
            encode_prompts(reader, [reader.windows(prompt, each.token_rows)], each.vectors)[0]
            for each in updates
        ]
        unsaid, _ = encode_prompts(reader, [reader.windows("")], torch.zeros(0, width))
        empty = unsaid.expand(len(updates), -1, -1)
        with self._adapters([each.content_hash for each in updates]):
            return self._generator.batch(
                None,
                range(len(updates)),
                guidance_scale=updates[0].guidance_scale,
                prompt_embeds=torch.cat(states),
                negative_prompt_embeds=empty,
            )

    @contextmanager
    def _adapters(self, names: Sequence[str]) -> Iterator[None]:
        pipeline = self._generator.pipeline
        if not self._loaded:
            yield
            return
        if len(set(names)) == 1 and names[0] in self._loaded:  # PEFT's quicker way
            pipeline.set_adapters([names[0]])
            yield
            return

        def name_rows(_: Any, inputs: Any, keywords: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            times = len(inputs[0]) // len(names)
            chosen = [name if name in self._loaded else _NO_ADAPTER for name in names]
            return inputs, {**keywords, "adapter_names": chosen * times}

        layers = [module for module in pipeline.unet.modules() if isinstance(module, LoraLayer)]
        hooks = [layer.register_forward_pre_hook(name_rows, with_kwargs=True) for layer in layers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def _link_parts(edge: Generator, models: Profile) -> Iterator[Part]:
    """Everything between the latent and the PNG, but for the autoencoder."""
    values = 3 * edge.size**2
    latents, channel_uses = edge.latents(PROMPT, 1), round(CBR * values)
    link = SemanticLink(AlignedCodec.load(models.codec, models.adapters), edge)
    text = [link.side_information(PROMPT)]
    sent = link.send(latents, [CONDITIONS], [1], cbr=CBR, text=text)
    size: dict[str, Any] = {"source_values": values, "seeds": [1], "text": text}
    shape = (latents.shape[1], latents.shape[2], latents.shape[3])
    yield Part(
        "codec", "encode", 1, lambda: link.sender.encode(latents, [CONDITIONS], [channel_uses], **size)
    )
    symbols = sent.symbols[0]
    yield Part("channel", f"{symbols.numel():,} symbols", 1, lambda: apply_channel(symbols, CONDITIONS, 1))
    yield Part(
        "codec",
        "decode",
        1,
        lambda: link.receiver.decode(sent.receptions, [CONDITIONS], latent_shape=shape, **size),
    )
    pixels = edge.decoder.decode(latents)[0]
    yield Part("PNG", "", 1, lambda: to_png(pixels))
    yield Part("PSNR", "", 1, lambda: psnr_db(pixels, pixels))


def _hop_s(repeats: int, console: Console) -> float:
    """Seconds from a request to the last frame of a recorded transmission over gRPC, idle before."""

    async def ask(address: str) -> float:
        async with clients.open_channel(address, CommonSettings()) as channel:
            times = []
            for seed in range(-5, 10 * repeats):
                await asyncio.sleep(0.02)  # as between the requests of one user
                begin = time.perf_counter()
                async for _ in clients.stream(
                    DownlinkStub(channel).Provide, request_for(512, max(seed, 0)), "it"
                ):
                    pass
                if seed >= 0:
                    times.append(time.perf_counter() - begin)
            return statistics.median(times)

    with server("hop", "services.bench.recorded_downlink", "512", health="grpc") as recorded:
        start(recorded, console)
        return asyncio.run(ask(recorded.address))
