"""The registry of plug-ins: what gets in, how, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from dekag import plugins
from dekag.cala.conditions import condition_vector
from dekag.cala.methods import METHODS, AdaptedCodec
from dekag.cala.rate import QualityModel
from dekag.codec import JsccCodec
from dekag.errors import DekagError, InvalidInputError, NotFoundError
from dekag.link import BLOCKS, Channel, LinkConditions
from dekag.link.channel import transmit
from dekag.link.conditions import Fading
from dekag.link.registry import CHANNELS, MIMO
from dekag.metrics import Metric

pytestmark = pytest.mark.usefixtures("plugging")

SHIPPED = {
    kind: plugins.names(kind) for kind in ("channel", "codec", "pixel_codec", "method", "metric", "policy")
}
SOURCE = """
import torch
from dekag.link import Channel

LOADED = []

class Fog(Channel):
    name = "fog"

    def gains(self, conditions, generator, channel_uses):
        return torch.full((8,), 1j)

not_a_class = 3
class Nothing: pass
class Unfinished(Channel):
    name = "unfinished"
"""


class Steps(Channel):
    """A gain for every symbol."""

    name = "steps"

    def gains(
        self, conditions: LinkConditions, generator: torch.Generator, channel_uses: int
    ) -> torch.Tensor:
        return torch.polar(torch.ones(channel_uses), torch.rand(channel_uses, generator=generator))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "fog.py"
    path.write_text(SOURCE)
    return path


def test_the_librarys_own_are_found_the_same_way() -> None:
    assert SHIPPED["channel"] == list(get_args(Fading))
    assert SHIPPED["codec"] == ["jscc"]
    assert SHIPPED["metric"] == ["psnr_db", "ssim", "ms_ssim"]
    assert plugins.get("codec", "jscc") is JsccCodec
    assert plugins.get("method", "cala") is METHODS["cala"]
    assert not any(plugins.plugged_in(kind) for kind in SHIPPED)


@pytest.mark.parametrize("name", sorted({*SHIPPED["channel"]} - {"trace", *MIMO}))
def test_every_channel_has_gains_of_mean_power_one(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    channel: Channel = plugins.get("channel", name)
    gains = torch.stack([channel.gains(LinkConditions(), generator, 64) for _ in range(300)])
    assert gains.dtype == torch.complex64
    assert gains.shape[1] == (64 if "tdl" in name or name == "rayleigh-magnitude" else BLOCKS)
    assert float(gains.abs().square().mean()) == pytest.approx(1, abs=0.1)


def test_metrics_score_each_picture() -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (3, 128, 128, 3), dtype=np.uint8)
    for name, best in {"psnr_db": 100, "ssim": 1, "ms_ssim": 1}.items():
        scores = plugins.get("metric", name).score(pictures, pictures)
        assert scores.dtype == np.float64
        assert scores == pytest.approx(np.full(3, best), abs=1e-5)
        assert plugins.get("metric", name).score(pictures[:1], pictures[1:2]).shape == (1,)


def test_a_file_is_loaded_once(file: Path) -> None:
    fog = plugins.load(f"{file}:Fog")
    assert plugins.load(f"{file}:Fog") is fog
    assert plugins.names("channel") == [*SHIPPED["channel"], "fog"]
    assert isinstance(plugins.get("channel", "fog"), fog)
    assert list(plugins.plugged_in("channel")) == ["fog"]


def test_an_import_path_is_loaded(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(file.parent)
    assert plugins.load("fog:Fog").__module__ == "fog"
    del sys.modules["fog"]


def test_the_environment_is_read_when_a_name_is_asked_for(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InvalidInputError, match="channel must be one of awgn, rayleigh"):
        plugins.get("channel", "fog")
    monkeypatch.setenv("DEKAG_PLUGINS", f" {file}:Fog , ")
    assert LinkConditions(fading="fog").fading == "fog"
    monkeypatch.setenv("DEKAG_PLUGINS", "nowhere")
    with pytest.raises(InvalidInputError, match=r"package\.module:Name"):
        plugins.load_from_environment()
    with pytest.raises(InvalidInputError, match=r"package\.module:Name"):
        plugins.load_from_environment()


def test_entry_points_of_installed_packages(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(file.parent)
    installed = EntryPoints([EntryPoint("fog", "fog:Fog", "dekag.channels")])
    monkeypatch.setattr(plugins, "entry_points", lambda group: installed.select(group=group))
    assert "fog" in plugins.names("channel")
    wrong = EntryPoints([EntryPoint("fog", "fog:Fog", "dekag.metrics")])
    monkeypatch.setattr(plugins, "entry_points", lambda group: wrong.select(group=group))
    plugins._last_read = None
    plugins.load_from_environment()  # stops only what names it
    assert "entry point fog must be a metric" in plugins.broken()["fog"]
    with pytest.raises(InvalidInputError, match="plug-in fog is not loaded: entry point fog"):
        plugins.get("metric", "fog")
    del sys.modules["fog"]


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("", InvalidInputError, "package.module:Name or path/to/file.py:Name"),
        ("{file}", InvalidInputError, "package.module:Name"),
        ("{file}:", InvalidInputError, "package.module:Name"),
        (":Fog", InvalidInputError, "package.module:Name"),
        ("{file}:Fog()", InvalidInputError, "package.module:Name"),
        ("{folder}/nowhere.py:Fog", NotFoundError, "no such file"),
        ("{file}:Mist", NotFoundError, "there is no Mist"),
        ("no_such_package.fog:Fog", NotFoundError, "no module no_such_package"),
        ("{file}:not_a_class", InvalidInputError, "a class"),
        (
            "{file}:Nothing",
            InvalidInputError,
            "a subclass of one of Channel, LatentCodec, PixelModules, AdaptedCodec, Metric",
        ),
        ("{file}:Channel", InvalidInputError, "name of Channel"),
        ("{file}:Unfinished", InvalidInputError, "plug-in unfinished must be a complete channel"),
        ("os:system", InvalidInputError, "a class"),
    ],
)
def test_what_cannot_be_loaded_is_told_why(
    file: Path, path: str, error: type[DekagError], message: str
) -> None:
    with pytest.raises(error, match=message):
        plugins.load(path.format(file=file, folder=file.parent))
    assert {kind: plugins.names(kind) for kind in SHIPPED} == SHIPPED


@pytest.mark.parametrize("source", ["1 / 0", "def", "import no_such_package", "raise SystemExit(3)"])
def test_code_that_fails_is_named(tmp_path: Path, source: str) -> None:
    (tmp_path / "broken.py").write_text(source)
    expected = SystemExit if "Exit" in source else DekagError
    for _ in range(2):  # it is not taken for loaded
        with pytest.raises(expected):
            plugins.load(f"{tmp_path}/broken.py:Fog")


@pytest.mark.parametrize("name", ["", "Fog", "../fog", "a b", "9", "x" * 64, "a\n", None, 3])
def test_hostile_names_are_refused(name: Any) -> None:
    with pytest.raises(InvalidInputError, match="name of Named"):
        plugins.register(type("Named", (Steps,), {"name": name}))


def test_a_name_is_ones_own_and_nobody_elses(file: Path) -> None:
    with pytest.raises(InvalidInputError, match="name of Heir"):
        plugins.register(type("Heir", (Steps,), {}))
    plugins.register(Steps)
    plugins.register(Steps)
    for taken in ("steps", "rayleigh"):
        with pytest.raises(InvalidInputError, match=f"unique; got '{taken}'"):
            plugins.register(type("Other", (Steps,), {"name": taken}))
    assert type(CHANNELS["steps"]) is Steps
    with pytest.raises(InvalidInputError, match="got 'JsccCodec'"):
        plugins.register(type("JsccCodec", (JsccCodec,), {"name": "other"}))
    # a metric may be called as a channel is
    plugins.register(type("Other", (Metric,), {"name": "steps", "score": lambda *_: np.zeros(1)}))


def test_unknown_kinds_and_names_say_what_is_known() -> None:
    with pytest.raises(
        InvalidInputError, match="kind must be one of channel, codec, pixel_codec, method, metric"
    ):
        plugins.get("antenna", "yagi")
    for kind, names in SHIPPED.items():
        with pytest.raises(InvalidInputError) as caught:
            plugins.get(kind, "fog")
        assert caught.value.allowed == f"one of {', '.join(names)}"
    with pytest.raises(ValidationError, match="must be one of awgn, rayleigh"):
        LinkConditions(fading="fog")


def test_names_in_the_schema_follow(file: Path) -> None:
    plugins.load(f"{file}:Fog")
    assert LinkConditions.model_json_schema()["properties"]["fading"]["enum"][-1] == "fog"


def test_a_gain_for_every_symbol() -> None:
    plugins.register(Steps)
    symbols = torch.ones(2, 96, dtype=torch.complex64)
    both = transmit(symbols, [LinkConditions(fading="steps", snr_db=40)] * 2, [1, 2], channel_uses=[96, 50])
    assert both.gains.shape == (2, 96)
    alone = transmit(symbols[1:, :50], [LinkConditions(fading="steps", snr_db=40)], [2])
    assert torch.equal(both.symbols[1:, :50], alone.symbols)
    torch.testing.assert_close(alone.symbols, alone.gains, atol=0.05, rtol=0)
    noisier = transmit(symbols[1:, :50], [LinkConditions(fading="steps", snr_db=0)], [2])
    assert torch.equal(noisier.gains, alone.gains)
    with pytest.raises(InvalidInputError, match="every symbol of steps has its own gain"):
        transmit(symbols, [LinkConditions(fading="steps", csi="pilots")] * 2, [1, 2])


@pytest.mark.parametrize("gains", [torch.ones(7), torch.full((8,), torch.nan), torch.ones(8, 1)])
def test_gains_that_are_none_are_refused(gains: torch.Tensor) -> None:
    plugins.register(type("Bad", (Steps,), {"name": "bad", "gains": lambda *_: gains}))
    with pytest.raises(InvalidInputError, match="gains of bad"):
        transmit(torch.ones(1, 96, dtype=torch.complex64), [LinkConditions(fading="bad")], [1])


def test_adapters_and_rate_control_know_a_channel_by_its_physics() -> None:
    physics = {"los_power_fraction": lambda *_: 1.0, "tau_rms_s": lambda *_: 0.0}
    plugins.register(type("Clear", (Steps,), {"name": "clear", **physics}))
    plugins.register(Steps)
    like = {"clear": "awgn", "steps": "rayleigh"}
    model = QualityModel(
        (1 / 96,), (0.0, 10.0), (0.0, 1.0), (1e-7,), [[[[1], [2]]], [[[5], [6]]]], [[[[0]] * 2]] * 2
    )
    for mine, theirs in like.items():
        one, other = LinkConditions(fading=mine), LinkConditions(fading=theirs)
        vectors = [condition_vector(1 / 96, each, at="sender") for each in (one, other)]
        assert torch.equal(*vectors)
        assert model.expected_psnr_db(1 / 96, one) == model.expected_psnr_db(1 / 96, other)


def test_a_sized_method_takes_its_share() -> None:
    class Scales(AdaptedCodec):
        name = "scales"

        def __init__(self, codec: JsccCodec, size: int) -> None:
            super().__init__(codec)
            self.scales = torch.nn.Parameter(torch.ones(size, 100))

    plugins.register(Scales)
    codec = JsccCodec(width=8, blocks=1)
    limit = sum(p.numel() for p in codec.parameters()) * 0.1
    made = METHODS["scales"].build(codec, 0.1)
    assert limit - 100 < made.trained_parameters() <= limit
    assert made.codec is not codec
    assert METHODS["scales"].title == "scales"


def test_validating_names_needs_no_torch() -> None:
    code = (
        "import sys; from dekag import plugins; from dekag.link import LinkConditions; "
        "LinkConditions(fading='rician'); plugins.names('channel'); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_command_line_hands_plug_ins_on(file: Path, tmp_path: Path) -> None:
    def dekag(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "services.cli", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    refused = dekag("--plugin", f"{file}:Fog", "demo", "--fading", "mist")
    assert refused.returncode == 2
    assert "fog" in refused.stderr
    assert "no such file" in dekag("--plugin", "nowhere.py:Fog", "demo").stderr
