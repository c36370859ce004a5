"""Reading a prompt with a metaword: trainable vectors between the start token and the prompt's own words.

A topic's shared vectors stand in front of every prompt that needs it. A topic of several trigger words, such
as a vocabulary, has one more vector for each of them, which stands there only if the prompt says that word.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from dekag.makd.topics import matching


def words_of(triggers: Sequence[str]) -> tuple[str, ...]:
    """The triggers that have a vector of their own: all of several; a single one is what the topic is."""
    return tuple(triggers) if len(triggers) > 1 else ()


def rows_for(prompt: str, tokens: int, words: Sequence[str]) -> list[int]:
    """Which rows of a metaword (tokens + len(words), width) `prompt` is read with, in order."""
    said = set(matching(prompt, {word: [word] for word in words}))
    return [*range(tokens), *(tokens + i for i, word in enumerate(words) if word in said)]


def token_ids(pipeline: Any, prompts: Sequence[str], places: Sequence[int]) -> torch.Tensor:
    """Ids of `prompts`, each with so many `places` after its start token, (batch, model_max_length) int64.

    The places hold the start token's id; `metaword` puts the vectors there. A prompt too long is cut.
    """
    length = pipeline.tokenizer.model_max_length
    rows = []
    for prompt, count in zip(prompts, places, strict=True):
        ids = pipeline.tokenizer(
            prompt, padding="max_length", max_length=length - count, truncation=True
        ).input_ids
        rows.append([ids[0]] * (1 + count) + ids[1:])
    return torch.tensor(rows)


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


def prompt_states(
    pipeline: Any,
    prompts: Sequence[str],
    vectors: torch.Tensor,
    chosen: Sequence[Sequence[int]] | None = None,
) -> torch.Tensor:
    """What the denoiser reads of `prompts` behind the metaword, (batch, model_max_length, width).

    Vectors take at most half of the places that the text encoder has; those beyond are left out, as the end
    of a prompt that is too long is.

    Args:
        pipeline: a StableDiffusionPipeline.
        prompts: one for each row.
        vectors: (rows, width).
        chosen: which vectors stand in front of each prompt, in order; all of them if left out.
    """
    if chosen is None:
        chosen = [range(len(vectors))] * len(prompts)
    chosen = [indices[: pipeline.tokenizer.model_max_length // 2] for indices in chosen]
    ids = token_ids(pipeline, prompts, [len(indices) for indices in chosen])
    with metaword(pipeline.text_encoder, vectors, chosen):
        states: torch.Tensor = pipeline.text_encoder(ids)[0]
    return states
