"""Pictures as bytes, profiles, hashes and deterministic generation with the real pipeline classes."""

from __future__ import annotations

import re
import shutil
import struct
import zlib
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

from dekag.errors import InvalidInputError, NotFoundError, NumericalError
from dekag.generation.images import from_bytes, to_png, to_webp
from dekag.generation.loading import folder_hash
from dekag.generation.models import Generator
from dekag.numerics import check_finite
from dekag.profile import load_profile
from dekag.training.tiny_models import save_dummy_models
from tests.made_pictures import picture


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_dummy_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module", params=["cloud", "edge"])
def generator(request: pytest.FixtureRequest, models: Path) -> Generator:
    return Generator.from_profile(load_profile(models), request.param)


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return picture()


def test_png_is_lossless_and_webp_is_small(pixels: np.ndarray) -> None:
    np.testing.assert_array_equal(from_bytes(to_png(pixels)), pixels)
    webp = to_webp(pixels)
    assert len(webp) < len(to_png(pixels))
    assert np.abs(from_bytes(webp).astype(int) - pixels).mean() < 8


@pytest.mark.parametrize("data", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_broken_pictures_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidInputError, match="readable PNG, WebP, AVIF or JPEG"):
        from_bytes(data)


def test_a_picture_that_says_to_be_huge_is_refused(pixels: np.ndarray) -> None:
    data = bytearray(to_png(pixels))
    data[16:24] = struct.pack(">2I", 60_000, 60_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    with pytest.raises(InvalidInputError):
        from_bytes(bytes(data))


def test_a_truncated_picture_is_refused(pixels: np.ndarray) -> None:
    with pytest.raises(InvalidInputError):
        from_bytes(to_png(pixels)[:200])


def test_same_prompt_and_seed_give_the_same_bits(generator: Generator) -> None:
    first = generator.latents("a red cat", 1)
    assert first.dtype == torch.float32
    assert tuple(first.shape[1:]) == generator.latent_shape(128, 128)
    assert torch.equal(first, generator.latents("a red cat", 1))
    assert not torch.equal(first, generator.latents("a red cat", 2))


def test_images_of_other_sizes_are_drawn(generator: Generator) -> None:
    image = generator.image("a red cat", 1, width=64, height=96)
    assert image.shape == (96, 64, 3)
    assert image.dtype == np.uint8


def test_latents_that_are_not_finite_are_reported_with_their_seed(generator: Generator) -> None:
    module = getattr(generator.pipeline, "unet", None) or generator.pipeline.transformer
    parameter = next(module.parameters())
    kept = parameter.data.clone()
    parameter.data.fill_(float("nan"))
    try:
        with pytest.raises(
            NumericalError, match=rf"generate .* seed 11 with model {generator.model_hash[:12]}"
        ):
            generator.latents("a red cat", 11)
    finally:
        parameter.data.copy_(kept)


def test_the_row_that_is_not_finite_is_named() -> None:
    values = torch.zeros(3, 2, 2)
    check_finite(values, "decode", seeds=[4, 5, 6])
    values[1, 0, 1] = torch.inf
    with pytest.raises(NumericalError, match=r"decode .* for seed 5 with model abc"):
        check_finite(values, "decode", seeds=[4, 5, 6], model_hash="abc")
    with pytest.raises(NumericalError, match=r"encode .* for row 1"):
        check_finite(torch.complex(torch.zeros_like(values), values), "encode")


def test_pixels_that_are_not_finite_are_reported_with_their_seed(generator: Generator) -> None:
    latents = generator.latents("a red cat", 1).repeat(2, 1, 1, 1)
    latents[1] = 3e38  # finite, but not what is made of it
    with pytest.raises(
        NumericalError, match=rf"render .* seed 8 with model {generator.decoder.model_hash[:12]}"
    ):
        generator.decoder.decode(latents, [7, 8])


@pytest.mark.parametrize("size", [2, 3, 6])
def test_rows_of_a_batch_are_nearly_those_drawn_alone(generator: Generator, size: int) -> None:
    prompts, seeds = [f"a red cat and {i} boats" for i in range(size)], list(range(size))
    alone = torch.cat([generator.latents(*each) for each in zip(prompts, seeds, strict=True)])
    together = generator.batch(prompts, seeds)
    assert torch.equal(together, generator.batch(prompts, seeds))
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-4)


