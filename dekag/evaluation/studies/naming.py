"""Blind naming: somebody who does not know the prompts says what the pictures show.

`draw` writes sheets of numbered pictures by both generators, in random order, and a key. Whoever answers sees
the sheets alone and fills in a line of answers.csv for each picture, in free words. `score` compares the
answers with the key.
"""

from __future__ import annotations

import csv
import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from dekag.documents import read_json
from dekag.errors import FileError
from dekag.evaluation.registry import record
from dekag.evaluation.statistics import proportion_ci95
from dekag.generation.models import Generator
from dekag.profile import load_profile
from dekag.stickers.subjects import SUBJECT_BY_NAME
from dekag.training.data import SPLIT_START, scene_number
from dekag.training.worlds import STICKERS, World

FOLDER, COMMAND = "naming", "dekag experiment naming"
KEY, ANSWERS = "key.json", "answers.csv"
COLUMNS = ("number", "subject", "colour", "setting", "mark")
MARKS = ("nice", "acceptable", "poor", "broken")
JUDGED = ("subject", "colour", "setting")
ACROSS, DOWN = 3, 2  # pictures of a sheet
GAP, LABEL = 8, 22  # pixels
QUALITY = 90


ALSO: Mapping[str, Mapping[str, Sequence[str]]] = {
    "subject": {
        "lion": ("lioness",), "pig": ("boar",), "duck": ("duckling", "mallard duck"), "owl": ("owlet",),
        "octopus": ("squid",), "dinosaur": ("sauropod", "brachiosaurus", "diplodocus"),
        "watermelon": ("melon",), "donut": ("pastry ring",), "pumpkin": ("jack o lantern",),
        "car": ("hatchback", "vehicle"), "bus": ("minibus", "school bus"),
        "sailboat": ("sail boat", "boat", "yacht", "ship"), "rocket": ("spacecraft", "space ship"),
        "ufo": ("alien ship", "spaceship", "spacecraft"), "tree": ("oak", "broccoli tree"),
        "sunflower": ("daisy",), "tulip": ("rose bud",), "mushroom": ("fly agaric",),
        "house": ("cabin", "building"), "tent": ("camping tent",), "balloon": ("party balloon",),
        "gift": ("gift box", "parcel"), "robot": ("robot head",), "umbrella": ("parasol",),
    },
    "colour": {
        "red": ("crimson", "scarlet"), "orange": ("ginger", "amber"), "yellow": ("gold", "golden"),
        "green": ("lime", "teal"), "blue": ("navy", "cyan", "turquoise"), "purple": ("violet", "lilac"),
        "pink": ("magenta", "rose"), "brown": ("tan", "beige", "chocolate"), "grey": ("gray", "silver"),
        "white": ("cream", "ivory"),
    },
    "setting": {
        "meadow": ("grass", "field", "hills", "hill", "lawn", "grassland", "park", "garden", "countryside"),
        "beach": ("sand", "shore", "seaside", "coast", "seashore"),
        "snow": ("snowy", "snowfield", "winter", "ice", "arctic", "mountains"),
        "desert": ("dune", "sand dunes", "sahara"),
        "forest": ("wood", "woodland", "trees", "pines", "jungle"),
        "city": ("town", "street", "skyline", "buildings", "road", "urban"),
        "sea": ("ocean", "water", "waves", "lake"),
        "underwater": ("under water", "sea floor", "seabed", "ocean floor", "reef", "sea", "ocean"),
        "room": ("indoor", "indoors", "interior", "living room", "bedroom", "house", "home", "window"),
        "moon": ("lunar", "space", "planet", "crater"),
    },
}  # fmt: skip
"""Other words that name the same, beside the world's own; written before the first answer was given."""


def accepted_words(attribute: str, value: str) -> tuple[str, ...]:
    """Words for which an answer counts as right."""
    own = [value]
    if attribute == "subject":
        own += SUBJECT_BY_NAME[value].synonyms
    return (*own, *ALSO[attribute].get(value, ()))


