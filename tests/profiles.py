"""Profiles that name models without having any."""

from __future__ import annotations

from dekag.generation.profile import GeneratorProfile
from dekag.profile import Profile

GENERATOR = GeneratorProfile(path="nowhere", steps=1, guidance_scale=1)
PROFILE = Profile(size=128, cloud=GENERATOR, edge=GENERATOR, codec="nowhere")