NOISY = ("EulerAncestralDiscreteScheduler", "LCMScheduler", "DDPMScheduler", "sde-dpmsolver++")


@pytest.mark.parametrize("role", ["cloud", "edge"])
@pytest.mark.parametrize("name", NOISY)
def test_a_sampler_that_adds_noise_draws_the_image_of_its_seed(name: str, role: str, models: Path) -> None:
    generator = Generator.from_profile(load_profile(models), role)
    known = dict(generator.pipeline.scheduler.config)
    if name == "sde-dpmsolver++":
        own = DPMSolverMultistepScheduler.from_config({**known, "algorithm_type": name})
    else:
        own = getattr(diffusers, name).from_config(known)
    generator.pipeline.scheduler = own
    common = {"width": 64, "height": 64, "steps": 4}
    together = generator.batch(["a red cat", "a boat"], [1, 2], **common)
    for row, (prompt, seed) in enumerate((("a red cat", 1), ("a boat", 2))):
        alone = generator.batch([prompt], [seed], **common)
        torch.randn(7)  # what else is random in the process changes nothing
        assert torch.equal(alone, generator.batch([prompt], [seed], **common))
        torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=1e-3)


def test_hash_follows_the_weights(models: Path, tmp_path: Path) -> None:
    shutil.copytree(models / "codec", tmp_path / "codec")
    assert folder_hash(tmp_path / "codec") == folder_hash(models / "codec")
    (tmp_path / "codec" / "training.json").write_text("{}")
    assert folder_hash(tmp_path / "codec") == folder_hash(models / "codec")
    weights = next((tmp_path / "codec").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert folder_hash(tmp_path / "codec") != folder_hash(models / "codec")


def test_profile_paths_are_absolute_and_unknown_names_refused(models: Path) -> None:
    assert Path(load_profile(models).codec).is_absolute()
    with pytest.raises(NotFoundError, match="no profile 'nowhere'"):
        load_profile("nowhere")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "not valid JSON"),
        (b"[1]", "is not a profile"),
        (b'{"size": 64, "cloud": {"path": "x"}}', "is not a profile: cloud.steps: Field required"),
        (b'{"cloud": {"path": "x"}}', "is not a profile: size: Field required"),
        (b'{"size": 100}', "is not a profile: size: Input should be a multiple of 32"),
        (b'{"size": 2048}', "is not a profile: size: Input should be less than or equal to 1024"),
        (b'{"edge": null, "typo": 1}', "is not a profile"),
        (b"\xff\x00\xff", "is not text"),
        (b'{"codec": "a",\n"codec": "b"}', "profile.json, line 2: the key 'codec' stands there twice"),
        (b"[" * 5000, "more than 64 levels"),
        (None, "is a folder, not a file"),
    ],
)
def test_a_profile_that_cannot_be_read_is_said_with_its_field(
    tmp_path: Path, content: bytes | None, told: str
) -> None:
    if content is None:
        (tmp_path / "profile.json").mkdir()
    else:
        (tmp_path / "profile.json").write_bytes(content)
    with pytest.raises(InvalidInputError, match=re.escape(told)) as caught:
        load_profile(tmp_path)
    assert str(caught.value).startswith(str(tmp_path / "profile.json"))


def test_a_profile_of_any_editor_is_read(models: Path, tmp_path: Path) -> None:
    text = (models / "profile.json").read_text()
    (tmp_path / "profile.json").write_bytes(text.replace("\n", "\r\n").encode("utf-16"))
    assert load_profile(tmp_path).cloud.steps == load_profile(models).cloud.steps
