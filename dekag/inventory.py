"""What a profile consists of, where it is, whether it fits together, and the memory of its weights.

Reads configurations and the headers of weight files alone: no model is loaded.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dekag.checksums import RECORD
from dekag.documents import read_json
from dekag.errors import MismatchError, NotFoundError
from dekag.generation.loading import (
    CHECKER,
    INDEX,
    PIPELINES,
    TEXT_ENCODERS,
    autoencoder_hash,
    configuration,
    folder_hash,
    hub_folder,
    pipeline_hash,
)
from dekag.generation.machine import Machine
from dekag.generation.profile import GeneratorProfile
from dekag.generation.trajectories import check_teachable
from dekag.metrics.features import HOW_READ, KINDS, other_kind
from dekag.profile import Profile

ROLES = (
    "cloud", "edge", "codec", "unaligned_codec", "adapters", "pixel_codec",
    "clip", "dino", "probe", "outline",
)  # fmt: skip
SIZES = {"float32": 4, "bfloat16": 2}
_USUAL = Machine()
_WEIGHTS = re.compile(r"[a-z_]+(\.(?P<variant>[\w-]+?))?(-\d+-of-\d+)?\.safetensors")
_PREFIXES = {
    "text_encoder": ("cond_stage_model.", "conditioner."),
    "unet": ("model.diffusion_model.",),
    "vae": ("first_stage_model.", "vae."),
}
"""Beginnings of the names in a checkpoint in one file; Stable Diffusion XL's text encoders count as one."""
_HEADER_MOST = 2**27  # bytes of a header that are read


@dataclass(frozen=True)
class Part:
    """A model of a profile, or a component of one.

    Attributes:
        role: one of ROLES.
        component: of a pipeline: "unet", "transformer", "vae", "text_encoder"; otherwise empty.
        source: the folder or hub name in the profile.
        folder: where its weights are on this machine; None if they are missing.
        parameters: number of its parameters.
        bytes_on_disk: size of its weights' files.
        bytes_each: bytes per parameter in memory.
    """

    role: str
    component: str
    source: str
    folder: Path | None
    parameters: int = 0
    bytes_on_disk: int = 0
    bytes_each: int = 4

    @property
    def name(self) -> str:
        """Role and component."""
        return f"{self.role}: {self.component}" if self.component else self.role

    @property
    def bytes_in_memory(self) -> int:
        """Memory of its weights."""
        return self.parameters * self.bytes_each


def parts(profile: Profile, machine: Machine = _USUAL) -> list[Part]:
    """The parts of a profile, those that are missing on this machine among them.

    Args:
        profile: which models there are.
        machine: settings that say how autoencoders are held.
    """
    found = [
        part
        for role, model in (("cloud", profile.cloud), ("edge", profile.edge))
        for part in _pipeline(role, model.with_autoencoder_in(machine.vae_dtype))
    ]
    others = {
        "codec": profile.codec,
        "unaligned_codec": profile.unaligned_codec,
        "adapters": profile.adapters,
        "pixel_codec": profile.pixel_codec,
    }
    if profile.scorer is not None:
        others |= {name: getattr(profile.scorer, name) for name in ("clip", "dino", "probe", "outline")}
    revisions = {} if profile.scorer is None else profile.scorer.encoders
    return found + [
        _single(role, path, revisions.get(f"{role}_revision"))
        for role, path in others.items()
        if path is not None
    ]


def processes(profile: Profile, found: list[Part], *, restoring: bool = False) -> dict[str, int]:
    """Bytes of the weights that each process holds; images and activations come on top.

    If a codec reads prompts, edge and user each hold the edge's text encoder for it, at the edge once more:
    no update changes that one. A distiller holds the cloud, and then, in its place, the edge and the
    evaluators. With `restoring`, the user has loaded the edge's pipeline, as it does for its first request
    with `link.restoration`.
    """
    held = {role: sum(part.bytes_in_memory for part in found if part.role == role) for role in ROLES}
    edge = {part.component: part.bytes_in_memory for part in found if part.role == "edge"}
    vae = edge.get("vae", 0)
    codec = held["codec"] + held["unaligned_codec"] + held["pixel_codec"] + _adapted(found)
    if any(_reads_prompts(part) for part in found):
        codec += edge.get("text_encoder", 0)
    evaluators = held["clip"] + held["dino"]
    return {
        "cloud": held["cloud"] + evaluators,
        "edge": held["edge"] + codec,
        "user": vae + codec + restoring * held["edge"],
        "distiller": max(held["cloud"], held["edge"] + evaluators),
    }


