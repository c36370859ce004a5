"""`dekag profile check` and `dekag profile fetch`, as processes, beside a hub on this machine."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from dekag import SemanticLink
from dekag.cala.artifact import TransmissionKnowledge
from dekag.codec import JsccCodec
from dekag.codec.packed import PackedConv2d
from dekag.errors import MismatchError
from dekag.evaluation.models import ModelBank
from dekag.generation.loading import autoencoder_hash, load_pipeline
from dekag.generation.machine import Machine, read
from dekag.generation.models import Generator
from dekag.inventory import parts, problems, processes, processes_on_device
from dekag.metrics.features import ImageScorer
from dekag.profile import load_profile
from dekag.training.tiny_models import EMBEDDED, FOREIGN, Dimensions, save_dummy_models
from services.cli.main import app
from services.common.transmission import CodecCache
from services.edge.servicer import EdgeServicer
from services.edge.settings import EdgeSettings
from services.user.servicer import UserServicer
from services.user.settings import UserSettings
from tests.chain import (
    adapters,
    with_adapters,
    with_evaluators,
    with_reading_codec,
    with_unaligned_codec,
)
from tests.encoders import save_encoders
from tests.generation.original_layout import save_original
from tests.hub import COMMIT, running_hub
from tests.services.command_line import dekag

MIB = 2**20


def rewritten(source: Path, folder: Path, **changed: Any) -> Path:
    """A profile in `folder` with the models of `source`, and other entries."""
    folder.mkdir()
    said = json.loads((source / "profile.json").read_text())
    for name in ("cloud", "edge"):
        said[name]["path"] = str(source / said[name]["path"])
    for name in ("codec", "pixel_codec"):
        said[name] = str(source / said[name])
    (folder / "profile.json").write_text(json.dumps({**said, **changed}))
    return folder


def test_memory_counts_each_parameter_in_its_format(dummy_profile: Path, tmp_path: Path) -> None:
    fine = load_profile(dummy_profile)
    edge = json.loads((dummy_profile / "profile.json").read_text())["edge"]
    mine = rewritten(
        dummy_profile, tmp_path / "p", edge={**edge, "path": str(dummy_profile / "edge"), "dtype": "bfloat16"}
    )
    whole, half = ({part.name: part for part in parts(each)} for each in (fine, load_profile(mine)))
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(dummy_profile / "edge")
    assert whole["edge: unet"].parameters == sum(p.numel() for p in pipeline.unet.parameters())
    assert 2 * half["edge: unet"].bytes_in_memory == whole["edge: unet"].bytes_in_memory
    assert half["edge: vae"].bytes_in_memory == whole["edge: vae"].bytes_in_memory
    held = processes(fine, list(whole.values()))
    assert held["edge"] > held["user"] > 0
    restoring = processes(fine, list(whole.values()), restoring=True)
    edge = sum(part.bytes_in_memory for name, part in whole.items() if name.startswith("edge: "))
    assert restoring == {**held, "user": held["user"] + edge}
    assert not problems(fine, list(whole.values()))


def bytes_of(*loaded: Any) -> int:
    """Bytes of the weights of modules, each once, with those that are packed or fused with adapters."""

    def own(module: Any) -> list[torch.Tensor]:
        if isinstance(module, PackedConv2d):
            return [module.weight] if module.bias is None else [module.weight, module.bias]
        fused = getattr(module, "_fused", None)
        parts = vars(fused).values() if fused else ()
        inner = [each for part in parts for each in ([part] if torch.is_tensor(part) else own(part))]
        return [*module.parameters(recurse=False), *inner]

    weights = {id(each): each for root in loaded for module in root.modules() for each in own(module)}
    # oneDNN does not say what an element of its layout takes: it packs float32 alone
    return sum(each.numel() * (4 if each.is_mkldnn else each.element_size()) for each in weights.values())


def codecs_of(codecs: CodecCache) -> list[Any]:
    """The modules of a service's codecs."""
    all_of = [codecs.base.base, codecs.unaligned.base, codecs.pixels]
    return [*all_of, *([] if codecs.own is None else [codecs.own._adapted])]


