"""PSNR against SNR over a channel of one's own, with the models that ship: python examples/psnr_curve.py"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from dekag import plugins
from dekag.cala.artifact import TransmissionKnowledge
from dekag.cala.methods import attached
from dekag.codec import JsccCodec
from dekag.generation.models import Generator
from dekag.generation.profile import load_profile
from dekag.link import LinkConditions
from dekag.training.cala import deliver

picture = sys.argv[1] if len(sys.argv) > 1 else "psnr_curve.svg"
plugins.load(f"{Path(__file__).with_name('my_channel.py')}:Nakagami")
profile = load_profile("embedded")
edge, psnr = Generator.from_profile(profile.edge), plugins.get("metric", "psnr_db")
codec = attached(JsccCodec.load(profile.codec), TransmissionKnowledge.load(profile.adapters))
latents = torch.cat([edge.latents("a red boat on the beach, pastel style", seed) for seed in range(4)])
sent = edge.decoder.decode(latents)

for fading in ("rayleigh", "nakagami"):
    curve = {}
    for snr_db in (-5, 0, 5, 10, 15, 20):
        conditions = LinkConditions(snr_db=snr_db, fading=fading)
        received = edge.decoder.decode(deliver(codec, latents, 1 / 96, conditions, range(4)))
        curve[snr_db] = psnr.score(received, sent).mean()
        print(f"{fading:10} {snr_db:3} dB: PSNR {curve[snr_db]:.1f} dB")
    plt.plot(curve.keys(), curve.values(), marker="o", label=fading)
plt.gca().set(xlabel="mean SNR, dB", ylabel="PSNR, dB")
plt.legend()
plt.savefig(picture)
