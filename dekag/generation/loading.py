"""Loads and identifies the pipelines that profiles name: folders, models on a hub, files with a checkpoint.

Nothing is downloaded: a model on a hub must be in the local cache, where `dekag profile fetch` puts it.
"""

from __future__ import annotations

import hashlib
import importlib
import os
from pathlib import Path
from typing import Any

import torch

from dekag.checksums import add_file, model_files
from dekag.errors import MismatchError, NotFoundError
from dekag.generation.placement import ON_CPU, Placement
from dekag.generation.profile import ComponentProfile, GeneratorProfile


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
    """The hash of a generator's autoencoder: of its folder, or of the whole pipeline on a hub."""
    if "vae" in model.components:
        return hashlib.sha256(_component_hash(model.components["vae"]).encode()).hexdigest()
    folder = Path(model.path) / "vae"
    return folder_hash(folder) if folder.is_dir() else folder_hash(model.path, model.revision)


def load_pipeline(model: GeneratorProfile, placement: Placement = ON_CPU) -> Any:
    """The diffusers pipeline of a generator, in its number formats, on its devices.

    Raises:
        NotFoundError: a part is not on this machine.
        MismatchError: the files hold no such pipeline.
    """
    parts = {
        name: load_component(model, name)
        for name in model.components
        if placement.keep_text_encoder or name != "text_encoder"
    }
    if not placement.keep_text_encoder:
        parts["text_encoder"] = None
    pipeline = _pipeline(model, parts)
    if placement.offload:
        pipeline.enable_model_cpu_offload(device=placement.device)
    else:
        pipeline.to(placement.device)
    if placement.text_device != placement.device and getattr(pipeline, "text_encoder", None) is not None:
        pipeline.text_encoder.to(placement.text_device)
    return pipeline


def _pipeline(model: GeneratorProfile, parts: dict[str, Any]) -> Any:
    from diffusers import DiffusionPipeline

    if not Path(model.path).is_file():
        if model.config is not None:
            raise MismatchError(f"{model.path} is no single file: `config` is for checkpoints in one file")
        return DiffusionPipeline.from_pretrained(
            _there(model.path, model.revision),
            variant=model.variant,
            dtype={"vae": _dtype(model.vae_dtype), "default": _dtype(model.dtype)},
            use_safetensors=True,
            local_files_only=True,
            **parts,
        )
    if model.config is None:
        raise MismatchError(f"{model.path} is a checkpoint in one file: `config` must name its configuration")
    index = DiffusionPipeline.load_config(_there(model.config), local_files_only=True)
    pipeline = _class_of("diffusers", index["_class_name"]).from_single_file(
        model.path, config=_there(model.config), dtype=_dtype(model.dtype), local_files_only=True, **parts
    )
    if model.vae_dtype != model.dtype:
        pipeline.vae.to(dtype=_dtype(model.vae_dtype))
    return pipeline


def load_component(model: GeneratorProfile, name: str) -> Any:
    """One component of a generator's pipeline, on the CPU: "vae", "text_encoder", "transformer", ...

    Raises:
        NotFoundError: it is not on this machine.
        MismatchError: the pipeline has no such component.
    """
    from diffusers import DiffusionPipeline

    part = model.components.get(name)
    if part is None and Path(model.path).is_file():
        return getattr(_pipeline(model, {}), name)
    index = DiffusionPipeline.load_config(
        _there(model.config or model.path, None if model.config else model.revision), local_files_only=True
    )
    library, kind = index.get(name, (None, None))
    if kind is None:
        named = ", ".join(sorted(key for key in index if not key.startswith("_")))
        raise MismatchError(f"{model.path} has no component {name!r}: its components are {named}")
    source = part or ComponentProfile(
        path=model.path, subfolder=name, revision=model.revision, variant=model.variant
    )
    dtype = _dtype(model.vae_dtype if name == "vae" else model.dtype)
    weights: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, "variant": source.variant}
    kind = _class_of(library, kind)
    return kind.from_pretrained(
        _there(source.path, source.revision),
        subfolder=source.subfolder or "",
        local_files_only=True,
        **(weights if issubclass(kind, torch.nn.Module) else {}),
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


def _there(path: str, revision: str | None = None) -> str:
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
