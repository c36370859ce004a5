"""Distillation of one topic: the edge-GAI learns a metaword and a LoRA from images of the cloud-GAI.

MAKD trains both together with the diffusion loss on the cloud's images, or on how the cloud denoised them
(`dekag.training.targets`); all weights of the edge are frozen.
The baselines use the same code, images and steps.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch
from peft import LoraConfig
from torch import nn

from dekag.errors import MismatchError
from dekag.generation import autoencoder
from dekag.generation.facts import GeneratorFacts
from dekag.generation.images import Pixels, from_bytes, png_note, to_png
from dekag.generation.models import PIXELS_AT_ONCE, Generator, by_group
from dekag.generation.placement import device_and_dtype
from dekag.generation.prompts import PromptReader, Window
from dekag.generation.request import GenerationRequest
from dekag.generation.traced_denoiser import MAX_PARAMETERS, traced_if_possible, worth_tracing
from dekag.generation.trajectories import Trajectories, TrajectoryFile, check_generators, trained_schedule
from dekag.makd.aligned_generator import AlignedGenerator
from dekag.makd.config import DistillConfig
from dekag.makd.ladder import (
    Form,
    Rung,
    components,
    layer_gains,
    smaller_forms,
    smallest_enough,
    strongest,
)
from dekag.makd.metaword import encode_prompts, token_rows, trigger_words
from dekag.makd.quantization import CODED_SHARE, VECTOR_BITS
from dekag.makd.topics import TopicPrompts
from dekag.makd.update import KnowledgeUpdate
from dekag.metrics.features import ImageScorer
from dekag.stickers.sheet import save_sheet
from dekag.training.device import multiplying
from dekag.training.diffusion_loss import DiffusionLoss
from dekag.training.loop import TrainingRun
from dekag.training.side_by_side import side_by_side
from dekag.training.targets import ImageTargets, Noised, Targets, trajectory_targets

ADAPTER = "distilled"
_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_FEED_FORWARD = ("ff.net.0.proj", "ff.net.2")
_CONVOLUTION = ("proj_in", "proj_out", "conv1", "conv2", "conv_shortcut", "time_emb_proj")
LAYERS = {
    "attention": _ATTENTION,
    "attention+feed-forward": _ATTENTION + _FEED_FORWARD,
    "attention+convolution": _ATTENTION + _CONVOLUTION,
    "all": _ATTENTION + _FEED_FORWARD + _CONVOLUTION,
}
WARMUP_STEPS = 20
EMA_DECAY = 0.98
SAVE_EVERY_S = 10.0
ENCODED_PIXELS = 2**18  # pixels that the autoencoder encodes at once
DRAWN_AT_ONCE = 8
WORTH_A_TRACE = 50  # images; a trace takes as long as ten
WORTH_A_TRAINING_TRACE = 100  # steps; a trace takes as long as ten, and its memory is not freed
SCORED = 8  # held-out prompts used for the scores and the samples
SAMPLES, PREVIEW = "samples.png", "preview.png"
IMAGES = "images"  # folder of the cloud's images
PREVIEWED = 4  # held-out prompts in a preview
SEED_STRIDE = 1_000_000  # distillations with different seeds use different generation seeds


@dataclass(frozen=True)
class Progress:
    """Progress of a distillation.

    Attributes:
        stage: "generate" (images), "train" (steps) or "score" (images).
        done, total: images or steps of this stage.
        loss: smoothed training loss; None outside training.
    """

    stage: str
    done: int
    total: int
    loss: float | None = None


class Stopped(Exception):  # noqa: N818 - a requested stop is not an error
    """The distillation was asked to stop; its checkpoint is kept."""


OnProgress = Callable[[Progress], None]
OnPreview = Callable[[Sequence[Sequence[Window]], torch.Tensor], None]
States = tuple[torch.Tensor, torch.Tensor | None]
ShouldStop = Callable[[], bool]


def seeds_for(config: DistillConfig, count: int, *, held_out: bool) -> list[int]:
    """Generation seeds of the training images, or of the held-out images."""
    first = config.seed * SEED_STRIDE + (SEED_STRIDE // 2 if held_out else 0)
    return list(range(first, first + count))


def draw_images(
    cloud: Generator,
    prompts: Sequence[str],
    seeds: Sequence[int],
    folder: Path,
    *,
    at_once: int = 1,
    on_progress: Callable[[int], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> np.ndarray:
    """Images of the cloud, (images, height, width, 3) uint8.

    Those in `folder` are reused, unless another prompt, model, size or sampling made them.

    Args:
        cloud: the generator.
        prompts, seeds: of each image.
        folder: where the images are kept.
        at_once: images in a batch, which is faster but differs from single images by rounding. A small
            generator draws a batch in each of PyTorch's threads.
        on_progress: called after each batch with the number of images that are there.
        should_stop: called before each batch.

    Raises:
        Stopped: should_stop() returned True.
    """
    wanted = _wanted(cloud.identity, prompts, seeds, folder)
    _draw_missing(cloud, wanted, at_once, on_progress, should_stop)
    return _read(wanted)


def kept_images(
    identity: str, prompts: Sequence[str], seeds: Sequence[int], folder: Path
) -> np.ndarray | None:
    """What `draw_images` of a generator with that identity would find in `folder`; None if one is missing."""
    wanted = _wanted(identity, prompts, seeds, folder)
    return _read(wanted) if all(each.is_there() for each in wanted) else None


@dataclass(frozen=True)
class _Wanted:
    """An image to be drawn, and what of it is kept.

    Attributes:
        prompt, seed: of the image.
        path: file of its pixels.
        note: says in the files what made them.
        with_pixels: whether its pixels are kept.
        with_trajectory: whether it is kept how it was denoised.
    """

    prompt: str
    seed: int
    path: Path
    note: str
    with_pixels: bool = True
    with_trajectory: bool = False

    @property
    def trajectory(self) -> TrajectoryFile:
        """The file that says how it was denoised."""
        return TrajectoryFile(self.path.with_suffix(".safetensors"), self.note)

    def is_there(self) -> bool:
        """Whether it need not be drawn."""
        if self.with_trajectory and not self.trajectory.is_there():
            return False
        return not self.with_pixels or png_note(self.path) == self.note


def _wanted(identity: str, prompts: Sequence[str], seeds: Sequence[int], folder: Path) -> list[_Wanted]:
    return [
        _Wanted(prompt, seed, folder / f"{seed}.png", _digest(identity, prompt))
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]


def _draw_missing(
    cloud: Generator,
    wanted: Sequence[_Wanted],
    at_once: int,
    on_progress: Callable[[int], None],
    should_stop: Callable[[], bool],
) -> None:
    """Draw those that are not there."""
    wanted[0].path.parent.mkdir(parents=True, exist_ok=True)
    missing = [each for each in wanted if not each.is_there()]
    if at_once > 1 and len(missing) >= WORTH_A_TRACE:
        cloud.trace()
    parts = [wanted[start : start + at_once] for start in range(0, len(wanted), at_once)]
    drawn = read = done = 0
    with side_by_side(_threads_to_draw(cloud, parts, missing, at_once)) as crew:
        idle = SimpleQueue[Generator]()
        for number in range(crew.threads):
            idle.put(cloud if number == 0 else cloud.twin())

        def draw(part: Sequence[_Wanted]) -> int:
            nonlocal drawn, read
            if should_stop():
                raise Stopped
            if new := [each for each in part if each in missing]:
                own = idle.get()
                try:
                    if crew.threads == 1 and drawn + len(new) > read:
                        read = drawn + own.reader.prepare([each.prompt for each in missing[drawn:]])
                    _draw(own, new)
                finally:
                    idle.put(own)
                drawn += len(new)
            return len(part)

        for count in crew.map(draw, parts):
            done += count
            on_progress(done)


def _threads_to_draw(
    cloud: Generator, parts: Sequence[Sequence[_Wanted]], missing: Sequence[_Wanted], at_once: int
) -> int:
    """How many batches are drawn at a time: as many as there are threads, work and memory for."""
    if not cloud.small or cloud.reader.encoder is None:
        return 1
    work = sum(any(each in missing for each in part) for part in parts)
    room = PIXELS_AT_ONCE // (at_once * cloud.size**2)
    return max(1, min(torch.get_num_threads(), work, room))


def _draw(cloud: Generator, images: Sequence[_Wanted]) -> None:
    """Draw images in one batch, and keep what is wanted of them."""
    prompts, seeds = [each.prompt for each in images], [each.seed for each in images]
    if any(each.with_trajectory for each in images):
        latents, denoised = cloud.denoised(prompts, seeds)
        for row, each in enumerate(images):
            each.trajectory.write(denoised.rows(slice(row, row + 1)))
    else:
        latents = cloud.batch(prompts, seeds)
    if not (shown := [row for row, each in enumerate(images) if each.with_pixels]):
        return
    decoded = cloud.decoder.decode(latents[shown], [seeds[row] for row in shown])
    for row, pixels in zip(shown, decoded, strict=True):
        path = images[row].path
        unfinished = path.with_suffix(f".{os.getpid()}")
        unfinished.write_bytes(to_png(pixels, images[row].note))
        unfinished.replace(path)


def _read(images: Sequence[_Wanted]) -> np.ndarray:
    return np.stack([from_bytes(each.path.read_bytes()) for each in images])


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


@dataclass(frozen=True)
class CloudImages:
    """What an edge learns a topic from.

    Attributes:
        learnt: images of the training prompts, (images, height, width, 3) uint8; None if their trajectories
            are learnt instead.
        held_out: images of the held-out prompts, likewise.
        model_hash: of the cloud that drew them.
        trajectories: files that say how it denoised the images, those of the training prompts first; none
            if that is not learnt.
    """

    learnt: np.ndarray | None
    held_out: np.ndarray
    model_hash: str
    trajectories: tuple[TrajectoryFile, ...] = ()

    @classmethod
    def _of(cls, wanted: Sequence[_Wanted], learnt: int, model_hash: str) -> CloudImages:
        """Those that are there, of which so many are of training prompts."""
        files = tuple(each.trajectory for each in wanted if each.with_trajectory)
        return cls(None if files else _read(wanted[:learnt]), _read(wanted[learnt:]), model_hash, files)

    @property
    def content_hash(self) -> str:
        """SHA-256 (hex) of pixels and trajectories."""
        digest = hashlib.sha256()
        for pixels in (self.learnt, self.held_out):
            if pixels is not None:
                digest.update(str(pixels.shape).encode() + pixels.tobytes())
        for file in self.trajectories:
            digest.update(file.path.read_bytes())
        return digest.hexdigest()


def cloud_images(
    cloud: Generator,
    topic: TopicPrompts,
    config: DistillConfig,
    folder: Path,
    *,
    on_progress: OnProgress = lambda _: None,
    should_stop: ShouldStop = lambda: False,
) -> CloudImages:
    """Generate the images for `distill` in advance, so that the cloud can leave memory before it.

    Raises:
        Stopped: should_stop() returned True; images that are there are reused by the next call.
    """
    wanted = _for_topic(cloud.identity, topic, config, folder)
    _draw_missing(
        cloud,
        wanted,
        at_once(cloud),
        lambda done: on_progress(Progress("generate", done, len(wanted))),
        should_stop,
    )
    return CloudImages._of(wanted, len(topic.prompts), cloud.model_hash)


def kept_cloud_images(
    cloud: GeneratorFacts, topic: TopicPrompts, config: DistillConfig, folder: Path
) -> CloudImages | None:
    """What `cloud_images` of that cloud would find in `folder`; None if it must draw any.

    So that a large cloud is loaded only where it draws.
    """
    wanted = _for_topic(cloud.identity, topic, config, folder)
    there = all(each.is_there() for each in wanted)
    return CloudImages._of(wanted, len(topic.prompts), cloud.model_hash) if there else None


def _for_topic(identity: str, topic: TopicPrompts, config: DistillConfig, folder: Path) -> list[_Wanted]:
    """The images that a topic is learnt from, those of the training prompts first.

    Who learns trajectories never sees the pixels of training images, so they are not decoded.
    """
    wanted = _wanted(identity, [*topic.prompts, *topic.held_out], _seeds(topic, config), folder / IMAGES)
    if config.objective == "images":
        return wanted
    learnt = len(topic.prompts)
    return [
        dataclasses.replace(each, with_pixels=number >= learnt, with_trajectory=True)
        for number, each in enumerate(wanted)
    ]


def targets_of(images: CloudImages, edge: Generator, config: DistillConfig) -> Targets:
    """What an edge learns from the cloud's images.

    Raises:
        MismatchError: the images were drawn for another objective, or the trajectories do not fit the edge.
    """
    if (config.objective == "trajectories") != bool(images.trajectories):
        raise MismatchError(f"the images were not drawn for the objective {config.objective!r}")
    if images.learnt is None:
        return trajectory_targets(Trajectories.joined([each.read() for each in images.trajectories]), edge)
    return ImageTargets(encode(edge.pipeline.vae, np.concatenate([images.learnt, images.held_out])))


def at_once(generator: Generator) -> int:
    """How many images are drawn in a batch: of a large model one, so that it can be stopped in between."""
    if not generator.small:
        return 1
    return max(1, min(DRAWN_AT_ONCE, PIXELS_AT_ONCE // generator.size**2))


def _seeds(topic: TopicPrompts, config: DistillConfig) -> list[int]:
    return seeds_for(config, len(topic.prompts), held_out=False) + seeds_for(
        config, len(topic.held_out), held_out=True
    )


@torch.no_grad()
def encode(vae: Any, pixels: np.ndarray) -> torch.Tensor:
    """Encode images (images, h, w, 3) uint8 to latents (images, 4, h/8, w/8) in the denoiser's scale."""
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div(127.5).sub(1)
    at_once = max(1, ENCODED_PIXELS // (images.shape[2] * images.shape[3]))
    return torch.cat([autoencoder.encode(vae, part) for part in images.split(at_once)])


def lora_config(unet: Any, config: DistillConfig, metaword_numbers: int) -> LoraConfig:
    """The LoRA of `config`; "lora-equal-bytes" adds about the bytes of a metaword with so many numbers."""
    layers = LAYERS[config.layers]
    pattern: dict[str, int] = {}
    if config.method == "lora-equal-bytes":
        spare: float = metaword_numbers
        if config.bits < 16:  # triggers' own vectors have fewer: the baseline gets a little more
            spare *= VECTOR_BITS / (CODED_SHARE * config.bits)
        for name, layer in unet.named_modules():
            if spare > 0 and name.endswith(layers) and hasattr(layer, "weight"):
                pattern[name] = config.rank + 1
                spare -= layer.weight[0].numel() + layer.weight.shape[0]
    return LoraConfig(
        r=config.rank,
        lora_alpha=config.rank,
        target_modules=list(layers),
        rank_pattern=pattern,
        alpha_pattern=pattern,  # alpha equals the rank, so that a layer changes by exactly B @ A
        init_lora_weights="gaussian",
    )


def config_of(lora: Mapping[str, torch.Tensor]) -> LoraConfig:
    """The LoRA of the layers and ranks of these factors."""
    suffix = ".lora_A.weight"
    ranks = {name.removesuffix(suffix): len(a) for name, a in lora.items() if name.endswith(suffix)}
    return LoraConfig(target_modules=list(ranks), r=1, rank_pattern=ranks, lora_alpha=1, alpha_pattern=ranks)


def plain_name(parameter: str) -> str:
    """The name of a factor without that of the adapter."""
    return parameter.replace(f".{ADAPTER}.", ".")


@contextmanager
def trainable(
    pipeline: Any,
    config: DistillConfig,
    metaword_numbers: int,
    lora: Mapping[str, torch.Tensor] | None = None,
) -> Iterator[tuple[Any, dict[str, nn.Parameter]]]:
    """The denoiser to train and its trainable parameters; on exit the pipeline's denoiser is restored.

    Args:
        pipeline: of the edge.
        config: says what is trained.
        metaword_numbers: as in `lora_config`.
        lora: factors that training begins with, of any ranks; default: new ones, as `config` says.
    """
    torch.manual_seed(config.seed)
    pipeline.unet.requires_grad_(False)
    pipeline.text_encoder.requires_grad_(False)
    if config.method == "full":
        unet = copy.deepcopy(pipeline.unet).float().requires_grad_(True)
        yield unet, dict(unet.named_parameters())
        return
    if not config.has_lora or lora == {}:
        yield pipeline.unet, {}
        return
    if getattr(pipeline.unet, "peft_config", None):
        raise MismatchError("the denoiser already has adapters; distil with one that has none")
    wanted = lora_config(pipeline.unet, config, metaword_numbers) if lora is None else config_of(lora)
    pipeline.unet.add_adapter(wanted, ADAPTER)
    try:
        factors = {name: p for name, p in pipeline.unet.named_parameters() if p.requires_grad}
        for name, factor in factors.items():  # bfloat16 would lose most of a small step
            first = factor.data if lora is None else lora[plain_name(name)].clone().to(factor.device)
            factor.data = first.float()
        yield pipeline.unet, factors
    finally:
        pipeline.unet.unload_lora()


@contextmanager
def checkpointed(unet: Any, wanted: bool) -> Iterator[None]:
    """Inside the context, activations are computed again in the backward pass if `wanted`."""
    if wanted:
        unet.enable_gradient_checkpointing()
    try:
        yield
    finally:
        if wanted:
            unet.disable_gradient_checkpointing()


@contextmanager
def traced(unet: Any, wanted: bool) -> Iterator[None]:
    """Inside the context, the denoiser is trained through a trace if `wanted`, and if it has one."""
    trace = traced_if_possible(unet, training=True) if wanted else None
    with nullcontext() if trace is None else trace.in_use():
        yield


def _loss_of(pipeline: Any) -> DiffusionLoss:
    """The loss that the denoiser of a pipeline was trained with.

    Raises:
        MismatchError: its noise schedule is not known, or it predicts neither noise nor velocity.
    """
    return DiffusionLoss(trained_schedule(pipeline.scheduler))


def new_metaword(text_encoder: Any, rows: int, seed: int) -> nn.Parameter:
    """Vectors (rows, width) near the mean of the vocabulary's embeddings, which has no meaning yet."""
    words = text_encoder.get_input_embeddings().weight.detach().float().cpu()
    noise = torch.randn(rows, words.shape[1], generator=torch.Generator().manual_seed(seed))
    return nn.Parameter(words.mean(0) + 0.1 * words.std(0) * noise)


_BEST, _BEST_LOSS, _MISSES = "best.", "best_loss", "misses"  # names of what a run keeps for `EarlyStopping`


class EarlyStopping:
    """Keeps the averaged parameters with the lowest loss on held-out images, also in the run's checkpoint.

    Args:
        run: run whose average is evaluated; a resumed one goes on from what it kept.
        held_out_loss: computes the loss with the current parameters.
        patience: number of evaluations without improvement after which `look` returns False.
    """

    def __init__(self, run: TrainingRun[Any], held_out_loss: Callable[[], float], patience: int) -> None:
        self._run, self._loss, self._patience = run, held_out_loss, patience
        if not run.kept:
            run.kept |= {_BEST_LOSS: torch.tensor(math.inf, dtype=torch.float64), _MISSES: torch.tensor(0)}

    @property
    def best_loss(self) -> float:
        """The lowest loss so far."""
        return float(self._run.kept[_BEST_LOSS])

    @property
    def best(self) -> dict[str, torch.Tensor]:
        """The parameters with that loss, by name; empty before the first evaluation."""
        return {name.removeprefix(_BEST): p for name, p in self._run.kept.items() if name.startswith(_BEST)}

    @property
    def over(self) -> bool:
        """Whether the last evaluations brought no improvement."""
        return int(self._run.kept[_MISSES]) >= self._patience

    @torch.no_grad()
    def look(self) -> bool:
        """Evaluate the average; returns whether to continue."""
        live = dict(self._run.model.named_parameters())
        kept = {name: p.detach().clone() for name, p in live.items()}
        for name, average in self._run.average.named_parameters():
            live[name].copy_(average)
        loss, state = self._loss(), self._run.kept
        if loss < self.best_loss:
            state |= {_BEST + name: p.detach().clone() for name, p in live.items()}
            state |= {_BEST_LOSS: torch.tensor(loss, dtype=torch.float64), _MISSES: torch.tensor(0)}
        else:
            state[_MISSES] = state[_MISSES] + 1
        for name, p in live.items():
            p.copy_(kept[name])
        return not self.over


@dataclass(frozen=True)
class Trained:
    """Result of a training.

    Attributes:
        metaword: (tokens + words, width), shared vectors first; no rows for a method without a metaword.
        lora: LoRA factors by name in the denoiser; empty for a method without a LoRA.
        unet: the fully fine-tuned denoiser, otherwise None.
        steps: number of steps done.
        held_out_loss: loss on held-out images (before, after).
    """

    metaword: torch.Tensor
    lora: Mapping[str, torch.Tensor]
    unet: Any
    steps: int
    held_out_loss: tuple[float, float]


def train(
    pipeline: Any,
    learnt: Targets,
    held_out: Targets,
    topic: TopicPrompts,
    config: DistillConfig,
    folder: Path,
    *,
    start: Trained | None = None,
    on_progress: OnProgress = lambda _: None,
    should_stop: ShouldStop = lambda: False,
    on_preview: OnPreview = lambda *_: None,
    previews: int = 0,
    micro_batch: int | None = None,
    gradient_checkpointing: bool = False,
) -> Trained:
    """Train the parameters that `config.method` selects, resuming from `folder`.

    Args:
        pipeline: a StableDiffusionPipeline; restored afterwards.
        learnt: targets of the topic's prompts.
        held_out: targets of its held-out prompts, for early stopping.
        topic: the prompts.
        config: settings of the distillation.
        folder: folder of the checkpoint.
        start: what training begins with, in a form of its own; default: a new metaword and a new LoRA.
        on_progress, should_stop: called after every step.
        on_preview: called with the windows of some held-out prompts and the metaword, while the pipeline
            uses the parameters trained so far.
        previews: largest number of previews, evenly spaced.
        micro_batch: largest number of latents that the denoiser reads at once; their gradients are added up,
            so results differ by rounding alone. Default: the whole batch, or an equal part in each of
            PyTorch's threads if the denoiser is small.
        gradient_checkpointing: compute activations again in the backward pass instead of keeping them: less
            memory, more time.

    Raises:
        Stopped: should_stop() returned True; the checkpoint is kept.
    """
    words = trigger_words(topic.triggers)
    tokens = config.tokens if config.has_metaword else 0
    rows = config.tokens + len(words)
    width = pipeline.text_encoder.get_input_embeddings().weight.shape[1]
    encoder_numbers = sum(each.numel() for each in pipeline.text_encoder.parameters())
    small = worth_tracing(pipeline.unet) and encoder_numbers <= MAX_PARAMETERS
    with (
        trainable(pipeline, config, rows * width, None if start is None else start.lora) as (unet, weights),
        side_by_side(torch.get_num_threads() if small and micro_batch is None else 1) as crew,
    ):
        word = (
            new_metaword(pipeline.text_encoder, rows if config.has_metaword else 0, config.seed)
            if start is None
            else nn.Parameter(start.metaword.clone())
        )

        reader = PromptReader(pipeline)
        spoken = words if config.has_metaword else ()
        windows = {
            prompt: reader.windows(prompt, lambda text: token_rows(text, tokens, spoken), spoken)
            for prompt in (*topic.prompts, *topic.held_out)
        }
        nothing = reader.windows("")
        reading = threading.Lock()  # the encoder reads one metaword at a time

        def read(prompts: Sequence[str], dropped: Sequence[bool]) -> States:
            """Prompt states; a dropped prompt is replaced by the empty prompt without metaword."""
            chosen = [
                nothing if drop else windows[prompt] for prompt, drop in zip(prompts, dropped, strict=True)
            ]
            with reading:
                return encode_prompts(reader, chosen, word)

        # the trained tensors, shared with the denoiser; names in a ParameterDict cannot contain dots
        parameters = nn.ParameterDict({name.replace(".", "/"): p for name, p in weights.items()})
        groups = [
            {
                "params": list(weights.values()),
                "lr": config.full_learning_rate if config.method == "full" else config.lora_learning_rate,
            }
        ]
        if config.has_metaword:
            parameters["metaword"] = word
            groups.append({"params": [word], "lr": config.metaword_learning_rate})
        # not `fused`: on a CPU, that takes a gradient in another memory layout for one in the parameter's
        optimizer = torch.optim.AdamW(
            [g for g in groups if g["params"]], weight_decay=0.0, betas=(0.9, 0.99), foreach=True
        )
        loss = _loss_of(pipeline)

        device, dtype = device_and_dtype(pipeline.unet)
        trained = list(parameters.parameters())

        def denoiser(read: States, timesteps: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
            """The denoiser on its device, for noisy latents on the CPU, where the loss is."""
            states, mask = read[0].to(device), None if read[1] is None else read[1].to(device)

            def denoise(noisy: torch.Tensor) -> torch.Tensor:
                with multiplying(device, dtype == torch.bfloat16):
                    said: torch.Tensor = unet(
                        noisy.to(device),
                        timesteps.to(device),
                        encoder_hidden_states=states,
                        encoder_attention_mask=mask,
                    ).sample
                return said.to(noisy)

            return denoise

        def loss_of(
            prompts: Sequence[str], dropped: Sequence[bool], noised: Noised
        ) -> Callable[[slice], torch.Tensor]:
            """The loss of a part of a batch; those of all parts add up to the loss of the batch."""
            clean, noise, timesteps = noised

            def of_part(part: slice) -> torch.Tensor:
                denoise = denoiser(read(prompts[part], dropped[part]), timesteps[part])
                share = len(clean[part]) / len(clean)
                return share * loss(clean[part], noise[part], timesteps[part], denoise)

            return of_part

        def parts_of(count: int) -> list[slice]:
            most = micro_batch or -(-count // crew.threads)
            return [slice(start, start + most) for start in range(0, count, most)]

        def step(_: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
            pick = torch.randint(len(learnt), (config.batch,), generator=generator)
            dropped = torch.rand(config.batch, generator=generator) < config.prompt_dropout
            noised = learnt.drawn(pick, loss, generator)
            of_part = loss_of([topic.prompts[i] for i in pick.tolist()], dropped.tolist(), noised)

            if crew.threads == 1:  # `backward` adds to the gradients as it goes, and keeps no others
                losses = []
                for part in parts_of(config.batch):
                    value = of_part(part)
                    if value.requires_grad:  # else the metaword alone is trained, and no prompt here has it
                        value.backward()
                    losses.append(value.detach())
                return {"loss": torch.stack(losses).sum()}

            def gradients(part: slice) -> tuple[torch.Tensor, Sequence[torch.Tensor | None]]:
                value = of_part(part)
                if not value.requires_grad:
                    return value, [None] * len(trained)
                return value.detach(), torch.autograd.grad(value, trained, allow_unused=True)

            total = torch.zeros(())
            for value, found in crew.map(gradients, parts_of(config.batch)):
                total = total + value
                for parameter, gradient in zip(trained, found, strict=True):
                    if gradient is not None:
                        parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
            return {"loss": total}

        def held_out_loss() -> float:
            losses = []
            for noised in held_out.checked(loss, config.seed):
                of_part = torch.no_grad()(loss_of(topic.held_out, [False] * len(topic.held_out), noised))
                losses.append(sum(map(float, crew.map(of_part, parts_of(len(topic.held_out))))))
            return sum(losses) / len(losses)

        @torch.inference_mode()
        def preview() -> None:
            on_preview([windows[prompt] for prompt in topic.held_out[:PREVIEWED]], word)

        preview_every = max(1, config.steps // previews) if previews else 0
        before = held_out_loss() if start is None else start.held_out_loss[0]
        run = TrainingRun(folder, parameters, [optimizer], seed=config.seed, ema_decay=EMA_DECAY)
        stopping = EarlyStopping(run, held_out_loss, config.patience)
        if start is not None and run.step == 0:  # what it begins with may be the best
            stopping.look()
        stopped = False

        def on_step(done: int, losses: Mapping[str, float]) -> bool:
            nonlocal stopped
            on_progress(Progress("train", done, config.steps, losses["loss"]))
            stopped = should_stop()
            if preview_every and done % preview_every == 0 and not stopped:
                preview()
            looks = done % config.check_every == 0 or done == config.steps
            goes_on = (
                not looks or stopping.look()
            )  # also when it is stopped here: this step does not come again
            return goes_on and not stopped

        # outside a trace, threads wait for each other between operations, for Python's lock
        left = 0 if stopping.over else config.steps - run.step
        pays = crew.threads > 1 and left >= WORTH_A_TRAINING_TRACE and not gradient_checkpointing
        with checkpointed(unet, gradient_checkpointing), traced(unet, pays):
            run.run(
                step,
                run.step if stopping.over else config.steps,  # a resumed run may have ended early
                warmup_steps=WARMUP_STEPS,
                save_every_s=SAVE_EVERY_S,
                on_step=on_step,
                show=False,
                has_gradients=True,
            )
        if stopped:
            raise Stopped
        if not stopping.best:  # a resumed run without steps left
            stopping.look()
        best = {name.replace("/", "."): tensor.cpu() for name, tensor in stopping.best.items()}
        vectors = best.pop("metaword", torch.zeros(0, word.shape[1]))
        if config.method == "full":
            with torch.no_grad():
                for name, p in unet.named_parameters():
                    p.copy_(best[name])
        lora = {plain_name(name): tensor for name, tensor in best.items()}
        return Trained(
            metaword=vectors,
            lora={} if config.method == "full" else lora,
            unet=unet.eval().requires_grad_(False) if config.method == "full" else None,
            steps=run.step + (0 if start is None else start.steps),
            held_out_loss=(before, stopping.best_loss),
        )


def distill(
    cloud: Generator | CloudImages,
    edge: Generator,
    topic: TopicPrompts,
    config: DistillConfig,
    folder: Path,
    *,
    scorer: ImageScorer | None = None,
    current: KnowledgeUpdate | None = None,
    on_progress: OnProgress = lambda _: None,
    should_stop: ShouldStop = lambda: False,
    previews: int = 0,
    micro_batch: int | None = None,
    gradient_checkpointing: bool = False,
) -> KnowledgeUpdate:
    """Distil `topic` from the cloud-GAI into an update of the edge-GAI.

    With a scorer, the update has the smallest form that is good enough (`dekag.makd.ladder`), and its history
    says what each form costs and gives.

    Args:
        cloud: generates the training images, with seeds recorded in history.json; or those images.
        edge: a StableDiffusionPipeline of any size; restored afterwards.
        topic: training prompts and held-out prompts.
        config: settings; `config.method` must not be "full", which makes no update.
        folder: folder of images, checkpoints and samples.png (rows: cloud, edge before, edge after); a call
            with the same folder and arguments resumes.
        scorer: adds CLIP- and DINO-scores on held-out prompts, before and after.
        current: the update that the new one is to replace: scored as "current" on those of the held-out
            prompts that it was not trained on, if there are any. Ignored if it fits another edge.
        on_progress: called after every batch of images and every step.
        should_stop: called before every batch of images and after every step.
        previews: largest number of times that preview.png is written during training (rows: cloud, edge now);
            the update does not depend on it.
        micro_batch, gradient_checkpointing: as in `train`.

    Raises:
        Stopped: should_stop() returned True.
    """
    if config.method == "full":
        raise MismatchError("a full fine-tune changes every weight: it makes no knowledge update")
    _loss_of(edge.pipeline)  # an edge that cannot be taught is refused before the cloud draws
    learnt, kept, seeds = topic.prompts, topic.held_out, _seeds(topic, config)
    if isinstance(cloud, Generator) and config.objective == "trajectories":
        check_generators(cloud, edge)
    drawn = (
        cloud
        if isinstance(cloud, CloudImages)
        else cloud_images(cloud, topic, config, folder, on_progress=on_progress, should_stop=should_stop)
    )
    targets = targets_of(drawn, edge, config)

    def on_preview(prompts: Sequence[Sequence[Window]], metaword: torch.Tensor) -> None:
        def draw(which: Sequence[int], count: int) -> torch.Tensor:
            states, _ = encode_prompts(edge.reader, [prompts[i] for i in which], metaword)
            unsaid, _ = encode_prompts(edge.reader, [edge.reader.windows("") * count], metaword)
            some = [seeds[len(learnt) + i] for i in which]
            return edge.batch(
                None,
                some,
                guidance_scale=config.guidance_scale,
                prompt_embeds=states,
                negative_prompt_embeds=unsaid.expand_as(states),
            )

        shown = by_group([len(each) for each in prompts], draw)
        unfinished = folder / f"unfinished-{PREVIEW}"
        save_sheet([list(drawn.held_out[: len(prompts)]), list(edge.decoder.decode(shown))], unfinished)
        unfinished.replace(folder / PREVIEW)

    full = Form(config.rank if config.has_lora else 0, config.bits)
    smaller = (
        smaller_forms(config.rank, config.bits, metaword=True)
        if scorer is not None and config.method == "makd"
        else ()
    )
    refined = [form for form in smaller if form.rank != config.rank]
    further = min(config.refine_steps, max(2, config.steps // 5))
    steps = config.steps + further * len(refined)
    # another edge or objective, or images of another cloud, begin anew
    objective = () if config.objective == "images" else (config.objective,)
    checkpoint = folder / "checkpoint" / _digest(edge.identity, drawn.content_hash, *objective)

    def trained_form(form: Form, start: Trained | None) -> Trained:
        before, name = 0, f"rank-{form.rank:g}"
        if start is not None:
            before = config.steps + further * refined.index(form)
            # another machine may cut other components, or be told to train for longer
            shapes = (f"{factor} {tuple(each.shape)}" for factor, each in sorted(start.lora.items()))
            name += f"-{_digest(str(further), *shapes)}"
        return train(
            edge.pipeline,
            targets.rows(slice(len(learnt))),
            targets.rows(slice(len(learnt), None)),
            topic,
            config if start is None else dataclasses.replace(config, steps=further),
            checkpoint / name,
            start=start,
            on_progress=lambda step: on_progress(
                dataclasses.replace(step, done=before + step.done, total=steps)
            ),
            should_stop=should_stop,
            on_preview=on_preview,
            previews=previews if start is None else 0,
            micro_batch=micro_batch,
            gradient_checkpointing=gradient_checkpointing,
        )

    trained = trained_form(full, None)
    made = {full: new_update(drawn.model_hash, edge, topic, config, trained, full.bits)}
    if smaller:
        gains = layer_gains(edge, kept[:2], seeds[len(learnt) :][:2])
        all_layers = sum(each.numbers for each in components(trained.lora).values())
    for form in smaller:
        if form in refined:
            rest = strongest(components(trained.lora), form.rank * all_layers, gains)
            trained = trained_form(form, dataclasses.replace(trained, lora=rest))
        made[form] = new_update(drawn.model_hash, edge, topic, config, trained, form.bits)
    update = made[full]
    scored = list(zip(kept, seeds[len(learnt) :], strict=True))[:SCORED]
    drawn_with: dict[str, tuple[KnowledgeUpdate, ...]] = {"before": ()}
    if current is not None and current.base_hash == edge.model_hash:
        drawn_with["current"] = (current,)
    drawn_with |= {str(form): (each,) for form, each in made.items()}
    rows: dict[str, list[Pixels]] = {name: [] for name in drawn_with}
    aligned = AlignedGenerator(edge, capacity=len(drawn_with))
    for each in {each.content_hash: each for updates in drawn_with.values() for each in updates}.values():
        aligned.add(each)
    count = len(scored) * len(drawn_with)
    for name, updates in drawn_with.items():
        hashes = tuple(each.content_hash for each in updates)
        for start in range(0, len(scored), at_once(edge)):
            if should_stop():
                raise Stopped
            part = scored[start : start + at_once(edge)]
            side = edge.size
            requests = [GenerationRequest(prompt, seed, side, side, hashes) for prompt, seed in part]
            rows[name].extend(edge.decoder.decode(aligned.batch(requests), [seed for _, seed in part]))
            on_progress(Progress("score", sum(map(len, rows.values())), count))
    references = drawn.held_out[: len(scored)]
    if scorer is None:
        save_sheet([list(references), rows["before"], rows[str(full)]], folder / SAMPLES)
        return update
    judged = {name: scorer.scores(np.stack(drawn), references) for name, drawn in rows.items()}
    learnt_before = set() if current is None else set(current.history.get("prompts", ()))
    # prompts that neither was trained on; if there are none, all prompts, which favours the current update
    fair = [i for i, (prompt, _) in enumerate(scored) if prompt not in learnt_before] or list(
        range(len(scored))
    )

    def scores_of(form: Form) -> dict[str, float]:
        own, found = judged[str(form)], dict(made[form].history["scores"])
        for when, each in (("before", judged["before"]), ("after", own)):
            found |= {f"{metric}_{when}": round(float(values.mean()), 4) for metric, values in each.items()}
        for metric, values in judged.get("current", {}).items():
            found[f"{metric}_current"] = round(float(values[fair].mean()), 4)
            found[f"{metric}_after_beside_current"] = round(float(own[metric][fair].mean()), 4)
        return found

    scores = {form: scores_of(form) for form in made}
    consistency = {name: np.mean([each["clip"], each["dino"]], axis=0) for name, each in judged.items()}
    rungs = {
        form: Rung(form, update.size_bytes, (consistency[str(form)] - consistency["before"]).tolist())
        for form, update in made.items()
    }
    # a form that would not be published is chosen only if that is true of all
    able = [form for form in made if not why_no_better(scores[form])] or list(made)
    chosen = smallest_enough([rungs[form] for form in able], config.keep).form
    save_sheet([list(references), rows["before"], rows[str(chosen)]], folder / SAMPLES)
    ladder = [
        {
            "form": str(rung.form),
            "bytes": rung.size_bytes,
            "gain": round(rung.gain, 4),
            "chosen": rung.form == chosen,
        }
        for rung in sorted(rungs.values(), key=lambda rung: rung.size_bytes)
    ]
    return made[chosen].scored(scores[chosen], ladder)


def why_no_better(scores: Mapping[str, Any]) -> str:
    """The reason why an update is not better, by its scores on held-out prompts; empty if it is better.

    It must have a higher CLIP- and a higher DINO-score than the edge without an update, and than the current
    update if there is one. An update without scores is accepted.
    """
    others = (
        ("before", "after", "the edge without it"),
        ("current", "after_beside_current", "the current version"),
    )
    for other, own, what in others:
        pairs = [(metric, f"{metric}_{own}", f"{metric}_{other}") for metric in ("clip", "dino")]
        found = [(name, scores[ours], scores[theirs]) for name, ours, theirs in pairs if theirs in scores]
        if not all(after > before for _, after, before in found):
            said = ", ".join(
                f"{name.upper()}-score {ours:.3f} against {theirs:.3f}" for name, ours, theirs in found
            )
            return f"on held-out prompts it is not better than {what} by both scores: {said}"
    return ""


def new_update(
    cloud_hash: str,
    edge: Generator,
    topic: TopicPrompts,
    config: DistillConfig,
    trained: Trained,
    bits: int,
) -> KnowledgeUpdate:
    """The update made of `trained`, of so many bits, with its history."""
    info = {
        "topic": topic.name,
        "triggers": list(topic.triggers),
        "base_hash": edge.model_hash,
        "guidance_scale": config.guidance_scale,
    }
    history = {
        "cloud_hash": cloud_hash,
        "config": config.as_dict(),
        "prompts": list(topic.prompts),
        "seeds": seeds_for(config, len(topic.prompts), held_out=False),
        "steps": trained.steps,
        "scores": {
            "held_out_prompts": len(topic.held_out),
            "held_out_loss_before": round(trained.held_out_loss[0], 5),
            "held_out_loss_after": round(trained.held_out_loss[1], 5),
        },
    }
    vectors = trained.metaword
    words = (
        dict(zip(trigger_words(topic.triggers), vectors[config.tokens :], strict=True))
        if len(vectors)
        else {}
    )
    return KnowledgeUpdate.new(
        info,
        vectors[: config.tokens],
        trained.lora,
        words=words,
        bits=bits,
        history=history,
    )
