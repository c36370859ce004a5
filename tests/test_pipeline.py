"""The semantic link as a library: its examples, its batches, what it refuses."""

from __future__ import annotations

import doctest
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import dekag
from dekag import LinkConditions, SemanticLink, pipeline
from dekag import profile as profile_module
from dekag.cala.aligned_codec import AlignedCodec
from dekag.errors import InvalidInputError, NumericalError
from dekag.generation import placement as placement_module
from dekag.link import conditions as conditions_module
from dekag.link.channel import ChannelState, transmit
from dekag.pictures import Tiling

ROOT = Path(__file__).resolve().parents[1]
SHAPE = (4, 32, 32)
VALUES = 3 * 256 * 256


@pytest.fixture(scope="module")
def link() -> SemanticLink:
    return SemanticLink.load("stickers")


def _reference() -> Any:
    spec = importlib.util.spec_from_file_location("python_reference", ROOT / "scripts/python_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("module", [pipeline, profile_module, placement_module, conditions_module])
def test_the_examples_give_what_they_show(module: ModuleType) -> None:
    found = doctest.testmod(module)
    assert found.attempted
    assert not found.failed


def test_every_public_name_has_an_example() -> None:
    for item in _reference().INTERFACE:
        assert ">>>" in (item.__doc__ or ""), item
    for item in (pipeline.Sender, pipeline.Receiver, pipeline.DigitalSender, pipeline.apply_channel):
        assert ">>>" in (item.__doc__ or ""), item
    assert {item.__name__ for item in _reference().INTERFACE} == set(dekag.__all__)


def test_the_committed_reference_is_that_of_the_docstrings() -> None:
    stale = "run `python scripts/python_reference.py` and commit what it writes"
    assert _reference().reference() == (ROOT / "docs/python.md").read_text(), stale


@pytest.mark.parametrize("page", ["README.md", "docs/python.md"])
def test_five_lines_give_an_image(tmp_path: Path, page: str) -> None:
    (code,) = (
        block
        for block in re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
        if "SemanticLink" in block
    )
    assert len([line for line in code.splitlines() if line]) == 5
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"PSNR \d+\.\d dB in 2048 channel uses\n", done.stdout)
    assert (tmp_path / "car.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("code", ["import dekag", "from dekag import Client, LinkConditions, load_profile"])
def test_what_needs_no_torch_loads_none(code: str) -> None:
    code = f"{code}; import sys; print([name for name in ('torch', 'grpc', 'redis') if name in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout == "[]\n"


def test_a_name_that_is_not_there_is_told() -> None:
    with pytest.raises(AttributeError, match="'dekag' has no attribute 'SematicLink'"):
        dekag.SematicLink  # type: ignore[attr-defined]  # noqa: B018
    assert set(dekag.__all__) <= set(dir(dekag))


@pytest.mark.parametrize("aligned", [True, False])
def test_an_image_has_the_same_bits_alone_and_in_a_batch(link: SemanticLink, aligned: bool) -> None:
    codec = link.sender.codec
    assert isinstance(codec, AlignedCodec)
    link = link if aligned else SemanticLink(AlignedCodec(codec.base, codec.base_hash))
    latents = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0))
    conditions = [
        LinkConditions(snr_db=3, fading="awgn"),
        LinkConditions(snr_db=12, fading="tdl-a", csi="pilots"),
        LinkConditions(snr_db=0, reported_snr_db=20),
        LinkConditions(snr_db=9, equalizer="zf"),
    ]
    seeds, rates = [1, 2, 3, 4], [512, 77, 200, 1]
    size: dict[str, Any] = {"source_values": VALUES}
    symbols = link.sender.encode(latents, conditions, rates, seeds=seeds, **size)
    receptions = [pipeline.apply_channel(*each) for each in zip(symbols, conditions, seeds, strict=True)]
    decoded = link.receiver.decode(receptions, conditions, latent_shape=SHAPE, seeds=seeds, **size)
    for row, uses in enumerate(rates):
        alone = link.send(
            latents[row : row + 1], conditions[row : row + 1], seeds[row : row + 1], channel_uses=uses, **size
        )
        assert torch.equal(alone.symbols[0], symbols[row])
        assert alone.symbols[0].shape == (1, uses)
        assert torch.equal(alone.latents[0], decoded[row])


def test_sender_and_receiver_condition_the_codec_on_what_each_knows(link: SemanticLink) -> None:
    latents, truth = torch.randn(1, *SHAPE), LinkConditions(snr_db=0)
    misled = truth.model_copy(update={"reported_snr_db": 20.0})
    size: dict[str, Any] = {"source_values": VALUES, "seeds": [1]}
    told, sent = (link.sender.encode(latents, [each], [512], **size)[0] for each in (misled, truth))
    assert not torch.equal(told, sent)
    as_told = link.sender.encode(latents, [LinkConditions(snr_db=20)], [512], **size)[0]
    assert torch.equal(told, as_told)
    reception = pipeline.apply_channel(sent, truth, 1)
    by_report = link.receiver.decode([reception], [misled], latent_shape=SHAPE, **size)
    assert torch.equal(by_report, link.receiver.decode([reception], [truth], latent_shape=SHAPE, **size))


