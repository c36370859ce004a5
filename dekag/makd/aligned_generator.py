"""The edge model with loaded knowledge updates, a subset of which is used for each image."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch

from dekag.errors import InvalidInputError, MismatchError, NotFoundError
from dekag.generation.images import Pixels
from dekag.generation.models import Generator, OnStep, by_group
from dekag.generation.prompts import PromptReader, Window
from dekag.generation.request import DEFAULT_SAMPLING, GenerationRequest, Sampling
from dekag.generation.traced_denoiser import worth_tracing
from dekag.makd.batched_lora import BatchedLora
from dekag.makd.metaword import encode_prompts
from dekag.makd.update import KnowledgeUpdate

TOGETHER = 1.5
"""Guidance of images with several updates, at least: that of updates that are taught from images."""


class AlignedGenerator:
    """A generator with an LRU cache of at most `capacity` knowledge updates.

    Not thread-safe: updates are applied to the denoiser while a batch is generated. Without updates, images
    are bit for bit those of the generator.
    """

    def __init__(self, generator: Generator, *, capacity: int = 8) -> None:
        self.generator = generator
        self.model_hash = generator.model_hash
        self.decoder = generator.decoder
        self.latent_shape = generator.latent_shape
        self._capacity = capacity
        self._updates: OrderedDict[str, KnowledgeUpdate] = OrderedDict()
        # with a small denoiser, a batch for each update is faster than one batch with other layers
        self._merge = worth_tracing(generator.pipeline.unet)
        self._adapters = BatchedLora(generator.pipeline.unet, merge=self._merge)

    def has(self, content_hash: str) -> bool:
        """Whether the update with that hash is loaded."""
        return content_hash in self._updates

    @property
    def loaded(self) -> tuple[str, ...]:
        """Content hashes of the loaded updates, the least recently used first."""
        return tuple(self._updates)

    def add(self, update: KnowledgeUpdate) -> None:
        """Load an update; evicts the least recently used one if necessary.

        Raises:
            MismatchError: it was made for another base model, or does not fit the layers of this one.
        """
        content_hash = update.content_hash
        if content_hash in self._updates:
            self._updates.move_to_end(content_hash)
            return
        self.check(update)
        if update.lora:
            self._adapters.add(content_hash, update.lora)
        while len(self._updates) >= self._capacity:
            self.remove(next(iter(self._updates)))
        self._updates[content_hash] = update

    def check(self, update: KnowledgeUpdate) -> None:
        """Raises MismatchError unless `add` would load the update; thread-safe."""
        if update.base_hash != self.model_hash:
            raise MismatchError(
                f"knowledge update {update.topic!r} fits base model {update.base_hash[:12]}, "
                f"this one is {self.model_hash[:12]}"
            )
        self._check_metaword(update)
        self._adapters.check(update.lora)

    def fits(self, update: KnowledgeUpdate) -> bool:
        """Whether `add` would load the update; thread-safe."""
        try:
            self.check(update)
        except MismatchError:
            return False
        return True

    def remove(self, content_hash: str) -> None:
        """Unload an update, if it is loaded."""
        self._updates.pop(content_hash, None)
        self._adapters.remove(content_hash)

    def latents(
        self,
        prompt: str,
        seed: int,
        *,
        width: int | None = None,
        height: int | None = None,
        updates: Sequence[str] = (),
        should_continue: Callable[[], bool] | None = None,
    ) -> torch.Tensor:
        """The latent for `prompt` and `seed`, as in `Generator.latents`, with `updates` active.

        Args:
            prompt: text prompt.
            seed: 0 to 2**63 - 1.
            width, height: pixels; default: the generator's size.
            updates: content hashes of loaded updates, which are combined.
            should_continue: called after each step; False stops the generation.

        Raises:
            NotFoundError: an update is not loaded.
            DeadlineError: the generation was stopped.
        """
        side = self.generator.size
        request = GenerationRequest(prompt, seed, width or side, height or side, tuple(updates))
        return self.batch([request], should_continue=should_continue)

    def batch(
        self,
        requests: Sequence[GenerationRequest],
        *,
        should_continue: Callable[[], bool] | None = None,
        on_step: OnStep | None = None,
    ) -> torch.Tensor:
        """Latents of a batch of requests, (n, 4, height/8, width/8), each with its own updates.

        Unless the batch has size one, they differ from those of `latents` by rounding.

        Args:
            requests: requests of equal size, guidance and sampling.
            should_continue: as in `latents`.
            on_step: as in `Generator.batch`.

        Raises:
            InvalidInputError: sizes, guidance or sampling differ, or the negative prompt is too long.
            NotFoundError, DeadlineError: as `latents`.
        """
        sizes = {request.size for request in requests}
        if len(sizes) != 1:
            raise InvalidInputError("size", "the same for all requests of a batch", sorted(sizes))
        if len(samplings := {request.sampling for request in requests}) != 1:
            raise InvalidInputError("sampling", "the same for all requests of a batch", list(samplings))
        sampling = samplings.pop()
        active = [self._loaded(request.updates) for request in requests]
        guidance = {self.guidance_scale(each, sampling) for each in active}
        if len(guidance) != 1:
            raise InvalidInputError("updates", "of the same guidance scale in a batch", sorted(guidance))
        prompts, seeds = [each.prompt for each in requests], [each.seed for each in requests]
        width, height = sizes.pop()
        common: dict[str, Any] = {
            "width": width, "height": height, "guidance_scale": guidance.pop(), "steps": sampling.steps,
            "should_continue": should_continue, "on_step": on_step,
        }  # fmt: skip
        if not any(active):
            return self.generator.batch(prompts, seeds, negative_prompt=sampling.negative_prompt, **common)
        spoken = [_PromptMetawords(row, self._width) for row in active]
        windows = [self.windows(prompt, row) for prompt, row in zip(prompts, active, strict=True)]

        adapters = [tuple(u.content_hash for u in row if u.lora) for row in active]

        def draw(which: Sequence[int], _: tuple[Any, ...]) -> torch.Tensor:
            with self._adapters.active([adapters[i] for i in which], sampling.adapter_scale):
                states = self._states(
                    [windows[i] for i in which], [spoken[i].vectors for i in which], sampling.negative_prompt
                )
                return self.generator.batch(None, [seeds[i] for i in which], **common, **states)

        together = [
            (len(each), *(own if self._merge else ())) for each, own in zip(windows, adapters, strict=True)
        ]
        return by_group(together, draw)

    def windows(self, prompt: str, updates: Sequence[KnowledgeUpdate]) -> tuple[Window, ...]:
        """The windows of `prompt` with these updates, which need not be loaded; thread-safe."""
        return _PromptMetawords(updates, self._width).windows(self.generator.reader, prompt)

    def guidance_scale(
        self, updates: Sequence[KnowledgeUpdate], sampling: Sampling = DEFAULT_SAMPLING
    ) -> float:
        """The classifier-free guidance scale for images with these updates.

        Without one in `sampling`, it is the lowest of the updates' own, but at least `TOGETHER` for several:
        each takes the image away from what the others have learnt, which guidance makes up for.
        """
        if sampling.guidance_scale is not None:
            return sampling.guidance_scale
        if not updates:
            return self.generator.guidance_scale
        lowest = min(update.guidance_scale for update in updates)
        return lowest if len(updates) == 1 else max(lowest, TOGETHER)

    def image(
        self,
        prompt: str,
        seed: int,
        *,
        width: int | None = None,
        height: int | None = None,
        updates: Sequence[str] = (),
    ) -> Pixels:
        """The image for `prompt` and `seed` with `updates` active, (height, width, 3) uint8."""
        latents = self.latents(prompt, seed, width=width, height=height, updates=updates)
        pixels: Pixels = self.decoder.decode(latents, [seed])[0]
        return pixels

    @property
    def _pipeline(self) -> Any:
        return self.generator.pipeline

    def _loaded(self, hashes: Sequence[str]) -> list[KnowledgeUpdate]:
        """The updates with these hashes, without duplicates; marks them as recently used."""
        chosen = sorted(set(hashes))
        for content_hash in chosen:
            if content_hash not in self._updates:
                raise NotFoundError(f"knowledge update {content_hash[:12]} is not loaded")
            self._updates.move_to_end(content_hash)
        return [self._updates[each] for each in chosen]

    @property
    def _width(self) -> int:
        return int(self._pipeline.text_encoder.get_input_embeddings().weight.shape[1])

    @torch.inference_mode()
    def _states(
        self, prompts: Sequence[Sequence[Window]], vectors: Sequence[torch.Tensor], negative_prompt: str
    ) -> dict[str, Any]:
        """Pipeline arguments for prompts with the same number of windows, and for the negative prompt."""
        reader = self.generator.reader
        ends = list(accumulate(map(len, vectors)))
        shifted = [
            [replace(window, rows=tuple(end - len(own) + row for row in window.rows)) for window in prompt]
            for prompt, own, end in zip(prompts, vectors, ends, strict=True)
        ]
        said, _ = encode_prompts(reader, shifted, torch.cat(list(vectors)))
        negative = reader.negative_window(negative_prompt)
        unsaid, _ = encode_prompts(reader, [[negative]], torch.zeros(0, self._width))
        nothing = unsaid.repeat(1, len(prompts[0]), 1).expand(len(prompts), -1, -1)
        return {"prompt_embeds": said, "negative_prompt_embeds": nothing}

    def _check_metaword(self, update: KnowledgeUpdate) -> None:
        most = self.generator.reader.length // 2
        vectors = len(update.metaword) + len(update.words)
        if vectors and (update.metaword.shape[1] != self._width or len(update.metaword) > most):
            raise MismatchError(f"the metaword of {update.topic!r} does not fit the text encoder")


class _PromptMetawords:
    """The metawords of several updates for one prompt.

    Args:
        updates: updates in use.
        width: width of the vectors.

    Attributes:
        vectors: vectors of all metawords, (rows, width) float32; each window has a selection of the rows.
    """

    def __init__(self, updates: Sequence[KnowledgeUpdate], width: int) -> None:
        self._updates = [update for update in updates if len(update.metaword)]
        self.vectors = torch.cat([torch.zeros(0, width), *(update.vectors for update in self._updates)])

    def windows(self, reader: PromptReader, prompt: str) -> tuple[Window, ...]:
        """The windows of `prompt`; words that have their own vector are not split.

        If the metawords together would take more than half of a window, the prompt is read several times,
        each time with as many of them as fit.
        """
        found: list[Window] = []
        for group in self._groups(reader.length // 2):
            phrases = [word for update, _ in group for word in update.words]

            def rows(text: str, group: Sequence[tuple[KnowledgeUpdate, int]] = group) -> list[int]:
                return [first + row for update, first in group for row in update.token_rows(text)]

            found += reader.windows(prompt, rows, phrases)
        return tuple(found)

    def _groups(self, most: int) -> list[list[tuple[KnowledgeUpdate, int]]]:
        """Groups of updates that fit into a window, each with its first row; at least one group."""
        groups: list[list[tuple[KnowledgeUpdate, int]]] = [[]]
        first = taken = 0
        for update in self._updates:
            if taken + len(update.metaword) > most and groups[-1]:
                groups.append([])
                taken = 0
            groups[-1].append((update, first))
            first += len(update.vectors)
            taken += len(update.metaword)
        return groups
