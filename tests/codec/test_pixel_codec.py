"""The codec of pixels: symbols, independence of the batch, training, and pictures through a link."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image

from dekag import LinkConditions, PixelLink
from dekag.api.limits import PIXEL_CODEC_STEP
from dekag.cala.conditions import condition_vector
from dekag.codec.constellation import to_maps, to_symbols
from dekag.errors import InvalidInputError, NotFoundError
from dekag.pictures import Picture, find_pictures
from dekag.pixel_codec import PixelCodec
from dekag.training.pixels import loss_of, reduced_photographs, squares_of, textures, train_pixels
from tests.chain import without_pixel_codec

SIDE = 32


def tiny(seed: int = 0) -> PixelCodec:
    torch.manual_seed(seed)
    codec = PixelCodec(symbol_channels=4, width=16, blocks=1, hidden=8)
    for block in (*codec.encoder.blocks, *codec.decoder.blocks):  # which begin as the identity
        torch.nn.init.normal_(block.gates.weight, std=0.1)
        torch.nn.init.normal_(block.second.weight, std=0.1)
    codec.eval()
    return codec


def conditions(snr_db: float, at: str = "sender") -> torch.Tensor:
    return condition_vector(1 / 48, LinkConditions(snr_db=snr_db, fading="awgn"), at=at)[None]  # type: ignore[arg-type]


def pictures(count: int = 1) -> torch.Tensor:
    return textures(count, torch.Generator().manual_seed(3), SIDE)


def test_symbols_and_maps_are_inverse() -> None:
    maps = torch.randn(2, 6, 4, 5)
    symbols = to_symbols(maps)
    assert symbols.shape == (2, 60)
    assert torch.equal(to_maps(symbols, 4, 5), maps)
    # channel by channel: the first positions are those of the first pair of maps
    assert torch.equal(symbols[:, 0], torch.complex(maps[:, 0, 0, 0], maps[:, 1, 0, 0]))


@pytest.mark.parametrize("uses", [1, 17, 4 * (SIDE // PIXEL_CODEC_STEP) ** 2])
@pytest.mark.parametrize("modulation", [None, "qam4", "qam256"])
def test_symbols_have_mean_power_one_and_lie_where_they_may(
    uses: int, modulation: Literal["qam4", "qam256"] | None
) -> None:
    codec = tiny()
    symbols = codec.encode(pictures(), [uses], conditions(5.0), modulation=modulation)
    assert symbols.shape == (1, uses)
    assert float(symbols.abs().square().mean()) == pytest.approx(1, abs=1e-4)
    if modulation is not None:
        assert len(set(symbols.real.flatten().tolist())) <= {"qam4": 2, "qam256": 16}[modulation]


def test_the_condition_changes_what_is_sent_and_what_is_received() -> None:
    codec, picture = tiny(), pictures()
    low, high = (
        codec.encode(picture, [40], conditions(snr), modulation="unquantised") for snr in (0.0, 20.0)
    )
    assert not torch.equal(low, high)
    shape = (3, SIDE, SIDE)
    bad, good = (codec.decode(high, shape, conditions(snr, "receiver")) for snr in (0.0, 20.0))
    assert bad.shape == (1, *shape)
    assert not torch.equal(bad, good)


def test_a_pictures_bits_do_not_depend_on_its_batch() -> None:
    codec, batch = tiny(), pictures(3)
    uses, known = [10, 64, 33], torch.cat([conditions(snr) for snr in (0.0, 10.0, 20.0)])
    together = codec.encode(batch, uses, known)
    seen = codec.decode(together, (3, SIDE, SIDE), known)
    for row in range(3):
        alone = codec.encode(batch[row : row + 1], [uses[row]], known[row : row + 1])
        assert torch.equal(together[row, : uses[row]], alone[0])
        assert not together[row, uses[row] :].any()
        assert torch.equal(seen[row], codec.decode(alone, (3, SIDE, SIDE), known[row : row + 1])[0])


def test_bad_arguments_are_named() -> None:
    codec = tiny()
    for uses in (0, 65):
        with pytest.raises(InvalidInputError, match="channel_uses must be between 1 and 64"):
            codec.encode(pictures(), [uses], conditions(10))
    with pytest.raises(InvalidInputError, match="width must be a multiple of 8"):
        codec.encode(pictures()[..., :30], [4], conditions(10))
    with pytest.raises(InvalidInputError, match="modulation must be one of qam4"):
        codec.encode(pictures(), [4], conditions(10), modulation="psk")  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="channel_uses must be one for each of 1 pictures"):
        codec.encode(pictures(), [4, 4], conditions(10))


def test_training_learns_and_the_same_seed_gives_the_same_weights(tmp_path: Path) -> None:
    def colours(count: int, generator: torch.Generator) -> torch.Tensor:
        return (2 * torch.rand(count, 3, 1, 1, generator=generator) - 1).expand(-1, -1, 16, 16)

    def psnr_db(codec: PixelCodec) -> float:
        squares = colours(24, torch.Generator().manual_seed(4))
        return float(loss_of(codec, squares, torch.Generator().manual_seed(5))["psnr_db"].detach())

    start = tiny()
    fast = {"batch": 6, "learning_rate": 2e-2, "show": False}
    trained = train_pixels(tmp_path / "a", [colours], steps=150, seed=1, start=start, **fast)
    assert psnr_db(trained) > psnr_db(start) + 1
    sources = [colours, lambda count, generator: textures(count, generator, 16)]
    first, again, other = (
        train_pixels(tmp_path / name, sources, steps=2, seed=seed, batch=3, show=False, start=start)
        for name, seed in (("b", 1), ("c", 1), ("d", 2))
    )
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), again.parameters(), strict=True))
    assert not all(torch.equal(p, q) for p, q in zip(first.parameters(), other.parameters(), strict=True))
    assert all(not torch.equal(p, q) for p, q in zip(first.parameters(), start.parameters(), strict=True))


def test_photographs_are_reduced_never_enlarged_and_cut_at_random(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 500, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    Image.fromarray(noise[:40]).save(tmp_path / "low.png")
    (sizes,) = reduced_photographs(find_pictures(tmp_path), (256, 384, 640))
    assert [each.shape[1] for each in sizes] == [256, 384]
    drawn = squares_of(sizes)(5, torch.Generator().manual_seed(0))
    assert drawn.shape == (5, 3, 64, 64)
    assert -1 <= float(drawn.min()) < float(drawn.max()) <= 1


def test_a_link_sends_pictures_of_any_size(tmp_path: Path, dummy_profile: Path) -> None:
    with pytest.raises(NotFoundError, match="names no pixel_codec"):
        PixelLink.load(without_pixel_codec(dummy_profile, tmp_path / "profile"))
    link = PixelLink.load(dummy_profile)
    y, x = np.mgrid[0:50, 0:200]
    picture = Picture(np.stack([x, 2 * y, 128 + 0 * x], -1).astype(np.uint8), "PNG")
    found = [
        link.picture(picture, LinkConditions(snr_db=10, fading="rayleigh"), seed=seed, cbr=1 / 60)
        for seed in (1, 1, 2)
    ]
    assert found[0].pixels is not None
    assert found[0].pixels.shape == picture.pixels.shape
    assert found[0].channel_uses == round(picture.pixels.size / 60)
    assert found[0].autoencoder_psnr_db is None
    assert np.array_equal(found[0].pixels, found[1].pixels)
    assert not np.array_equal(found[0].pixels, found[2].pixels)
    with pytest.raises(InvalidInputError, match="cbr must be above 0 and at most"):
        link.picture(picture, cbr=1 / 2)
    with pytest.raises(InvalidInputError, match="aligned"):
        PixelLink.load(dummy_profile, aligned=False)
