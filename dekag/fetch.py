"""Downloads the models that a profile names on a hub into the hub's local cache."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dekag.errors import NotFoundError
from dekag.generation.loading import INDEX
from dekag.generation.profile import GeneratorProfile
from dekag.inventory import model_folder, parts, pipeline_index
from dekag.profile import Profile

_STEMS = ("model", "diffusion_pytorch_model")  # of the names of weight files


def fetch(profile: Profile) -> Iterator[str]:
    """Download what a profile names on a hub and this machine lacks; yields each name before it begins.

    An interrupted download is completed by the next call.

    Raises:
        NotFoundError: a name is not on the hub, does not hold what the profile needs of it, or the hub cannot
            be reached.
    """
    missing = {(part.source, part.component) for part in parts(profile) if part.folder is None}
    for model in (profile.cloud, profile.edge):
        if any(source == model.path for source, _ in missing) and not Path(model.path).exists():
            yield model.path
            _fetch_pipeline(model)
        for name, other in model.components.items():
            if (other.path, name) in missing or (model.path, "") in missing:
                yield f"{other.path} ({name})"
                inside = f"{other.subfolder}/" if other.subfolder else ""
                _download(other.path, other.revision, _patterns(inside, other.variant))
        if model.config and model_folder(model.config) is None:
            yield model.config
            _download(model.config, None, ["*.json", "*.txt", "*.model"])
    scorer = profile.scorer
    for path in (scorer.clip, scorer.dino) if scorer else ():
        if (path, "") in missing:
            yield path
            _download(path, None, _patterns("", None))
    for part in parts(profile):
        on_a_hub = not Path(part.source).exists() and part.role not in (
            "codec",
            "unaligned_codec",
            "adapters",
            "pixel_codec",
        )
        if part.folder is None and on_a_hub:
            what = f"{part.component} " if part.component else ""
            raise NotFoundError(
                f"{part.source} is downloaded, but holds no {what}weights as .safetensors files of the "
                "revision and variant in the profile"
            )


def _patterns(inside: str, variant: str | None) -> list[str]:
    dot = f".{variant}" if variant else ""
    weights = [
        f"{inside}{name}{dot}{rest}"
        for name in _STEMS
        for rest in (".safetensors", "-?????-of-?????.safetensors")
    ]
    return [f"{inside}*.{suffix}" for suffix in ("json", "txt", "model")] + weights


def _fetch_pipeline(model: GeneratorProfile) -> None:
    """The base pipeline without the components that come from elsewhere."""
    _download(model.path, model.revision, [INDEX])
    home = model_folder(model.path, model.revision)
    if home is None or not (home / INDEX).is_file():
        raise NotFoundError(f"{model.path} holds no pipeline: it has no {INDEX}")
    index = pipeline_index(model)
    own = [name for name, pair in index.items() if isinstance(pair, list) and pair[0] is not None]
    folders = [f"{name}/" for name in own if name not in model.components]
    _download(model.path, model.revision, [each for f in folders for each in _patterns(f, model.variant)])


def _download(path: str, revision: str | None, patterns: list[str]) -> None:
    from huggingface_hub import snapshot_download

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # what is not there is told by who needs it
    _reached(path, lambda: snapshot_download(path, revision=revision, allow_patterns=patterns))


def _reached(path: str, call: Any) -> Any:
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        return call()
    except (HFValidationError, HfHubHTTPError, OfflineModeIsEnabled, httpx2.HTTPError, OSError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise NotFoundError(f"cannot download {path}: {first}") from None
