"""PSNR by its definition, the probe's verdicts, and features of unit length."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel, Dinov2Config, Dinov2Model

from dekag.errors import MismatchError
from dekag.metrics.features import ImageScorer
from dekag.metrics.image import psnr_db
from dekag.metrics.probe import AttributeProbe
from dekag.stickers import Scene
from tests.encoders import save_encoders, tiny_encoders


def test_psnr_of_a_known_error() -> None:
    reference = np.full((8, 8, 3), 100, np.uint8)
    assert psnr_db(reference + np.uint8(51), reference) == pytest.approx(20 * np.log10(5))
    assert psnr_db(reference, reference) == 100


def test_psnr_of_different_shapes_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be compared"):
        psnr_db(np.zeros((8, 8, 3), np.uint8), np.zeros((8, 9, 3), np.uint8))


def test_probe_judges_only_what_the_style_leaves_visible() -> None:
    torch.manual_seed(0)
    probe = AttributeProbe(width=8).eval()
    pixels = np.zeros((2, 128, 128, 3), np.uint8)
    scenes = [
        Scene("cat", "red", "large", "left", "beach", style="comic"),
        Scene("cat", "red", "large", "left", "beach", style="sepia"),
    ]
    coloured, colourless = probe.correct(pixels, scenes)
    assert set(coloured) == {"subject", "colour", "setting", "style"}
    assert set(colourless) == {"subject", "setting", "style"}
    read = probe.read(pixels)[0]
    assert coloured == {name: read[name] == getattr(scenes[0], name) for name in coloured}


def test_probe_reads_images_of_any_size_at_the_side_that_it_was_trained_on() -> None:
    probe, seen = AttributeProbe(width=8).eval(), []
    probe.body.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    image = np.random.default_rng(0).integers(0, 256, (1, 128, 128, 3), np.uint8)
    for height, width in ((128, 128), (96, 96), (32, 32), (192, 192), (256, 256), (64, 160)):
        pixels = np.asarray(Image.fromarray(image[0]).resize((width, height)))[None]
        assert set(probe.read(pixels)[0]) == set(probe.words)
    assert {tuple(each.shape) for each in seen} == {(1, 3, 64, 64)}
    means = torch.from_numpy(image).float().div(127.5).sub(1).permute(0, 3, 1, 2)
    assert torch.equal(seen[0], torch.nn.functional.avg_pool2d(means, 2)), "as in training, to the bit"


def test_scores_are_cosines() -> None:
    scorer = ImageScorer(*tiny_encoders())
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (3, 128, 128, 3), np.uint8)
    same = scorer.scores(pixels, pixels)
    other = scorer.scores(pixels, pixels[::-1])
    for name in ("clip", "dino"):
        np.testing.assert_allclose(same[name], 1, atol=1e-5)
        assert other[name][0] < 1


def test_models_kept_in_half_precision_compute_in_single(tmp_path: Path) -> None:
    clip, dino = tiny_encoders()
    clip.half().save_pretrained(tmp_path / "clip")
    dino.half().save_pretrained(tmp_path / "dino")
    for name in ("clip", "dino"):
        (tmp_path / name / "training.json").write_text("{}")
    scorer = ImageScorer.load(tmp_path / "clip", tmp_path / "dino")
    features = scorer.features(np.zeros((1, 64, 64, 3), np.uint8))
    assert {each.dtype for each in features.values()} == {torch.float32}


@pytest.mark.parametrize("name", ["clip", "dino"])
def test_a_model_of_others_says_how_it_reads_images(tmp_path: Path, name: str) -> None:
    for each, model in zip(("clip", "dino"), tiny_encoders(), strict=True):
        model.save_pretrained(tmp_path / each)
        if each != name:
            (tmp_path / each / "training.json").write_text("{}")
    with pytest.raises(MismatchError, match=f"{name} has no preprocessor_config.json, which says how"):
        ImageScorer.load(tmp_path / "clip", tmp_path / "dino")
    (tmp_path / name / "model.safetensors").unlink()
    (tmp_path / name / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(MismatchError, match=f"{name} holds no model in safetensors files"):
        ImageScorer.load(tmp_path / "clip", tmp_path / "dino")


def test_damaged_encoders_are_named(tmp_path: Path) -> None:
    save_encoders(tmp_path)
    weights = tmp_path / "dino" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(MismatchError, match="dino holds no model in safetensors files"):
        ImageScorer.load(tmp_path / "clip", tmp_path / "dino")
    (tmp_path / "clip" / "preprocessor_config.json").write_text("{")
    with pytest.raises(MismatchError, match=r"clip/preprocessor_config\.json cannot be read"):
        ImageScorer.load(tmp_path / "clip", tmp_path / "dino")


HUB_CLIP = {  # what the published models come with
    "crop_size": 224, "do_center_crop": True, "do_normalize": True, "do_resize": True, "resample": 3,
    "size": 224, "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
}  # fmt: skip
HUB_DINO = {
    "crop_size": {"height": 224, "width": 224}, "do_center_crop": True, "do_convert_rgb": True,
    "do_normalize": True, "do_rescale": True, "do_resize": True, "image_processor_type": "BitImageProcessor",
    "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "resample": 3,
    "rescale_factor": 1 / 255, "size": {"shortest_edge": 256},
}  # fmt: skip


def test_models_see_images_as_their_own_processors_prepare_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    eyes = {**small, "image_size": 224, "patch_size": 32}
    clip = CLIPModel(
        CLIPConfig(text_config={**small, "vocab_size": 10}, vision_config=eyes, projection_dim=8)
    )
    clip.save_pretrained(tmp_path / "clip")
    (tmp_path / "clip" / "preprocessor_config.json").write_text(json.dumps(HUB_CLIP))
    # as published: made for 518 pixels, used on the middle 224 of 256
    Dinov2Model(
        Dinov2Config(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=518, patch_size=14
        )
    ).save_pretrained(tmp_path / "dino")
    (tmp_path / "dino" / "preprocessor_config.json").write_text(json.dumps(HUB_DINO))
    scorer = ImageScorer.load(tmp_path / "clip", tmp_path / "dino")
    seen: dict[str, torch.Tensor] = {}
    for name, model in (("clip", scorer.clip.vision_model), ("dino", scorer.dino)):
        model.register_forward_pre_hook(lambda _, given, name=name: seen.update({name: given[0]}))
    scorer.features(np.full((2, 512, 384, 3), 255, np.uint8))
    white = {"clip": (1.9303, 2.0749, 2.1459), "dino": (2.2489, 2.4286, 2.6400)}
    for name, values in white.items():
        assert seen[name].shape == (2, 3, 224, 224)
        torch.testing.assert_close(seen[name][0, :, 100, 100], torch.tensor(values), atol=1e-4, rtol=0)
