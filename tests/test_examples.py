"""Every example works, as its file says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dekag import plugins
from dekag.cala.methods import METHODS, build
from dekag.codec import JsccCodec, LatentCodec
from dekag.errors import MismatchError, NotFoundError
from dekag.link import LinkConditions
from dekag.link.channel import transmit
from dekag.link.equalizer import equalize
from dekag.training.cala import deliver, train_method
from dekag.training.examples import Examples

pytestmark = pytest.mark.usefixtures("plugging")
EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def test_the_channel_of_the_docs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (EXAMPLES.parent / "docs/plugins.md").read_text(), re.DOTALL)
    named: dict[str, Any] = {}
    exec(code, named)  # noqa: S102 - ours
    plugins.register(named["Drizzle"])
    sent = torch.ones(1, 512, dtype=torch.complex64)
    gains = transmit(sent, [LinkConditions(fading="drizzle")], [1]).gains
    torch.testing.assert_close(gains.abs(), torch.ones(1, 8))


@pytest.mark.parametrize("csi", ["perfect", "pilots", "none"])
def test_my_channel(csi: str) -> None:
    plugins.load(f"{EXAMPLES}/my_channel.py:Nakagami")
    conditions = LinkConditions.model_validate({"fading": "nakagami", "snr_db": 20, "csi": csi})
    sent = torch.ones(1, 512, dtype=torch.complex64)
    seen = [transmit(sent, [conditions], [seed]) for seed in range(200)]
    power = torch.cat([each.symbols for each in seen]).abs().square()
    assert float(power.mean()) == pytest.approx(1.01, abs=0.06)
    if csi != "none":
        found = torch.cat([equalize(each, "mmse").symbols for each in seen])
        assert float((found - 1).abs().square().mean()) < 0.1
    assert torch.equal(transmit(sent, [conditions], [7]).symbols, seen[7].symbols)


def test_my_codec(tmp_path: Path) -> None:
    linear = plugins.load(f"{EXAMPLES}/my_codec.py:LinearCodec")
    torch.manual_seed(0)
    linear(symbol_channels=4).save_pretrained(tmp_path)
    codec = LatentCodec.load(tmp_path)
    assert type(codec) is linear
    with pytest.raises(MismatchError, match="is a LinearCodec, not a JsccCodec"):
        JsccCodec.load(tmp_path)
    latents = torch.randn(3, 4, 16, 8)
    with torch.inference_mode():
        symbols = codec.encode(latents, [128, 100, 1])
        assert torch.equal(symbols[1, 100:], torch.zeros(28))
        assert codec.encode(latents[:1], 100).abs().square().mean() == pytest.approx(1)
        assert codec.decode(symbols[:, :100], (4, 16, 8)).shape == latents.shape


def test_a_folder_of_a_codec_that_is_not_plugged_in_is_told(tmp_path: Path) -> None:
    JsccCodec(width=8, blocks=1).save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace("JsccCodec", "LinearCodec"))
    with pytest.raises(NotFoundError, match="is a LinearCodec, not one of JsccCodec"):
        LatentCodec.load(tmp_path)


def test_my_method(tmp_path: Path) -> None:
    plugins.load(f"{EXAMPLES}/my_method.py:Biases")
    assert list(METHODS)[-1] == "biases"
    torch.manual_seed(0)
    codec = JsccCodec(width=16, blocks=1).eval()
    latents = torch.randn(20, 4, 16, 16)
    biases = sum(values.numel() for name, values in codec.named_parameters() if name.endswith("bias"))
    assert build("biases", codec, 0.05).trained_parameters() == biases
    trained = train_method(
        tmp_path, "biases", codec, [Examples(latents)], torch.eye(4), steps=2, seed=1, batch=8, show=False
    )
    conditions = LinkConditions(snr_db=5)
    with_biases = deliver(trained, latents[:2], 1 / 192, conditions, [1, 2])
    assert not torch.equal(
        with_biases, deliver(build("none", codec, 1), latents[:2], 1 / 192, conditions, [1, 2])
    )


def test_my_metric() -> None:
    plugins.load(f"{EXAMPLES}/my_metric.py:Outlines")
    metric = plugins.get("metric", "outlines")
    pictures = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    np.testing.assert_allclose(metric.score(pictures, pictures), np.ones(3))
    np.testing.assert_allclose(metric.score(255 - pictures, pictures), -np.ones(3))
    assert np.isnan(metric.score(np.zeros_like(pictures), pictures)).all()


def test_psnr_curve(tmp_path: Path) -> None:
    script, picture = EXAMPLES / "psnr_curve.py", tmp_path / "curve.svg"
    assert len(script.read_text().splitlines()) < 40
    done = subprocess.run(
        [sys.executable, script, picture], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    psnrs = [float(row[-2]) for row in rows if row[0] == "nakagami"]
    assert len(psnrs) == 6
    assert psnrs == sorted(psnrs)
    assert psnrs[-1] > 30
    assert picture.read_text().startswith("<?xml")
