"""Encoding of prompts with a metaword: trainable vectors between the start token and the prompt's own tokens.

The shared vectors of a topic precede every prompt that needs it. A topic with several trigger words, such as
a vocabulary, has one more vector for each of them, which is only used if the prompt contains that word.
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
    """The triggers with their own vector: all, if there are several; a single trigger needs none."""
    return tuple(triggers) if len(triggers) > 1 else ()


def token_rows(prompt: str, tokens: int, words: Sequence[str]) -> list[int]:
    """The rows of a metaword (tokens + len(words), width) for `prompt`, in order."""
    matches = set(matching(prompt, {word: [word] for word in words}))
    return [*range(tokens), *(tokens + i for i, word in enumerate(words) if word in matches)]


@contextmanager
def metaword(text_encoder: Any, vectors: torch.Tensor, chosen: Sequence[Sequence[int]]) -> Iterator[None]:
    """Inside the context, the text encoder inserts vectors after the start token of every row of a batch.

    Args:
        text_encoder: any transformers text encoder.
        vectors: (rows, width); gradients flow into them.
        chosen: indices of the vectors for each row of the batch, in order; may be empty.
    """
    row = torch.tensor([i for i, indices in enumerate(chosen) for _ in indices], dtype=torch.long)
    place = torch.tensor([1 + k for indices in chosen for k in range(len(indices))], dtype=torch.long)
    which = torch.tensor([index for indices in chosen for index in indices], dtype=torch.long)

    def put(_: Any, __: Any, embedded: torch.Tensor) -> torch.Tensor:
        return embedded.index_put(
            (row.to(embedded.device), place.to(embedded.device)), vectors[which].to(embedded)
        )

    handle = text_encoder.get_input_embeddings().register_forward_hook(put)
    try:
        yield
    finally:
        handle.remove()


def encode_prompts(
    reader: PromptReader, prompts: Sequence[Sequence[Window]], vectors: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """States of prompts for the denoiser, each window preceded by its vectors, (batch, tokens, width).

    Prompts with fewer windows are padded with zeros; the second tensor, (batch, tokens) bool, is the mask,
    None without padding.

    Args:
        reader: reader of a StableDiffusionPipeline.
        prompts: windows of each prompt, from `reader`.
        vectors: (rows, width); the windows select rows.
    """
    windows = [window for prompt in prompts for window in prompt]
    with metaword(reader.encoder, vectors, [window.rows for window in windows]):
        read, _ = reader.read_by(reader.encoder, windows)
    counts = [len(prompt) for prompt in prompts]
    parts = [part.flatten(0, 1) for part in read.split(counts)]
    if len(set(counts)) == 1:
        return torch.stack(parts), None
    there = [torch.ones(len(part), dtype=torch.bool) for part in parts]
    return pad_sequence(parts, batch_first=True), pad_sequence(there, batch_first=True)
