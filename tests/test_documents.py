"""JSON and YAML that would lose something, or never end, are refused with their line."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from dekag.documents import MAX_DEPTH, DocumentError, parse_json, parse_yaml, read_json, read_yaml
from dekag.errors import DekagError, FileError
from dekag.profile import load_profile
from dekag.schema import Document

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(JSON)
def test_what_json_can_hold_comes_back(value: object) -> None:
    assert parse_json(json.dumps(value), "it") == value
    assert parse_json(json.dumps(value, ensure_ascii=False).encode(), "it") == value


@pytest.mark.parametrize(
    ("text", "line", "key", "said"),
    [
        ('{"a": 1, "a": 1}', 1, "a", "'a' stands there twice"),
        ('{"l": [{"x": 1}, {"y": {"k": 1,\n"\\u006b": 2}}]}', 2, "l.1.y.k", "'k' stands there twice"),
        ('[0,\n[{"été": 0, "été": 0}]]', 2, "1.0.été", "twice"),
        ('{"":1,\n\n"":2}', 3, "", "'' stands there twice"),
        ('{"a": [1, {"b": NaN}]}', 1, "a.1.b", "NaN is no finite number"),
        ("[1,\n-Infinity]", 2, "1", "-Infinity is no finite number"),
        ('{"a": 1e999}', 1, "a", "1e999 is no finite number"),
        ('{"a": "\\udc00"}', 1, "a", "unpaired surrogate"),
        ("[" * 10_000, 1, "", f"more than {MAX_DEPTH} levels"),
        ('{"a":' * 10_000 + "1" + "}" * 10_000, 1, "", f"more than {MAX_DEPTH} levels"),
        ('{"a": 1,\n}', None, "", "not valid JSON"),
        ('["' + '\\"' * 100_000, 1, "", "not valid JSON"),
        ("9" * 5000, None, "", "too many digits"),
    ],
)
def test_json_is_refused(text: str, line: int | None, key: str, said: str) -> None:
    with pytest.raises(DocumentError) as caught:
        parse_json(text, "some.json")
    assert said in str(caught.value)
    assert str(caught.value).startswith("some.json" if line is None else f"some.json, line {line}: ")
    assert caught.value.field == (key or "some.json")
    assert "\n" not in str(caught.value)
    again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 - its own
    assert (str(again), again.field) == (str(caught.value), caught.value.field)


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("a: 1\nb: 2\na: 3", 3, "'a' stands there twice"),
        ("links:\n  - {snr_db: 1}\n  - {fading: awgn, x: {k: 1, k: 2}}", 3, "'k' stands there twice"),
        ("{1: a, 1: b}", 1, "'1' stands there twice"),
        ("a: .inf", 1, "no finite number"),
        ("x:\n - -.INF", 2, "no finite number"),
        ("a: .NaN", 1, "no finite number"),
        ("a: 1e999", 1, "no finite number"),
        ("[" * 10_000, 1, f"more than {MAX_DEPTH} levels"),
        ("- " * 10_000 + "x", 1, f"more than {MAX_DEPTH} levels"),
        ("a: &a [*a]", 1, "alias of what it stands in"),
        ("a: &a {b: [1, {c: *a}]}", 1, "alias of what it stands in"),
        ("a: 1\n---\na: 2", 2, "another document"),
        ("a: !!python/object:os.system x", 1, "could not determine a constructor"),
        ("? [1]\n: 2", 1, "a key that is no text"),
        ("a: *u", 1, "undefined alias"),
        ('a: "\\ud800"', 1, "unpaired surrogate"),
    ],
)
def test_yaml_is_refused(text: str, line: int, said: str) -> None:
    with pytest.raises(DocumentError, match=said) as caught:
        parse_yaml(text, "some.yaml")
    assert str(caught.value).startswith(f"some.yaml, line {line}: ")


@given(st.text('019eE.+-NaIfity"\\{}[],: \n', max_size=12) | st.from_regex(r"[-\[]?1e999[0-9eE.+\-a]{0,4}"))
def test_any_text_is_json_or_refused(text: str) -> None:
    try:
        parse_json(text, "it")
    except DocumentError:
        return
    json.loads(text)


@pytest.mark.parametrize("text", ["4e12793e127", "[1e999.5]", '{"a": 1e9999e1}', "NaN1e999e1", "-1e999-"])
def test_what_only_begins_as_a_number_that_is_not_finite_is_refused(text: str) -> None:
    with pytest.raises(DocumentError, match=r"not valid JSON|no finite number"):
        parse_json(text, "it")


@pytest.mark.parametrize("text", ["[1, 2, 3, 4]", '{"a": [1, {"b": 2}, 3]}', "[[],[],[],[]]"])
def test_json_of_too_many_values_is_refused(text: str) -> None:
    assert parse_json(text, "it", max_nodes=10) == parse_json(text, "it")
    with pytest.raises(DocumentError, match="it: more than 3 values"):
        parse_json(text, "it", max_nodes=3)


def test_commas_in_texts_are_no_values() -> None:
    text = '["' + ',[{\\",' * 1000 + '"]'
    assert parse_json(text, "it", max_nodes=3) == [',[{",' * 1000]


def test_aliases_that_stand_for_too_much_are_refused() -> None:
    bomb = "x: &a0 [1,1,1,1,1,1,1,1,1]\n" + "".join(
        f"y{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
    )
    with pytest.raises(DocumentError, match="aliases that stand for"):
        parse_yaml(bomb, "bomb.yaml")
    chain = "x: &a0 []\n" + "".join(f"y{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 1000))
    with pytest.raises(DocumentError, match="levels"):
        parse_yaml(chain, "chain.yaml")


def test_yaml_is_of_version_1_2() -> None:
    assert parse_yaml('"\\ud83d\\ude00"', "it") == "😀"
    text = "[no, on, yes, 1:30, 010, 1_000, 2024-01-01, 1e-6, 0o17, 0xff, ~, true, -1, +.5, '1', =]"
    assert parse_yaml(text, "it") == [
        "no", "on", "yes", "1:30", "010", "1_000", "2024-01-01", 1e-6, 15, 255, None, True, -1, 0.5, "1", "=",
    ]  # fmt: skip


def test_a_merge_is_no_repetition() -> None:
    assert parse_yaml("b: &b {x: 1, y: 2}\nc:\n  <<: *b\n  x: 3", "it")["c"] == {"x": 3, "y": 2}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_files_in_unicode(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text('{"a": "été 船"}\r\n', encoding=encoding)
    assert read_json(path) == read_yaml(path) == {"a": "été 船"}


def test_other_encodings_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes('{\n"a": "été"}'.encode("latin-1"))
    for read in (read_json, read_yaml):
        with pytest.raises(FileError, match="is not text in UTF-8 or UTF-16: line 2"):
            read(path)


class _Numbers(Document):
    count: int = 1
    share: float | None = None
    hours: tuple[float, ...] = ()
    flag: bool = False
    either: bool | int = 0


@pytest.mark.parametrize("written", [{"count": True}, {"share": False}, {"hours": [1.5, True]}])
def test_flags_are_no_numbers(written: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="must be a number") as caught:
        _Numbers.model_validate(written)
    assert caught.value.errors()[0]["loc"] == tuple(written)


def test_flags_are_flags_and_numbers_are_numbers() -> None:
    found = _Numbers.model_validate(
        {"count": 2, "share": None, "hours": [0, 1.5], "flag": True, "either": False}
    )
    assert (found.count, found.share, found.hours, found.flag) == (2, None, (0.0, 1.5), True)
    assert found.either is False


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("", "size", True),
        ("edge", "steps", True),
        ("cloud", "guidance_scale", False),
        ("distill", "images", True),
    ],
)
def test_profiles_take_no_flags_for_numbers(
    dummy_profile: Path, tmp_path: Path, part: str, field: str, value: bool
) -> None:
    written = json.loads((dummy_profile / "profile.json").read_text())
    (written.setdefault(part, {}) if part else written)[field] = value
    (tmp_path / "profile.json").write_text(json.dumps(written))
    with pytest.raises(DekagError, match=rf"{field}.*must be a number"):
        load_profile(tmp_path)