@pytest.mark.parametrize("like", [EMBEDDED, FOREIGN])
@pytest.mark.parametrize(
    ("codec", "vae_dtype"), [("plain", "bfloat16"), ("plain", "float32"), ("adapted", ""), ("reading", "")]
)
@pytest.mark.asyncio
async def test_memory_is_that_of_the_modules_in_each_process(
    like: Dimensions, codec: str, vae_dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEKAG_VAE_DTYPE", vae_dtype)
    machine = read(Machine)
    folder = save_dummy_models(tmp_path / "models", like=like)
    if codec == "adapted":
        folder = with_adapters(folder, tmp_path / "adapted", adapters(folder / "codec", 1))
    if codec == "reading":
        folder = with_reading_codec(folder, tmp_path / "reading", text_width=16)
        folder = with_unaligned_codec(folder, tmp_path / "both")
    folder = with_evaluators(folder, tmp_path / "scored")
    profile = load_profile(folder)
    settings: dict[str, Any] = {"port": 0, "redis_url": "", "profile": str(folder), "vae_dtype": vae_dtype}
    edge, user = EdgeServicer(EdgeSettings(**settings)), UserServicer(UserSettings(**settings))
    for servicer in (edge, user):
        await asyncio.to_thread(servicer.load)
    pipeline = edge._generator.generator.pipeline
    drawing = [pipeline.unet, pipeline.text_encoder, pipeline.vae]
    said = [[each._prompts._known.encoder] if each._prompts._known else [] for each in (edge, user)]
    assert [len(each) for each in said] == [int(codec == "reading")] * 2
    cloud = Generator.from_profile(profile, "cloud").pipeline
    scoring = ImageScorer.load(profile.scorer.clip, profile.scorer.dino)
    scorers = [each for each in vars(scoring).values() if isinstance(each, torch.nn.Module)]
    of_cloud = [cloud.transformer, cloud.text_encoder, cloud.vae]
    own = codecs_of(user._codecs)
    expected = {
        "cloud": bytes_of(*of_cloud, *scorers),
        "edge": bytes_of(*drawing, *codecs_of(edge._codecs), *said[0]),
        "user": bytes_of(user._decoder.vae, *own, *said[1]),
        "distiller": max(bytes_of(*of_cloud), bytes_of(*drawing, *scorers)),
    }
    for servicer in (edge, user):
        await servicer.close()
    found = parts(profile, machine)
    assert processes(profile, found) == expected
    restoring = processes(profile, found, restoring=True)
    assert restoring == {**expected, "user": expected["user"] + bytes_of(*drawing)}
    reader = bytes_of(*said[0])
    on_device = {
        "cloud": bytes_of(*of_cloud),
        "edge": bytes_of(*drawing) + reader,
        "user": bytes_of(user._decoder.vae) + reader,
        "distiller": max(bytes_of(*of_cloud), bytes_of(*drawing)),
    }
    assert processes_on_device(found, machine) == on_device


def test_what_is_on_the_device_follows_the_settings(dummy_profile: Path) -> None:
    found = parts(load_profile(dummy_profile))
    size = {part.name: part.bytes_in_memory for part in found}
    cloud, edge = (
        [each for name, each in size.items() if name.startswith(f"{who}: ")] for who in ("cloud", "edge")
    )
    apart = processes_on_device(found, Machine(device="cuda", text_device="cpu"))
    assert apart["cloud"] == sum(cloud) - size["cloud: text_encoder"]
    assert apart["edge"] == sum(edge) - size["edge: text_encoder"]
    in_turn = processes_on_device(found, Machine(device="cuda", offload=True), restoring=True)
    assert (in_turn["cloud"], in_turn["edge"]) == (max(cloud), max(edge))
    assert in_turn["user"] == size["edge: vae"] + max(edge)
    assert in_turn["distiller"] == max(*cloud, sum(edge)), "the edge that is trained stays there"


@pytest.mark.asyncio
async def test_a_check_follows_the_settings_of_the_machine(dummy_profile: Path, tmp_path: Path) -> None:
    async def checked(**settings: str) -> Any:
        env = {f"DEKAG_{name.upper()}": value for name, value in settings.items()}
        return await dekag("profile", "check", str(dummy_profile), folder=tmp_path, env=env)

    usual, halved, dropped, elsewhere, auto, wrong = await asyncio.gather(
        checked(),
        checked(vae_dtype="bfloat16"),
        checked(keep_text_encoder="false"),
        checked(device="cuda", text_device="cpu"),
        checked(device="auto"),
        checked(vae_dtype="float16"),
    )
    assert "DEKAG_" not in usual.stdout
    assert [line.split()[-2] for line in halved.stdout.splitlines() if ": vae" in line] == ["bfloat16"] * 2
    assert "DEKAG_VAE_DTYPE=bfloat16" in halved.stdout
    assert "the cloud drops its text encoder: cloud 0 MiB" in dropped.stdout
    for done in (usual, halved, dropped, auto):
        assert done.returncode == 0, done.stderr
    assert elsewhere.returncode == 1
    assert "DEKAG_DEVICE must be a device of this machine (cpu); got 'cuda'" in elsewhere.stderr
    assert "Of these on cuda, at most: cloud 0 MiB" in elsewhere.stdout
    assert "device chosen" in auto.stderr
    assert "device chosen" not in auto.stdout
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "DEKAG_VAE_DTYPE must be float32 or bfloat16; got 'float16'" in wrong.stderr


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_check_says_whether_the_graphics_card_has_room(
    device: str, dummy_profile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known: list[int | None] = [None]
    asked: list[str] = []

    def mem_get_info(place: torch.device) -> tuple[int, int]:
        asked.append(str(place))
        if known[0] is None:
            raise RuntimeError("CUDA error: out of memory")
        return known[0], 2**34

    for name, value in {"is_available": True, "device_count": 2, "get_device_name": "Card"}.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    monkeypatch.setattr(torch.cuda, "mem_get_info", mem_get_info)
    monkeypatch.setattr("dekag.generation.placement._compute_in_full", lambda: None)
    monkeypatch.setenv("DEKAG_DEVICE", device)
    found = parts(load_profile(dummy_profile))
    there = processes_on_device(found, Machine(device="cuda"))
    restoring = processes_on_device(found, Machine(device="cuda"), restoring=True)["user"]

    def warned(free: int | None) -> list[str]:
        known[0] = free
        done = CliRunner().invoke(app, ["profile", "check", str(dummy_profile)])
        assert done.exit_code == 0, done.output
        (line,) = [line for line in done.stdout.splitlines() if line.startswith(f"Free on {device} (Card): ")]
        assert line.endswith("unknown." if free is None else f"{free / 2**20:,.0f} of 16,384 MiB.")
        return [line.partition(":")[0] for line in done.stderr.splitlines()]

    everything = "cloud, edge, user and distiller"
    assert warned(None) == []
    assert warned(0) == list(there)
    assert warned(sum(there.values()) - 1) == [everything]
    assert warned(sum(there.values())) == []
    smaller = max(size for size in (*there.values(), restoring) if size < restoring)
    assert "user, with link.restoration" in warned(smaller)
    assert set(asked) == {device}
    told = CliRunner().invoke(app, ["profile", "check", str(dummy_profile)]).stderr
    assert "DEKAG_OFFLOAD=true or DEKAG_TEXT_DEVICE=cpu takes less" in told
    monkeypatch.setenv("DEKAG_DEVICE", "cpu")
    assert "Free on" not in CliRunner().invoke(app, ["profile", "check", str(dummy_profile)]).stdout


def test_parts_that_do_not_fit_are_named(dummy_profile: Path, tmp_path: Path) -> None:
    foreign = save_dummy_models(tmp_path / "foreign", like=FOREIGN)
    mine = load_profile(rewritten(dummy_profile, tmp_path / "p", codec=str(foreign / "codec")))
    (told,) = problems(mine, parts(mine))
    assert told == "codec: made for latents of 16 channels; the edge's have 4"
    adapters = tmp_path / "adapters"
    shutil.copytree(Path(load_profile("stickers").adapters or ""), adapters)
    other = load_profile(rewritten(dummy_profile, tmp_path / "q", adapters=str(adapters)))
    (told,) = problems(other, parts(other))
    fits = TransmissionKnowledge.load(adapters).info["base_hash"]
    assert told.startswith(f"adapters: made for codec {fits[:12]}; the profile's is ")


def test_what_cannot_read_prompts_or_images_is_named(dummy_profile: Path, tmp_path: Path) -> None:
    JsccCodec(latent_channels=4, width=8, blocks=1, text_width=128).save_pretrained(tmp_path / "codec")
    save_encoders(tmp_path)
    (tmp_path / "clip" / "training.json").unlink()
    own = {"codec": str(tmp_path / "codec")}
    own |= {"scorer": {name: str(tmp_path / name) for name in ("clip", "dino")}}
    mine = load_profile(rewritten(dummy_profile, tmp_path / "mine", **own))
    assert problems(mine, parts(mine)) == [
        "codec: reads prompts in 128 numbers a token; the edge's text encoder has 16",
        f"clip: {tmp_path / 'clip'} has no preprocessor_config.json, which says how its model reads images",
    ]
    exchanged = {"clip": str(tmp_path / "dino"), "dino": str(tmp_path / "clip")}
    mine = load_profile(rewritten(dummy_profile, tmp_path / "exchanged", scorer=exchanged))
    assert problems(mine, parts(mine)) == [
        "clip: a model of type 'dinov2'; must be a CLIPModel",
        "dino: a model of type 'clip'; must be a Dinov2Model",
    ]
    (tmp_path / "clip" / "training.json").write_text("{}")
    with pytest.raises(MismatchError, match="dino is a model of type 'dinov2'; must be a CLIPModel"):
        ImageScorer.load(**exchanged)


@pytest.mark.parametrize("role", ["codec", "unaligned_codec", "adapters"])
@pytest.mark.asyncio
async def test_what_was_trained_on_other_latents_is_not_loaded(
    role: str, dummy_profile: Path, tmp_path: Path
) -> None:
    folder = with_adapters(dummy_profile, tmp_path / "adapted", adapters(dummy_profile / "codec", 1))
    folder = with_unaligned_codec(folder, tmp_path / "mine")
    profile = load_profile(folder)
    place = Path(getattr(profile, role))
    link, bank = partial(SemanticLink.load, folder), ModelBank(str(folder))
    if role != "adapters":
        (place / "training.json").write_text(json.dumps({"vae_hash": autoencoder_hash(profile.edge)}))
        link()
        (place / "training.json").write_text(json.dumps({"vae_hash": "0" * 64}))
    else:
        TransmissionKnowledge.load(place).with_info(vae_hash="0" * 64).save(place)
    edge = EdgeServicer(EdgeSettings(port=0, redis_url="", profile=str(folder)))
    for load in (link, lambda: bank.codecs, edge.load):
        with pytest.raises(MismatchError, match=f"^{role}: trained on latents of autoencoder 000000000000"):
            await asyncio.to_thread(load)
    await edge.close()


@pytest.mark.asyncio
async def test_what_is_missing_is_said_fetched_and_then_complete(dummy_profile: Path, tmp_path: Path) -> None:
    models = {"lab/base": tmp_path / "base", "lab/denoiser": tmp_path / "denoiser"}
    shutil.copytree(dummy_profile / "cloud", models["lab/base"])
    (models["lab/base"] / "README.md").write_text("a note")
    shutil.copytree(models["lab/base"] / "transformer", models["lab/denoiser"] / "transformer")
    shutil.copy(
        models["lab/base"] / "transformer" / "diffusion_pytorch_model.safetensors",
        models["lab/denoiser"] / "transformer" / "diffusion_pytorch_model.fp16.safetensors",
    )
    cloud = {
        "path": "lab/base",
        "components": {
            "transformer": {
                "path": "lab/denoiser", "subfolder": "transformer", "variant": "fp16", "revision": COMMIT,
            }
        },
        "steps": 2,
        "guidance_scale": 2.0,
    }  # fmt: skip
    profile = rewritten(dummy_profile, tmp_path / "mine", cloud=cloud)
    with running_hub(models) as (address, taken):
        there = {"HF_ENDPOINT": address, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "0"}
        before = await dekag("profile", "check", str(profile), folder=tmp_path, env=there)
        assert before.returncode == 1
        assert "no weights of lab/base on this machine" in before.stderr
        assert f"dekag profile fetch {profile}" in before.stderr
        fetched = await dekag("profile", "fetch", str(profile), folder=tmp_path, env=there)
        assert (fetched.returncode, fetched.stderr) == (0, ""), fetched.stderr
        assert "lab/denoiser (transformer) ..." in fetched.stdout
        assert "lab/denoiser/transformer/diffusion_pytorch_model.fp16.safetensors" in taken
        assert "lab/denoiser/transformer/diffusion_pytorch_model.safetensors" not in taken
        assert not [name for name in taken if name.startswith("lab/base/transformer/") or "README" in name]
    offline = {**there, "HF_HUB_OFFLINE": "1"}
    after = await dekag("profile", "check", str(profile), folder=tmp_path, env=offline)
    assert (after.returncode, after.stderr) == (0, ""), after.stderr
    assert "The profile is complete" in after.stdout
    again = await dekag("profile", "fetch", str(profile), folder=tmp_path, env=there)
    assert (again.returncode, again.stdout) == (0, "The profile names nothing on a hub that is missing.\n")
    shutil.rmtree(tmp_path / "hub" / "models--lab--denoiser")
    for reachable, why in ((there, "Connection refused"), (offline, "HF_HUB_OFFLINE")):
        failed = await dekag("profile", "fetch", str(profile), folder=tmp_path, env=reachable)
        assert failed.returncode == 1
        assert re.search(f"cannot download lab/denoiser: .*{why}", failed.stderr), failed.stderr
        assert "Traceback" not in failed.stderr


def named(model: Path, **more: Any) -> dict[str, Any]:
    """A generator by the name of its folder on the hub."""
    return {"path": f"lab/{model.name}", "steps": 2, "guidance_scale": 2.0, **more}


@pytest.mark.asyncio
async def test_a_component_that_is_never_loaded_is_not_fetched(dummy_profile: Path, tmp_path: Path) -> None:
    shutil.copytree(dummy_profile / "edge", edge := tmp_path / "edge")
    index = json.loads((edge / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (edge / "model_index.json").write_text(json.dumps(index))
    (edge / "safety_checker").mkdir()
    (edge / "safety_checker" / "config.json").write_text("{}")
    save_file({"weight": torch.ones(3)}, edge / "safety_checker" / "model.safetensors")
    profile = rewritten(dummy_profile, tmp_path / "mine", edge=named(edge))
    with running_hub({"lab/edge": edge}) as (address, taken):
        there = {"HF_ENDPOINT": address, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "0"}
        done = await dekag("profile", "fetch", str(profile), folder=tmp_path, env=there)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert [name for name in taken if name.startswith("lab/edge/unet/")]
    assert not [name for name in taken if "safety_checker" in name]
    after = await dekag(
        "profile", "check", str(profile), folder=tmp_path, env={**there, "HF_HUB_OFFLINE": "1"}
    )
    assert (after.returncode, after.stderr) == (0, ""), after.stderr
    (fetched,) = (tmp_path / "hub").rglob("snapshots/*/model_index.json")
    load_pipeline(load_profile(profile).edge.model_copy(update={"path": str(fetched.parent)}))


@pytest.mark.asyncio
async def test_an_interrupted_download_goes_on_where_it_was(dummy_profile: Path, tmp_path: Path) -> None:
    shutil.copytree(dummy_profile / "edge", edge := tmp_path / "edge")
    large = {"weight": torch.randn(7_000_000)}  # more than is written at once
    save_file(large, edge / "unet" / "diffusion_pytorch_model.safetensors")
    profile = rewritten(dummy_profile, tmp_path / "mine", edge=named(edge))
    with running_hub({"lab/edge": edge}, breaks=3) as (address, taken):
        there = {"HF_ENDPOINT": address, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "0"}
        done = await dekag("profile", "fetch", str(profile), folder=tmp_path, env=there)
        while done.returncode:
            assert len(taken) < 100
            assert re.search("cannot download lab/edge: ", done.stderr), done.stderr
            done = await dekag("profile", "fetch", str(profile), folder=tmp_path, env=there)
    continued = [int(name.rpartition(" ")[2]) for name in taken if "unet" in name and " from byte " in name]
    assert continued
    assert min(continued) > 0
    (file,) = (tmp_path / "hub").rglob("snapshots/*/unet/*.safetensors")
    assert torch.equal(load_file(file)["weight"], large["weight"])


@pytest.mark.asyncio
async def test_what_a_hub_does_not_hold_is_named(dummy_profile: Path, tmp_path: Path) -> None:
    pickled, part = tmp_path / "pickled", tmp_path / "part"
    shutil.copytree(dummy_profile / "edge", pickled)
    (pickled / "unet" / "diffusion_pytorch_model.safetensors").rename(pickled / "unet" / "model.bin")
    shutil.copytree(dummy_profile / "cloud" / "transformer", part / "transformer")
    (part / "transformer" / "README.md").write_text("without the rest")
    hub = {"lab/edge": dummy_profile / "edge", "lab/pickled": pickled, "lab/part": part}
    elsewhere = {"unet": {"path": "lab/edge", "subfolder": "unet", "revision": "v9"}}
    cases: list[tuple[dict[str, Any], str]] = [
        (named(pickled), "lab/pickled holds no unet weights as .safetensors files"),
        (named(part), "lab/part holds no pipeline: it has no model_index.json"),
        (named(tmp_path / "nothing"), "cannot download lab/nothing: 404"),
        (named(tmp_path / "edge", revision="v9"), "cannot download lab/edge: 404"),
        (
            named(tmp_path / "edge", variant="fp16"),
            "lab/edge holds no text_encoder weights",
        ),
        (named(tmp_path / "edge", components=elsewhere), "cannot download lab/edge: 404"),
    ]
    with running_hub(hub) as (address, _):

        async def fetched(number: int, edge: dict[str, Any]) -> str:
            cache = {"HF_HUB_CACHE": str(tmp_path / f"hub-{number}"), "HF_HUB_OFFLINE": "0"}
            profile = rewritten(dummy_profile, tmp_path / str(number), edge=edge)
            done = await dekag(
                "profile", "fetch", str(profile), folder=tmp_path, env={"HF_ENDPOINT": address, **cache}
            )
            assert done.returncode == 1, (edge, done.stdout)
            return done.stderr

        told = await asyncio.gather(*(fetched(number, edge) for number, (edge, _) in enumerate(cases)))
    for stderr, (_, said) in zip(told, cases, strict=True):
        assert stderr.startswith(said)
        assert len(stderr.splitlines()) == 1, stderr


@pytest.mark.asyncio
async def test_encoders_are_fetched_at_their_revision_or_refused_first(
    dummy_profile: Path, tmp_path: Path
) -> None:
    models = {f"lab/{name}": tmp_path / name for name in ("edge", "clip", "dino", "pickled")}
    shutil.copytree(dummy_profile / "edge", models["lab/edge"])
    for name in ("clip", "dino", "pickled"):
        models[f"lab/{name}"].mkdir()
        (models[f"lab/{name}"] / "config.json").write_text("{}")
        (models[f"lab/{name}"] / "preprocessor_config.json").write_text(f'{{"of": "{name}"}}')
        weights = "pytorch_model.bin" if name == "pickled" else "model.safetensors"
        save_file({"weight": torch.ones(3)}, models[f"lab/{name}"] / weights)
    whole = {"clip": "lab/clip", "clip_revision": COMMIT, "dino": "lab/dino"}
    cases: list[tuple[dict[str, Any], str]] = [
        ({**whole, "dino": "lab/pickled"}, "lab/pickled holds no weights as .safetensors files"),
        ({**whole, "clip_revision": "v9"}, "cannot download lab/clip: 404"),
    ]
    with running_hub(models) as (address, taken):
        there = {"HF_ENDPOINT": address, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "0"}
        for number, (scorer, said) in enumerate(cases):
            edge = named(models["lab/edge"])
            profile = rewritten(dummy_profile, tmp_path / str(number), edge=edge, scorer=scorer)
            done = await dekag("profile", "fetch", str(profile), folder=tmp_path, env=there)
            assert (done.returncode, done.stdout) == (1, "")
            assert done.stderr.startswith(said)
            assert not [name for name in taken if name.endswith(".safetensors")]
        profile = rewritten(dummy_profile, tmp_path / "mine", scorer=whole)
        done = await dekag("profile", "fetch", str(profile), folder=tmp_path, env=there)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == "lab/clip ...\nlab/dino ...\n2 downloaded.\n"
        assert "lab/clip/preprocessor_config.json" in taken


@pytest.mark.asyncio
async def test_the_configuration_of_a_checkpoint_in_one_file_is_fetched_without_weights(
    dummy_profile: Path, tmp_path: Path
) -> None:
    save_original(load_pipeline(load_profile(dummy_profile).edge), tmp_path / "all.safetensors")
    edge = named(tmp_path / "edge", path=str(tmp_path / "all.safetensors"), config="lab/edge")
    profile = rewritten(dummy_profile, tmp_path / "mine", edge=edge)
    with running_hub({"lab/edge": dummy_profile / "edge"}) as (address, taken):
        there = {"HF_ENDPOINT": address, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "0"}
        done = await dekag("profile", "fetch", str(profile), folder=tmp_path, env=there)
        assert (done.returncode, done.stderr) == (0, "")
        assert "lab/edge/model_index.json" in taken
        assert not [name for name in taken if name.endswith(".safetensors")]
    offline = {**there, "HF_HUB_OFFLINE": "1"}
    after = await dekag("profile", "check", str(profile), folder=tmp_path, env=offline)
    assert (after.returncode, after.stderr) == (0, "")


@pytest.mark.asyncio
async def test_a_profile_that_is_invalid_names_its_field(dummy_profile: Path, tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"distill": {"rank": 0}}, "distill: .*rank must be between 1 and 256"),
        ({"distill": {"banana": 1}}, "distill.banana"),
        ({"size": 100}, "size"),
    ]
    for number, (changed, said) in enumerate(cases):
        profile = rewritten(dummy_profile, tmp_path / str(number), **changed)
        done = await dekag("profile", "check", str(profile), folder=tmp_path)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        assert re.search(said, done.stderr), done.stderr
