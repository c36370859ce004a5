"""Reading a prompt with a metaword: trainable vectors between the start token and the prompt's own words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch


def token_ids(pipeline: Any, prompts: Sequence[str], tokens: int) -> torch.Tensor:
    """Ids of `prompts` with `tokens` places after the start token, (batch, model_max_length) int64.

    The places hold the start token's id; `metaword` puts the vectors there. A prompt too long is cut.
    """
    tokenizer = pipeline.tokenizer
    length = tokenizer.model_max_length
    ids: torch.Tensor = tokenizer(
        list(prompts),
        padding="max_length",
        max_length=length - tokens,
        truncation=True,
        return_tensors="pt",
    ).input_ids
    places = ids[:, :1].expand(-1, tokens)
    return torch.cat([ids[:, :1], places, ids[:, 1:]], dim=1)


@contextmanager
def metaword(text_encoder: Any, vectors: torch.Tensor, rows: torch.Tensor | None = None) -> Iterator[None]:
    """While inside, the text encoder reads `vectors` (tokens, width) behind the start token.

    Args:
        text_encoder: any transformers text encoder.
        vectors: gradients flow into them.
        rows: (batch,) bool, the rows of a batch that have the metaword; all if left out.
    """

    def put(_: Any, __: Any, embedded: torch.Tensor) -> torch.Tensor:
        count = len(vectors)
        words = vectors.to(embedded.dtype).expand(len(embedded), -1, -1)
        if rows is not None:
            words = torch.where(rows[:, None, None], words, embedded[:, 1 : 1 + count])
        return torch.cat([embedded[:, :1], words, embedded[:, 1 + count :]], dim=1)

    handle = text_encoder.get_input_embeddings().register_forward_hook(put)
    try:
        yield
    finally:
        handle.remove()


def prompt_states(
    pipeline: Any,
    prompts: Sequence[str],
    vectors: torch.Tensor,
    dropped: torch.Tensor | None = None,
) -> torch.Tensor:
    """What the denoiser reads of `prompts` behind the metaword, (batch, model_max_length, width).

    Args:
        pipeline: a StableDiffusionPipeline.
        prompts: one for each row.
        vectors: the metaword, (tokens, width); no rows for none.
        dropped: (batch,) bool, rows to be read as the empty prompt without metaword.
    """
    ids = token_ids(pipeline, prompts, len(vectors))
    if dropped is not None:
        ids = torch.where(dropped[:, None], token_ids(pipeline, [""], 0), ids)
    with metaword(pipeline.text_encoder, vectors, None if dropped is None else ~dropped):
        states: torch.Tensor = pipeline.text_encoder(ids)[0]
    return states
