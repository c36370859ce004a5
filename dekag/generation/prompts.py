"""Prompts of any length, for text encoders that read so many tokens at a time.

A prompt that is longer is read in windows, each by itself between start and end token, and the denoiser
attends to the states of all of them. Windows end between words, and no phrase that is to stay whole is
divided, unless it alone is longer than a window. A prompt that fits in one window is read as the pipeline
reads it.
"""

from __future__ import annotations

import copy
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import regex
import torch

from dekag.errors import InvalidInputError
from dekag.generation.placement import device_and_dtype
from dekag.words import word_spans, words

_KNOWN_MOST = 256
"""Windows whose states are kept, where the text encoder is not: 2.4 MB each of T5-XXL in bfloat16."""
_T5_MOST = 300  # tokens, of which PixArt-Sigma was trained with at most so many
_GRAPHEME = regex.compile(r"\X")
Rows = Callable[[str], Sequence[int]]
"""Which vectors stand in front of a text."""


@dataclass(frozen=True)
class Window:
    """A part of a prompt that is read at a time.

    Attributes:
        ids: of its tokens, start and end left out.
        rows: which vectors stand in front of it, in order.
        text: of the prompt.
    """

    ids: tuple[int, ...]
    rows: tuple[int, ...]
    text: str


@dataclass(frozen=True)
class PromptRead:
    """How much of a prompt a model reads.

    Attributes:
        tokens: that the prompt has, start and end left out.
        tokens_read: of them; those that stand for unknown characters say nothing to the model.
        tokens_at_once: that the model reads at a time; more are read in windows.
    """

    tokens: int
    tokens_read: int
    tokens_at_once: int


