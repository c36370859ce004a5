"""The models of one process that measures: each loaded when first needed, and then kept."""

from __future__ import annotations

import copy
import gc
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import numpy.typing as npt
import torch
import transformers

from dekag.cala.artifact import TransmissionKnowledge
from dekag.cala.methods import AdaptedCodec, Cala, attached
from dekag.codec import JsccCodec
from dekag.errors import NotFoundError
from dekag.evaluation.prompts import Prompt, own_prompts, topic_prompts
from dekag.generation.facts import GeneratorFacts
from dekag.generation.loading import folder_hash, load_component
from dekag.generation.machine import machine_placement
from dekag.generation.models import Generator
from dekag.generation.placement import Placement
from dekag.generation.profile import Role
from dekag.generation.restorer import Restorer
from dekag.generation.side_information import SideInformation
from dekag.inventory import check_latents
from dekag.makd.aligned_generator import AlignedGenerator
from dekag.makd.config import DistillConfig
from dekag.makd.topics import TopicFile, read_topics
from dekag.makd.update import KnowledgeUpdate
from dekag.metrics.features import ImageScorer, encoder_hashes
from dekag.metrics.outline import OutlineJudge
from dekag.metrics.probe import AttributeProbe
from dekag.pipeline import PixelLink
from dekag.profile import Profile, ScorerProfile, load_profile
from dekag.stickers import TOPICS
from dekag.training.distill import draw_images, kept_images

Images = npt.NDArray[np.uint8]
LARGE = 2**30
"""Bytes of weights from which on a generator leaves memory before the other one is loaded."""


