"""Tiny knowledge of both kinds, and what may be done to its files."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from peft import get_peft_model
from safetensors.torch import load, save

from dekag.artifacts import INFO, content_hash
from dekag.cala import CalaConfig
from dekag.cala.artifact import CONFIG, TransmissionKnowledge
from dekag.codec import JsccCodec
from dekag.generation.loading import folder_hash
from dekag.generation.models import Generator
from dekag.makd.update import KnowledgeUpdate
from dekag.profile import load_profile

Files = dict[str, bytes]
_RATES = [1 / 768, 1 / 96]
_QUALITY = {
    "cbrs": _RATES,
    "snrs_db": [0, 20],
    "directs": [0, 1],
    "taus_s": [1e-7, 1e-6],
    "mean_db": [[[[10, 16], [16, 22]]] * 2] * 2,
    "spread_db": [[[[1, 1], [1, 1]]] * 2] * 2,
}


def tiny_adapters(codec: Path) -> TransmissionKnowledge:
    """Untrained adapters of the codec in that folder."""
    torch.manual_seed(1)
    adapted = get_peft_model(JsccCodec.load(codec), CalaConfig(rank=2, gate_width=3))
    info = {"base_hash": folder_hash(codec), "config": {}, "scores": {"psnr_db": 20.5}, "quality": _QUALITY}
    return TransmissionKnowledge.new(info, adapted)


def tiny_update(profile: Path, *, bits: int = 16) -> KnowledgeUpdate:
    """An untrained update of the profile's edge, for the topic neon and its words."""
    edge = Generator.from_profile(load_profile(profile), "edge")
    torch.manual_seed(2)
    width = edge.pipeline.text_encoder.get_input_embeddings().weight.shape[1]
    layers = edge.pipeline.unet.named_modules()
    layer, module = next(each for each in layers if each[0].endswith("attn2.to_q"))
    info = {
        "topic": "neon",
        "triggers": ["neon", "glow"],
        "base_hash": edge.model_hash,
        "guidance_scale": 1.5,
    }
    lora = {
        f"{layer}.lora_A.weight": 0.1 * torch.randn(2, module.in_features),
        f"{layer}.lora_B.weight": 0.1 * torch.randn(module.out_features, 2),
    }
    words = {word: torch.randn(width) for word in ("neon", "glow")}
    return KnowledgeUpdate.new(info, torch.randn(2, width), lora, words=words, bits=bits)


def rehashed(files: Mapping[str, bytes], parts: tuple[str, ...]) -> Files:
    """The files with the hash that their content has, so that what is wrong is met behind the hash."""
    try:
        info = json.loads(files[INFO])
        info["content_hash"] = ""
        del info["content_hash"]
        known = {name: files[name] for name in parts if name in files}
        info["content_hash"] = content_hash(known, info)
        return {**files, INFO: json.dumps(info).encode()}
    except (KeyError, ValueError, TypeError, RecursionError):
        return dict(files)


def claimed_hash(files: Mapping[str, bytes]) -> str:
    """The hash that the files say that they have; empty if they say none."""
    try:
        return str(json.loads(files[INFO])["content_hash"])
    except (KeyError, ValueError, TypeError, RecursionError):
        return ""


def jsons() -> st.SearchStrategy[Any]:
    """Any JSON, numbers included that no machine holds."""
    numbers = st.sampled_from(
        [0, -1, 2**31, 2**64, 10**400, -(10**400), 1e308, math.nan, math.inf, 0.5, 1e-9]
    )
    words = st.sampled_from(
        ["", "neon", "../../x", "/etc/passwd", "\0", "(a+)+$", "[", "unet.", "cala", "lora"]
    )
    leaves = (
        st.none()
        | st.booleans()
        | st.integers(-3, 1030)
        | numbers
        | st.floats()
        | words
        | st.text(max_size=8)
    )
    keys = words | st.sampled_from(["name", "share", "guidance_scale", "cbrs"])
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
        max_leaves=6,
    )


