"""Model cards: a README.md beside each model that ships, written from the record of its training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dekag.artifacts import HISTORY, INFO
from dekag.documents import read_json
from dekag.evaluation.registry import RESULTS
from dekag.stickers.scene import STYLES

RECORD, CARD = "training.json", "README.md"
KINDS = {
    "vae": ("Autoencoder", "AutoencoderKL that cloud, edge and user share", "diffusers", "image-to-image"),
    "edge": ("Edge generator", "StableDiffusionPipeline", "diffusers", "text-to-image"),
    "cloud": ("Cloud generator", "text-to-image pipeline", "diffusers", "text-to-image"),
    "codec": ("Codec", "joint source-channel codec of the edge's latents", "diffusers", ""),
    "codec-one-rate": (
        "Codec of unaligned deliveries",
        "joint source-channel codec of one rate, for comparison",
        "diffusers",
        "",
    ),
    "pixels": ("Codec of pixels", "joint source-channel codec of pictures as they are", "diffusers", ""),
    "cala": ("CALA adapters", "transmission knowledge: adapters of the codec", "peft", ""),
    "clip": ("CLIP-style encoder", "CLIPModel that scores images", "transformers", "feature-extraction"),
    "dino": ("DINOv2-style encoder", "Dinov2Model that scores images", "transformers", "feature-extraction"),
    "probe": ("Attribute probe", "classifier of what an image shows", "diffusers", ""),
    "outline": ("Outline judge", "finds the outline of the subject", "diffusers", ""),
    "knowledge": ("Knowledge updates", "metawords and mostly LoRAs of the edge, one folder each", "peft", ""),
}
"""Folder of a profile: title, what it is, library, task on a hub."""


def write_cards(models: Path, results: Path = RESULTS) -> list[Path]:
    """Write the card of each model in models/PROFILE/MODEL; returns the files."""
    written = []
    for folder in sorted(models.glob("*/*")):
        if folder.name in KINDS and (text := card(folder, results)):
            (folder / CARD).write_text(text)
            written.append(folder / CARD)
    return written


def card(folder: Path, results: Path = RESULTS) -> str:
    """The card of the model in a folder; empty if there is no record of its training.

    Args:
        folder: of the model.
        results: folder of the results. A measurement there of this very model replaces the quality that its
            training recorded, which may be of an earlier world.
    """
    title, what, library, task = KINDS[folder.name]
    profile = folder.parent.name
    lines = ["---", "license: apache-2.0", f"library_name: {library}"]
    lines += [f"pipeline_tag: {task}"] if task else []
    lines += ["tags: [semantic-communication, dekag]", "---", "", f"# {title} of the profile {profile}", ""]
    lines += [
        f"{what[0].upper()}{what[1:]}. Part of DeKA-g, a simulator of generative semantic communication.",
        "",
    ]
    weights = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
    lines += [f"Weights: {weights / 1e6:.1f} MB.", ""] if weights else []
    body = _updates(folder) if folder.name == "knowledge" else _training(folder, _measured(folder, results))
    if not body:
        return ""
    lines += body
    lines += ["", "## Limits", "", _LIMITS_OF_PIXELS if folder.name == "pixels" else _LIMITS, ""]
    return "\n".join(lines)


_LIMITS = (
    "It knows the simulator's world of stickers, for which it was trained on rendered images, and nothing "
    "else. The renderings contain artwork of Fluent Emoji (MIT licence, see models/NOTICE). It is for "
    "studying the system, not for images of the real world."
)


_LIMITS_OF_PIXELS = (
    "It was trained on few photographs and for a short time: codecs that were trained for days are better. "
    "The photographs are from packages of Debian and not part of this repository (see models/NOTICE)."
)


_OF_NO_IMAGE = {
    "pictures": "held-out images",
    "parameters": "trained parameters",
    "share": "trained parameters, of the codec's",
    "encode_ms": "time to encode an image, ms",
    "decode_ms": "time to decode an image, ms",
}
"""Numbers of a record that were not measured on held-out images."""

_FIRST_EDITION = "models/embedded/vae"
_DRAFT = (
    "{} on the first draft of the world, with 54 subjects and 14 styles; of these, the "
    "world no longer has {} (docs/decisions/0019-stickers-in-scenes.md). All combinations that are "
    "held out today were held out then, too."
)
_START = (
    f"{_FIRST_EDITION} is not in the repository any more. It was the autoencoder of the first edition, with "
    "its world and images of 128x128 pixels (commit af831e1); the runs below are its training."
)


def _measured(folder: Path, results: Path) -> dict[str, Any] | None:
    """What `dekag train vae-quality` measured of the autoencoder in a folder, if anything."""
    path = results / "training" / f"vae-{folder.parent.name}.json"
    if folder.name != "vae" or not path.exists():
        return None
    from dekag.generation.loading import folder_hash

    measured: dict[str, Any] = read_json(path)
    return measured if measured["model_hash"] == folder_hash(folder) else None


def _training(folder: Path, measured: dict[str, Any] | None) -> list[str]:
    if (folder / RECORD).exists():
        record = read_json(folder / RECORD)
    elif (folder / INFO).exists():
        info = read_json(folder / INFO)
        record = {"command": info["config"].get("command", ""), "quality": info["scores"]}
    else:
        return []
    lines = []
    if measured is not None:
        origin = f"`{measured['command']}`, commit {measured['commit']}, {measured['date']}"
        lines = ["## Quality", "", f"Measured by {origin}:", "", *_quality(measured), ""]
    lines += ["## Training", ""]
    while record is not None:
        lines += _run(record, measured is None)
        record, measured = record.get("continues"), None
        lines += ["", "It continues:", ""] if record is not None else []
    return lines


def _quality(record: dict[str, Any]) -> list[str]:
    return [f"- {_title(name)}: {json.dumps(value)}" for name, value in (record.get("quality") or {}).items()]


def _run(record: dict[str, Any], with_quality: bool) -> list[str]:
    lines = [f"- command: `{record['command']}`"] if record.get("command") else []
    for name, unit in (("seed", ""), ("steps", ""), ("seconds", "")):
        if name in record:
            lines.append(f"- {name}: {record[name]}{unit}")
    lines += _quality(record) if with_quality else []
    return lines + [f"- note: {note}" for note in _notes(record, with_quality)]


def _title(name: str) -> str:
    """What readers call a number of a record: most were measured on held-out images."""
    if name in _OF_NO_IMAGE:
        return _OF_NO_IMAGE[name]
    for said in ("held_out_", "validation_"):
        name = name.removeprefix(said)
    return f"{name.replace('_', ' ')}, on held-out images"


def _notes(record: dict[str, Any], with_quality: bool) -> list[str]:
    """What has changed since a run: the world that it was measured on, the folder that it started from."""
    notes = []
    gone = sorted(set((record.get("quality") or {}).get("styles", {})) - set(STYLES))
    if gone:
        notes.append(_DRAFT.format("trained and measured" if with_quality else "trained", ", ".join(gone)))
    command, before = record.get("command", ""), record.get("continues") or {}
    if f"--start {_FIRST_EDITION}" in command and before.get("command") != command:
        notes.append(_START)
    return notes


def _updates(folder: Path) -> list[str]:
    rows, ladders = [], dict[str, dict[str, Any]]()
    for file in sorted(folder.glob(f"*/{HISTORY}")):
        made = read_json(file)
        scores = made["scores"]
        before, after = (
            [scores.get(f"{each}_{when}", "") for each in ("clip", "dino")] for when in ("before", "after")
        )
        chosen = next((rung for rung in made.get("ladder", []) if rung["chosen"]), None)
        if chosen is None:
            continue
        size = sum(each.stat().st_size for each in file.parent.iterdir() if each != file)
        rows.append(
            f"| {file.parent.name} | {made['config']['images']} | {made['config']['steps']} "
            f"| {chosen['form']} | {size:,} "
            f"| {before[0]} → {after[0]} | {before[1]} → {after[1]} |"
        )
        ladders[file.parent.name] = {rung["form"]: rung for rung in made["ladder"]}
    if not rows:
        return []
    head = [
        "| topic | images | steps | form | bytes | CLIP-score | DINO-score |",
        "|---|---|---|---|---|---|---|",
    ]
    note = (
        f"`dekag train knowledge --topic TOPIC --settings-of models/{folder.parent.name}/knowledge/TOPIC "
        "--out FOLDER` makes one again, with the settings in its history.json. Scores against the cloud's "
        "images on held-out prompts, without and with the update."
    )
    heading = ["", "## What each form costs and gives", ""]
    said = (
        "Bytes of each form; in brackets, its gain in consistency on the same prompts. The chosen one is the "
        "smallest that keeps 95 % of the best gain, or misses that by no more than one standard error."
    )
    forms = list(dict.fromkeys(form for ladder in ladders.values() for form in ladder))
    table = [f"| topic | {' | '.join(forms)} |", "|---" * (len(forms) + 1) + "|"]
    for topic, ladder in ladders.items():
        cells = (
            f"{ladder[form]['bytes']:,} ({ladder[form]['gain']:+.3f})" if form in ladder else ""
            for form in forms
        )
        table.append(f"| {topic} | {' | '.join(cells)} |")
    return [note, "", *head, *rows, *heading, said, "", *table]
