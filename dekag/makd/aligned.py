"""The edge-GAI with knowledge updates loaded, of which each picture uses those that it needs."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch

from dekag.errors import MismatchError, NotFoundError
from dekag.generation.images import Pixels
from dekag.generation.models import Generator
from dekag.makd.metaword import prompt_states
from dekag.makd.update import PREFIX, KnowledgeUpdate


class AlignedGenerator:
    """A generator and at most `capacity` knowledge updates; the least recently used one makes room.

    To be used from one thread: updates are switched on in the denoiser from one picture to the next. Without
    updates a picture is, bit for bit, the generator's own.
    """

    def __init__(self, generator: Generator, *, capacity: int = 8) -> None:
        self.generator = generator
        self.model_hash = generator.model_hash
        self.decoder = generator.decoder
        self.latent_shape = generator.latent_shape
        self._capacity = capacity
        self._updates: OrderedDict[str, KnowledgeUpdate] = OrderedDict()
        self._active: tuple[str, ...] = ()

    def has(self, content_hash: str) -> bool:
        """Whether the update of that hash is loaded."""
        return content_hash in self._updates

    @property
    def loaded(self) -> tuple[str, ...]:
        """Content hashes of the loaded updates, the least recently used first."""
        return tuple(self._updates)

    def add(self, update: KnowledgeUpdate) -> None:
        """Load an update, in place of the least recently used one when there is no room.

        Raises:
            MismatchError: it was made for another base model, or does not fit this one's layers.
        """
        content_hash = update.content_hash
        if content_hash in self._updates:
            self._updates.move_to_end(content_hash)
            return
        if update.base_hash != self.model_hash:
            raise MismatchError(
                f"knowledge update {update.topic!r} fits base model {update.base_hash[:12]}, "
                f"this one is {self.model_hash[:12]}"
            )
        self._check_shapes(update)
        while len(self._updates) >= self._capacity:
            self.remove(next(iter(self._updates)))
        if update.lora:
            factors = {PREFIX + name: factor.float() for name, factor in update.lora.items()}
            with warnings.catch_warnings():  # several adapters in one model are what we want
                warnings.filterwarnings("ignore", "Already found a `peft_config`")
                self._pipeline.load_lora_into_unet(
                    factors, network_alphas=None, unet=self._pipeline.unet, adapter_name=content_hash
                )
            self._pipeline.disable_lora()
            self._active = ()
        self._updates[content_hash] = update

    def remove(self, content_hash: str) -> None:
        """Unload an update; nothing happens if it is not loaded."""
        update = self._updates.pop(content_hash, None)
        if update is not None and update.lora:
            self._pipeline.delete_adapters(content_hash)
            self._active = ()
            if any(other.lora for other in self._updates.values()):
                self._pipeline.disable_lora()
            else:
                self._pipeline.unload_lora_weights()

    def latents(
        self, prompt: str, seed: int, *, width: int = 128, height: int = 128, updates: Sequence[str] = ()
    ) -> torch.Tensor:
        """The latent of `prompt` and `seed`, as Generator.latents gives it, with `updates` switched on.

        Args:
            prompt: what to draw.
            seed: 0 to 2**63 - 1.
            width, height: pixels.
            updates: content hashes of loaded updates; several act together.

        Raises:
            NotFoundError: an update is not loaded.
        """
        chosen = tuple(sorted(set(updates)))
        for content_hash in chosen:
            if content_hash not in self._updates:
                raise NotFoundError(f"knowledge update {content_hash[:12]} is not loaded")
            self._updates.move_to_end(content_hash)
        self._switch(tuple(each for each in chosen if self._updates[each].lora))
        if not chosen:
            return self.generator.latents(prompt, seed, width=width, height=height)
        acting = [self._updates[each] for each in chosen]
        return self.generator.latents(
            None,
            seed,
            width=width,
            height=height,
            guidance_scale=min(update.guidance_scale for update in acting),
            **self._states(prompt, acting),
        )

    def image(
        self, prompt: str, seed: int, *, width: int = 128, height: int = 128, updates: Sequence[str] = ()
    ) -> Pixels:
        """The picture of `prompt` and `seed` with `updates` switched on, (height, width, 3) uint8."""
        latents = self.latents(prompt, seed, width=width, height=height, updates=updates)
        pixels: Pixels = self.decoder.decode(latents)[0]
        return pixels

    @property
    def _pipeline(self) -> Any:
        return self.generator.pipeline

    @torch.inference_mode()
    def _states(self, prompt: str, updates: Sequence[KnowledgeUpdate]) -> dict[str, torch.Tensor]:
        """Prompt embeddings with and without the words, as the pipeline takes them."""
        words = [update.vectors_for(prompt) for update in updates if len(update.metaword)]
        width = self._pipeline.text_encoder.get_input_embeddings().weight.shape[1]
        vectors = torch.cat(words) if words else torch.zeros(0, width)
        none = torch.zeros(0, width)
        return {
            "prompt_embeds": prompt_states(self._pipeline, [prompt], vectors),
            "negative_prompt_embeds": prompt_states(self._pipeline, [""], none),
        }

    def _switch(self, adapters: tuple[str, ...]) -> None:
        if adapters == self._active:
            return
        if adapters:
            self._pipeline.set_adapters(list(adapters))
            self._pipeline.enable_lora()
        else:
            self._pipeline.disable_lora()
        self._active = adapters

    def _check_shapes(self, update: KnowledgeUpdate) -> None:
        width = self._pipeline.text_encoder.get_input_embeddings().weight.shape[1]
        most = self._pipeline.tokenizer.model_max_length // 2
        vectors = len(update.metaword) + len(update.words)
        if vectors and (update.metaword.shape[1] != width or len(update.metaword) > most):
            raise MismatchError(f"the metaword of {update.topic!r} does not fit the text encoder")
        layers = dict(self._pipeline.unet.named_modules())
        for name, factor in update.lora.items():
            layer, which = name.rsplit(".lora_", 1)
            weight = getattr(getattr(layers.get(layer), "base_layer", layers.get(layer)), "weight", None)
            side = 1 if which == "A.weight" else 0
            if weight is None or weight.ndim != factor.ndim or weight.shape[side] != factor.shape[side]:
                raise MismatchError(f"the LoRA of {update.topic!r} does not fit layer {layer[:80]!r}")