@dataclass
class ModelBank:
    """A profile's models, and the metrics that score what they make.

    Of large generators, one is in memory at a time: what takes `edge` and then `cloud` must not go on with
    the first one, and do all that needs one of them together.

    Attributes:
        profile_name: of the models.
    """

    profile_name: str
    _generators: dict[Role, Generator] = field(default_factory=dict, init=False, repr=False)
    _facts: dict[Role, GeneratorFacts] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def profile(self) -> Profile:
        """Which models there are."""
        return load_profile(self.profile_name)

    @property
    def evaluators(self) -> ScorerProfile:
        """Folders of the models that score images; NotFoundError if the profile names none."""
        if self.profile.scorer is None:
            raise NotFoundError(f"the profile {self.profile_name} names no scorer")
        return self.profile.scorer

    @property
    def cloud(self) -> Generator:
        """Draws the references."""
        return self._generator("cloud")

    @property
    def edge(self) -> Generator:
        """Draws what is sent; studies also train it, so that it is not offloaded."""
        return self._generator("edge")

    def _generator(self, role: Role) -> Generator:
        """The generator of a role, after which a large one of the other role is not in memory."""
        if role not in self._generators:
            self._drop_large()
            self._generators[role] = Generator.from_profile(self.profile, role, self._placed(role))
        return self._generators[role]

    @staticmethod
    def _placed(role: Role) -> Placement:
        """Where the generator of a role computes."""
        return machine_placement(role, trained=role == "edge")

    def _drop_large(self) -> None:
        large = [role for role, each in self._generators.items() if each.bytes_in_memory >= LARGE]
        for role in large:
            del self._generators[role]
        if "edge" in large:  # which these hold
            self.__dict__.pop("aligned_edge", None)
            self.__dict__.pop("restorer", None)
        if large:
            gc.collect()

    def facts(self, role: Role) -> GeneratorFacts:
        """What there is to know of a generator, which is not loaded for that."""
        if role not in self._facts:
            loaded = self._generators.get(role)
            self._facts[role] = (
                GeneratorFacts.of_profile(self.profile, role, self._placed(role))
                if loaded is None
                else loaded.facts
            )
        return self._facts[role]

    @cached_property
    def aligned_edge(self) -> AlignedGenerator:
        """The edge with the updates that are added to it."""
        return AlignedGenerator(self.edge, capacity=2)

    @cached_property
    def autoencoder(self) -> Any:
        """The edge's autoencoder alone in float32, for who needs no more of it."""
        vae = load_component(self.profile.edge, "vae").float().eval()
        return vae.to(machine_placement().device)

    @cached_property
    def side_information(self) -> SideInformation:
        """What a codec that reads prompts knows of them."""
        return SideInformation.load(self.profile.edge)

    def texts(self, codec: AdaptedCodec, prompts: Sequence[str | None]) -> list[torch.Tensor | None] | None:
        """The states of prompts for a codec, None where one is withheld; None if the codec reads none."""
        if not codec.text_width:
            return None
        return [None if each is None else self.side_information.states(each) for each in prompts]

    @cached_property
    def pixel_link(self) -> PixelLink:
        """Sends pictures as pixels; NotFoundError if the profile has no codec of pixels."""
        return PixelLink.load(self.profile)

    @cached_property
    def scorer(self) -> ImageScorer:
        """The encoders that score consistency."""
        return ImageScorer.load(**self.evaluators.encoders)

    @cached_property
    def probe(self) -> AttributeProbe:
        """The attribute probe; NotFoundError if the profile names none."""
        folder = self.evaluators.probe
        if folder is None:
            raise NotFoundError(f"the profile {self.profile_name} names no scorer.probe")
        probe: AttributeProbe = AttributeProbe.from_pretrained(folder).eval()
        return probe

    @cached_property
    def outline(self) -> OutlineJudge | None:
        """The outline judge, if the profile names one."""
        folder = self.evaluators.outline
        return None if folder is None else OutlineJudge.from_pretrained(folder).eval()

    @cached_property
    def metrics_hash(self) -> str:
        """Of the weights of all that scores."""
        known = [*encoder_hashes(**self.evaluators.encoders).values()]
        known += [folder_hash(probe)] if (probe := self.evaluators.probe) else []
        return "".join(known)

    @cached_property
    def codec(self) -> JsccCodec:
        """The codec that adapters adapt."""
        codec: JsccCodec = JsccCodec.load(self.profile.codec)
        return codec

    @cached_property
    def codec_hash(self) -> str:
        """Of that codec's folder."""
        return folder_hash(self.profile.codec)

    @cached_property
    def adapters(self) -> TransmissionKnowledge:
        """The transmission knowledge that ships; NotFoundError if the profile names none."""
        if self.profile.adapters is None:
            raise NotFoundError(f"the profile {self.profile_name} names no adapters")
        return TransmissionKnowledge.load(self.profile.adapters)

    @cached_property
    def codecs(self) -> dict[str, AdaptedCodec]:
        """That of "unaligned" deliveries, and the one that adapters adapt: "base", or with "adapters".

        MismatchError if one is made for another autoencoder than the edge's.
        """
        check_latents(self.profile)
        found = {"unaligned": self.unaligned_codec(), "base": AdaptedCodec(self.codec)}
        if self.profile.adapters is not None:
            found["adapters"] = adapted = attached(self.codec, self.adapters)
            adapted.quality, adapted.restoration = self.adapters.quality, self.adapters.restoration
        return found

    @cached_property
    def restorer(self) -> Restorer:
        """The edge's denoiser as a receiver uses it."""
        return Restorer(self.edge)

    def unaligned_codec(self) -> AdaptedCodec:
        """The codec of unaligned deliveries, which nothing else shares."""
        return AdaptedCodec(JsccCodec.load(self.profile.codec_without_alignment))

    def cala(self) -> Cala:
        """CALA as it ships, on a copy of the codec."""
        return Cala.attached(copy.deepcopy(self.codec), self.adapters)

    @property
    def taught(self) -> list[str]:
        """The topics of the updates that come with the profile, by name."""
        folder = self.profile.knowledge
        return sorted(path.name for path in Path(folder).iterdir() if path.is_dir()) if folder else []

    def update(self, topic: str) -> KnowledgeUpdate:
        """The profile's update of a topic.

        Raises:
            NotFoundError: there is none.
        """
        folder = None if self.profile.knowledge is None else Path(self.profile.knowledge) / topic
        if folder is None or not folder.is_dir():
            raise NotFoundError(f"the profile {self.profile_name} has no knowledge update of {topic}")
        return KnowledgeUpdate.load(folder)

    @cached_property
    def own_topics(self) -> dict[str, TopicFile]:
        """The profile's own topics, by name."""
        return read_topics(self.profile.topics)

    @property
    def topics(self) -> list[str]:
        """Names of the profile's own topics; those of the sticker world if it has none."""
        return list(self.own_topics or TOPICS)

    def topic_prompts(self, topic: str, count: int, learnt: Collection[str] = ()) -> list[Prompt]:
        """`count` test prompts of a topic.

        Args:
            topic: one of the profile's own or of the sticker world.
            count: number of prompts.
            learnt: prompts that updates of an own topic were trained on, which are left out; no training
                draws the world's test prompts.

        Raises:
            InvalidInputError: all prompts of the topic were learnt.
        """
        if (own := self.own_topics.get(topic)) is None:
            return topic_prompts(TOPICS[topic], count)
        return own_prompts(topic, own, count, DistillConfig(**self.profile.distill.given()), learnt)

    def learnt(self, topic: str) -> list[str]:
        """The prompts that the profile's update of a topic was trained on; none if it has no update."""
        try:
            return list(self.update(topic).history.get("prompts", []))
        except NotFoundError:
            return []

    def references(self, prompts: Sequence[Prompt], folder: Path, offset: int = 0) -> Images:
        """The cloud's images (n, h, w, 3) of prompts, `offset` added to their seeds; kept in `folder`."""
        return self.cloud_images(
            [text for _, text, _ in prompts], [seed + offset for *_, seed in prompts], folder
        )

    def cloud_images(self, prompts: Sequence[str], seeds: Sequence[int], folder: Path) -> Images:
        """The cloud's images (n, h, w, 3), kept in `folder`; the cloud is loaded only if one is missing."""
        kept = kept_images(self.facts("cloud").identity, prompts, seeds, folder)
        return draw_images(self.cloud, prompts, seeds, folder) if kept is None else kept

    def score_images(
        self, images: Images, references: Images, prompts: Sequence[Prompt]
    ) -> list[dict[str, Any]]:
        """Scores of each image (n, h, w, 3) against its reference.

        Returns:
            For each prompt "prompt", "seed", "clip", "dino", their mean "consistency", and, where `probed`
            has a value, "probe".
        """
        scores = self.scorer.scores(images, references)
        probed = self.probed(images, prompts)
        return [
            {
                "prompt": text,
                "seed": seed,
                "clip": round(float(clip), 4),
                "dino": round(float(dino), 4),
                "consistency": round((float(clip) + float(dino)) / 2, 4),
                **({} if math.isnan(share) else {"probe": round(float(share), 4)}),
            }
            for (_, text, seed), clip, dino, share in zip(
                prompts, scores["clip"], scores["dino"], probed, strict=True
            )
        ]

    def probed(self, images: Images, prompts: Sequence[Prompt]) -> npt.NDArray[np.float64]:
        """Share of the visible attributes that the probe finds in each image, (n,).

        NaN if the prompts show no scenes of the world, or the profile has no probe.
        """
        scenes = [scene for scene, _, _ in prompts]
        if None in scenes or self.evaluators.probe is None:
            return np.full(len(scenes), np.nan)
        verdicts = self.probe.correct(images, scenes)
        return np.array([sum(verdict.values()) / len(verdict) for verdict in verdicts])


def load_quietly() -> None:
    """From now on, loading a model prints nothing: a study shows a progress bar of its own."""
    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.disable_progress_bar()
        library.set_verbosity_error()


@cache
def model_bank(profile_name: str) -> ModelBank:
    """This process's models of a profile, one thread each."""
    load_quietly()
    torch.set_num_threads(1)
    return ModelBank(profile_name)
