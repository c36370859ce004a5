"""Manifests of knowledge updates: their description in the cloud, at the edge and in Redis."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from dekag.documents import parse_json
from services.proto import cloud_pb2

CATALOGUE_KEY = "dekag:knowledge"
NO_KNOWLEDGE = "none"  # stands for images without an update; reserved, so not a valid topic


def update_key(content_hash: str) -> str:
    """Redis key of the files of the update with that hash."""
    return f"dekag:update:{content_hash}"


class VersionManifest(BaseModel):
    """Description of one version of any knowledge, without its weights."""

    model_config = ConfigDict(frozen=True)

    version: int = Field(ge=1, le=2**32 - 1, description="Counts up; the highest is current.")
    content_hash: str = Field(pattern="^[0-9a-f]{64}$", description="SHA-256 of its content.")
    base_hash: str = Field(description="Hash of the model that it fits.")
    size_bytes: int = Field(ge=0, le=2**63 - 1, description="Total size of its files, bytes.")
    scores: dict[str, FiniteFloat] = Field(description="Scores on held-out data.")
    created: FiniteFloat = Field(description="Unix time, s.")
    signature: str = Field(
        "", max_length=200, description="Of the cloud, over all other fields: Ed25519, base64; may be empty."
    )

    @classmethod
    def parse(cls, text: str | bytes) -> Self | None:
        """The manifest in a JSON text; None if it is invalid."""
        try:
            return cls.model_validate(parse_json(text, "manifest"))
        except ValueError:  # includes pydantic's ValidationError
            return None


class Manifest(VersionManifest):
    """One version of a topic's knowledge update; each topic has its own version numbers."""

    topic: str = Field(description="Name of the topic.")
    triggers: tuple[str, ...] = Field(description="Words or phrases by which a prompt needs it.")
    job: str = Field(description="Id of the job that made it.")
    owner: str = Field("", description="Name of the API key that it belongs to; empty if it is shared.")

    def to_proto(self) -> cloud_pb2.KnowledgeManifest:
        """Returns the message; the inverse of ``from_proto``."""
        return cloud_pb2.KnowledgeManifest(**self.model_dump())

    @classmethod
    def from_proto(cls, message: cloud_pb2.KnowledgeManifest) -> Manifest:
        """The manifest in ``message``; raises pydantic's ValidationError if it is invalid."""
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
            signature=message.signature,
            owner=message.owner,
        )
