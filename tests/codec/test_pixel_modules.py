"""Codecs of pixels that are a user's own modules: what the link asks of them, over the real link."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dekag import LinkConditions, PixelLink, plugins
from dekag.cala.conditions import condition_vector
from dekag.errors import InvalidInputError, MismatchError, NotFoundError, NumericalError
from dekag.inventory import parts, problems
from dekag.pictures import Picture, Tiling
from dekag.pixel_codec import PixelCodec
from dekag.pixel_modules import PixelModules, load_pixel_codec, pixel_codec_hash
from dekag.profile import load_profile
from tests.fetched import EXAMPLE, MODELS, fetch

pytestmark = pytest.mark.usefixtures("plugging")


@pytest.fixture
def fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that makes a profile with one of the architectures, and loads its plug-in."""

    def made(name: str, profile: Path) -> Path:
        plugins.load(f"{EXAMPLE}:{name}")
        return fetch(name, profile, tmp_path, monkeypatch)

    return made


def picture(width: int, height: int) -> Picture:
    y, x = np.mgrid[:height, :width]
    return Picture(np.stack([x, 2 * y, x + y], axis=-1).astype(np.uint8), "PNG")


@pytest.mark.parametrize(
    ("name", "cbr", "tiling", "uses"),
    [
        ("DeepJscc", 1 / 6, "1 tile of 52x44, padded from 50x43 to 52x44", 8 * 8 * 10 // 2),
        ("AdJscc", 1 / 11, "1 tile of 52x44, padded from 50x43 to 52x44", 8 * 11 * 13 // 2),
        ("SwinJscc", 0.55, "1 tile of 128x128, padded from 50x43 to 128x128", 328 * 4 + 64 * 64 // 2),
    ],
)
def test_each_architecture_is_sent_over_the_link(
    fetched: Any, dummy_profile: Path, name: str, cbr: float, tiling: str, uses: int
) -> None:
    link = PixelLink.load(fetched(name, dummy_profile))
    sent = picture(50, 43)
    results = {}
    for snr_db in (0.0, 32.0):
        conditions = LinkConditions(snr_db=snr_db, fading="awgn")
        received = link.picture(sent, conditions, seed=3, cbr=cbr)
        assert received.pixels is not None
        assert received.pixels.shape == sent.pixels.shape
        assert (str(received.tiling), received.channel_uses) == (tiling, uses)
        again = link.picture(sent, conditions, seed=3, cbr=cbr)
        assert np.array_equal(received.pixels, again.pixels)
        results[snr_db] = received.pixels.astype(int)
    assert not np.array_equal(results[32.0], results[0.0])
    # without a channel, the modules make the same of it: power, layout, mask and scale are not lost
    codec = link.codec
    assert isinstance(codec, PixelModules)
    assert received.tiling is not None
    tile = torch.from_numpy(received.tiling.split(sent.pixels)).permute(0, 3, 1, 2) / 255
    with torch.inference_mode():
        if name == "SwinJscc":
            values, _ = codec.model.encoder(tile, 32.0, 64, codec.kind)
            alone = codec.model.decoder(values, 32.0, codec.kind)
        else:
            alone = codec.decoded(codec.encoded(tile, 32.0).view(1, 8, *codec.shape(44, 52)[-2:]), 32.0)
            if name == "AdJscc":  # its encoder does not normalise, and the scale of what it sends is lost
                values = codec.encoded(tile, 32.0)
                alone = codec.decoded(values * values.square().mean().rsqrt(), 32.0)
    wanted = received.tiling.join((alone * 255).round().byte().permute(0, 2, 3, 1).numpy()).astype(int)
    assert np.abs(results[32.0] - wanted).mean() <= 1.5
    assert np.abs(results[0.0] - wanted).mean() > 2.5


def test_each_tile_has_the_symbols_of_the_architecture(fetched: Any, dummy_profile: Path) -> None:
    received = PixelLink.load(fetched("AdJscc", dummy_profile)).picture(
        picture(600, 40), LinkConditions(snr_db=20, fading="rayleigh"), cbr=1 / 12
    )
    assert received.tiling is not None
    assert (received.tiling.count, received.tiling.tile_width) == (2, 300)
    assert received.channel_uses == 2 * 8 * 10 * 75 // 2
    assert received.cbr == pytest.approx(1 / 12)


def test_a_rate_below_the_codecs_is_refused_by_name(fetched: Any, dummy_profile: Path) -> None:
    link = PixelLink.load(fetched("AdJscc", dummy_profile))
    with pytest.raises(
        InvalidInputError, match=r"cbr must be at least 0\.0833333 for this size and the codec"
    ):
        link.picture(picture(64, 64), cbr=1 / 96)
    with pytest.raises(InvalidInputError, match="cbr must be a number above 0"):
        link.picture(picture(64, 64), cbr=float("nan"))


def test_a_codec_of_several_rates_takes_what_fits(fetched: Any, dummy_profile: Path) -> None:
    codec = load_pixel_codec(Path(fetched("SwinJscc", dummy_profile)) / "own")
    assert isinstance(codec, PixelModules)
    whole = Tiling.of(256, 256, codec.tile, codec.step)
    counts = codec.symbol_counts(256, 256)
    values = 3 * 256 * 256
    assert [codec.channel_uses(whole, count / values) for count in counts] == list(counts)
    assert codec.channel_uses(whole, (counts[2] - 1) / values) == counts[1]
    assert codec.channel_uses(whole, 1.0) == codec.max_channel_uses((3, 256, 256)) == counts[-1]


def test_padding_brings_no_symbols(fetched: Any, dummy_profile: Path) -> None:
    """A picture is sent with no more symbols than any other sender has for it at that rate."""
    link = PixelLink.load(fetched("SwinJscc", dummy_profile))
    codec = link.codec
    assert isinstance(codec, PixelModules)
    for width, height in ((130, 130), (512, 200), (600, 130)):
        tiling = Tiling.of(width, height, codec.tile, codec.step)
        for cbr in (1 / 6, 0.2, 0.3):
            try:
                sent = link.rate(width, height, cbr).channel_uses
            except InvalidInputError as error:
                lowest = float(error.allowed.split()[2])
                assert lowest > cbr
                sent, cbr = link.rate(width, height, lowest).channel_uses, lowest
            assert sent <= round(cbr * 3 * width * height)
            assert sent % tiling.count == 0
            counts = codec.symbol_counts(tiling.tile_height, tiling.tile_width)
            assert sent // tiling.count in counts


def test_a_deep_fade_of_one_repeat_does_not_spoil_the_mask(fetched: Any, dummy_profile: Path) -> None:
    """Zero forcing makes noise of it that is larger than all other repeats together."""
    codec = load_pixel_codec(Path(fetched("SwinJscc", dummy_profile)) / "own")
    assert isinstance(codec, PixelModules)
    image = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        symbols = codec.to_symbols(image, codec.symbol_counts(128, 128)[0], 10.0)
        faded = symbols.clone()
        faded[:, : codec.header : codec.repeats] *= -40  # a repeat of each bit
        for heard in (symbols, faded):
            codec.to_image(heard, 128, 128, 10.0)
            kept = codec.model.decoder.heard[0].abs().sum(dim=0) > 0
            _, mask = codec.model.encoder(image, 10.0, 32, codec.kind)
            assert torch.equal(kept, mask[0, 0] > 0)


def test_the_mask_arrives_over_rayleigh_fading(fetched: Any, dummy_profile: Path) -> None:
    link = PixelLink.load(fetched("SwinJscc", dummy_profile))
    codec = link.codec
    assert isinstance(codec, PixelModules)
    whole = 0
    for seed in range(20):
        link.picture(picture(128, 128), LinkConditions(snr_db=10, fading="rayleigh"), seed=seed, cbr=0.1)
        tile = torch.from_numpy(picture(128, 128).pixels).permute(2, 0, 1)[None] / 255
        with torch.inference_mode():
            _, mask = codec.model.encoder(tile, 10.0, 96, codec.kind)
        whole += torch.equal(codec.model.decoder.heard[0].abs().sum(dim=0) > 0, mask[0, 0] > 0)
    assert whole >= 19


def test_the_shapes_that_are_known_are_bounded(fetched: Any, dummy_profile: Path) -> None:
    codec = load_pixel_codec(Path(fetched("DeepJscc", dummy_profile)) / "own")
    assert isinstance(codec, PixelModules)
    for width in range(16, 16 + 4 * 70, 4):
        assert list(codec.symbol_counts(16, width)) == list(codec.symbol_counts(16, width))
    assert len(codec._shapes) <= 64


def test_the_snr_reaches_both_ends(fetched: Any, dummy_profile: Path) -> None:
    """The sender knows the reported SNR, the receiver the true one."""
    plugins.register(Told)
    codec = Told()
    link = PixelLink(codec)
    link.picture(picture(16, 16), LinkConditions(snr_db=3, reported_snr_db=17, fading="awgn"), cbr=1 / 6)
    assert codec.heard == {"sender": 17.0, "receiver": 3.0}
    assert codec.images[0] >= 0
    assert codec.images[1] <= 1


class Told(PixelModules):
    """Sends every pixel's red as the real part of a symbol, of a power of its own."""

    name = "told"
    step = 2

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.5)
        self.heard: dict[str, float] = {}
        self.images = (0.0, 0.0)

    @classmethod
    def load(cls, folder: Path) -> Self:
        return cls()

    def symbol_counts(self, height: int, width: int) -> Sequence[int]:
        return [height * width // 4]

    def to_symbols(self, image: torch.Tensor, count: int, snr_db: float) -> torch.Tensor:
        self.heard["sender"] = snr_db
        self.images = float(image.min()), float(image.max())
        small = F.avg_pool2d(self.dropout(image[:, 0]), 2).flatten(1)
        return 100 * torch.complex(small, torch.zeros_like(small))

    def to_image(self, symbols: torch.Tensor, height: int, width: int, snr_db: float) -> torch.Tensor:
        self.heard["receiver"] = snr_db
        small = symbols.real.view(1, 1, height // 2, width // 2)
        return F.interpolate(small, scale_factor=2).expand(-1, 3, -1, -1)


def test_symbols_have_power_one_and_are_not_shrunk(fetched: Any) -> None:
    codec = Told().eval()
    condition = condition_vector(1 / 12, LinkConditions(snr_db=0, fading="awgn"), at="sender")[None]
    tile = torch.rand(1, 3, 64, 64) * 2 - 1
    symbols = codec.encode(tile, [1024], condition)
    assert float(symbols.abs().square().mean()) == pytest.approx(1, abs=1e-5)
    small = codec.encode(tile, [1024], condition, modulation="qam4")
    assert len(set(small.real.flatten().tolist())) <= 2
    flat = Picture(np.full((64, 64, 3), 255, np.uint8), "PNG")
    received = PixelLink(codec).picture(flat, LinkConditions(snr_db=0, fading="awgn"), cbr=1 / 12)
    assert received.pixels is not None
    # every symbol is 1: with noise of the same power the mean stays, which MMSE would halve
    heard = codec.decode(torch.ones(1, 1024) + 0j, (3, 64, 64), condition)
    assert float(heard.mean()) == pytest.approx(1, abs=1e-5)
    assert received.pixels.mean() > 150


def broken(**changes: Any) -> PixelModules:
    return type("Broken", (Told,), {"name": "broken", **changes})()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"to_symbols": lambda *_: 1 / 0},
            "to_symbols of the codec of pixels broken failed: ZeroDiv",
        ),
        ({"to_symbols": lambda *_: torch.zeros(1, 3) + 0j}, r"must return a tensor \(1, 64\); got \(1, 3\)"),
        ({"to_symbols": lambda *_: torch.zeros(1, 64)}, "must return complex numbers"),
        ({"to_symbols": lambda *_: None}, "got NoneType"),
        (
            {"to_image": lambda *_: torch.zeros(1, 3, 8, 8)},
            r"\(1, 3, 16, 16\); got \(1, 3, 8, 8\)",
        ),
        ({"symbol_counts": lambda *_: []}, "symbol_counts .* must ascend from 1 or more"),
        ({"symbol_counts": lambda *_: [64, 32]}, "must ascend"),
        ({"symbol_counts": lambda *_: 64}, "symbol_counts .* must return a list of integers; got 64"),
        ({"symbol_counts": lambda *_: [64.0]}, r"must return a list of integers; got \[64.0\]"),
    ],
)
def test_a_plug_in_that_fails_is_named(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(MismatchError, match=told):
        PixelLink(broken(**changes)).picture(picture(16, 16), cbr=1 / 6)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"load": classmethod(lambda *_: None)}, "load .* unfit must return a PixelModules; got NoneType"),
        ({"load": classmethod(lambda *_: nn.Identity())}, "got Identity"),
        ({"step": 0}, "step of the codec of pixels unfit must be .*; got step 0 and tile 512"),
        ({"step": 48}, "tile a multiple of it; got step 48 and tile 512"),
        ({"step": 2.0}, "got step 2.0 and tile 512"),
        ({"tile": 0}, "got step 2 and tile 0"),
    ],
)
def test_a_plug_in_that_does_not_fit_is_named(changes: dict[str, Any], told: str, tmp_path: Path) -> None:
    plugins.register(type("Unfit", (Told,), {"name": "unfit", **changes}))
    (tmp_path / "config.json").write_text('{"_class_name": "Unfit"}')
    with pytest.raises(MismatchError, match=told):
        load_pixel_codec(tmp_path)


