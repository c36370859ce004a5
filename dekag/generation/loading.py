"""Loads and identifies the pipelines that profiles name: folders, models on a hub, files with a checkpoint.

Nothing is downloaded: a model on a hub must be in the local cache, where `dekag profile fetch` puts it.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from dekag.checksums import add_file, model_files
from dekag.documents import read_json
from dekag.errors import MismatchError, NotFoundError
from dekag.generation.placement import ON_CPU, Placement
from dekag.generation.profile import ComponentProfile, GeneratorProfile

PIPELINES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline", "PixArtSigmaPipeline")
"""Pipelines that generators use; the edge is the first."""
TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
INDEX = "model_index.json"
CHECKER = "safety_checker"
"""A component of Stable Diffusion 1 that is never loaded: it judges pixels, and generators draw latents."""
_UNET = "model.diffusion_model."  # of the names in checkpoints
_LACKS = "it lacks weights"


def folder_hash(path: Path | str, revision: str | None = None) -> str:
    """SHA-256 (hex) of the names and contents of weights and configurations in a model folder.

    Of a model on a hub, its name and the commit that is in the local cache are hashed; of a file,
    its content.

    Raises:
        NotFoundError: there is neither such a folder or file nor such a model in the cache.
    """
    folder = Path(path)
    digest = hashlib.sha256()
    if folder.is_file():
        add_file(digest, folder)
        return digest.hexdigest()
    if not folder.is_dir():
        return hashlib.sha256(f"{path}@{hub_folder(str(path), revision).name}".encode()).hexdigest()
    for file in model_files(folder):
        digest.update(os.fsencode(file.relative_to(folder).as_posix()) + b"\0")
        add_file(digest, file)
    return digest.hexdigest()


def hub_folder(name: str, revision: str | None = None) -> Path:
    """The folder in the local cache of a hub with a model, perhaps not whole; its name is the commit.

    Raises:
        NotFoundError: the cache holds none.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        # no patterns: parts that nobody needs may be missing
        return Path(snapshot_download(name, revision=revision, local_files_only=True, allow_patterns=[]))
    except (HFValidationError, LocalEntryNotFoundError):
        which = f"{name!r}, revision {revision!r}" if revision else f"{name!r}"
        said = f"no model {which}: it is neither a folder nor in the cache of the hub"
        raise NotFoundError(said) from None


def pipeline_hash(model: GeneratorProfile) -> str:
    """SHA-256 (hex) of what a generator is loaded from; number formats do not count.

    Raises:
        NotFoundError: a part is neither in a folder nor in the hub's cache.
    """
    base = folder_hash(model.path, model.revision)
    parts = [f"config={folder_hash(model.config)}"] if model.config else []
    parts += [f"variant={model.variant}"] if model.variant else []
    parts += [f"{name}={_component_hash(part)}" for name, part in sorted(model.components.items())]
    return hashlib.sha256("\0".join([base, *parts]).encode()).hexdigest() if parts else base


def _component_hash(part: ComponentProfile) -> str:
    folder = Path(part.path, part.subfolder or "")
    return "/".join(
        [
            folder_hash(folder) if folder.is_dir() else folder_hash(part.path, part.revision),
            part.subfolder or "",
            part.variant or "",
        ]
    )


def autoencoder_hash(model: GeneratorProfile) -> str:
    """SHA-256 (hex) of a generator's autoencoder; of one on a hub, that of the whole pipeline.

    Of a checkpoint in one file, the scale of the latents is in the configuration, so that counts as well.

    Raises:
        NotFoundError: it is not on this machine.
        MismatchError: a checkpoint in one file has no whole configuration.
    """
    if "vae" in model.components:
        return hashlib.sha256(_component_hash(model.components["vae"]).encode()).hexdigest()
    folder = Path(model.path) / "vae"
    base = folder_hash(folder) if folder.is_dir() else folder_hash(model.path, model.revision)
    parts = []
    if Path(model.path).is_file():
        parts.append(f"config={folder_hash(Path(configuration(model)[1]) / 'vae' / 'config.json')}")
    parts += [f"variant={model.variant}"] if model.variant else []
    return hashlib.sha256("\0".join([base, *parts]).encode()).hexdigest() if parts else base


