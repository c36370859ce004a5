"""Tokenizers and text encoders of the shipped models.

Each tokenizer is trained on the captions that its model knows, so the edge has no token for a word of a
held-out topic and splits it into letters. Each text encoder is first trained to recognise the attributes in a
caption. This takes a minute, and the denoiser then trains with a text encoder that already understands
captions.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, pre_tokenizers, trainers
from tokenizers.models import Unigram
from torch import nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

from dekag.console import library_log
from dekag.training.data import scene_number
from dekag.training.device import CPU
from dekag.training.loop import TrainingRun
from dekag.training.worlds import STICKERS, World

MAX_TOKENS = 77
VOCABULARY = 3000  # upper limit: every frequent word becomes one token
PRETRAINING_STEPS = 1500
PRETRAINING_CAPTIONS = 24_000
TOKENIZER_CAPTIONS = 8000
SPECIAL = ("<|startoftext|>", "<|endoftext|>")
_ALPHABET = [*"abcdefghijklmnopqrstuvwxyz0123456789,.!?'-"]


def training_captions(count: int, world: World, *, cloud: bool) -> Iterator[tuple[Any, str]]:
    """`count` training scenes of the cloud, or of the edge, with a caption each."""
    for n in range(count):
        scene, seed = scene_number("train", n, world.scenes(cloud=cloud))
        yield scene, world.caption(scene, random.Random(-seed - 1), cloud=cloud)


def new_edge_tokenizer(captions: int | None = None, world: World = STICKERS) -> CLIPTokenizer:
    """CLIP byte-pair tokenizer trained on the edge's captions; it splits other words into letters."""
    return _clip_tokenizer(
        text for _, text in training_captions(captions or TOKENIZER_CAPTIONS, world, cloud=False)
    )


def new_clip_tokenizer(captions: int | None = None, world: World = STICKERS) -> CLIPTokenizer:
    """Tokenizer of the metric CLIP, and of a cloud U-Net; it knows the words of all topics."""
    return _clip_tokenizer(
        text for _, text in training_captions(captions or TOKENIZER_CAPTIONS, world, cloud=True)
    )


def _clip_tokenizer(texts: Iterator[str]) -> CLIPTokenizer:
    empty = CLIPTokenizer(model_max_length=MAX_TOKENS)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        end_of_word_suffix="</w>",
        # in a fixed order, which decides which of two equally frequent pairs is merged first
        special_tokens=[
            *SPECIAL,
            *(f"{letter}</w>" for letter in sorted(pre_tokenizers.ByteLevel.alphabet())),
        ],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    learner: Any = empty.backend_tokenizer
    learner.train_from_iterator(texts, trainer)
    merges = [tuple(merge) for merge in json.loads(learner.to_str())["model"]["merges"]]
    # ids in a fixed order: the trainer orders single letters differently in each run
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*SPECIAL, *letters, *(f"{letter}</w>" for letter in letters), *(a + b for a, b in merges)]
    vocab = {word: number for number, word in enumerate(dict.fromkeys(words))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_TOKENS)


def new_cloud_tokenizer(captions: int | None = None, world: World = STICKERS) -> T5Tokenizer:
    """T5 unigram tokenizer trained on the cloud's captions."""
    learner = Tokenizer(Unigram())
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    trainer = trainers.UnigramTrainer(
        vocab_size=VOCABULARY // 2,
        special_tokens=["<pad>", "</s>", "<unk>"],
        unk_token="<unk>",
        initial_alphabet=_ALPHABET,
        show_progress=False,
    )
    texts = [text for _, text in training_captions(captions or TOKENIZER_CAPTIONS, world, cloud=True)]
    learner.train_from_iterator(texts, trainer)
    # the order in which threads add scores varies: the last digits differ between runs
    vocab = [(piece, round(score, 3)) for piece, score in json.loads(learner.to_str())["model"]["vocab"]]
    # ids in a fixed order, as above
    unseen = sorted(set(_ALPHABET) - set("".join(texts)))
    special, learnt = vocab[:3], [pair for pair in vocab[3:] if pair[0] not in unseen]
    learnt.sort()
    scores = sorted((score for piece, score in vocab if piece in unseen), reverse=True)
    pieces = [*special, *learnt, *zip(unseen, scores, strict=True)]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=MAX_TOKENS)