def test_a_better_channel_gives_a_better_image(link: SemanticLink) -> None:
    images = [link.image("a red boat", LinkConditions(snr_db=snr), seed=3) for snr in (-10, 5, 30)]
    assert images[0].psnr_db < images[1].psnr_db < images[2].psnr_db
    assert all((image.reference == images[0].reference).all() for image in images)


def test_pilots_count_as_channel_uses(link: SemanticLink) -> None:
    image = link.image("a red boat", LinkConditions(csi="pilots"), seed=3)
    assert image.pilot_uses > 0
    assert image.cbr == (2048 + image.pilot_uses) / VALUES


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"cbr": 0.0}, "cbr"),
        ({"cbr": float("nan")}, "cbr"),
        ({"cbr": float("inf")}, "cbr"),
        ({"cbr": 0.5}, "cbr"),
        ({"target_psnr_db": float("nan")}, "target_psnr_db"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"width": 100}, "width"),
        ({"height": 0}, "height"),
        ({"modulation": "qam8"}, "modulation"),
    ],
)
def test_what_is_out_of_range_is_named(link: SemanticLink, wrong: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        link.image("a red boat", **wrong)
    assert caught.value.field == field
    assert len(str(caught.value).splitlines()) == 1


def test_a_batch_whose_parts_do_not_fit_is_refused(link: SemanticLink) -> None:
    latents, conditions = torch.randn(2, *SHAPE), [LinkConditions()] * 2
    with pytest.raises(InvalidInputError, match="conditions must be one for each of 2 latents"):
        link.send(latents, conditions[:1], [1, 2])
    with pytest.raises(InvalidInputError, match="seeds must be one for each of 2 latents"):
        link.send(latents, conditions, [1, 2, 3])
    with pytest.raises(InvalidInputError, match="latents, at least 1"):
        link.send(latents[:0], [], [])
    with pytest.raises(InvalidInputError, match="channel_uses"):
        link.send(latents, conditions, [1, 2], channel_uses=2049)
    with pytest.raises(NumericalError, match="seed 2"):
        link.send(torch.stack([latents[0], latents[1] * torch.nan]), conditions, [1, 2])


def test_a_rate_for_a_quality_needs_to_know_what_to_expect(link: SemanticLink) -> None:
    with pytest.raises(InvalidInputError, match="what quality to expect"):
        SemanticLink.load("stickers", aligned=False).image("a red boat", target_psnr_db=20)
    rate = link.sender.rate(LinkConditions(), SHAPE, source_values=VALUES, target_psnr_db=60)
    assert rate.channel_uses == 2048
    assert rate.expected_psnr_db is not None
    assert rate.expected_psnr_db < 60


def test_a_link_without_a_generator_sends_latents_only(link: SemanticLink) -> None:
    bare = SemanticLink(link.sender.codec)
    latents = torch.randn(1, *SHAPE)
    bare.send(latents, [LinkConditions()], [1], source_values=VALUES)
    for use in (
        lambda: bare.image("a red boat"),
        lambda: bare.send(latents, [LinkConditions()], [1]),
    ):
        with pytest.raises(InvalidInputError, match="generator must be given"):
            use()


def test_one_hop_is_received_as_it_was_transmitted() -> None:
    symbols = torch.ones(1, 64, dtype=torch.complex64)
    sent = transmit(symbols, [LinkConditions(csi="pilots")], [5])
    state = ChannelState(sent.gains, sent.no, sent.gain_errors, sent.pilot_uses)
    received = pipeline.receive(sent.symbols, [state], 5)
    for name in ("symbols", "gains", "no", "gain_errors"):
        assert torch.equal(getattr(received, name), getattr(sent, name))
    with pytest.raises(NumericalError, match="seed 5"):
        pipeline.receive(sent.symbols * torch.nan, [state], 5)


def _conditions(count: int) -> list[LinkConditions]:
    return [LinkConditions(snr_db=10)] * count


@pytest.mark.parametrize(
    ("latents", "told"),
    [
        (torch.zeros(4, 32, 32), r"\(4, 32, 32\) torch.float32"),
        (torch.zeros(1, 4, 32, 32, dtype=torch.float64), r"torch.float64"),
        (torch.zeros(0, 4, 32, 32), r"\(0, 4, 32, 32\)"),
        (torch.zeros(1, 4, 0, 32), r"\(1, 4, 0, 32\)"),
        ("latents", "str"),
    ],
)
def test_latents_of_another_form_are_named(link: SemanticLink, latents: Any, told: str) -> None:
    said = rf"^latents must be \(B, channels, h, w\) float32, .*; got .*{told}"
    with pytest.raises(InvalidInputError, match=said):
        link.send(latents, _conditions(1), [1], source_values=VALUES)
    with pytest.raises(InvalidInputError, match=said):
        link.sender.encode(latents, _conditions(1), [1], source_values=VALUES, seeds=[1])


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize(
    ("shape", "told"),
    [((16, 32, 32), r"\(batch, 4, h, w\)"), ((4, 33, 32), "of sides that are multiples of 4")],
)
def test_latents_that_the_codec_does_not_have_are_named(
    link: SemanticLink, aligned: bool, shape: tuple[int, int, int], told: str
) -> None:
    codec = link.sender.codec
    assert isinstance(codec, AlignedCodec)
    mine = SemanticLink(codec if aligned else AlignedCodec(codec.base, codec.base_hash))
    for rows in (1, 2):
        many = torch.zeros(rows, *shape)
        with pytest.raises(InvalidInputError, match=f"^latents must be {told}"):
            mine.send(many, _conditions(rows), range(rows), source_values=VALUES, channel_uses=8)
    received = transmit(torch.ones(1, 8, dtype=torch.complex64), _conditions(1), [1])
    with pytest.raises(InvalidInputError, match=r"^latent_shape must be"):
        mine.receiver.decode([received], _conditions(1), latent_shape=shape, source_values=VALUES, seeds=[1])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"conditions": _conditions(3)}, "conditions must be one for each of 2 latents; got '3'"),
        ({"channel_uses": [8]}, "channel_uses must be one for each of 2 latents; got '1'"),
        ({"seeds": [1]}, "seeds must be one for each of 2 latents; got '1'"),
        ({"text": [None]}, "text must be one for each of 2 latents; got '1'"),
        ({"text": [None, torch.zeros(3, 5)]}, r"text must be None or the states \(tokens, 128\) of a prompt"),
        ({"text": [None, "a boat"]}, "text must be None or the states .*got 'str'"),
        ({"channel_uses": [8, 0]}, "channel_uses must be between 1 and 2048; got '0'"),
        ({"channel_uses": [2049, 8]}, "channel_uses must be between 1 and 2048; got '2049'"),
        ({"channel_uses": [8, 7.5]}, "channel_uses must be between 1 and 2048; got '7.5'"),
        ({"source_values": 0}, "source_values must be an integer of at least 1; got '0'"),
        ({"modulation": "qam"}, "modulation must be one of"),
    ],
)
def test_a_sender_names_what_does_not_fit(link: SemanticLink, changes: dict[str, Any], told: str) -> None:
    given = {"conditions": _conditions(2), "channel_uses": [8, 8], "source_values": VALUES, "seeds": [1, 2]}
    with pytest.raises(InvalidInputError, match=f"^{told}"):
        link.sender.encode(torch.zeros(2, *SHAPE), **{**given, **changes})


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"receptions": []}, "receptions must be at least 1"),
        ({"conditions": _conditions(2)}, "conditions must be one for each of 1 receptions; got '2'"),
        ({"seeds": []}, "seeds must be one for each of 1 receptions; got '0'"),
        ({"text": [None, None]}, "text must be one for each of 1 receptions; got '2'"),
        ({"latent_shape": (4, 32)}, r"latent_shape must be \(channels, h, w\), three integers"),
        ({"latent_shape": (4, 2, 2)}, "latent_shape must be large enough for a symbol of the codec"),
        ({"latent_shape": (4, 4, 4)}, r"receptions must be of symbols \(1, K\) .*, K between 1 and 32; got"),
        ({"source_values": 1.5}, "source_values must be an integer of at least 1"),
    ],
)
def test_a_receiver_names_what_does_not_fit(link: SemanticLink, changes: dict[str, Any], told: str) -> None:
    received = transmit(torch.ones(1, 40, dtype=torch.complex64), _conditions(1), [1])
    given = {"conditions": _conditions(1), "latent_shape": SHAPE, "source_values": VALUES, "seeds": [1]}
    whole = {"receptions": [received], **given}
    assert link.receiver.decode(**whole).shape == (1, *SHAPE)
    with pytest.raises(InvalidInputError, match=f"^{told}"):
        link.receiver.decode(**{**whole, **changes})