def load_pipeline(model: GeneratorProfile, placement: Placement = ON_CPU) -> Any:
    """The diffusers pipeline of a generator, in its number formats, on its devices.

    Raises:
        NotFoundError: a part is not on this machine.
        MismatchError: the files hold no such pipeline, or one that generators cannot use.
    """
    parts = {
        name: load_component(model, name)
        for name in model.components
        if placement.keep_text_encoder or name != "text_encoder"
    }
    if not placement.keep_text_encoder:
        parts["text_encoder"] = None
    pipeline = _pipeline(model, parts)
    if (name := type(pipeline).__name__) not in PIPELINES:
        raise MismatchError(f"{model.path} is a {name}: a generator is one of {', '.join(PIPELINES)}")
    encoders = [each for name in TEXT_ENCODERS if (each := getattr(pipeline, name, None)) is not None]
    if encoders and not placement.keep_text_encoder:
        raise MismatchError(
            f"{model.path} has two text encoders, which must stay in memory: DEKAG_KEEP_TEXT_ENCODER must be "
            "true"
        )
    if placement.offload:
        pipeline.enable_model_cpu_offload(device=placement.device)
    else:
        pipeline.to(placement.device)
    if placement.text_device != placement.device:
        for encoder in encoders:
            encoder.to(placement.text_device)
    return pipeline


def _pipeline(model: GeneratorProfile, parts: dict[str, Any]) -> Any:
    from diffusers import DiffusionPipeline

    if Path(model.path).is_file():
        return _pipeline_of_file(model, parts)
    if model.config is not None:
        raise MismatchError(f"{model.path} is no single file: `config` is for checkpoints in one file")
    folder = local_folder(model.path, model.revision)
    return DiffusionPipeline.from_pretrained(
        folder,
        variant=model.variant,
        dtype={"vae": _dtype(model.vae_dtype), "default": _dtype(model.dtype)},
        use_safetensors=True,
        local_files_only=True,
        **{**_without_checker(folder), **parts},
    )


def _without_checker(folder: str) -> dict[str, Any]:
    """Arguments that leave out a pipeline's safety checker, which would take memory for nothing."""
    index = Path(folder, INDEX)
    named = dict(_components(dict(read_json(index)))) if index.is_file() else {}
    if named.get(CHECKER, [None])[0] is None:
        return {}
    return {CHECKER: None, "requires_safety_checker": False}


def _pipeline_of_file(model: GeneratorProfile, parts: dict[str, Any]) -> Any:
    """The pipeline of a checkpoint in one file, except the components in `parts`."""
    index, folder = configuration(model)
    if model.vae_dtype != model.dtype and "vae" not in parts:
        parts = {**parts, "vae": load_component(model, "vae")}  # rounded once, not twice
    with _fitting(model):
        kind = _class_of("diffusers", index["_class_name"])
        pipeline = kind.from_single_file(
            model.path, config=folder, dtype=_dtype(model.dtype), local_files_only=True, **parts
        )
    for name, component in pipeline.components.items():
        if name not in parts and isinstance(component, torch.nn.Module):
            if any(each.is_meta for each in component.parameters()):
                raise MismatchError(f"{_misfit(model)}: {_LACKS}")
            if name == "unet":
                _check_unet(model, component)
    return pipeline


def configuration(model: GeneratorProfile) -> tuple[dict[str, Any], str]:
    """The index of the pipeline that a checkpoint in one file belongs to, and the folder that it is in.

    Raises:
        NotFoundError: the configuration is not on this machine.
        MismatchError: the file is of another format, or there is no whole configuration.
    """
    if Path(model.path).suffix != ".safetensors":
        raise MismatchError(f"{model.path} is not a .safetensors file; other formats can hold programs")
    if model.config is None:
        raise MismatchError(f"{model.path} is a checkpoint in one file: `config` must name its configuration")
    folder = Path(local_folder(model.config))
    if not (folder / INDEX).is_file():
        raise MismatchError(f"the configuration {model.config} has no {INDEX}")
    index = dict(read_json(folder / INDEX))
    used = [name for name, (library, _) in _components(index) if library and name != CHECKER]
    if absent := [name for name in used if not (folder / name).is_dir()]:
        raise MismatchError(f"the configuration {model.config} has no folder {absent[0]!r}")
    return index, str(folder)


def _components(index: dict[str, Any]) -> list[tuple[str, Any]]:
    """Names of a pipeline's components, each with its library and class, which are None if it has none."""
    return [(name, pair) for name, pair in index.items() if isinstance(pair, list) and len(pair) == 2]


@contextmanager
def _fitting(model: GeneratorProfile) -> Iterator[None]:
    """Turns errors of diffusers into one that names the checkpoint and its configuration."""
    from diffusers.loaders.single_file_utils import SingleFileComponentError

    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, SingleFileComponentError) as error:
        said = str(error).strip().partition("\n")[0]
        if isinstance(error, NotImplementedError):  # PyTorch's, about tensors that nothing was loaded into
            said = _LACKS
        raise MismatchError(f"{_misfit(model)}: {said}") from None


def _misfit(model: GeneratorProfile) -> str:
    return f"the checkpoint {model.path} does not fit its configuration {model.config}"


