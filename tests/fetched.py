"""What a user fetches and makes for a codec of pixels: modules, weights, a profile; with random weights.

The modules have the calling conventions of DeepJSCC, ADJSCC and SwinJSCC.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "my_pixel_codec.py"

DEEPJSCC = """
import torch
from torch import nn

class Encoder(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 8, 5, stride=2), nn.PReLU(), nn.Conv2d(8, c, 5, stride=2))

    def forward(self, x):  # real values of mean power 1; without the batch if that is one image
        z = self.net(x)
        z = z * (z[0].numel() ** 0.5) / z.flatten(1).norm(dim=1)[:, None, None, None]
        return z.squeeze(0)

class Decoder(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.net = nn.Sequential(nn.ConvTranspose2d(c, 8, 6, stride=2), nn.PReLU(),
                                 nn.ConvTranspose2d(8, 3, 6, stride=2), nn.Sigmoid())

    def forward(self, z):
        return self.net(z)

class DeepJSCC(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.encoder, self.decoder = Encoder(c), Decoder(c)

    def forward(self, x):
        z = self.encoder(x)
        return self.decoder(z + 0.1 * torch.randn_like(z))
"""
ADJSCC = """
import torch
from torch import nn

class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.attention = nn.Conv2d(3, 8, 4, stride=4), nn.Linear(9, 8)

    def forward(self, x, snr):
        z = self.conv(x)
        known = torch.cat([z.mean((2, 3)), snr / 20], dim=1)
        return z * self.attention(known).sigmoid()[:, :, None, None]

class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.attention = nn.ConvTranspose2d(8, 3, 4, stride=4), nn.Linear(9, 8)

    def forward(self, z, snr):
        known = torch.cat([z.mean((2, 3)), snr / 20], dim=1)
        return self.conv(z * self.attention(known).sigmoid()[:, :, None, None]).sigmoid()

class ADJSCC(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = Encoder(), Decoder()
"""
SWINJSCC = """
import torch
from torch import nn

args, config = None, None

class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head, self.size = nn.Conv2d(3, 320, 16, stride=16), nn.Linear(2, 320), None

    def update_resolution(self, height, width):
        self.size = height, width

    def forward(self, x, snr, rate, model):
        assert model == "SwinJSCC_w/_SAandRA" and self.size == tuple(x.shape[2:])
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        weights = self.head(torch.tensor([[snr / 20, rate / 320]])).sigmoid() * (1 + tokens.abs().mean(1))
        mask = torch.zeros_like(weights).scatter(1, weights.topk(rate).indices, 1.0)
        mask = mask[:, None].expand(-1, tokens.shape[1], -1)
        return 5 * tokens * mask, mask

class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.head, self.size, self.heard = nn.Linear(320, 3 * 16 * 16), None, None

    def update_resolution(self, height, width):
        self.size = height, width

    def forward(self, x, snr, model):
        self.heard = x
        height, width = self.size
        tiles = self.head(x).sigmoid().view(1, height, width, 3, 16, 16)
        return tiles.permute(0, 3, 1, 4, 2, 5).reshape(1, 3, height * 16, width * 16)

class SwinJSCC(nn.Module):
    def __init__(self, args, config):
        super().__init__()
        self.encoder, self.decoder = Encoder(), Decoder()
"""
MODELS = {"DeepJscc": DEEPJSCC, "AdJscc": ADJSCC, "SwinJscc": SWINJSCC}
MADE = {"DeepJscc": "DeepJSCC(c=8)", "AdJscc": "ADJSCC()", "SwinJscc": "SwinJSCC(args, config)"}


def fetch(name: str, profile: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A profile in `folder` whose codec of pixels is a class of EXAMPLE; its code is on the path."""
    torch.manual_seed(1)
    module = f"{name.lower()}_model"
    (folder / "code").mkdir(exist_ok=True)
    (folder / "code" / f"{module}.py").write_text(MODELS[name])
    monkeypatch.syspath_prepend(folder / "code")
    monkeypatch.delitem(sys.modules, module, raising=False)
    space: dict[str, Any] = {}
    exec(f"from {module} import *\nmodel = {MADE[name]}", space)  # noqa: S102 - the text is above
    own = folder / f"with-{name}"
    shutil.copytree(profile, own)
    (own / "own").mkdir()
    torch.save(space["model"].state_dict(), own / "own" / "weights.pt")
    (own / "own" / "config.json").write_text(json.dumps({"_class_name": name}))
    said = json.loads((own / "profile.json").read_text())
    (own / "profile.json").write_text(json.dumps({**said, "pixel_codec": "own"}))
    return own