def processes_on_device(found: list[Part], machine: Machine, *, restoring: bool = False) -> dict[str, int]:
    """Bytes of the weights that each process has at most on the device in DEKAG_DEVICE.

    Codecs and evaluators never are there. With offload, one component of a generator at a time is; but the
    edge that a distillation trains, the user's autoencoder and the text encoder of a codec that reads
    prompts stay there. `restoring` is as in `processes`.
    """

    def held(role: str, *, offload: bool = machine.offload) -> int:
        there = [part for part in found if part.role == role and not _apart(part, machine)]
        sizes = [part.bytes_in_memory for part in there]
        return max(sizes, default=0) if offload else sum(sizes)

    edge = {part.component: part for part in found if part.role == "edge"}
    vae = edge["vae"].bytes_in_memory if "vae" in edge else 0
    reader = edge.get("text_encoder")
    reads = reader is not None and not _apart(reader, machine) and any(map(_reads_prompts, found))
    said = reader.bytes_in_memory if reader is not None and reads else 0
    return {
        "cloud": held("cloud"),
        "edge": held("edge") + said,
        "user": vae + said + restoring * held("edge"),
        "distiller": max(held("cloud"), held("edge", offload=False)),
    }


def _apart(part: Part, machine: Machine) -> bool:
    """Whether it is a text encoder that computes on the CPU."""
    return part.component in TEXT_ENCODERS and machine.text_device == "cpu"


def text_encoder_bytes(found: list[Part]) -> int:
    """Bytes of the cloud's text encoder, which DEKAG_KEEP_TEXT_ENCODER=false drops between new prompts."""
    return sum(
        part.bytes_in_memory for part in found if (part.role, part.component) == ("cloud", "text_encoder")
    )


def _adapted(found: list[Part]) -> int:
    """Bytes of the codec with adapters, which is a copy of the one without; 0 if there are none.

    Layers that CALA adapts exist once more, packed or fused with their adapters. Without oneDNN, separable
    kernels take a little more, as they are fused.
    """
    by_role = {part.role: part for part in found}
    codec, adapters = by_role.get("codec"), by_role.get("adapters")
    if codec is None or adapters is None:
        return 0
    config = _said(adapters, "adapter_config.json")
    ranks = dict.fromkeys(config.get("target_modules", ()), config.get("rank", 0))
    ranks |= config.get("rank_pattern", {})
    shapes = {
        name: tensor["shape"]
        for file in ([] if codec.folder is None else _files(codec.folder, None))
        for name, tensor in _tensors(file).items()
    }
    fused = 0
    for name, rank in ranks.items():
        out, *others = shapes.get(f"{name}.weight", (0,))
        if not others:
            continue
        own, kernel = math.prod(others) + 1, math.prod(others[1:]) + 1
        if config.get("kernel") == "separable":
            fused += out * own + rank * (others[0] + kernel + out)
        else:
            fused += (out + rank) * own + out * rank
    return codec.bytes_in_memory + adapters.bytes_in_memory + fused * codec.bytes_each


def _reads_prompts(part: Part) -> bool:
    """Whether it is a codec, or adapters of one, that reads the states of prompts."""
    return _text_width(part) > 0


def _text_width(part: Part) -> int:
    """Width of the states of prompts that a codec, or adapters of one, reads; 0 if it reads none."""
    width = 0
    if part.role in ("codec", "unaligned_codec"):
        width = _said(part, "config.json").get("text_width", 0)
    if part.role == "adapters":
        method = _said(part, "knowledge.json").get("method", {})
        width = method.get("text_width") or _said(part, "adapter_config.json").get("text_width", 0)
    return int(width or 0)


def _said(part: Part, name: str) -> dict[str, Any]:
    """A JSON file of a part; empty if it has none."""
    path = (part.folder or Path("nowhere")) / name
    said = read_json(path) if path.exists() else {}
    return said if isinstance(said, dict) else {}


def problems(profile: Profile, found: list[Part], machine: Machine = _USUAL) -> list[str]:
    """Why a profile does not work on this machine, in the order of its file; empty if it does."""
    told = [f"{part.name}: no weights of {part.source} on this machine" for part in found if not part.folder]
    return told or [*_misfits(profile), *_unreadable(profile, found)] or [*_unsettled(profile, machine)]


