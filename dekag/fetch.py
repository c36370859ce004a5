"""Downloads the models that a profile names on a hub into the hub's local cache."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import Path
from typing import Any

from dekag.errors import NotFoundError
from dekag.generation.loading import CHECKER, INDEX
from dekag.generation.profile import GeneratorProfile
from dekag.inventory import model_folder, parts, pipeline_index, weighty
from dekag.profile import Profile

_STEMS = ("model", "diffusion_pytorch_model")  # of the names of weight files
_ENDINGS = (".safetensors", "-?????-of-?????.safetensors")


@dataclass(frozen=True)
class _Download:
    """Files of one name on a hub.

    Attributes:
        label: what is downloaded, for people.
        weights: patterns of weight files for each component; of each, the hub must hold one.
        others: patterns of other files.
    """

    label: str
    path: str
    revision: str | None
    weights: Mapping[str, list[str]]
    others: list[str]

    def check(self) -> None:
        """NotFoundError if the hub does not hold weights that this needs."""
        from huggingface_hub import HfApi

        there = _reached(self.path, lambda: HfApi().list_repo_files(self.path, revision=self.revision))
        for component, patterns in self.weights.items():
            if not any(fnmatchcase(file, pattern) for file in there for pattern in patterns):
                what = f"{component} " if component else ""
                raise NotFoundError(
                    f"{self.path} holds no {what}weights as .safetensors files of the revision and variant "
                    "in the profile; nothing was downloaded"
                )

    def run(self) -> None:
        """Downloads what is not there yet."""
        _download(self.path, self.revision, [*self.others, *chain(*self.weights.values())])


def fetch(profile: Profile) -> Iterator[str]:
    """Download what a profile names on a hub and this machine lacks; yields each name before it begins.

    All is looked up before the first download of weights. An interrupted download is completed by the next
    call.

    Raises:
        NotFoundError: a name is not on the hub, does not hold what the profile needs of it, or the hub cannot
            be reached.
    """
    planned = [*_planned(profile)]
    for each in planned:
        each.check()
    for each in planned:
        yield each.label
        each.run()
    on_a_hub = {each.path for each in planned}
    for part in parts(profile):
        if part.folder is None and part.source in on_a_hub:
            raise NotFoundError(
                f"{part.source} is downloaded, but its {part.component or 'weights'} is not whole"
            )


def _planned(profile: Profile) -> Iterator[_Download]:
    missing = {(part.source, part.component) for part in parts(profile) if part.folder is None}
    for model in (profile.cloud, profile.edge):
        if any(source == model.path for source, _ in missing) and not Path(model.path).exists():
            yield _of_pipeline(model)
        for name, other in model.components.items():
            lacks = (other.path, name) in missing or (model.path, "") in missing
            if lacks and not Path(other.path).exists():
                label = f"{other.path} ({name})"
                weights = {name: _weights(other.subfolder, other.variant)}
                yield _Download(label, other.path, other.revision, weights, _others(other.subfolder))
        if model.config and model_folder(model.config) is None:
            yield _Download(model.config, model.config, None, {}, ["*.json", "*.txt", "*.model"])
    if (scorer := profile.scorer) is not None:
        for path, revision in (
            (scorer.clip, scorer.clip_revision),
            (scorer.dino, scorer.dino_revision),
        ):
            if (path, "") in missing and not Path(path).exists():
                yield _Download(path, path, revision, {"": _weights(None, None)}, _others(None))


def _of_pipeline(model: GeneratorProfile) -> _Download:
    """The base pipeline without the components that come from elsewhere, or are never loaded."""
    _download(model.path, model.revision, [INDEX])
    home = model_folder(model.path, model.revision)
    if home is None or not (home / INDEX).is_file():
        raise NotFoundError(f"{model.path} holds no pipeline: it has no {INDEX}")
    index = pipeline_index(model)
    own = [name for name, pair in index.items() if isinstance(pair, list) and pair[0] is not None]
    own = [name for name in own if name not in model.components and name != CHECKER]
    files = {name: _weights(name, model.variant) for name in own}
    weights = {name: files.pop(name) for name in weighty(index) if name in own}
    others = [*chain(*files.values(), *(_others(name) for name in own))]  # an image encoder may be empty
    return _Download(model.path, model.path, model.revision, weights, others)


def _weights(subfolder: str | None, variant: str | None) -> list[str]:
    """Patterns of the files with weights in a folder of a repository."""
    dot = f".{variant}" if variant else ""
    names = [f"{name}{dot}{rest}" for name in _STEMS for rest in _ENDINGS]
    return [f"{subfolder}/{name}" if subfolder else name for name in names]


def _others(subfolder: str | None) -> list[str]:
    """Patterns of the other files that a model needs in a folder of a repository."""
    return [f"{subfolder}/*.{end}" if subfolder else f"*.{end}" for end in ("json", "txt", "model")]


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
