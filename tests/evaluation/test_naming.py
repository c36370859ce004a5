"""Blind naming: sheets without names, and answers that are scored by words laid down before."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dekag.errors import FileError
from dekag.evaluation.registry import RESULTS
from dekag.evaluation.reports.baseline_models import naming_values
from dekag.evaluation.studies.naming import ANSWERS, JUDGED, KEY, accepted_words, draw, score
from dekag.training.data import SPLIT_START, scene_number
from dekag.training.worlds import STICKERS

SMALL = replace(STICKERS, size=64)


class Painter:
    """Stands for a generator: a plain colour that tells the seed."""

    def image(self, prompt: str, seed: int, *, width: int, height: int) -> np.ndarray[Any, Any]:
        return np.full((height, width, 3), seed % 251, np.uint8)


@pytest.fixture
def drawn(tmp_path: Path) -> Path:
    draw({"cloud": Painter, "edge": Painter}, SMALL, 7, tmp_path)  # type: ignore[dict-item]
    return tmp_path


def answer(folder: Path, **changed: dict[int, str]) -> None:
    """Right answers for all pictures, but for some."""
    with (folder / ANSWERS).open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["number", *JUDGED, "mark"])
        for row in json.loads((folder / KEY).read_text()):
            shown = {**row, "subject": " and ".join([row["subject"], *filter(None, [row.get("companion")])])}
            said = [changed.get(name, {}).get(row["number"], shown[name] or "many") for name in JUDGED]
            table.writerow([row["number"], *said, changed.get("mark", {}).get(row["number"], "nice")])


def test_sheets_show_every_picture_and_no_prompt(drawn: Path) -> None:
    sheets = sorted(drawn.glob("sheet-*.webp"))
    assert len(sheets) == 3  # 14 pictures, six on each
    with Image.open(sheets[0]) as sheet:
        assert sheet.size[0] == 3 * (64 + 8) + 8
    key = json.loads((drawn / KEY).read_text())
    assert [row["number"] for row in key] == list(range(1, 15))
    assert [row["model"] for row in key] != sorted(row["model"] for row in key), "in random order"
    assert {row["seed"] for row in key} == {2_000_000_000 + n for n in range(7)}, "of the test split"


def test_answers_are_scored_by_generator(drawn: Path) -> None:
    key = json.loads((drawn / KEY).read_text())
    mine = next(row["number"] for row in key if row["model"] == "cloud")
    answer(drawn, subject={mine: "a grey blob"}, mark={mine: "broken"})
    found = score(drawn)
    assert (found["cloud"]["subject"]["right"], found["cloud"]["subject"]["asked"]) == (6, 7)
    assert found["edge"]["subject"]["percent"] == 100
    assert found["cloud"]["marks"] == {"nice": 6, "acceptable": 0, "poor": 0, "broken": 1}
    assert [each["answer"] for each in found["cloud"]["wrong"]] == ["a grey blob"]
    asked = sum(row["colour"] is not None for row in key if row["model"] == "edge")
    assert found["edge"]["colour"]["asked"] == asked


def test_both_subjects_of_a_pair_are_asked_for_and_a_single_one_once(tmp_path: Path) -> None:
    draw({"cloud": Painter}, SMALL, 60, tmp_path)  # type: ignore[dict-item]
    key = json.loads((tmp_path / KEY).read_text())
    pair = next(row for row in key if "companion" in row)
    single = next(row for row in key if "companion" not in row)
    answer(tmp_path)
    found = score(tmp_path)["cloud"]
    assert (found["subject"]["right"], found["twice"]) == (60, [])
    twice = {row["number"]: "{0} and {0}".format(row["subject"]) for row in (pair, single)}
    answer(tmp_path, subject=twice)
    found = score(tmp_path)["cloud"]
    assert (found["subject"]["right"], found["twice"]) == (59, [single["number"]])
    (wrong,) = found["wrong"]
    assert wrong["shown"] == f"{pair['subject']} and {pair['companion']}"


def test_a_key_that_names_one_subject_of_a_pair_is_refused(tmp_path: Path) -> None:
    draw({"cloud": Painter}, SMALL, 60, tmp_path)  # type: ignore[dict-item]
    answer(tmp_path)
    assert score(tmp_path)
    key = [
        {name: value for name, value in row.items() if name != "companion"}
        for row in json.loads((tmp_path / KEY).read_text())
    ]
    (tmp_path / KEY).write_text(json.dumps(key))
    with pytest.raises(FileError, match=r"key\.json names one subject .* draw anew"):
        score(tmp_path)


def test_the_page_counts_pairs_and_what_is_shown_twice(tmp_path: Path) -> None:
    assert naming_values(tmp_path) == {}
    folder = tmp_path / "naming"
    folder.mkdir()
    key = [{"number": 1, "companion": "car"}, {"number": 2, "companion": "cat"}, {"number": 3}]
    (folder / KEY).write_text(json.dumps(key))
    wrong = [{"number": 1, "of": "subject"}, {"number": 2, "of": "setting"}]
    scores = {"cloud": {"wrong": wrong, "twice": [3]}, "edge": {"wrong": [], "twice": []}}
    (folder / "scores.json").write_text(json.dumps(scores))
    assert naming_values(tmp_path) == {
        "naming_pairs": "2",
        "naming_pairs_right": "1",
        "naming_cloud_twice": "1",
        "naming_edge_twice": "0",
        "naming_twice": "1",
    }
    earlier = {name: {"wrong": own["wrong"]} for name, own in scores.items()}
    (folder / "scores.json").write_text(json.dumps(earlier))
    assert naming_values(tmp_path)["naming_twice"] == "0", "which was not counted then"


def test_the_committed_key_names_both_subjects_of_its_pairs() -> None:
    for row in json.loads((RESULTS / "naming" / KEY).read_text()):
        number = row["seed"] - SPLIT_START["test"]
        scene, _ = scene_number("test", number, STICKERS.scenes(cloud=row["model"] == "cloud"))
        assert (row["subject"], row.get("companion")) == (scene.subject, scene.companion)


def test_words_are_whole_words() -> None:
    from dekag.evaluation.studies.naming import _matches

    assert _matches("A ginger kitten!", accepted_words("subject", "cat"))
    assert _matches("two cats", accepted_words("subject", "cat"))
    assert not _matches("caterpillar", accepted_words("subject", "cat"))
    assert not _matches("carpet", accepted_words("subject", "car"))
    for name in JUDGED:
        for value in SMALL.attributes[name]:
            assert value in accepted_words(name, value)


@pytest.mark.parametrize("changed", [{"subject": {3: " "}}, {"mark": {3: "lovely"}}])
def test_missing_answers_are_named(drawn: Path, changed: dict[str, dict[int, str]]) -> None:
    answer(drawn, **changed)
    with pytest.raises(FileError, match="picture 3"):
        score(drawn)


def test_answers_are_never_drawn_over(drawn: Path) -> None:
    with pytest.raises(FileError, match="move the folder away"):
        draw({}, SMALL, 7, drawn)
