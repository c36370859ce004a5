"""Reading a prompt with a metaword: trainable vectors between the start token and the prompt's own words.

A topic's shared vectors stand in front of every prompt that needs it. A topic of several trigger words, such
as a vocabulary, has one more vector for each of them, which stands there only if the prompt says that word.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from dekag.generation.prompts import PromptReader, Window
from dekag.makd.topics import matching


def trigger_words(triggers: Sequence[str]) -> tuple[str, ...]:
    """The triggers that have a vector of their own: all of several; a single one is what the topic is."""
    return tuple(triggers) if len(triggers) > 1 else ()


def token_rows(prompt: str, tokens: int, words: Sequence[str]) -> list[int]:
    """Which rows of a metaword (tokens + len(words), width) `prompt` is read with, in order."""
    said = set(matching(prompt, {word: [word] for word in words}))
    return [*range(tokens), *(tokens + i for i, word in enumerate(words) if word in said)]


@contextmanager
def metaword(text_encoder: Any, vectors: torch.Tensor, chosen: Sequence[Sequence[int]]) -> Iterator[None]:
    """While inside, the text encoder reads vectors behind the start token of every row of a batch.

    Args:
        text_encoder: any transformers text encoder.
        vectors: (rows, width); gradients flow into them.
        chosen: which of them each row of the batch reads, in order; may be none.
    """
    row = torch.tensor([i for i, indices in enumerate(chosen) for _ in indices], dtype=torch.long)
    place = torch.tensor([1 + k for indices in chosen for k in range(len(indices))], dtype=torch.long)
    which = torch.tensor([index for indices in chosen for index in indices], dtype=torch.long)

    def put(_: Any, __: Any, embedded: torch.Tensor) -> torch.Tensor:
        return embedded.index_put((row, place), vectors[which].to(embedded.dtype))

    handle = text_encoder.get_input_embeddings().register_forward_hook(put)
    try:
        yield
    finally:
        handle.remove()


def encode_prompts(
    reader: PromptReader, prompts: Sequence[Sequence[Window]], vectors: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What the denoiser reads of prompts, each window behind its vectors, (batch, tokens, width).

    Prompts of fewer windows are filled up with zeros; the second tensor, (batch, tokens) bool, says which
    places hold something. It is None where all do.

    Args:
        reader: of a StableDiffusionPipeline.
        prompts: windows of each, as `reader` makes them.
        vectors: (rows, width); the windows say which of them stand in front.
    """
    windows = [window for prompt in prompts for window in prompt]
    ids, _ = reader.tensors(windows)
    with metaword(reader.encoder, vectors, [window.rows for window in windows]):
        read: torch.Tensor = reader.encoder(ids)[0]
    counts = [len(prompt) for prompt in prompts]
    parts = [part.flatten(0, 1) for part in read.split(counts)]
    if len(set(counts)) == 1:
        return torch.stack(parts), None
    there = [torch.ones(len(part), dtype=torch.bool) for part in parts]
    return pad_sequence(parts, batch_first=True), pad_sequence(there, batch_first=True)