def _unsettled(profile: Profile, machine: Machine) -> Iterator[str]:
    """Settings of the machine that the profile's models cannot have."""
    if not machine.keep_text_encoder and TEXT_ENCODERS[1] in weighty(pipeline_index(profile.cloud)):
        yield "cloud: two text encoders, which must stay in memory: DEKAG_KEEP_TEXT_ENCODER must be true"


def _misfits(profile: Profile) -> Iterator[str]:
    """Parts that do not fit each other."""
    for role, allowed in (("cloud", PIPELINES), ("edge", PIPELINES[:1])):
        try:
            kind = pipeline_index(getattr(profile, role)).get("_class_name")
        except (MismatchError, NotFoundError) as error:
            yield f"{role}: {error}"
            return
        if kind not in allowed:
            yield f"{role}: a {kind}; must be {' or '.join(allowed)}"
    channels = {
        role: _config(getattr(profile, role), "vae").get("latent_channels") for role in ("cloud", "edge")
    }
    for role, folder in (("codec", profile.codec), ("unaligned_codec", profile.codec_without_alignment)):
        made_for = read_json(Path(folder) / "config.json").get("latent_channels")
        if made_for != channels["edge"]:
            yield f"{role}: made for latents of {made_for} channels; the edge's have {channels['edge']}"
            break
    yield from _of_other_latents(profile)
    if profile.adapters is not None:
        fits = read_json(Path(profile.adapters) / "knowledge.json").get("base_hash")
        if fits != (own := folder_hash(profile.codec)):
            yield f"adapters: made for codec {str(fits)[:12]}; the profile's is {own[:12]}"
    if profile.knowledge is not None:
        own = pipeline_hash(profile.edge)
        for file in sorted(Path(profile.knowledge).glob("*/knowledge.json")):
            if (fits := read_json(file).get("base_hash")) != own:
                yield f"knowledge {file.parent.name}: made for edge {str(fits)[:12]}; it is {own[:12]}"
    if profile.distill.objective == "trajectories":
        try:
            check_teachable(profile)
        except MismatchError as error:
            yield f"distill.objective: {error}"


def _unreadable(profile: Profile, found: list[Part]) -> Iterator[str]:
    """Codecs that cannot read the edge's prompts, evaluators that cannot read images."""
    own = _config(profile.edge, "text_encoder").get("hidden_size")
    for part in found:
        if (width := _text_width(part)) and width != own:
            yield f"{part.role}: reads prompts in {width} numbers a token; the edge's text encoder has {own}"
        if part.role not in KINDS or part.folder is None:
            continue
        if told := other_kind(part.role, str(_said(part, "config.json").get("model_type"))):
            yield f"{part.role}: {told}"
        elif not any((part.folder / name).is_file() for name in (HOW_READ, RECORD)):
            yield f"{part.role}: {part.source} has no {HOW_READ}, which says how its model reads images"


def check_latents(profile: Profile) -> None:
    """MismatchError if codec or adapters were trained on latents of another autoencoder than the edge's.

    They have the same shapes, so that nothing else would notice. Those without a record of it pass.
    """
    for said in _of_other_latents(profile):
        raise MismatchError(said)


def _of_other_latents(profile: Profile) -> Iterator[str]:
    records = {"codec": "training.json", "unaligned_codec": "training.json", "adapters": "knowledge.json"}
    for role, name in records.items():
        record = Path(getattr(profile, role) or "nowhere") / name
        trained = read_json(record).get("vae_hash") if record.exists() else None
        if trained is not None and trained != (own := autoencoder_hash(profile.edge)):
            yield f"{role}: trained on latents of autoencoder {str(trained)[:12]}; the edge's is {own[:12]}"


def _pipeline(role: str, model: GeneratorProfile) -> Iterator[Part]:
    if Path(model.path).is_file():
        for name, prefixes in _PREFIXES.items():
            yield _replacement(role, name, model) or _part_of_file(role, name, model, prefixes)
        return
    base = model_folder(model.path, model.revision)
    if base is None or not (base / INDEX).exists():
        yield Part(role, "", model.path, None)
        return
    for name in weighty(read_json(base / INDEX)):
        part = Part(role, name, model.path, base / name, bytes_each=_bytes_each(model, name))
        yield _replacement(role, name, model) or _weights(part, model.variant)


def _replacement(role: str, name: str, model: GeneratorProfile) -> Part | None:
    """The component that replaces one of the pipeline's, if one does."""
    if (part := model.components.get(name)) is None:
        return None
    folder = (model_folder(part.path, part.revision) or Path("nowhere")) / (part.subfolder or "")
    return _weights(Part(role, name, part.path, folder, bytes_each=_bytes_each(model, name)), part.variant)