@pytest.mark.parametrize("function", [load_pixel_codec, pixel_codec_hash])
def test_a_config_that_cannot_be_read_is_named(
    function: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "diffusers.configuration_utils.hf_hub_download", lambda *_, **__: pytest.fail("a hub")
    )
    config = tmp_path / "config.json"
    with pytest.raises(NotFoundError, match=r"no .*config\.json"):
        function(tmp_path)
    with pytest.raises(NotFoundError, match=r"no google/codec/config\.json"):
        function("google/codec")
    for text in ("{", "[]", "\0"):
        config.write_text(text)
        with pytest.raises(MismatchError, match=r"config\.json"):
            function(tmp_path)


def test_a_folder_names_its_class(fetched: Any, dummy_profile: Path, tmp_path: Path) -> None:
    own = fetched("AdJscc", dummy_profile) / "own"
    codec = load_pixel_codec(own)
    assert not codec.training, "modules of a plug-in are set to eval"
    before = pixel_codec_hash(own)
    assert codec.base_hash == before
    network = Path(str(sys.modules["adjscc_model"].__file__))
    code = network.read_text()
    network.write_text(code.replace("/ 20", "/ 10"))
    assert pixel_codec_hash(own) != before, "the network that the plug-in imports counts"
    network.write_text(code)
    assert pixel_codec_hash(own) == before
    weights = (own / "weights.pt").read_bytes()
    (own / "weights.pt").write_bytes(weights + b"\0")
    assert pixel_codec_hash(own) != before, "weights of any format count"
    (own / "weights.pt").write_bytes(b"damaged")
    with pytest.raises(MismatchError, match="codec of pixels adjscc cannot be loaded"):
        load_pixel_codec(own)
    (own / "config.json").write_text('{"_class_name": "Nobody"}')
    with pytest.raises(NotFoundError, match="is a Nobody, not one of PixelCodec, AdJscc; load its plug-in"):
        load_pixel_codec(own)
    with pytest.raises(InvalidInputError, match="unique"):
        plugins.register(type("PixelCodec", (Told,), {"name": "another"}))


