"""What a worker has ready, and what it measures in a point.

A semantic delivery: the edge draws the topic's test prompts, with or without the topic's update, and the
codec sends the latents. `psnr_db` is against what the edge drew; `clip`, `dino`, their mean `consistency` and
`probe` (the fraction of visible attributes found) score the received image against the cloud's.

A digital delivery: the cloud's own image goes as a file over LDPC and QAM in the same number of channel
uses, without the bytes that the receiver knows anyway, at the format, quality, modulation and code rate from
which the sender expects the best consistency. What is measured is the expectation over arriving and not
arriving; `psnr_db` is against the cloud's image.

A picture of a user's own: every metric is against the picture. A digital sender goes by PSNR, and the
receiver shows grey where nothing arrives. The codec of pixels sends the picture as `dekag link` does.

Over a trace, a digital sender still expects Rayleigh fading; whether its file arrives, the trace decides. It
chooses by the SNR that was reported; how likely its file arrives follows from the true one.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from dekag import plugins
from dekag.cala.methods import AdaptedCodec
from dekag.errors import InvalidInputError, MismatchError
from dekag.evaluation.models import ModelBank
from dekag.evaluation.prompts import Prompt, edge_prompts
from dekag.evaluation.store import ResultStore
from dekag.evaluation.studies.digital import (
    CONSISTENCY,
    Choice,
    Forecast,
    ImageSet,
    choose,
    image_ladders,
    mean_image,
    prepare_image_set,
)
from dekag.evaluation.sweeps.grid import (
    DIGITAL,
    PIXELS,
    REFERENCE_METRICS,
    WORLD,
    EvaluationPoint,
    PictureSource,
)
from dekag.generation.images import Pixels
from dekag.generation.loading import folder_hash, pipeline_hash
from dekag.generation.machine import machine_placement
from dekag.generation.models import LatentEncoder
from dekag.generation.profile import Role
from dekag.link import trace
from dekag.link.conditions import LinkConditions
from dekag.link.image_coding import decode, encode
from dekag.link.mcs import CodewordLayout
from dekag.link.outage import effective_snr_db, loss_probability, success, useful_powers
from dekag.makd.config import DistillConfig
from dekag.makd.topics import read_topics
from dekag.metrics.features import encoder_hashes
from dekag.metrics.image import psnr_db
from dekag.pictures import Picture, Tiling
from dekag.pipeline import LinkResult, Receiver, SemanticLink, apply_channel, render_tiles, tile_receptions
from dekag.profile import load_profile
from dekag.stickers import TOPICS

Array = npt.NDArray[np.float64]
Images = npt.NDArray[np.uint8]
VERSION = 1  # raised when the code changes what a point comes out as, by more than rounding
ROLES: tuple[Role, ...] = ("cloud", "edge")
_MANY = 10  # pictures of a point, from which on their progress is shown


def identity(profile_name: str) -> dict[str, str]:
    """Hashes of everything that a profile's points depend on beside the point; loads no model.

    Raises:
        NotFoundError: there is no such profile.
    """
    profile = load_profile(profile_name)
    found = {
        "cloud": pipeline_hash(profile.cloud),
        "edge": pipeline_hash(profile.edge),
        "codec": folder_hash(profile.codec),
        "unaligned codec": folder_hash(profile.codec_without_alignment),
        "sampling": f"{profile.cloud.steps}/{profile.cloud.guidance_scale}"
        f"/{profile.edge.steps}/{profile.edge.guidance_scale}/{profile.size}",
    }
    placed = {role: machine_placement(role) for role in ROLES}
    models = [placed[role].formatted(getattr(profile, role)) for role in ROLES]
    formats = [each for model in models for each in (model.dtype, model.vae_dtype)]
    if set(formats) != {"float32"}:
        found["formats"] = "/".join(formats)
    devices = [placed[role].device.type for role in ROLES]
    if set(devices) != {"cpu"}:  # others round differently
        found["devices"] = "/".join(devices)
    texts = [placed[role].text_device.type for role in ROLES]
    if texts != devices:
        found["text devices"] = "/".join(texts)
    if own := read_topics(profile.topics):
        config = DistillConfig(**profile.distill.given())
        kept = f"{config.images}/{config.held_out}/{config.seed}"  # say which prompts are left to test on
        found["topics"] = as_one({"": kept, **{name: file.model_dump_json() for name, file in own.items()}})
    if profile.adapters is not None:
        found["adapters"] = folder_hash(profile.adapters)
    if profile.knowledge is not None:
        found["knowledge"] = folder_hash(profile.knowledge)
    if (scorer := profile.scorer) is not None:
        found |= encoder_hashes(**scorer.encoders)
        others = scorer.model_dump(include={"probe", "outline"}, exclude_none=True)
        found |= {name: folder_hash(folder) for name, folder in others.items()}
    return {**found, **plugins.code_hashes()}


def channel_seed(point: EvaluationPoint, prompt_seed: int) -> int:
    """Seed of the fades and noise that an image meets: the same for all deliveries, another for all else."""
    known = [point.topic, point.link.model_dump(mode="json"), point.cbr, point.seed, prompt_seed]
    return int.from_bytes(hashlib.sha256(json.dumps(known).encode()).digest()[:6], "big")


def _check_sources(point: EvaluationPoint) -> None:
    """Raises MismatchError unless pictures and trace are those under whose hashes the point is stored."""
    source, traces = point.pictures, point.traces
    if source is not None and source.found().content_hash() != source.content_hash:
        raise MismatchError(f"pictures: those at {source.path} are not the ones that the sweep started with")
    if traces is None or point.link.trace is None:
        return
    if trace.content_hash(point.link.trace, point.trace_folder) != traces.content_hash:
        told = f"{point.link.trace} in {traces.path} is not the one that the sweep started with"
        raise MismatchError(f"traces: {told}")


def as_one(hashes: Mapping[str, str]) -> str:
    """One hash of them all, and of the code's version."""
    return hashlib.sha256(json.dumps([VERSION, dict(hashes)], sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Measurement:
    """What came out of a point.

    Attributes:
        metrics: each metric of each image; None where it has no value.
        channel_uses: that an image took, on average.
        backhaul_bytes: that an image took from cloud to edge, on average; updates are not counted.
        update_bytes: size of the update that the edge drew with; 0 without.
        seconds: that the measurement took.
    """

    metrics: dict[str, list[float | None]]
    channel_uses: float
    backhaul_bytes: float
    update_bytes: int
    seconds: float


@dataclass
class Evaluator:
    """Measures points with the models of one process, and keeps the images that several of them share.

    Attributes:
        bank: the models.
        store: where images and ladders are kept between runs.
    """

    bank: ModelBank
    store: ResultStore
    _latents: dict[tuple[str, int, bool], torch.Tensor] = field(default_factory=dict)
    _ladders: dict[tuple[str, int], ImageSet] = field(default_factory=dict)
    _without_a_link: dict[tuple[str, int, bool, tuple[str, ...]], dict[str, Array]] = field(
        default_factory=dict
    )

    def prompts(self, topic: str, count: int) -> list[Prompt]:
        """Held-out test prompts of a topic."""
        if topic == WORLD:
            return edge_prompts(count)
        return self.bank.topic_prompts(topic, count, self.bank.learnt(topic))

    def kind(self, topic: str) -> str:
        """The kind of a topic of the sticker world; "own" for one of the profile's own."""
        return "own" if topic in self.bank.own_topics else TOPICS[topic].kind

    def references(self, topic: str, count: int) -> Images:
        """The cloud's images of the test prompts, drawn once and kept."""
        cloud = self.bank.facts("cloud")
        sampled = f"{cloud.model_hash[:12]}-{cloud.steps}-{cloud.guidance_scale:g}"
        drawn = "-".join([sampled, *cloud.departures]).replace(" ", "-")
        return self.bank.references(self.prompts(topic, count), self.store.folder("references", drawn, topic))

    def latents(self, topic: str, count: int, knowledge: bool) -> torch.Tensor:
        """(n, c, h, w): what the edge draws of the test prompts, with or without the topic's update."""
        key = (topic, count, knowledge)
        if key not in self._latents:
            edge = self.bank.aligned_edge
            update = self.bank.update(topic) if knowledge and topic != WORLD else None
            if update is not None:
                edge.add(update)
            hashes = [] if update is None else [update.content_hash]
            drawn = [edge.latents(p, seed, updates=hashes) for _, p, seed in self.prompts(topic, count)]
            self._latents[key] = torch.cat(drawn)
        return self._latents[key]

    def measure(self, point: EvaluationPoint) -> Measurement:
        """Measure one point.

        Raises:
            InvalidInputError: the point asks for a codec that there is not.
            NotFoundError: the profile has no update of the topic.
            MismatchError: the pictures or the trace are not those of the point, here or any more.
        """
        _check_sources(point)
        start = time.perf_counter()
        if point.pictures is not None:
            metrics, uses = self._pictures(point, point.pictures)
            sent, update_bytes = 0.0, 0
        elif point.delivery.codec in DIGITAL:
            metrics, uses, sent = self._digital(point)
            update_bytes = 0
        else:
            metrics, uses = self._semantic(point)
            sent = 0.0
            used = point.delivery.knowledge and point.topic != WORLD
            update_bytes = self.bank.update(point.topic).size_bytes if used else 0
        chosen = {
            name: [round(float(v), 4) if math.isfinite(v) else None for v in values]
            for name, values in metrics.items()
        }
        seconds = round(time.perf_counter() - start, 3)
        _check_sources(point)  # which may have changed meanwhile
        return Measurement(chosen, uses, sent, update_bytes, seconds)

    def _semantic(self, point: EvaluationPoint) -> tuple[dict[str, Array], float]:
        if point.delivery.codec == "prompt":
            return self._prompt_only(point), 0.0
        if point.delivery.codec not in self.bank.codecs:
            raise InvalidInputError(
                "codec", f"one of {', '.join([*self.bank.codecs, 'prompt', *DIGITAL])}", point.delivery.codec
            )
        latents = self.latents(point.topic, point.prompts, point.delivery.knowledge)
        prompts = self.prompts(point.topic, point.prompts)
        sent = self.bank.edge.decoder.decode(latents)
        seeds = [channel_seed(point, seed) for *_, seed in prompts]
        codec = self.bank.codecs[point.delivery.codec]
        said = [prompt for _, prompt, _ in prompts]
        values = sent[0].size
        result = SemanticLink(codec).send(
            latents.float(), [point.link] * len(latents), seeds,
            source_values=values,
            channel_uses=max(1, round(point.cbr * values)),
            text=self.bank.texts(codec, said),
            traces=point.trace_folder,
        )  # fmt: skip
        received = result.latents
        if point.delivery.restoration:
            received = self._restored(codec, result, point.link, said, values)
        shown = self.bank.edge.decoder.decode(received)
        references = self.references(point.topic, point.prompts)
        found = self.score(point.metrics, shown, sent, references, prompts)
        return found, float(result.rates[0].channel_uses)

    def _restored(
        self,
        codec: AdaptedCodec,
        result: LinkResult,
        conditions: LinkConditions,
        prompts: Sequence[str],
        values: int,
    ) -> torch.Tensor:
        """Received latents after one step of the edge's denoiser."""
        receiver = Receiver(codec)
        rows = zip(result.latents.split(1), result.receptions, prompts, strict=True)
        return torch.cat(
            [
                self.bank.restorer.restore(
                    latents,
                    prompt,
                    timestep=receiver.timestep(reception, conditions, source_values=values),
                )
                for latents, reception, prompt in rows
            ]
        )

    def _prompt_only(self, point: EvaluationPoint) -> dict[str, Array]:
        """Metrics of what the user's device draws itself; there is no image that was sent."""
        key = (point.topic, point.prompts, point.delivery.knowledge, tuple(point.metrics))
        if key in self._without_a_link:
            return self._without_a_link[key]
        latents = self.latents(point.topic, point.prompts, point.delivery.knowledge)
        prompts = self.prompts(point.topic, point.prompts)
        shown = self.bank.edge.decoder.decode(latents)
        references = self.references(point.topic, point.prompts)
        compared = [name for name in point.metrics if name in REFERENCE_METRICS]
        found = self.score(compared, shown, shown, references, prompts)
        nothing = np.full(len(shown), np.nan)
        self._without_a_link[key] = {name: found.get(name, nothing) for name in point.metrics}
        return self._without_a_link[key]

    def _digital(self, point: EvaluationPoint) -> tuple[dict[str, Array], float, float]:
        """Expected metrics, channel uses and backhaul bytes of a digital delivery."""
        images = self._images(point.topic, point.prompts)
        prompts = self.prompts(point.topic, point.prompts)
        names = [(image_format, True) for image_format in DIGITAL[point.delivery.codec]]
        channel_uses = round(point.cbr * images.source_values)
        forecast = Forecast(point.link, channel_uses=channel_uses)
        choices = [
            choose(images, i, names, channel_uses, forecast, weights=CONSISTENCY) for i in range(len(prompts))
        ]
        height, width = images.pixels.shape[1:3]
        shown, sizes, chances = [], [], []
        for i, choice in enumerate(choices):
            if choice.ladder is None:
                shown.append(images.fallback)
                sizes.append(0)
                chances.append(0.0)
                continue
            quality, scale = images.ladders[choice.ladder][i].settings[choice.rung]
            name, bare = choice.ladder
            file = encode(images.pixels[i], name, quality, scale=scale, headerless=bare)  # type: ignore[arg-type]
            shown.append(decode(file, width, height, headerless=bare))
            sizes.append(len(file))
            chances.append(self._arrives(point, choice, len(file), channel_seed(point, prompts[i][2])))
        arrives = np.array(chances)
        fallback = np.repeat(images.fallback[None], len(prompts), 0)
        arrived, lost = (
            self.score(point.metrics, each, images.pixels, images.pixels, prompts)
            for each in (np.stack(shown), fallback)
        )
        # what never comes to be seen need not have a value
        found = {
            name: np.where(arrives > 0, arrives * arrived[name], 0)
            + np.where(arrives < 1, (1 - arrives) * lost[name], 0)
            for name in arrived
        }
        uses = float(np.mean([choice.uses for choice in choices]))
        return found, uses, float(np.mean(sizes))

    def _pictures(self, point: EvaluationPoint, source: PictureSource) -> tuple[dict[str, Array], float]:
        """Metrics of each picture, and channel uses of one on average."""
        found: dict[str, list[float]] = {name: [] for name in point.metrics}
        uses = []
        files = source.found().pictures
        for number, file in enumerate(tqdm(files, "pictures", leave=False, disable=len(files) < _MANY)):
            picture = file.read()
            seed = channel_seed(point, number)
            if point.delivery.codec in DIGITAL:
                shown, channel_uses = self._as_file(point, picture, seed)
            elif point.delivery.codec == PIXELS:
                shown, channel_uses = self._as_pixels(point, picture, seed)
            else:
                pixels, channel_uses = self._as_tiles(point, picture, file.prompt, seed)
                shown = [(1.0, pixels)]
            uses.append(channel_uses)
            for name in point.metrics:
                # what never comes to be seen need not have a value
                scores = [
                    chance * self._compared(name, each, picture.pixels) for chance, each in shown if chance
                ]
                found[name].append(sum(scores))
        return {name: np.array(values) for name, values in found.items()}, float(np.mean(uses))

    def _compared(self, metric: str, shown: Pixels, sent: Pixels) -> float:
        """A metric of one image against what was sent; NaN if it cannot score images so small."""
        if (
            metric not in REFERENCE_METRICS
            and min(sent.shape[:2]) < plugins.get("metric", metric).smallest_side
        ):
            return math.nan
        return float(self.score([metric], shown[None], sent[None], sent[None], [])[metric][0])

    def _as_tiles(
        self, point: EvaluationPoint, picture: Picture, prompt: str | None, seed: int
    ) -> tuple[Pixels, float]:
        """What is shown of a picture whose tiles are sent as latents, and the channel uses of that."""
        decoder = self.bank.edge.decoder
        tiling = Tiling.of(picture.width, picture.height, self.bank.profile.size)
        latents = LatentEncoder(decoder).encode(tiling.split(picture.pixels))
        if point.delivery.codec == "autoencoder":
            return render_tiles(decoder, latents, tiling, seed), 0.0
        if (codec := self.bank.codecs.get(point.delivery.codec)) is None:
            allowed = f"one of {', '.join([*self.bank.codecs, 'autoencoder', PIXELS, *DIGITAL])}"
            raise InvalidInputError("codec", allowed, point.delivery.codec)
        link = SemanticLink(codec)
        texts = self.bank.texts(codec, [prompt])
        rate = link.sender.tiles_rate(
            point.link, (latents.shape[1], latents.shape[2], latents.shape[3]), tiling, cbr=point.cbr
        )
        result = link.send_tiles(
            latents, tiling, point.link, seed,
            rate=rate,
            text=None if texts is None else texts[0],
            traces=point.trace_folder,
        )  # fmt: skip
        received = result.latents
        if point.delivery.restoration:
            parts = tile_receptions(result.receptions[0], tiling.count)
            tiles = LinkResult(received, result.rates, result.symbols, parts)
            said = [prompt or ""] * tiling.count
            received = self._restored(codec, tiles, point.link, said, tiling.tile_values)
        return render_tiles(decoder, received, tiling, seed), float(rate.channel_uses)

    def _as_pixels(
        self, point: EvaluationPoint, picture: Picture, seed: int
    ) -> tuple[list[tuple[float, Pixels]], float]:
        """What is shown of a picture that the codec of pixels sends, with its chance; and channel uses."""
        link = self.bank.pixel_link
        if link.sender.codec.base_hash != point.pixel_codec:
            raise MismatchError("the worker has another codec of pixels than where the sweep was started")
        received = link.picture(picture, point.link, seed=seed, cbr=point.cbr, traces=point.trace_folder)
        return [(1.0, each) for each in (received.pixels,) if each is not None], float(received.channel_uses)

    def _as_file(
        self, point: EvaluationPoint, picture: Picture, seed: int
    ) -> tuple[list[tuple[float, Pixels]], float]:
        """What may be shown of a picture that is sent as a file, each with its chance; and channel uses."""
        pixels = picture.pixels
        grey = np.full_like(pixels, 128)
        lost = np.array([[psnr_db(grey, pixels), 0.0, 0.0]])
        ladders = {key: [one] for key, one in image_ladders(pixels, None, self.store).items()}
        images = ImageSet(torch.zeros(0), pixels[None], [], grey, lost, ladders)
        names = [(image_format, True) for image_format in DIGITAL[point.delivery.codec]]
        channel_uses = round(point.cbr * images.source_values)
        forecast = Forecast(point.link, channel_uses=channel_uses)
        choice = choose(images, 0, names, channel_uses, forecast)
        if choice.ladder is None:
            return [(1.0, grey)], 0.0
        name, bare = choice.ladder
        quality, scale = images.ladders[choice.ladder][0].settings[choice.rung]
        file = encode(pixels, name, quality, scale=scale, headerless=bare)  # type: ignore[arg-type]
        shown = decode(file, picture.width, picture.height, headerless=bare)
        arrives = self._arrives(point, choice, len(file), seed)
        return [(arrives, shown), (1 - arrives, grey)], choice.uses

    def _arrives(self, point: EvaluationPoint, choice: Choice, file_bytes: int, seed: int) -> float:
        """The chance that a file arrives.

        A sender knows the SNR that was last reported, and not the true one. It cannot know a trace and
        assumes Rayleigh fading. What arrives is decided by the true SNR and by the gains that the file meets.
        """
        if choice.coding is None:
            return choice.arrives
        if point.link.fading != "trace":
            if point.link.sender_snr_db == point.link.snr_db:
                return choice.arrives
            truth = point.link.model_copy(update={"reported_snr_db": None})
            return 1 - loss_probability(choice.coding, file_bytes, truth)
        layout = CodewordLayout.of(file_bytes, choice.coding)
        sent = torch.ones(1, layout.channel_uses, dtype=torch.complex64)
        reception = apply_channel(sent, point.link, seed, traces=point.trace_folder)
        powers_db = 10 * torch.log10(useful_powers(reception)).numpy()
        snrs_db = effective_snr_db(choice.coding.bits_per_symbol, point.link.snr_db, powers_db)
        return float(success(choice.coding, layout, snrs_db)[0])

    def _images(self, topic: str, count: int) -> ImageSet:
        """The cloud's images, and every file that is worth sending of them."""
        key = (topic, count)
        if key not in self._ladders:
            pixels, fallback = self.references(topic, count), mean_image(self.bank.edge, self.store)
            self._ladders[key] = prepare_image_set(
                torch.zeros(0), pixels, [], fallback, self.bank.scorer, self.store
            )
        return self._ladders[key]

    def score(
        self,
        metrics: Sequence[str],
        shown: Images,
        sent: Images,
        references: Images,
        prompts: Sequence[Prompt],
    ) -> dict[str, Array]:
        """The metrics (n,) of received images (n, h, w, 3) uint8.

        Args:
            metrics: names in REFERENCE_METRICS, against `references`, and of `dekag.plugins`, against `sent`.
            shown: what was received.
            sent: what was sent.
            references: the cloud's images.
            prompts: what the images should show.
        """
        found: dict[str, Array] = {}
        if set(metrics) & {"clip", "dino", "consistency"}:
            scores = self.bank.scorer.scores(shown, references)
            found |= {**scores, "consistency": (scores["clip"] + scores["dino"]) / 2}
        if "probe" in metrics:
            found["probe"] = self.bank.probed(shown, prompts)
        for name in metrics:
            if name not in REFERENCE_METRICS:
                # copies, as the code of a plug-in may write to them
                found[name] = plugins.get("metric", name).score(shown.copy(), sent.copy())
        return {name: found[name] for name in metrics}
