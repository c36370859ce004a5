"""Tokenizers that come out the same every time: a resumed training must read as it did before."""

from __future__ import annotations

import subprocess
import sys

from dekag.training.text import new_clip_tokenizer, new_cloud_tokenizer, new_edge_tokenizer

PROMPT = "a small red cat on the left in the meadow, neon style"
PROGRAM = """
from dekag.training.text import *
for new in (new_edge_tokenizer, new_clip_tokenizer, new_cloud_tokenizer):
    print(sorted(new(captions=300).get_vocab().items()))
"""


def test_every_process_makes_the_same_tokenizers() -> None:
    said = {
        subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, check=True).stdout
        for _ in range(2)
    }
    assert len(said) == 1


def test_edge_reads_an_unknown_style_letter_by_letter() -> None:
    edge, clip = new_edge_tokenizer(captions=1000), new_clip_tokenizer(captions=1000)
    assert edge.tokenize("neon") != clip.tokenize("neon")
    assert clip.tokenize("neon") == ["neon</w>"]
    assert len(edge.tokenize("neon")) > 1


def test_tokenizers_lose_nothing() -> None:
    for tokenizer in (new_edge_tokenizer(captions=300), new_cloud_tokenizer(captions=300)):
        ids = tokenizer(PROMPT).input_ids
        said = tokenizer.decode(ids, skip_special_tokens=True)
        assert said.replace(" ", "") == PROMPT.replace(" ", "")
