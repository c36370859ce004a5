"""Tokenizers and text encoders of the embedded models.

The two tokenizers are trained on the captions that their model knows, so the edge has no token for a word
of a held-out topic and reads it letter by letter. Each text encoder first learns to tell the attributes
said by a caption, which takes a minute and spares the denoiser from discovering language as well as sight.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import structlog
import torch
from tokenizers import Tokenizer, pre_tokenizers, trainers
from tokenizers.models import Unigram
from torch import nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

from dekag.training.data import scene_number
from dekag.training.loop import TrainingRun
from dekag.world import EDGE_STYLES, EDGE_SUBJECTS, Scene, caption
from dekag.world.scene import ATTRIBUTES, STYLES, SUBJECTS
from dekag.world.topics import VOCABULARIES

_log = structlog.get_logger()
MAX_TOKENS = 40
PRETRAINING_STEPS = 700
PRETRAINING_CAPTIONS = 8000
SPECIAL = ("<|startoftext|>", "<|endoftext|>")
_ALPHABET = [*"abcdefghijklmnopqrstuvwxyz0123456789,.!?'-"]


def world_caption(scene: Scene, rng: random.Random, *, cloud: bool) -> str:
    """A training caption; the cloud's use the words of the vocabulary topics in two cases of five."""
    if not cloud:
        return caption(scene, rng)
    words: dict[str, str] = {}
    for topic in VOCABULARIES:
        if rng.random() < 0.25:
            words |= topic.words
    return caption(scene, rng, words)


def scenes_known(cloud: bool) -> dict[str, tuple[str, ...]]:
    """The subjects and styles in the training set of the cloud or of the edge."""
    if cloud:
        return {"subjects": SUBJECTS, "styles": STYLES}
    return {"subjects": EDGE_SUBJECTS, "styles": EDGE_STYLES}


def training_captions(count: int, *, cloud: bool) -> Iterator[tuple[Scene, str]]:
    """`count` training scenes with a caption each."""
    for n in range(count):
        scene, seed = scene_number("train", n, **scenes_known(cloud))
        yield scene, world_caption(scene, random.Random(-seed - 1), cloud=cloud)


def new_edge_tokenizer(captions: int = 4000) -> CLIPTokenizer:
    """CLIP byte-pair tokenizer trained on the edge's captions; other words fall apart into letters."""
    return _clip_tokenizer(text for _, text in training_captions(captions, cloud=False))


def new_clip_tokenizer(captions: int = 4000) -> CLIPTokenizer:
    """Tokenizer of the metric CLIP: it knows the words of all topics."""
    return _clip_tokenizer(text for _, text in training_captions(captions, cloud=True))


def _clip_tokenizer(texts: Iterator[str]) -> CLIPTokenizer:
    empty = CLIPTokenizer(model_max_length=MAX_TOKENS)
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        end_of_word_suffix="</w>",
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    learner: Any = empty.backend_tokenizer
    learner.train_from_iterator(texts, trainer)
    merges = [tuple(merge) for merge in json.loads(learner.to_str())["model"]["merges"]]
    # ids in an order of our own: the trainer's own order of single letters differs from run to run
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*SPECIAL, *letters, *(f"{letter}</w>" for letter in letters), *(a + b for a, b in merges)]
    vocab = {word: number for number, word in enumerate(dict.fromkeys(words))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_TOKENS)


def new_cloud_tokenizer(captions: int = 4000) -> T5Tokenizer:
    """T5 unigram tokenizer trained on the cloud's captions."""
    learner = Tokenizer(Unigram())
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    trainer = trainers.UnigramTrainer(
        vocab_size=500,
        special_tokens=["<pad>", "</s>", "<unk>"],
        unk_token="<unk>",
        initial_alphabet=_ALPHABET,
        show_progress=False,
    )
    texts = [text for _, text in training_captions(captions, cloud=True)]
    learner.train_from_iterator(texts, trainer)
    # scores are sums over threads in an order of their own: the last digits differ from run to run
    vocab = [(piece, round(score, 6)) for piece, score in json.loads(learner.to_str())["model"]["vocab"]]
    # ids in an order of our own, as above
    unseen = sorted(set(_ALPHABET) - set("".join(texts)))
    special, learnt = vocab[:3], [pair for pair in vocab[3:] if pair[0] not in unseen]
    learnt.sort()
    scores = sorted((score for piece, score in vocab if piece in unseen), reverse=True)
    pieces = [*special, *learnt, *zip(unseen, scores, strict=True)]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=MAX_TOKENS)


def new_edge_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A small CLIP text encoder: 2 layers of width 128."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=256,
            projection_dim=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def new_cloud_text_encoder(tokenizer: T5Tokenizer) -> T5EncoderModel:
    """A small T5 encoder: 3 layers of width 128."""
    return T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=128,
            d_kv=32,
            d_ff=256,
            num_layers=3,
            num_heads=4,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def tokenize(tokenizer: Any, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, both (batch, MAX_TOKENS) int64, padded as the pipelines pad."""
    cut = [text for text in texts if len(tokenizer(text, verbose=False).input_ids) > MAX_TOKENS]
    if cut:
        _log.warning("captions are cut", captions=len(cut), of=len(texts), tokens=MAX_TOKENS, one=cut[0])
    out = tokenizer(texts, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt")
    return out.input_ids, out.attention_mask


def said_attributes(scene: Scene, text: str) -> list[int]:
    """Index of every attribute's word; what the caption leaves unsaid gets the index after the last."""
    words = set(text.replace(",", " ").split())
    indices = []
    for name, values in ATTRIBUTES.items():
        value = getattr(scene, name)
        optional = name in ("size", "position") and value not in words
        indices.append(len(values) if optional else values.index(value))
    return indices


class AttributeReader(nn.Module):
    """A text encoder with one linear classifier for each attribute on its pooled states."""

    def __init__(self, encoder: Any, *, masked_mean: bool) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = nn.ModuleList(
            nn.Linear(encoder.config.hidden_size, len(values) + 1) for values in ATTRIBUTES.values()
        )
        self._masked_mean = masked_mean

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
        """Logits of each attribute, (batch, values + 1)."""
        if self._masked_mean:
            states = self.encoder(tokens, attention_mask=mask).last_hidden_state
            weights = mask.unsqueeze(-1).float()
            pooled = (states * weights).sum(1) / weights.sum(1)
        else:
            # The edge pipeline pads with the end token and masks nothing: the last position reads it all.
            pooled = self.encoder(tokens).last_hidden_state[:, -1]
        return [head(pooled) for head in self.heads]


def pretrain_text_encoder(folder: Path, encoder: Any, tokenizer: Any, *, cloud: bool, seed: int) -> Any:
    """Teach `encoder` to tell the attributes that a caption says; returns the averaged encoder."""
    pairs = list(training_captions(PRETRAINING_CAPTIONS, cloud=cloud))
    tokens, mask = tokenize(tokenizer, [text for _, text in pairs])
    labels = torch.tensor([said_attributes(scene, text) for scene, text in pairs])
    reader = AttributeReader(encoder, masked_mean=cloud)
    run = TrainingRun(
        folder, reader, [torch.optim.AdamW(reader.parameters(), lr=2e-3)], seed=seed, ema_decay=0.98
    )

    def step(_: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        pick = torch.randint(len(pairs), (64,), generator=generator)
        logits = reader(tokens[pick], mask[pick])
        losses = [F.cross_entropy(one, labels[pick, i]) for i, one in enumerate(logits)]
        return {"loss": torch.stack(losses).sum()}

    run.run(step, PRETRAINING_STEPS)
    return run.average.encoder