def _check_unet(model: GeneratorProfile, unet: torch.nn.Module) -> None:
    """MismatchError if a checkpoint in one file has more layers than its configuration.

    diffusers ignores them. Text encoders do have layers that nothing reads, and autoencoders remains of
    their training.
    """
    with safe_open(model.path, framework="pt") as file:
        shapes = [file.get_slice(key).get_shape() for key in file.keys() if key.startswith(_UNET)]  # noqa: SIM118
    there, used = sum(map(math.prod, shapes)), sum(each.numel() for each in unet.state_dict().values())
    if there != used:
        raise MismatchError(
            f"{_misfit(model)}: its U-Net has {there:,} numbers, that of the configuration {used:,}"
        )


def load_component(model: GeneratorProfile, name: str) -> Any:
    """One component of a generator's pipeline, on the CPU: "vae", "text_encoder", "transformer", ...

    Raises:
        NotFoundError: it is not on this machine.
        MismatchError: the pipeline has no such component.
    """
    part = model.components.get(name)
    kind, folder = _component(model, name)
    weighty = issubclass(kind, torch.nn.Module)
    if part is None and weighty and Path(model.path).is_file():
        return _component_of_file(model, name, kind)
    source = part or ComponentProfile(path=folder, subfolder=name, variant=model.variant)
    dtype = _dtype(model.vae_dtype if name == "vae" else model.dtype)
    weights: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, "variant": source.variant}
    return kind.from_pretrained(
        local_folder(source.path, source.revision),
        subfolder=source.subfolder or "",
        local_files_only=True,
        **(weights if weighty else {}),
    )


def component_config(model: GeneratorProfile, name: str) -> dict[str, Any]:
    """The configuration of a component of diffusers, with the defaults of its class; reads no weights.

    Raises:
        NotFoundError, MismatchError: as `load_component`; or the component has no configuration.
    """
    kind, folder = _component(model, name)
    part = model.components.get(name) or ComponentProfile(path=folder, subfolder=name)
    path = Path(local_folder(part.path, part.revision), part.subfolder or "", "config.json")
    if not path.is_file():
        raise MismatchError(f"the component {name!r} of {model.path} has no {path}")
    arguments = inspect.signature(kind.__init__).parameters
    usual = {key: each.default for key, each in arguments.items() if each.default is not each.empty}
    return {**usual, **read_json(path)}


def denoiser_name(model: GeneratorProfile) -> str:
    """The name of a generator's denoiser in its pipeline."""
    library, _ = _index(model)[0].get("unet") or (None, None)
    return "unet" if library is not None else "transformer"


def _index(model: GeneratorProfile) -> tuple[dict[str, Any], str]:
    """The index of a generator's pipeline, and the folder that it is in."""
    from diffusers import DiffusionPipeline

    if Path(model.path).is_file():
        return configuration(model)
    folder = local_folder(model.path, model.revision)
    return DiffusionPipeline.load_config(folder, local_files_only=True), folder


def _component(model: GeneratorProfile, name: str) -> tuple[Any, str]:
    """The class of a component, and the folder with the index that names it.

    Raises:
        NotFoundError: the pipeline is not on this machine.
        MismatchError: it has no such component, or that is replaced by a file.
    """
    part = model.components.get(name)
    if part is not None and Path(part.path).is_file():
        raise MismatchError(f"{part.path} is a file: the component {name!r} is a folder, or a name on a hub")
    index, folder = _index(model)
    library, kind = index.get(name, (None, None))
    if kind is None:
        named = ", ".join(sorted(key for key in index if not key.startswith("_")))
        raise MismatchError(f"{model.path} has no component {name!r}: its components are {named}")
    return _class_of(library, kind), folder


def _component_of_file(model: GeneratorProfile, name: str, kind: Any) -> Any:
    """A component with weights of a checkpoint in one file; the others are not loaded."""
    index, folder = configuration(model)
    if name in TEXT_ENCODERS:  # which transformers cannot load from such files
        others = [other for other, (library, _) in _components(index) if library and other != name]
        return getattr(_pipeline_of_file(model, dict.fromkeys(others)), name)
    with _fitting(model):
        return kind.from_single_file(
            model.path,
            config=folder,
            subfolder=name,
            dtype=_dtype(model.vae_dtype if name == "vae" else model.dtype),
            local_files_only=True,
        )


def _class_of(library: str, name: str) -> Any:
    if library not in ("diffusers", "transformers"):
        raise MismatchError(
            f"components from {library[:80]!r} are not supported: use diffusers or transformers"
        )
    return getattr(importlib.import_module(library), name)


def _dtype(name: str) -> torch.dtype:
    found: torch.dtype = getattr(torch, name)
    return found


def local_folder(path: str, revision: str | None = None) -> str:
    """The folder of a model, in the hub's cache if it is on a hub.

    Raises:
        NotFoundError: it is nowhere.
        MismatchError: a revision of a folder, which has none, is asked for.
    """
    if not Path(path).exists():
        return str(hub_folder(path, revision))
    if revision is not None:
        raise MismatchError(f"{path} is on this machine: `revision` {revision!r} is for models on a hub")
    return path