def test_tiles_that_do_not_fit_their_picture_are_named(link: SemanticLink) -> None:
    tiling, conditions = Tiling.of(300, 100, 256), LinkConditions(snr_db=10)
    tiles = torch.zeros(2, 4, tiling.tile_height // 8, tiling.tile_width // 8)
    wrong = [
        (tiles[:1], 16, "latents must be one for each of 2 tiles"),
        (torch.zeros(2, *SHAPE), 16, "latents must be of tiles of 160x128 pixels"),
        (tiles, 1, "channel_uses must be at least 2, one for each tile"),
        (tiles, 10_000, "channel_uses must be between 1 and"),
    ]
    for latents, uses, told in wrong:
        with pytest.raises(InvalidInputError, match=told):
            link.send_tiles(latents, tiling, conditions, 1, rate=pipeline.Rate(uses))
    received = transmit(torch.ones(1, 1, dtype=torch.complex64), [conditions], [1])
    with pytest.raises(InvalidInputError, match="reception must be of at least 2 symbols, one for each tile"):
        link.receiver.decode_tiles(received, conditions, tiling, latent_shape=tuple(tiles.shape[1:]), seed=1)
    with pytest.raises(InvalidInputError, match=r"^symbols must be \(B, K\) complex64; got .*float32"):
        pipeline.receive(torch.ones(1, 8), [], 1)