def draw(
    generators: Mapping[str, Callable[[], Generator]],
    world: World,
    count: int,
    folder: Path,
    *,
    seed: int = 1,
) -> None:
    """Write sheets of `count` pictures of each generator, the key, and an empty table of answers.

    Args:
        generators: by name, functions that load them, of which one is in memory at a time; "cloud" draws of
            all topics, every other one of what the edge knows.
        world: whose test scenes are asked for.
        count: pictures of each generator.
        folder: where to write.
        seed: of the order of the pictures.

    Raises:
        FileError: the table has answers already.
    """
    if (folder / ANSWERS).exists():
        raise FileError(folder / ANSWERS, "exists: move the folder away to draw anew")
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for name in generators:
        for n in range(count):
            scene, scene_seed = scene_number("test", n, world.scenes(cloud=name == "cloud"))
            prompt = world.module.caption(scene, random.Random(scene_seed))
            said = {each: getattr(scene, each) for each in (*JUDGED, "style")}
            if "colour" not in scene.visible_attributes():
                said["colour"] = None
            if scene.companion is not None:
                said["companion"] = scene.companion
            rows.append({"model": name, "prompt": prompt, "seed": scene_seed, **said})
    random.Random(seed).shuffle(rows)
    drawn: dict[int, Any] = {}
    for name, load in generators.items():
        drawn |= _drawn(load(), {i: row for i, row in enumerate(rows) if row["model"] == name}, world.size)
    pictures = [drawn[i] for i in range(len(rows))]
    for start in range(0, len(rows), ACROSS * DOWN):
        part = pictures[start : start + ACROSS * DOWN]
        _sheet(part, start + 1).save(
            folder / f"sheet-{start // (ACROSS * DOWN) + 1:02}.webp", quality=QUALITY
        )
    numbered = [{"number": number, **row} for number, row in enumerate(rows, 1)]
    (folder / KEY).write_text(json.dumps(numbered, indent=1) + "\n")
    with (folder / ANSWERS).open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *([row["number"], "", "", "", ""] for row in numbered)])


def _drawn(generator: Generator, rows: Mapping[int, Mapping[str, Any]], size: int) -> dict[int, Any]:
    """The pictures of rows, by their places."""
    return {
        i: generator.image(row["prompt"], row["seed"], width=size, height=size) for i, row in rows.items()
    }


def run_naming(*, count: int, profile: str, results: Path) -> list[str]:
    """Draw, if that has not been done; otherwise score the answers and write the headline figures.

    Returns:
        What to do next, or what came out, in lines.

    Raises:
        FileError: not every picture has an answer.
    """
    models = load_profile(profile)
    world, folder = replace(STICKERS, size=models.size), results / FOLDER
    if not (folder / ANSWERS).exists():
        load = {role: partial(Generator.from_profile, models, role) for role in ("cloud", "edge")}
        draw(load, world, count, folder)
        return [f"Show {folder}/sheet-*.webp to somebody, and fill {folder / ANSWERS} with the answers."]
    found = score(folder)
    (folder / "scores.json").write_text(json.dumps(found, indent=1) + "\n")
    lines = []
    for role, own in found.items():
        lines += [
            f"{role}: {name} right in {own[name]['right']} of {own[name]['asked']}"
            for name in JUDGED
            if name in own
        ]
        lines.append(f"{role}: {', '.join(f'{number} {mark}' for mark, number in own['marks'].items())}")
        record_marks(role, own, results)
    return lines


def record_marks(role: str, own: Mapping[str, Any], results: Path) -> None:
    """The headline figures of a generator: what was named right, and what is at least acceptable."""
    marks = own["marks"]
    fine, asked = marks["nice"] + marks["acceptable"], sum(marks.values())
    ends = [round(100 * end, 1) for end in proportion_ci95(fine, asked)]
    marked = {"right": fine, "asked": asked, "percent": round(100 * fine / asked, 1), "ci95": ends}
    for name, found in (*((name, own[name]) for name in JUDGED if name in own), ("acceptable", marked)):
        record(
            f"naming_{role}_{name}_percent", found["percent"], "%", command=COMMAND, count=found["asked"],
            ci95=found["ci95"], results=results,
        )  # fmt: skip