class PromptReader:
    """Tokens and windows of prompts for one pipeline, from any thread.

    Args:
        pipeline: a StableDiffusionPipeline; a StableDiffusionXLPipeline, which has two text encoders; or a
            PixArtSigmaPipeline, which reads lower case alone and masks what it pads with.
        load_encoder: loads the text encoder of a pipeline without one. It is loaded for windows that have
            not been read yet, and dropped afterwards.

    Attributes:
        length: tokens of a window, start and end among them.
        masked: whether the denoiser is told which places hold nothing.
        paired: whether there are two text encoders.
    """

    def __init__(self, pipeline: Any, load_encoder: Callable[[], Any] | None = None) -> None:
        # a copy whose padding and truncation nobody changes, as the pipeline does with its own
        self._tokenizer = tokenizer = copy.deepcopy(pipeline.tokenizer)
        self._pipeline, self._load_encoder = pipeline, load_encoder
        self._known: OrderedDict[Window, tuple[torch.Tensor, torch.Tensor]] = OrderedDict()
        self.masked = hasattr(pipeline, "_text_preprocessing")
        self.paired = getattr(pipeline, "text_encoder_2", None) is not None
        encoder = pipeline.text_encoder
        if self.masked:
            places = _T5_MOST
        else:
            places = tokenizer.model_max_length if encoder is None else encoder.config.max_position_embeddings
        self.length = min(int(places), int(tokenizer.model_max_length))
        special = self._encode("", special=True)[0]
        starts = special[:1] == [tokenizer.bos_token_id]
        self._start, self._end = (special[:1], special[1:]) if starts else ([], special)
        self.room = self.length - len(special)

    @property
    def encoder(self) -> Any:
        """The pipeline's text encoder; None while it is not in memory."""
        return self._pipeline.text_encoder

    @property
    def pipeline_can_read(self) -> bool:
        """Whether the pipeline can read prompts itself: its text encoder is there, on the same device."""
        if self.encoder is None:
            return False
        denoiser = getattr(self._pipeline, "unet", None) or self._pipeline.transformer
        return device_and_dtype(self.encoder)[0] == device_and_dtype(denoiser)[0]

    def read(self, prompt: str) -> PromptRead:
        """How much is read of `prompt`."""
        ids = self._encode(self._said(prompt))[0]
        unknown = ids.count(self._tokenizer.unk_token_id)  # T5 has one token for all letters that it lacks
        return PromptRead(len(ids), len(ids) - unknown, self.room)

    def windows(
        self, prompt: str, rows: Rows = lambda _: (), phrases: Sequence[str] = ()
    ) -> tuple[Window, ...]:
        """The windows of `prompt`, at least one.

        Args:
            prompt: of any length.
            rows: which vectors stand in front of a window of this text; each takes the place of a token.
            phrases: that are to stay whole.

        Raises:
            InvalidInputError: so many vectors leave no room for a word.
        """
        text = self._said(prompt)
        ids, spans = self._encode(text)
        if len(ids) + len(chosen := tuple(rows(text))) <= self.room:
            return (Window(tuple(ids), chosen, text),)
        cuts, count = _cuts(text, spans, phrases), len(ids)
        found: list[Window] = []

        def window(start: int, end: int) -> Window:
            part = text[_at(spans, start, text) if start else 0 : _at(spans, end, text)]
            return Window(tuple(ids[start:end]), tuple(rows(part)), part)

        def spare(start: int, end: int) -> int:
            return self.room - (end - start) - len(window(start, end).rows)

        start = 0
        while start < count or not found:
            # of longer windows, none says less
            end = start + bisect_left(
                range(start + 1, count + 1), 1, key=lambda end: int(spare(start, end) < 0)
            )
            if end == start:
                may = f"topics whose metawords have fewer than {self.room} vectors together"
                raise InvalidInputError(
                    "knowledge", may, f"{self.room - 1 - spare(start, start + 1)} vectors"
                )
            if end < count:
                end = _last_cut(cuts, start, end)
            found.append(window(start, end))
            start = end
        return tuple(found)

    def negative_window(self, prompt: str) -> Window:
        """The only window of a negative prompt.

        Raises:
            InvalidInputError: it does not fit in one window.
        """
        first, *more = self.windows(prompt)
        if more:
            tokens = self.read(prompt).tokens
            raise InvalidInputError("negative_prompt", f"of at most {self.room} tokens", f"{tokens} tokens")
        return first

    def tensors(self, windows: Sequence[Window]) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and mask of windows, both (windows, length) int64; places of vectors hold the first token."""
        ids, mask = [], []
        for window in windows:
            first = (self._start or list(window.ids) or self._end)[:1]
            said = [*self._start, *first * len(window.rows), *window.ids, *self._end]
            spare = self.length - len(said)
            ids.append(said + [self._tokenizer.pad_token_id] * spare)
            mask.append([1] * len(said) + [0] * spare)
        return torch.tensor(ids), torch.tensor(mask)

    def states(self, prompts: Sequence[Sequence[Window]], negative_prompt: str = "") -> dict[str, Any]:
        """What the denoiser reads of prompts of equally many windows, and of none, as the pipeline takes it.

        The empty prompt is repeated, which changes nothing in what attention makes of it.

        Args:
            prompts: windows of each prompt.
            negative_prompt: takes the place of the empty prompt; see `negative_window`.
        """
        negative = self.negative_window(negative_prompt)
        if self.paired:
            return self._read_by_both(prompts, negative)
        nothing = [(negative,) * len(prompts[0])] * len(prompts)
        said, unsaid = (self._encoded(each) for each in (prompts, nothing))
        found = {"prompt_embeds": said[0], "negative_prompt_embeds": unsaid[0]}
        if self.masked:
            found |= {"prompt_attention_mask": said[1], "negative_prompt_attention_mask": unsaid[1]}
        return found

    def side_information(self, prompt: str) -> torch.Tensor:
        """What the text encoder says of the tokens of `prompt`, (tokens, width) float32 on the CPU.

        Start, end and filling tokens are left out, so that an empty prompt says nothing.
        """
        windows = self.windows(prompt)
        states, _ = self._read(windows)
        start = len(self._start)
        parts = [row[start : start + len(each.ids)] for row, each in zip(states, windows, strict=True)]
        return torch.cat(parts).to("cpu", torch.float32)

    def prepare(self, prompts: Sequence[str]) -> int:
        """Read prompts in advance, so that a text encoder that does not stay in memory is loaded once.

        Returns:
            How many of them, from the first: as many as there is room for, at least one.
        """
        if self.encoder is not None:
            return len(prompts)
        chosen, read = {*self.windows("")}, 0
        for prompt in prompts:
            more = {*self.windows(prompt)}
            if read and len(chosen | more) > _KNOWN_MOST:
                break
            chosen |= more
            read += 1
        self._read(sorted(chosen, key=lambda window: window.text))
        return read

    @torch.inference_mode()
    def _read_by_both(self, prompts: Sequence[Sequence[Window]], negative: Window) -> dict[str, torch.Tensor]:
        """The states of Stable Diffusion XL, whose pipeline joins what its text encoders make of a window.

        The summary of a prompt, which conditions the denoiser as well, is that of its first window.
        """
        device, _ = device_and_dtype(self.encoder)
        unwanted = negative.text or None  # None: the pipeline's own choice, which may be zeros
        read = [
            [self._pipeline.encode_prompt(each.text, device=device, negative_prompt=unwanted) for each in row]
            for row in prompts
        ]
        found = {
            name: torch.cat([torch.cat([window[i] for window in row], dim=1) for row in read])
            for i, name in enumerate(("prompt_embeds", "negative_prompt_embeds"))
        }
        for i, name in enumerate(("pooled_prompt_embeds", "negative_pooled_prompt_embeds"), 2):
            found[name] = torch.cat([row[0][i] for row in read])
        return found

    def _encoded(self, prompts: Sequence[Sequence[Window]]) -> tuple[torch.Tensor, torch.Tensor]:
        states, mask = self._read([window for prompt in prompts for window in prompt])
        return states.reshape(len(prompts), -1, states.shape[-1]), mask.reshape(len(prompts), -1)

    @torch.inference_mode()
    def _read(self, windows: Sequence[Window]) -> tuple[torch.Tensor, torch.Tensor]:
        """States (windows, tokens, width) and mask (windows, tokens) of windows."""
        if self.encoder is not None:
            return self.read_by(self.encoder, windows)
        new = [window for window in dict.fromkeys(windows) if window not in self._known]
        if new and self._load_encoder is not None:
            encoder = self._load_encoder()
            for window in new:
                states, mask = self.read_by(encoder, [window])
                self._known[window] = states.cpu(), mask
        found = [self._known[window] for window in windows]
        for window in windows:
            self._known.move_to_end(window)
        while len(self._known) > _KNOWN_MOST:
            self._known.popitem(last=False)
        return torch.cat([states for states, _ in found]), torch.cat([mask for _, mask in found])

    def read_by(self, encoder: Any, windows: Sequence[Window]) -> tuple[torch.Tensor, torch.Tensor]:
        """States (windows, tokens, width) and mask (windows, tokens) of windows, as the pipeline reads them.

        A text encoder of Stable Diffusion sees the mask if its configuration says so.
        """
        device, _ = device_and_dtype(encoder)
        ids, mask = (each.to(device) for each in self.tensors(windows))
        sees_mask = self.masked or getattr(encoder.config, "use_attention_mask", False)
        states: torch.Tensor = encoder(ids, attention_mask=mask if sees_mask else None)[0]
        return states, mask.cpu()

    def _said(self, prompt: str) -> str:
        return prompt.lower().strip() if self.masked else prompt

    def _encode(self, text: str, *, special: bool = False) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids of the tokens, and which characters each of them stands for."""
        found = self._tokenizer(text, add_special_tokens=special, return_offsets_mapping=True, verbose=False)
        return list(found["input_ids"]), list(found["offset_mapping"])