def _part_of_file(role: str, name: str, model: GeneratorProfile, prefixes: tuple[str, ...]) -> Part:
    """A component in a checkpoint in one file."""
    file = Path(model.path)
    count, size = _contents(file, prefixes)
    return Part(role, name, model.path, file if count else None, count, size, _bytes_each(model, name))


def _bytes_each(model: GeneratorProfile, component: str) -> int:
    return SIZES[model.vae_dtype if component == "vae" else model.dtype]


def weighty(index: dict[str, Any]) -> list[str]:
    """The components of a pipeline, of its model_index.json, that have weights."""
    without = ("tokenizer", "scheduler", "feature_extractor", CHECKER, "image_encoder")
    named = {name: pair for name, pair in index.items() if isinstance(pair, list) and pair[0] is not None}
    return [name for name in named if not name.startswith("_") and not name.startswith(without)]


def _single(role: str, path: str, revision: str | None) -> Part:
    part = Part(role, "", path, model_folder(path, revision))
    if role == "pixel_codec" and _said(part, "config.json").get("_class_name") not in (None, "PixelCodec"):
        return part  # of a plug-in, whose weights are in any format: nothing is known of them
    return _weights(part, None)


def _weights(part: Part, variant: str | None) -> Part:
    """`part` with its number of parameters, or without a folder if it has no weights there."""
    files = [] if part.folder is None else _files(part.folder, variant)
    if not files:
        return Part(part.role, part.component, part.source, None)
    count, size = sum(map(_parameters, files)), sum(file.stat().st_size for file in files)
    return Part(part.role, part.component, part.source, part.folder, count, size, part.bytes_each)


def _files(folder: Path, variant: str | None) -> list[Path]:
    named = ((file, _WEIGHTS.fullmatch(file.name)) for file in sorted(folder.glob("*.safetensors")))
    return [file for file, match in named if match and match["variant"] == variant]


def model_folder(path: str, revision: str | None = None) -> Path | None:
    """The folder of a model, in the hub's cache if it is on a hub; None if it is nowhere."""
    if Path(path).is_dir():
        return Path(path)
    try:
        return hub_folder(path, revision)
    except NotFoundError:
        return None


def _parameters(file: Path) -> int:
    """Numbers in a safetensors file."""
    return _contents(file)[0]


def _contents(file: Path, prefixes: tuple[str, ...] = ("",)) -> tuple[int, int]:
    """Numbers in a safetensors file and their bytes, from its header: of tensors whose names begin so."""
    tensors = [tensor for name, tensor in _tensors(file).items() if name.startswith(prefixes)]
    sizes = [end - start for start, end in (tensor["data_offsets"] for tensor in tensors)]
    return sum(math.prod(tensor["shape"]) for tensor in tensors), sum(sizes)


def _tensors(file: Path) -> dict[str, Any]:
    """The header of a safetensors file: of each tensor its shape and where it is; empty if it is too long."""
    with file.open("rb") as content:
        length = int.from_bytes(content.read(8), "little")
        header: dict[str, Any] = {} if length > _HEADER_MOST else json.loads(content.read(length))
    header.pop("__metadata__", None)
    return header


def pipeline_index(model: GeneratorProfile) -> dict[str, Any]:
    """The model_index.json of a generator's pipeline; empty if it is not on this machine.

    Raises:
        NotFoundError, MismatchError: the configuration of a checkpoint in one file is not whole.
    """
    if Path(model.path).is_file():
        return configuration(model)[0]
    home = model_folder(model.path, model.revision)
    return {} if home is None else dict(read_json(home / INDEX))


def latent_shape(profile: Profile, width: int, height: int) -> tuple[int, int, int]:
    """(channels, h, w) of the latents of the edge's autoencoder, of an image of that size in pixels."""
    config = _config(profile.edge, "vae")
    factor = 2 ** (len(config["block_out_channels"]) - 1)
    return config["latent_channels"], height // factor, width // factor


def _config(model: GeneratorProfile, component: str) -> dict[str, Any]:
    part = model.components.get(component)
    path, revision = (part.path, part.revision) if part else (model.config or model.path, model.revision)
    home = model_folder(path, revision)
    folder = (part.subfolder or "") if part else component
    return {} if home is None else dict(read_json(home / folder / "config.json"))
