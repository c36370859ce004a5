"""PSNR against SNR over a channel of one's own, with the models that ship: python examples/psnr_curve.py"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from dekag import LinkConditions, SemanticLink, plugins

picture = sys.argv[1] if len(sys.argv) > 1 else "psnr_curve.svg"
plugins.load(f"{Path(__file__).with_name('my_channel.py')}:Nakagami")
link, psnr = SemanticLink.load("stickers"), plugins.get("metric", "psnr_db")
decode, seeds = link.generator.decoder.decode, range(4)
latents = torch.cat([link.generator.latents("a red car on the beach, pastel style", seed) for seed in seeds])
sent = decode(latents)

for fading in ("rayleigh", "nakagami"):
    curve = {}
    for snr_db in (-5, 0, 5, 10, 15, 20):
        conditions = [LinkConditions(snr_db=snr_db, fading=fading)] * len(seeds)
        received = link.send(latents, conditions, seeds, cbr=1 / 96).latents
        curve[snr_db] = psnr.score(decode(received), sent).mean()
        print(f"{fading:10} {snr_db:3} dB: PSNR {curve[snr_db]:.1f} dB")
    plt.plot(curve.keys(), curve.values(), marker="o", label=fading)
plt.gca().set(xlabel="mean SNR, dB", ylabel="PSNR, dB")
plt.legend()
plt.savefig(picture)
