"""What cloud, edge and Redis say to each other of a knowledge update, without its weights."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from dekag.documents import parse_json
from services.proto import cloud_pb2

CATALOGUE_KEY = "dekag:knowledge"
NO_KNOWLEDGE = "none"  # in a topic's place: no update at all; no topic may be called so


def update_key(content_hash: str) -> str:
    """Redis key of the files of the update with that hash."""
    return f"dekag:update:{content_hash}"


class VersionManifest(BaseModel):
    """What the manifests of all knowledge say: one version, without its weights."""

    model_config = ConfigDict(frozen=True)

    version: int = Field(ge=1, le=2**32 - 1, description="Counts up; the highest is current.")
    content_hash: str = Field(pattern="^[0-9a-f]{64}$", description="sha256 over everything in it.")
    base_hash: str = Field(description="Hash of the model that it fits.")
    size_bytes: int = Field(ge=0, le=2**63 - 1, description="Bytes of its files.")
    scores: dict[str, FiniteFloat] = Field(description="On what was held out of its training.")
    created: FiniteFloat = Field(description="Unix time, s.")

    @classmethod
    def parse(cls, text: str | bytes) -> Self | None:
        """The manifest in a JSON text, None if it holds none."""
        try:
            return cls.model_validate(parse_json(text, "manifest"))
        except ValueError:  # pydantic's ValidationError is one, too
            return None


class Manifest(VersionManifest):
    """One version of a topic's knowledge update; versions count up for each topic."""

    topic: str = Field(description="Name of the topic.")
    triggers: tuple[str, ...] = Field(description="Words or phrases that say that a prompt needs it.")
    job: str = Field(description="Id of the job that made it.")

    def to_proto(self) -> cloud_pb2.KnowledgeManifest:
        """The message that ``from_proto`` reads back."""
        return cloud_pb2.KnowledgeManifest(**self.model_dump())

    @classmethod
    def from_proto(cls, message: cloud_pb2.KnowledgeManifest) -> Manifest:
        """The manifest that ``message`` carries; pydantic's ValidationError if it carries none."""
        return cls(
            topic=message.topic,
            version=message.version,
            content_hash=message.content_hash,
            base_hash=message.base_hash,
            triggers=tuple(message.triggers),
            size_bytes=message.size_bytes,
            scores=dict(message.scores),
            created=message.created,
            job=message.job,
        )