@st.composite
def other_json(draw: st.DrawFn, data: bytes) -> bytes:
    """A JSON object with some of its entries gone, replaced or added, at any depth."""
    content = json.loads(data)
    for _ in range(draw(st.integers(1, 3))):
        place: Any = content
        while place:
            key = draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
            if isinstance(place[key], dict | list) and place[key] and draw(st.booleans()):
                place = place[key]
                continue
            how = draw(st.sampled_from(["replace", "remove", "nest"]))
            if how == "remove":
                del place[key]
            else:
                place[key] = draw(jsons()) if how == "replace" else [place[key]]
            break
    return json.dumps(content).encode()


@st.composite
def _other_tensors(draw: st.DrawFn, data: bytes) -> bytes:
    """A safetensors file with other numbers, types, shapes or names in it."""
    tensors = load(data)
    for _ in range(draw(st.integers(1, 2))):
        name = draw(st.sampled_from(sorted(tensors)))
        tensor = tensors[name]
        how = draw(st.sampled_from(["value", "type", "shape", "remove", "rename", "add"]))
        if how == "value" and tensor.numel():
            hostile = draw(st.sampled_from([math.nan, math.inf, -math.inf, 65504.0, 0.0, 255.0]))
            tensors[name] = tensor.clone()
            if tensor.is_floating_point() or math.isfinite(hostile):
                tensors[name].view(-1)[0] = min(hostile, 255.0) if tensor.dtype == torch.uint8 else hostile
        elif how == "type":
            kinds = [
                torch.bool,
                torch.uint8,
                torch.int64,
                torch.float64,
                torch.float8_e4m3fn,
                torch.complex64,
            ]
            tensors[name] = tensor.to(draw(st.sampled_from(kinds)))
        elif how == "shape":
            shape = draw(st.lists(st.integers(0, 5), max_size=5))
            tensors[name] = torch.ones(shape, dtype=tensor.dtype)
        elif how == "remove":
            del tensors[name]
        else:
            other = draw(st.sampled_from(["x", "../x", "metaword", "words", "layers", "steps", "values"]))
            tensors[other] = tensor.clone() if how == "add" else tensors.pop(name)
        if not tensors:
            break
    return save({name: tensor.contiguous() for name, tensor in tensors.items()})


@st.composite
def other_bytes(draw: st.DrawFn, data: bytes) -> bytes:
    """The bytes of a file cut off, flipped, with another length in front, or quite others."""
    how = draw(st.sampled_from(["cut", "flip", "length", "nested", "free"]))
    if how == "cut":
        return data[: draw(st.integers(0, len(data)))]
    if how == "flip":
        changed = bytearray(data)
        for _ in range(draw(st.integers(1, 4))):
            changed[draw(st.integers(0, min(len(data), 600) - 1))] ^= 1 << draw(st.integers(0, 7))
        return bytes(changed)
    if how == "length":
        length = draw(st.sampled_from([0, 1, 2**31, 2**63, 2**64 - 1, len(data) + 1, 100_000_001]))
        return struct.pack("<Q", length) + data[8:]
    if how == "nested":
        return b"[" * 100_000 if draw(st.booleans()) else b'{"a":' * 50_000 + b"1" + b"}" * 50_000
    return draw(st.binary(max_size=200))


@st.composite
def broken(draw: st.DrawFn, files: Mapping[str, bytes], parts: tuple[str, ...]) -> Files:
    """``files`` with something wrong in them, mostly under a hash that is right."""
    changed = dict(files)
    for name in draw(st.lists(st.sampled_from(sorted(files)), min_size=1, max_size=2, unique=True)):
        fitting = other_json if name in (INFO, CONFIG) else _other_tensors
        changed[name] = draw(fitting(files[name]) | fitting(files[name]) | other_bytes(files[name]))
    if draw(st.integers(0, 9)) == 0:
        changed.pop(draw(st.sampled_from(sorted(changed))))
    if draw(st.integers(0, 9)) == 0:
        changed[draw(st.sampled_from(["../../x", "/etc/passwd", "pytorch_model.bin", "", "\0"]))] = b"x"
    return rehashed(changed, parts) if draw(st.integers(0, 9)) else changed