def _sheet(pictures: Sequence[np.ndarray[Any, Any]], first: int) -> Image.Image:
    side = pictures[0].shape[0]
    rows = math.ceil(len(pictures) / ACROSS)
    sheet = Image.new("RGB", (ACROSS * (side + GAP) + GAP, rows * (side + GAP + LABEL) + GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for place, picture in enumerate(pictures):
        x, y = GAP + place % ACROSS * (side + GAP), GAP + place // ACROSS * (side + GAP + LABEL)
        pen.text((x, y + 2), str(first + place), fill="black", font_size=16)
        sheet.paste(Image.fromarray(picture), (x, y + LABEL))
    return sheet


def score(folder: Path) -> dict[str, Any]:
    """How many answers are right, by generator.

    Args:
        folder: as `draw` left it, with answers filled in.

    Returns:
        By generator: `subject`, `colour` and `setting`, each with `right`, `asked`, `percent` and `ci95`;
        `marks`; `wrong`, the answers that were not accepted; and `twice`, the pictures that show the only
        subject of their prompt twice. The subject of a prompt of two is right if both were named. The colour
        does not count where the style hides it, as in a pencil drawing, nor that of a subject of several
        colours.

    Raises:
        FileError: an answer is missing or a mark is unknown; or the key names one subject of a pair.
    """
    key = {row["number"]: row for row in read_json(folder / KEY)}
    if any(_lacks_companion(row) for row in key.values()):
        problem = "names one subject of prompts of two: move the folder away, draw anew, and ask again"
        raise FileError(folder / KEY, problem)
    with (folder / ANSWERS).open(newline="") as file:
        answers = {int(row["number"]): row for row in csv.DictReader(file)}
    found: dict[str, Any] = {}
    for number, row in key.items():
        answer = answers.get(number)
        if answer is None or answer["mark"] not in MARKS or not answer["subject"].strip():
            raise FileError(
                folder / ANSWERS,
                f"line of picture {number}: a subject and a mark ({', '.join(MARKS)}) are needed",
            )
        own = found.setdefault(row["model"], {"marks": dict.fromkeys(MARKS, 0), "wrong": [], "twice": []})
        own["marks"][answer["mark"]] += 1
        if _is_twice(answer["subject"], row):
            own["twice"].append(number)
        for name in JUDGED:
            if row[name] is None:
                continue
            shown = [row[name], *([row["companion"]] if name == "subject" and "companion" in row else [])]
            right = all(_matches(answer[name], accepted_words(name, each)) for each in shown)
            counts = own.setdefault(name, {"right": 0, "asked": 0})
            counts["asked"] += 1
            counts["right"] += right
            if not right:
                own["wrong"].append(
                    {
                        "number": number,
                        "of": name,
                        "shown": " and ".join(shown),
                        "answer": answer[name].strip(),
                    }
                )
    for own in found.values():
        for name in JUDGED:
            if name in own:
                counts = own[name]
                interval = proportion_ci95(counts["right"], counts["asked"])
                counts["percent"] = round(100 * counts["right"] / counts["asked"], 1)
                counts["ci95"] = [round(100 * end, 1) for end in interval]
    return found


def _lacks_companion(row: Mapping[str, Any]) -> bool:
    """Whether a key, as it was written once, leaves out the second subject of a prompt."""
    number = row["seed"] - SPLIT_START["test"]
    if "companion" in row or number < 0:
        return False
    scene, _ = scene_number("test", number, STICKERS.scenes(cloud=row["model"] == "cloud"))
    return scene.subject == row["subject"] and scene.companion is not None


def _is_twice(answer: str, row: Mapping[str, Any]) -> bool:
    """Whether an answer, "A and B", names the only subject of a prompt twice."""
    named = answer.split(" and ")
    words = accepted_words("subject", row["subject"])
    return "companion" not in row and len(named) > 1 and all(_matches(each, words) for each in named)


def _matches(answer: str, words: Sequence[str]) -> bool:
    """Whether an answer contains one of the words or phrases whole, in the singular or the plural."""
    said = " " + " ".join("".join(c if c.isalnum() else " " for c in answer.lower()).split()) + " "
    return any(f" {word} " in said or f" {word}s " in said for word in (each.lower() for each in words))
