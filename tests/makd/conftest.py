"""Tiny models, and one distillation that several tests look at."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from dekag.generation.models import Generator
from dekag.makd.config import DistillConfig
from dekag.makd.topics import TopicPrompts, topic_prompts
from dekag.makd.update import KnowledgeUpdate
from dekag.metrics.features import ImageScorer
from dekag.profile import load_profile
from dekag.stickers import TOPICS
from dekag.training.distill import Progress, distill

TINY = DistillConfig(images=6, held_out=3, steps=8, batch=4, check_every=4, rank=2, layers="all", bits=16)


def prompts_of(topic: str, config: DistillConfig = TINY) -> TopicPrompts:
    """The prompts of a topic of the sticker world, without its synonyms."""
    triggers = TOPICS[topic].triggers if TOPICS[topic].kind == "vocabulary" else [topic]
    return topic_prompts(
        topic, triggers=triggers, count=config.images, held_out=config.held_out, seed=config.seed
    )


@dataclass(frozen=True)
class Distilled:
    """A finished distillation."""

    folder: Path
    update: KnowledgeUpdate
    progress: list[Progress]


@pytest.fixture(scope="session")
def cloud(dummy_profile: Path) -> Generator:
    """The tiny cloud-GAI."""
    return Generator.from_profile(load_profile(dummy_profile), "cloud")


@pytest.fixture
def edge(dummy_profile: Path) -> Generator:
    """A tiny edge-GAI of the test's own."""
    return Generator.from_profile(load_profile(dummy_profile), "edge")


@pytest.fixture(scope="session")
def scorer() -> ImageScorer:
    """The encoders of the shipped profile."""
    judges = load_profile("stickers").scorer
    assert judges is not None
    return ImageScorer.load(judges.clip, judges.dino)


@pytest.fixture(scope="session")
def neon(cloud: Generator, dummy_profile: Path, tmp_path_factory: pytest.TempPathFactory) -> Distilled:
    """An update for the topic neon."""
    folder = tmp_path_factory.mktemp("neon")
    progress: list[Progress] = []
    edge = Generator.from_profile(load_profile(dummy_profile), "edge")
    update = distill(cloud, edge, prompts_of("neon"), TINY, folder, on_progress=progress.append)
    return Distilled(folder, update, progress)