def _at(spans: Sequence[tuple[int, int]], token: int, text: str) -> int:
    return spans[token][0] if token < len(spans) else len(text)


def _cuts(text: str, spans: Sequence[tuple[int, int]], phrases: Sequence[str]) -> list[int]:
    """How well a window may end before each token: 0 at best, 4 within a character."""
    said = word_spans(text)
    inside_word = {at for _, begin, end in said for at in range(begin + 1, end)}
    inside_phrase: set[int] = set()
    for phrase in map(words, phrases):
        for i in range(len(said) - len(phrase) + 1):
            if phrase and tuple(word for word, *_ in said[i : i + len(phrase)]) == phrase:
                inside_phrase |= set(range(said[i][1] + 1, said[i + len(phrase) - 1][2]))
    starts = {match.start() for match in _GRAPHEME.finditer(text)}
    ranks = [4]
    for (_, before), (at, _) in pairwise(spans):
        if at < before or at not in starts:
            ranks.append(4)
        elif at in inside_word:
            ranks.append(3)
        elif at in inside_phrase:
            ranks.append(2)
        else:
            spaced = text[at : at + 1].isspace() or text[at - 1 : at].isspace()
            ranks.append(0 if spaced else 1)
    return [*ranks, 0]


def _last_cut(ranks: Sequence[int], start: int, most: int) -> int:
    """The last of the best places after `start` and up to `most` for a window to end."""
    return min(range(most, start, -1), key=lambda token: ranks[token])
