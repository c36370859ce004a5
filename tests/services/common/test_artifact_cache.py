"""What a cache of artifacts holds, and what it fetches again."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from services.common.artifact_cache import ArtifactCache, Files
from services.common.cache import Cache
from services.common.settings import CommonSettings
from tests.services.counted import Counted

SIZE = 104  # bytes of the files of an artifact, names included


@dataclass
class Loaded:
    """An artifact."""

    content_hash: str


class Source:
    """A cache without Redis, and what it asks for."""

    def __init__(self, capacity: int, kept: int, useless: str = "") -> None:
        self.fetched: Counter[str] = Counter()
        self.loaded: Counter[str] = Counter()
        self.cache: ArtifactCache[Loaded] = ArtifactCache(
            "thing",
            "tested",
            self._load,
            Cache(CommonSettings(redis_url="")),
            capacity=capacity,
            kept_bytes=kept * SIZE,
            is_useful=lambda each: each.content_hash != useless,
        )

    def _load(self, files: Files, content_hash: str) -> Loaded:
        assert files["name"][:1].decode() == content_hash
        self.loaded[content_hash] += 1
        return Loaded(content_hash)

    async def get(self, hashes: str) -> list[int]:
        """The bytes that each of these takes."""
        sent = []
        for each in hashes:

            async def fetch(name: str = each) -> tuple[Files, int]:
                self.fetched[name] += 1
                return {"name": name.encode() * (SIZE - 4)}, SIZE

            artifact, sent_bytes = await self.cache.get(each, fetch)
            assert artifact.content_hash == each
            sent.append(sent_bytes)
        return sent


async def test_what_is_dropped_is_made_again_of_its_files() -> None:
    source, counted = Source(capacity=2, kept=4), Counted()
    assert await source.get("abcd") == [SIZE] * 4
    assert await source.get("abcdd") == [0] * 5
    assert source.fetched == Counter("abcd")
    assert source.loaded == Counter("abcdabcd"), "the last one was in memory"
    assert await source.get("e") == [SIZE]  # in place of a
    assert await source.get("bcde") == [0] * 4
    assert counted('dekag_knowledge_loaded_total{kind="tested"}') == 5
    assert counted('dekag_knowledge_fetched_again_total{kind="tested"}') == 0
    assert await source.get("a") == [SIZE]
    assert counted('dekag_knowledge_loaded_total{kind="tested"}') == 6
    assert counted('dekag_knowledge_fetched_again_total{kind="tested"}') == 1


async def test_files_of_what_is_in_use_are_dropped_last() -> None:
    source = Source(capacity=2, kept=3)
    await source.get("ababac")
    await source.get("d")  # in place of b, the least recently used
    assert await source.get("acd") == [0] * 3
    assert await source.get("b") == [SIZE]


async def test_without_memory_for_files_they_are_fetched_again() -> None:
    source, counted = Source(capacity=1, kept=0), Counted()
    assert await source.get("aabab") == [SIZE, 0, SIZE, SIZE, SIZE]
    assert counted('dekag_knowledge_fetched_again_total{kind="tested"}') == 2


async def test_what_is_of_no_use_is_not_held_and_not_fetched_again() -> None:
    source = Source(capacity=2, kept=2, useless="b")
    assert await source.get("abab") == [SIZE, SIZE, 0, 0]
    assert source.cache.held("a") is not None
    assert source.cache.held("b") is None
    assert source.loaded == Counter("abb")