def new_clip_text_encoder(tokenizer: CLIPTokenizer, width: int = 128, layers: int = 3) -> CLIPTextModel:
    """A small CLIP text encoder."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            projection_dim=width,
            num_hidden_layers=layers,
            num_attention_heads=width // 32,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def new_cloud_text_encoder(tokenizer: T5Tokenizer) -> T5EncoderModel:
    """A small T5 encoder with 3 layers of width 128."""
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
    """Token ids and attention mask, both (batch, MAX_TOKENS) int64, padded as in the pipelines."""
    cut = [text for text in texts if len(tokenizer(text, verbose=False).input_ids) > MAX_TOKENS]
    if cut:
        library_log().warning(
            "captions are cut", captions=len(cut), of=len(texts), tokens=MAX_TOKENS, one=cut[0]
        )
    out = tokenizer(texts, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt")
    return out.input_ids, out.attention_mask


def attribute_words(world: World) -> dict[str, tuple[str, ...]]:
    """Classes of the attributes that `AttributeReader` predicts; optional attributes have a class "none"."""
    return {**world.attributes, **{name: ("none", *words) for name, words in world.optional.items()}}


def attribute_indices(scene: Any, words: dict[str, tuple[str, ...]]) -> list[int]:
    """Class index of each attribute of the scene."""
    return [values.index(getattr(scene, name) or "none") for name, values in words.items()]


class AttributeReader(nn.Module):
    """A text encoder with one linear classifier for each attribute on its pooled states.

    For an attribute that a caption does not mention, it learns the most likely value.
    """

    def __init__(self, encoder: Any, sizes: list[int], *, masked_mean: bool) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = nn.ModuleList(nn.Linear(encoder.config.hidden_size, size) for size in sizes)
        self._masked_mean = masked_mean

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
        """Logits of each attribute, (batch, values)."""
        if self._masked_mean:
            states = self.encoder(tokens, attention_mask=mask).last_hidden_state
            weights = mask.unsqueeze(-1).float()
            pooled = (states * weights).sum(1) / weights.sum(1)
        else:
            # The pipeline pads with the end token and uses no mask: the last position attends to all.
            pooled = self.encoder(tokens).last_hidden_state[:, -1]
        return [head(pooled) for head in self.heads]


def pretrain_text_encoder(
    folder: Path,
    encoder: Any,
    tokenizer: Any,
    world: World,
    *,
    cloud: bool,
    seed: int,
    device: torch.device = CPU,
) -> tuple[Any, float]:
    """Train `encoder` to recognise the attributes in a caption.

    Returns:
        The averaged encoder, and the fraction of attributes that it recognises in captions of held-out
        scenes.
    """
    words = attribute_words(world)
    pairs = list(training_captions(PRETRAINING_CAPTIONS, world, cloud=cloud))
    tokens, mask = tokenize(tokenizer, [text for _, text in pairs])
    labels = torch.tensor([attribute_indices(scene, words) for scene, _ in pairs])
    sizes = [len(values) for values in words.values()]
    reader = AttributeReader(encoder, sizes, masked_mean=isinstance(encoder, T5EncoderModel)).to(device)
    run = TrainingRun(
        folder, reader, [torch.optim.AdamW(reader.parameters(), lr=2e-3)], seed=seed, ema_decay=0.98
    )

    def step(_: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        pick = torch.randint(len(pairs), (64,), generator=generator)
        logits = reader(tokens[pick].to(device), mask[pick].to(device))
        wanted = labels[pick].to(device)
        losses = [F.cross_entropy(one, wanted[:, i]) for i, one in enumerate(logits)]
        return {"loss": torch.stack(losses).sum()}

    run.run(step, PRETRAINING_STEPS)
    return run.average.encoder, _reading(run.average, tokenizer, world, cloud=cloud, device=device)


@torch.inference_mode()
def _reading(
    reader: AttributeReader,
    tokenizer: Any,
    world: World,
    *,
    cloud: bool,
    device: torch.device,
    count: int = 500,
) -> float:
    """Fraction of subjects, settings and styles recognised in captions of held-out scenes."""
    words = attribute_words(world)
    draw = world.scenes(cloud=cloud)
    scenes = [scene_number("validation", n, draw) for n in range(count)]
    captions = [world.caption(scene, random.Random(seed), cloud=cloud) for scene, seed in scenes]
    tokens, mask = tokenize(tokenizer, captions)
    logits = dict(zip(words, reader(tokens.to(device), mask.to(device)), strict=True))
    labels = torch.tensor([attribute_indices(scene, words) for scene, _ in scenes])
    always = ("subject", "setting", "style")
    right = [
        (logits[name].argmax(1).cpu() == labels[:, i]).float().mean()
        for i, name in enumerate(words)
        if name in always
    ]
    return round(float(torch.stack(right).mean()), 4)
