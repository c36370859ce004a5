"""Prompts of any length: where windows end, and that short ones are read as ever, long ones whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dekag.errors import InvalidInputError
from dekag.generation.models import Generator
from dekag.makd.metaword import encode_prompts
from dekag.profile import load_profile
from dekag.words import words

WORDS = [
    "red",
    "boat",
    "on",
    "the",
    "beach",
    "blue",
    "cat",
    "in",
    "the",
    "meadow",
    "pastel",
    "style",
    "small",
    "house",
]
LONG = {count: " ".join(WORDS[i % len(WORDS)] for i in range(count)) for count in (41, 80, 200)}
SHORT = ["", "a red boat", "Été, a 船!", "a <|endoftext|> b", "a b " * 9, "  spaces \n and lines "]


@pytest.fixture(scope="module", params=["cloud", "edge"])
def generator(request: pytest.FixtureRequest, dummy_profile: Path) -> Generator:
    return Generator.from_profile(load_profile(dummy_profile), request.param)


@pytest.fixture(scope="module")
def edge(dummy_profile: Path) -> Generator:
    return Generator.from_profile(load_profile(dummy_profile), "edge")


@pytest.mark.parametrize("prompt", SHORT)
def test_a_prompt_that_fits_is_read_as_the_pipeline_reads_it(generator: Generator, prompt: str) -> None:
    reader, pipeline = generator.reader, generator.pipeline
    said = prompt.lower().strip() if reader.masked else prompt
    theirs = pipeline.tokenizer(
        said, padding="max_length", max_length=reader.length, truncation=True, return_tensors="pt"
    )
    windows = reader.windows(prompt)
    assert len(windows) == 1
    ids, mask = reader.tensors(windows)
    assert torch.equal(ids, theirs.input_ids)
    assert torch.equal(mask, theirs.attention_mask)


def test_a_text_encoder_that_sees_the_mask_reads_as_in_the_pipeline(dummy_profile: Path) -> None:
    edge = Generator.from_profile(load_profile(dummy_profile), "edge")
    edge.pipeline.text_encoder.config.use_attention_mask = True
    theirs, _ = edge.pipeline.encode_prompt("a red boat", "cpu", 1, False)
    windows = [edge.reader.windows("a red boat")]
    ours = edge.reader.states(windows)["prompt_embeds"]
    taught, _ = encode_prompts(edge.reader, windows, torch.zeros(0, ours.shape[-1]))
    assert torch.equal(ours, theirs)
    assert torch.equal(taught, theirs)


@pytest.mark.parametrize("count", LONG)
def test_no_word_is_lost_or_cut(generator: Generator, count: int) -> None:
    reader = generator.reader
    windows = reader.windows(LONG[count])
    assert len(windows) > 1
    assert all(0 < len(window.ids) <= reader.room for window in windows)
    assert "".join(window.text for window in windows) == LONG[count]
    assert [word for window in windows for word in words(window.text)] == LONG[count].split()
    read = reader.read(LONG[count])
    assert read.tokens == read.tokens_read == sum(len(window.ids) for window in windows)
    assert reader.tensors(windows)[0].shape == (len(windows), reader.length)


@pytest.mark.parametrize(
    "prompt",
    [
        "一艘红船在海滩上" * 20,
        "แมวสีแดงบนชายหาด" * 12,
        "סירה אדומה על החוף " * 12,
        "👩\u200d🚀🐙🇩🇪" * 12,
        "e\u0301te\u0301 " * 40,
        "x" * 400,
        "a " + "y" * 200 + " b",
        "neon, " * 60,
    ],
)
def test_any_script_is_read_whole(generator: Generator, prompt: str) -> None:
    windows = generator.reader.windows(prompt)
    said = prompt.lower().strip() if generator.reader.masked else prompt
    assert "".join(window.text for window in windows) == said
    assert sum(len(window.ids) for window in windows) == generator.reader.read(prompt).tokens
    for window in windows[1:]:
        assert not window.text.startswith(("\u0301", "\u200d", "🚀")), "divided within a character"


def test_characters_that_a_model_does_not_know_are_not_counted_as_read(dummy_profile: Path) -> None:
    cloud, edge = (Generator.from_profile(load_profile(dummy_profile), role) for role in ("cloud", "edge"))
    prompt = "a red boat 船"
    read = cloud.reader.read(prompt)
    assert read.tokens_read == read.tokens - 1, "T5 has one token for all unknown characters"
    assert edge.reader.read(prompt).tokens == edge.reader.read(prompt).tokens_read, "CLIP reads bytes"


@pytest.mark.parametrize("before", range(20, 44))
def test_a_phrase_with_a_vector_stays_whole_at_any_place(edge: Generator, before: int) -> None:
    prompt = " ".join(["red"] * before + ["at", "DUSK"] + ["blue"] * 30)

    def rows(text: str) -> list[int]:
        return [0, 1, 2] if "at dusk" in " ".join(words(text)) else [0, 1]

    windows = edge.reader.windows(prompt, rows, ["at dusk"])
    assert "".join(window.text for window in windows) == prompt
    assert sum(window.rows == (0, 1, 2) for window in windows) == 1
    assert all(len(window.ids) + len(window.rows) <= edge.reader.room for window in windows)


def test_vectors_that_leave_no_room_are_refused(edge: Generator) -> None:
    room = edge.reader.room
    assert len(edge.reader.windows("a b c", lambda _: range(room - 1))) == 3
    with pytest.raises(InvalidInputError, match="metawords have fewer than"):
        edge.reader.windows("a b c", lambda _: range(room))


def test_the_last_word_of_a_long_prompt_counts(generator: Generator) -> None:
    first, other = (
        generator.latents(f"{LONG[80]} {end}", 1, width=64, height=64) for end in ("neon", "crayon")
    )
    assert not torch.allclose(first, other)
    assert torch.equal(first, generator.latents(f"{LONG[80]} neon", 1, width=64, height=64))


def test_long_prompts_in_a_batch_do_not_change_the_bits_of_short_ones(generator: Generator) -> None:
    size = {"width": 64, "height": 64}
    short, seeds = ["a red boat", "a blue cat"], [1, 2]
    alone = generator.batch(short, seeds, **size)
    mixed = generator.batch([LONG[200], short[0], LONG[80], short[1]], [5, 1, 6, 2], **size)
    assert torch.equal(mixed[[1, 3]], alone)
    assert torch.equal(mixed[:1], generator.latents(LONG[200], 5, **size))


def test_states_of_different_length_are_told_apart_by_the_mask(edge: Generator) -> None:
    reader = edge.reader
    prompts = [reader.windows(each) for each in ("a red boat", LONG[80])]
    none = torch.zeros(0, edge.pipeline.text_encoder.config.hidden_size)
    states, mask = encode_prompts(reader, prompts, none)
    assert mask is not None
    assert mask.sum(1).tolist() == [len(each) * reader.length for each in prompts]
    noisy, at = torch.randn(2, 4, 8, 8), torch.tensor([10, 10])
    with torch.no_grad():
        both = edge.pipeline.unet(noisy, at, encoder_hidden_states=states, encoder_attention_mask=mask).sample
        short, _ = encode_prompts(reader, prompts[:1], none)
        alone = edge.pipeline.unet(noisy[:1], at[:1], encoder_hidden_states=short).sample
    torch.testing.assert_close(both[:1], alone)