PAPERS_DEEPJSCC = """
from torch import nn

def layers(kind, sizes, strides):
    for (before, after), stride in zip(zip(sizes, sizes[1:]), strides, strict=True):
        more = {"output_padding": stride - 1} if kind is nn.ConvTranspose2d else {}
        yield kind(before, after, 5, stride=stride, padding=2, **more)
        yield nn.PReLU()

class DeepJSCC(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.encoder = nn.Sequential(*layers(nn.Conv2d, (3, 16, 32, 32, 32, c), (2, 2, 1, 1, 1)))
        *decoder, _ = layers(nn.ConvTranspose2d, (c, 32, 32, 32, 16, 3), (1, 1, 1, 2, 2))
        self.decoder = nn.Sequential(*decoder, nn.Sigmoid())
"""


def test_a_deepjscc_of_the_papers_layers_has_the_papers_rate(
    fetched: Any, dummy_profile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bourtsoulatze, Kurka and Gündüz, 2019: c = 8 channels are k/n = 1/12; the weights are random."""
    monkeypatch.setitem(MODELS, "DeepJscc", PAPERS_DEEPJSCC)
    link = PixelLink.load(fetched("DeepJscc", dummy_profile))
    received = link.picture(picture(32, 32), LinkConditions(snr_db=10, fading="awgn"), cbr=1 / 12)
    assert (received.channel_uses, received.cbr) == (256, 1 / 12)
    with torch.inference_mode():
        alone = link.codec.decoder(link.codec.encoder(torch.zeros(1, 3, 32, 32)))
    assert alone.shape == (1, 3, 32, 32)
    assert received.pixels is not None
    assert received.pixels.shape == (32, 32, 3)


@pytest.mark.parametrize("name", ["DeepJscc", "AdJscc", "SwinJscc"])
def test_weights_of_another_model_are_refused(fetched: Any, dummy_profile: Path, name: str) -> None:
    file = fetched(name, dummy_profile) / "own" / "weights.pt"
    right = torch.load(file, weights_only=True)
    first, *_ = right
    others = {
        "one is missing": {name: each for name, each in right.items() if name != first},
        "one is too many": {**right, "encoder.further.weight": torch.zeros(3)},
        "other names": {f"module.{name}": each for name, each in right.items()},
        "another shape": {**right, first: torch.zeros(7)},
        "none": {},
    }
    for kind, weights in others.items():
        torch.save(weights, file)
        with pytest.raises(MismatchError, match="cannot be loaded from") as error:
            load_pixel_codec(file.parent)
        assert name.lower() in str(error.value), kind
    torch.save(right, file)
    load_pixel_codec(file.parent)


def test_windows_of_another_size_in_the_weights_of_a_swinjscc_do_not_count(
    fetched: Any, dummy_profile: Path
) -> None:
    file = fetched("SwinJscc", dummy_profile) / "own" / "weights.pt"
    mask = {"encoder.layers.0.blocks.1.attn_mask": torch.zeros(64, 4, 4)}
    torch.save({**torch.load(file, weights_only=True), **mask}, file)
    load_pixel_codec(file.parent)


def test_a_profile_with_a_plug_in_is_complete_whatever_its_weights_are(
    fetched: Any, dummy_profile: Path
) -> None:
    profile = load_profile(fetched("AdJscc", dummy_profile))
    found = parts(profile)
    assert not [told for told in problems(profile, found) if told.startswith("pixel_codec")]
    (part,) = (each for each in found if each.role == "pixel_codec")
    assert part.folder == Path(profile.pixel_codec or "")
    (part.folder / "config.json").write_text("[1]")
    assert parts(profile), "a damaged file is no traceback of `dekag profile check`"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"step": 0}, "step of the codec of pixels broken must be an integer of 1 or more"),
        ({"step": 6, "tile": 64}, "tile a multiple of it; got step 6 and tile 64"),
        ({"tile": 64.0}, "got step 2 and tile 64.0"),
    ],
)
def test_a_link_refuses_a_codec_whose_tiles_cannot_be_cut(changes: dict[str, Any], told: str) -> None:
    """As a profile does: a codec that was made in Python is not loaded from one."""
    with pytest.raises(MismatchError, match=told):
        PixelLink(broken(**changes))
    with pytest.raises(InvalidInputError, match="codec must be a PixelCodec, or a PixelModules of your own"):
        PixelLink(nn.Identity())  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["own", "built in"])
def test_tiles_that_a_codec_of_pixels_cannot_send_are_named(kind: str) -> None:
    codec = broken(tile=64) if kind == "own" else PixelCodec(width=16, blocks=1).eval()
    link, conditions, step, tile = PixelLink(codec), [LinkConditions(snr_db=10)], codec.step, codec.tile
    allowed = f"of sides that are multiples of {step}, of at most {tile}"
    for shape, told in (
        ((3, 16, 17), f"latents must be {allowed}; got '17x16'"),
        ((3, tile + step, 16), f"latents must be {allowed}; got '16x{tile + step}'"),
        ((4, 16, 16), r"latents must be \(B, 3, height, width\), pictures; got '\(1, 4, 16, 16\)"),
    ):
        with pytest.raises(InvalidInputError, match=f"^{told}"):
            link.send(torch.zeros(1, *shape), conditions, [1], channel_uses=8)
    with pytest.raises(InvalidInputError, match=r"^latents must be .*float32.*torch.uint8"):
        link.send(torch.zeros(1, 3, 16, 16, dtype=torch.uint8), conditions, [1], channel_uses=8)
    with pytest.raises(NumericalError, match="seed 5"):
        link.send(torch.full((1, 3, 16, 16), torch.nan), conditions, [5], channel_uses=64)
    for width, height in ((0, 16), (16, -1), (16, 1.5)):
        with pytest.raises(InvalidInputError, match="must be an integer of at least 1"):
            link.rate(width, height, 1 / 6)  # type: ignore[arg-type]

    condition = condition_vector(1 / 12, conditions[0], at="sender")[None]
    for symbols, shape, told in (
        (torch.ones(1, 9999) + 0j, (3, 16, 16), r"symbols must be \(batch, K\) complex64, K between 1 and "),
        (torch.ones(1, 8), (3, 16, 16), r"symbols must be .*float32"),
        (torch.ones(2, 8) + 0j, (3, 16, 16), "condition must be 2 rows"),
        (torch.ones(1, 8) + 0j, (4, 16, 16), r"latent_shape must be \(3, height, width\)"),
        (torch.ones(1, 8) + 0j, (3, 16, 17), f"latent_shape must be of sides that are multiples of {step}"),
    ):
        with pytest.raises(InvalidInputError, match=f"^{told}"):
            codec.decode(symbols, shape, condition)


def test_a_number_of_symbols_that_the_modules_do_not_have_is_named() -> None:
    codec, conditions = broken(), [LinkConditions(snr_db=10)] * 2
    known = torch.stack([condition_vector(1 / 12, each, at="sender") for each in conditions])
    tiles = torch.zeros(2, 3, 16, 16)
    with pytest.raises(
        InvalidInputError,
        match=r"^channel_uses must be one of 64 for this size and the codec of pixels broken; ",
    ):
        codec.encode(tiles, [64, 63], known)
    for name, uses, condition in (("channel_uses", [64], known), ("condition", [64, 64], known[:1])):
        with pytest.raises(InvalidInputError, match=rf"^{name} must be one for each of 2 tiles"):
            codec.encode(tiles, uses, condition)
    with pytest.raises(InvalidInputError, match=r"^latents must be \(batch, 3, h, w\)"):
        codec.encode(tiles[0], [64, 64], known)
