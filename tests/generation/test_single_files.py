"""Checkpoints in one file draw, bit for bit, what their folder draws; what does not fit is refused."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from dekag.errors import InvalidInputError, MismatchError
from dekag.generation.facts import GeneratorFacts
from dekag.generation.loading import (
    autoencoder_hash,
    folder_hash,
    load_component,
    load_pipeline,
    pipeline_hash,
)
from dekag.generation.machine import Machine
from dekag.generation.models import Generator, LatentDecoder
from dekag.generation.placement import place
from dekag.generation.profile import ComponentProfile, GeneratorProfile
from dekag.inventory import parts, problems, processes
from dekag.profile import Profile, load_profile
from dekag.training.diffusion import stable_diffusion
from dekag.training.text import new_edge_tokenizer
from tests.generation.original_layout import OPEN_CLIP_LAYERS, save_original

PROMPT = "a red boat on the beach"
LONG = "a red boat on the beach, and " * 12 + "a cat"
TOKENS = 40
UNET = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "layers_per_block": 2,
    "norm_num_groups": 2,
    "attention_head_dim": (2, 4),
    "use_linear_projection": True,
}


def _vae(scaling_factor: float) -> Any:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4, 4, 4, 8),
        layers_per_block=1,
        norm_num_groups=2,
        scaling_factor=scaling_factor,
    )


def _text(kind: Any, tokenizer: Any, width: int, layers: int) -> Any:
    return kind(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            projection_dim=width,
            intermediate_size=16,
            num_hidden_layers=layers,
            num_attention_heads=2,
            max_position_embeddings=TOKENS,
            hidden_act="gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def _stable_diffusion_2(tokenizer: Any, prediction_type: str) -> Any:
    return stable_diffusion(
        vae=_vae(0.18215),
        tokenizer=tokenizer,
        text_encoder=_text(CLIPTextModel, tokenizer, 16, OPEN_CLIP_LAYERS),
        unet=UNet2DConditionModel(
            **UNET,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=16,
        ),
        scheduler=DDIMScheduler(prediction_type=prediction_type, clip_sample=False, steps_offset=1),
    )


def _stable_diffusion_xl(tokenizer: Any, _: str) -> Any:
    return StableDiffusionXLPipeline(
        vae=_vae(0.13025),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        text_encoder=_text(CLIPTextModel, tokenizer, 8, 2),
        text_encoder_2=_text(CLIPTextModelWithProjection, tokenizer, 16, 3),
        unet=UNet2DConditionModel(
            **UNET,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=8 + 16,
            transformer_layers_per_block=(1, 2),
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=16 + 6 * 8,
        ),
        scheduler=EulerDiscreteScheduler(),
    )


LAYOUTS: dict[str, tuple[Callable[[Any, str], Any], str]] = {
    "sd2-epsilon": (_stable_diffusion_2, "epsilon"),
    "sd2-v": (_stable_diffusion_2, "v_prediction"),
    "sdxl": (_stable_diffusion_xl, "epsilon"),
}


@pytest.fixture(scope="module")
def checkpoints(dummy_profile: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """For each layout, a folder with the pipeline, all of it in one file, and its configuration alone."""
    tokenizer = new_edge_tokenizer(captions=200)
    tokenizer.model_max_length = TOKENS
    made = {}
    for name, (new, prediction_type) in LAYOUTS.items():
        torch.manual_seed(0)
        made[name] = _saved(new(tokenizer, prediction_type), tmp_path_factory.mktemp(name))
    sd1 = load_pipeline(load_profile(dummy_profile).edge)
    return {"sd1": _saved(sd1, tmp_path_factory.mktemp("sd1")), **made}


def _saved(pipeline: Any, folder: Path) -> Path:
    pipeline.save_pretrained(folder / "pipeline")
    save_original(pipeline, folder / "all.safetensors")
    shutil.copytree(folder / "pipeline", folder / "config", ignore=shutil.ignore_patterns("*.safetensors"))
    return folder


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise AssertionError("a connection was made")

    monkeypatch.setattr(socket.socket, "connect", refused)


def _of_file(folder: Path, **more: Any) -> GeneratorProfile:
    described = {"path": str(folder / "all.safetensors"), "config": str(folder / "config")}
    return GeneratorProfile.model_validate({**described, "steps": 2, "guidance_scale": 3, **more})


def _of_folder(folder: Path, **more: Any) -> GeneratorProfile:
    return GeneratorProfile(path=str(folder / "pipeline"), steps=2, guidance_scale=3, **more)


def _profile(base: Profile, cloud: GeneratorProfile) -> Profile:
    return base.model_copy(update={"cloud": cloud, "size": 64})


@pytest.fixture(scope="module")
def base(dummy_profile: Path) -> Profile:
    """The tiny profile, whose cloud the tests replace."""
    return load_profile(dummy_profile)


@pytest.mark.parametrize("layout", ["sd1", *LAYOUTS])
@pytest.mark.parametrize("formats", [{}, {"dtype": "bfloat16"}])
def test_a_file_draws_what_its_folder_draws(
    checkpoints: dict[str, Path], base: Profile, layout: str, formats: dict[str, Any]
) -> None:
    folder = checkpoints[layout]
    models = _of_file(folder, **formats), _of_folder(folder, **formats)
    ours, theirs = (Generator.from_profile(_profile(base, model), "cloud") for model in models)
    assert GeneratorFacts.of_profile(_profile(base, models[0]), "cloud") == ours.facts
    for prompt, seed in ((PROMPT, 1), (LONG, 2)):
        drawn = theirs.latents(prompt, seed)
        assert drawn.std() > 0.1
        assert torch.equal(ours.latents(prompt, seed), drawn)
        assert (LatentDecoder.load(models[0]).decode(drawn) == theirs.decoder.decode(drawn)).all()
    assert not torch.equal(theirs.latents(PROMPT, 1), theirs.latents("a blue cat", 1))


@pytest.mark.parametrize("layout", ["sd1", *LAYOUTS])
def test_a_negative_prompt_acts_as_in_the_pipeline(
    checkpoints: dict[str, Path], base: Profile, layout: str
) -> None:
    generator = Generator.from_profile(_profile(base, _of_folder(checkpoints[layout])), "cloud")

    def drawn(prompt: str, negative: str) -> torch.Tensor:
        return generator.batch([prompt], [1], negative_prompt=negative)

    read = generator.reader.states([generator.reader.windows(PROMPT)], "a blue cat")
    expected = generator.pipeline.encode_prompt(
        PROMPT,
        device=generator.pipeline.device,
        num_images_per_prompt=1,
        do_classifier_free_guidance=True,
        negative_prompt="a blue cat",
    )
    names = "prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds"
    assert read.keys() == set(names[: len(expected)])
    for name, states in zip(names, expected, strict=False):
        torch.testing.assert_close(read[name], states)
    for prompt in (PROMPT, LONG):
        assert not torch.equal(drawn(prompt, "a blue cat"), drawn(prompt, ""))
    with pytest.raises(InvalidInputError, match=f"negative_prompt must be of at most {TOKENS - 2} tokens"):
        drawn(PROMPT, LONG)


def test_prediction_types_come_from_the_configuration(checkpoints: dict[str, Path], base: Profile) -> None:
    epsilon, v = (_of_file(checkpoints[name]) for name in ("sd2-epsilon", "sd2-v"))
    assert (Path(epsilon.path).read_bytes()) == Path(v.path).read_bytes()
    assert pipeline_hash(epsilon) != pipeline_hash(v)
    drawn = [
        Generator.from_profile(_profile(base, each), "cloud").latents(PROMPT, 1) for each in (epsilon, v)
    ]
    assert not torch.equal(*drawn)


@pytest.mark.parametrize("layout", ["sd1", *LAYOUTS])
def test_a_component_of_a_file_is_that_of_its_folder(checkpoints: dict[str, Path], layout: str) -> None:
    models = _of_file(checkpoints[layout]), _of_folder(checkpoints[layout])
    for name in ("unet", "vae", "text_encoder", "text_encoder_2")[: 4 if layout == "sdxl" else 3]:
        got, wanted = (load_component(model, name).state_dict() for model in models)
        assert got.keys() == wanted.keys()
        assert all(torch.equal(got[key], wanted[key]) for key in wanted)
    ours, theirs = (load_component(model, "tokenizer") for model in models)
    assert ours(PROMPT)["input_ids"] == theirs(PROMPT)["input_ids"]


def test_the_decoder_needs_no_other_part_of_the_file(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    model = _of_file(checkpoints["sd2-v"])
    weights = load_file(model.path)
    kept = {key: value for key, value in weights.items() if key.startswith("first_stage_model.")}
    save_file(kept, tmp_path / "vae.safetensors")
    alone = model.model_copy(update={"path": str(tmp_path / "vae.safetensors")})
    latents = torch.randn(1, 4, 8, 8)
    assert (LatentDecoder.load(alone).decode(latents) == LatentDecoder.load(model).decode(latents)).all()


def test_a_profile_with_files_is_whole(
    checkpoints: dict[str, Path], dummy_profile: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(dummy_profile, mine)
    shutil.copytree(checkpoints["sd1"], mine / "edge1")
    shutil.copytree(checkpoints["sdxl"], mine / "xl")
    described = json.loads((mine / "profile.json").read_text())
    described["edge"] |= {"path": "edge1/all.safetensors", "config": "edge1/config"}
    described["cloud"] |= {"path": "xl/all.safetensors", "config": "xl/config"}
    (mine / "profile.json").write_text(json.dumps(described))
    single, folder = load_profile(mine), load_profile(dummy_profile)
    assert single.edge.path == str(mine / "edge1" / "all.safetensors")
    found, expected = parts(single), parts(folder)
    assert problems(single, found) == []

    def sizes(of: list[Any]) -> dict[str, int]:
        return {each.component: each.bytes_in_memory for each in of if each.role == "edge"}

    assert sizes(found) == sizes(expected)
    for process in ("edge", "user"):
        assert processes(single, found)[process] == processes(folder, expected)[process]


def test_an_autoencoder_is_known_by_all_that_it_is_loaded_from(
    checkpoints: dict[str, Path], dummy_profile: Path, tmp_path: Path
) -> None:
    model = _of_file(checkpoints["sd2-v"])
    own = autoencoder_hash(model)
    other = tmp_path / "config"
    shutil.copytree(str(model.config), other)
    moved = model.model_copy(update={"config": str(other)})
    assert autoencoder_hash(moved) == own
    (other / "unet" / "config.json").write_text("{}")  # no matter of the autoencoder's
    assert autoencoder_hash(moved) == own
    described = json.loads((other / "vae" / "config.json").read_text())
    (other / "vae" / "config.json").write_text(json.dumps(described | {"scaling_factor": 0.13025}))
    assert autoencoder_hash(moved) != own
    with pytest.raises(MismatchError, match="`config` must name its configuration"):
        autoencoder_hash(model.model_copy(update={"config": None}))
    folder = load_profile(dummy_profile).edge
    assert autoencoder_hash(folder) == folder_hash(Path(folder.path) / "vae")
    assert autoencoder_hash(folder.model_copy(update={"variant": "fp16"})) != autoencoder_hash(folder)


def test_a_component_from_elsewhere_replaces_the_files(checkpoints: dict[str, Path]) -> None:
    other = ComponentProfile(path=str(checkpoints["sdxl"] / "pipeline"), subfolder="vae")
    model = _of_file(checkpoints["sd2-v"], components={"vae": other})
    pipeline = load_pipeline(model)
    assert pipeline.vae.config.scaling_factor == 0.13025
    assert pipeline.unet.config.cross_attention_dim == 16


def test_stable_diffusion_xl_is_a_cloud_only(checkpoints: dict[str, Path], base: Profile) -> None:
    for model in (_of_file(checkpoints["sdxl"]), _of_folder(checkpoints["sdxl"])):
        profile = base.model_copy(update={"edge": model})
        assert problems(profile, parts(profile))[0] == (
            "edge: a StableDiffusionXLPipeline; must be StableDiffusionPipeline"
        )
        with pytest.raises(MismatchError, match="the edge is a StableDiffusionXLPipeline"):
            Generator.from_profile(profile, "edge")
        with pytest.raises(
            MismatchError, match=r"two text encoders, .*: DEKAG_KEEP_TEXT_ENCODER must be true"
        ):
            load_pipeline(model, place(keep_text_encoder=False))
        clouded, machine = base.model_copy(update={"cloud": model}), Machine(keep_text_encoder=False)
        assert not problems(clouded, parts(clouded))
        (said,) = problems(clouded, parts(clouded, machine), machine)
        assert said.startswith("cloud: two text encoders")
        assert said.endswith("DEKAG_KEEP_TEXT_ENCODER must be true")


def _without(prefix: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def drop(weights: dict[str, torch.Tensor]) -> None:
        for key in [key for key in weights if key.startswith(prefix)]:
            del weights[key]

    return drop


def _with_another_layer(weights: dict[str, torch.Tensor]) -> None:
    for key in [key for key in weights if "input_blocks.1.1.transformer_blocks.0." in key]:
        weights[key.replace("blocks.0.", "blocks.1.")] = weights[key].clone()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_without("first_stage_model."), "Failed to load AutoencoderKL"),
        (_without("model.diffusion_model."), "Failed to load UNet2DConditionModel"),
        (_without("cond_stage_model."), "Failed to load CLIPTextModel"),
        (_without("model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2"), "it lacks weights"),
        (_without("cond_stage_model.model.transformer.resblocks.5."), "it lacks weights"),
        (_without("first_stage_model.decoder.up.2."), "it lacks weights"),
        (_with_another_layer, "its U-Net has .* numbers, that of the configuration"),
    ],
)
def test_a_file_that_does_not_fit_its_configuration_is_refused(
    checkpoints: dict[str, Path], tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], None], said: str
) -> None:
    model = _of_file(checkpoints["sd2-v"])
    weights = load_file(model.path)
    change(weights)
    save_file(weights, tmp_path / "changed.safetensors")
    with pytest.raises(MismatchError, match=rf"changed.safetensors does not fit its configuration .*{said}"):
        load_pipeline(model.model_copy(update={"path": str(tmp_path / "changed.safetensors")}))


@pytest.mark.parametrize(("file", "config"), [("sd2-v", "sdxl"), ("sdxl", "sd2-v"), ("sd1", "sd2-v")])
def test_the_configuration_of_another_layout_is_refused(
    checkpoints: dict[str, Path], file: str, config: str
) -> None:
    model = _of_file(checkpoints[file], config=str(checkpoints[config] / "config"))
    for load in (load_pipeline, lambda each: load_component(each, "text_encoder")):
        with pytest.raises(MismatchError, match="does not fit its configuration"):
            load(model)


def test_a_file_needs_its_whole_configuration(
    checkpoints: dict[str, Path], base: Profile, tmp_path: Path
) -> None:
    folder = checkpoints["sd2-v"]
    for absent in ("tokenizer", "unet", "scheduler"):
        config = tmp_path / absent
        shutil.copytree(folder / "config", config, ignore=shutil.ignore_patterns(absent))
        model = _of_file(folder, config=str(config))
        with pytest.raises(MismatchError, match=f"has no folder '{absent}'"):
            load_pipeline(model)
        profile = base.model_copy(update={"edge": model})
        assert f"has no folder '{absent}'" in problems(profile, parts(profile))[0]
    with pytest.raises(MismatchError, match=r"has no model_index\.json"):
        load_pipeline(_of_file(folder, config=str(folder / "config" / "unet")))
    with pytest.raises(MismatchError, match="`config` must name its configuration"):
        load_pipeline(_of_file(folder, config=None))


def test_files_that_are_damaged_or_can_hold_programs_are_refused(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    model = _of_file(checkpoints["sd2-v"])
    damaged, pickled = tmp_path / "damaged.safetensors", tmp_path / "model.ckpt"
    damaged.write_bytes(Path(model.path).read_bytes()[:5000])
    pickled.write_bytes(Path(model.path).read_bytes())
    for path, said in (
        (damaged, "does not fit its configuration"),
        (pickled, r"is not a \.safetensors file"),
    ):
        with pytest.raises(MismatchError, match=said):
            load_pipeline(model.model_copy(update={"path": str(path)}))
