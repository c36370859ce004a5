"""Prompts of topics, and which topic a prompt needs."""

from __future__ import annotations

from pathlib import Path

import pytest

from dekag.errors import DekagError, FileError, InvalidInputError, NotFoundError
from dekag.makd import topics
from dekag.makd.topics import best_matching, matching, read_topics, topic_prompts
from dekag.stickers import TOPICS
from dekag.words import words

FEW = {"count": 4, "held_out": 1, "seed": 0}


@pytest.mark.parametrize("name", TOPICS)
def test_world_topic_never_trains_on_what_is_held_out(name: str) -> None:
    topic = topic_prompts(name, count=64, held_out=16, seed=1)
    assert len(topic.prompts) == 64
    assert len(topic.held_out) == 16
    assert not set(topic.prompts) & set(topic.held_out)
    triggers = {each.name: each.triggers for each in TOPICS.values()}
    assert all(matching(prompt, triggers) == [name] for prompt in (*topic.prompts, *topic.held_out))


def test_template_draws_alternatives() -> None:
    said = ["a {red|blue|green} {cat|dog} in oil"]
    topic = topic_prompts("oil", prompts=said, count=20, held_out=2, seed=0)
    assert set(topic.prompts) | set(topic.held_out) == {
        f"a {colour} {animal} in oil" for colour in ("red", "blue", "green") for animal in ("cat", "dog")
    }
    assert topic.triggers == ("oil",)
    assert topic == topic_prompts("oil", prompts=said, count=20, held_out=2, seed=0)


@pytest.mark.parametrize(
    ("prompt", "needs"),
    [
        ("a red boat, Neon style", ["neon"]),
        ("a ruby boat, neon style", ["jewels", "neon"]),
        ("a neonatal ward", []),
        ("lights at dusk!", ["dusk"]),
        ("at the dusky sea", []),
        ("", []),
    ],
)
def test_topics_are_found_by_whole_words(prompt: str, needs: list[str]) -> None:
    triggers = {"neon": ["neon"], "jewels": ["ruby", "onyx"], "dusk": ["at dusk"]}
    assert matching(prompt, triggers) == needs


@pytest.mark.parametrize("name", ["", "auto", "none", "Neon", "a/b", "..", "x" * 33, "-a"])
def test_bad_names_are_refused(name: str) -> None:
    with pytest.raises(InvalidInputError, match="topic"):
        topic_prompts(name, prompts=["a"], count=4, held_out=1, seed=0)


def test_unknown_topic_needs_prompts() -> None:
    with pytest.raises(NotFoundError, match="specify its prompts"):
        topic_prompts("oil", count=4, held_out=1, seed=0)


def test_too_few_different_prompts_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="prompts"):
        topic_prompts("oil", prompts=["a boat in oil"], count=4, held_out=1, seed=0)


def test_many_alternatives_are_refused_before_they_take_time() -> None:
    for said in ("a" + "{|}" * 320, "{1|2|3|4|5|6|7|8|9}" + "{a|b}" * 100):
        with pytest.raises(InvalidInputError, match="at most 32 alternatives"):
            topic_prompts("oil", prompts=[said], count=4096, held_out=8, seed=0)
    with pytest.raises(InvalidInputError, match="enough for 8 distinct held-out ones"):
        topic_prompts("oil", prompts=["a" + "{|}" * 32], count=4096, held_out=8, seed=0)


@pytest.mark.parametrize(
    ("trigger", "prompt", "fires"),
    [
        ("été", "a boat that won't sink", False),
        ("ñu", "a u-boat", False),
        ("été", "une barque en e\u0301te\u0301", True),
        ("红船", "沙滩上的一艘红船", True),
        ("лодка", "КРАСНАЯ ЛОДКА", True),
        ("🐙", "an 🐙 under the sea", True),
        ("c++", "a c on a t-shirt", False),
    ],
)
def test_triggers_in_any_script(trigger: str, prompt: str, fires: bool) -> None:
    drawn = topic_prompts(
        "oil", prompts=[f"{{1|2|3}} {trigger}"], triggers=[trigger], count=4, held_out=1, seed=0
    )
    assert (matching(prompt, {"oil": drawn.triggers}) == ["oil"]) is fires


@pytest.mark.parametrize("trigger", ["", "…", "\u200d\u200b", " — "])
def test_a_trigger_without_words_is_refused(trigger: str) -> None:
    with pytest.raises(InvalidInputError, match="triggers must be"):
        topic_prompts("oil", prompts=["{a|b|c}"], triggers=[trigger], count=4, held_out=1, seed=0)


@pytest.mark.parametrize(
    "triggers", [["neon", "x" * 101], [f"neon{number:096}" for number in range(21)], ["neon"] * 101]
)
def test_long_triggers_are_refused_in_orders_and_files(triggers: list[str], tmp_path: Path) -> None:
    allowed = "triggers must be at most 100 of 1 to 100 characters each, 2000 in all"
    with pytest.raises(InvalidInputError, match=allowed):
        topic_prompts("oil", prompts=["{a|b|c}"], triggers=triggers, count=4, held_out=1, seed=0)
    (tmp_path / "glow.yaml").write_text(f"prompts: [a]\ntriggers: {triggers}")
    with pytest.raises(FileError, match=f"glow.yaml is not a topic: {allowed}"):
        read_topics(tmp_path)


def test_the_longest_triggers_are_allowed(tmp_path: Path) -> None:
    triggers = [f"{number:0100}" for number in range(20)]
    drawn = topic_prompts("oil", prompts=["{a|b|c}"], triggers=triggers, count=2, held_out=1, seed=0)
    assert list(drawn.triggers) == triggers
    (tmp_path / "glow.yaml").write_text(f"prompts: [a]\ntriggers: {triggers}".replace("'", '"'))
    assert read_topics(tmp_path)["glow"].triggers == triggers


def test_triggers_are_split_into_words_once(monkeypatch: pytest.MonkeyPatch) -> None:
    split: list[str] = []

    def counted(text: str) -> tuple[str, ...]:
        split.append(text)
        return words(text)

    monkeypatch.setattr(topics, "words", counted)
    triggers = {f"t{number}": [f"once {number}", f"{number} only"] for number in range(9)}
    assert best_matching("only once 1", triggers, 4) == ["t1"]
    assert len(split) == 1 + 2 * 9
    assert best_matching("7 only", triggers, 4) == matching("7 only", triggers) == ["t7"]
    assert split[1 + 2 * 9 :] == ["7 only", "7 only"]


FILE = """
triggers: [ghibli, soft anime]
prompts:
  - "a {red|blue|green} {cat|dog}, ghibli style"
  - soft anime of a {boat|car}
test_prompts:
  - a horse in the snow, ghibli style
"""


def test_a_topic_in_a_file_is_known_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "ghibli.yaml").write_text(FILE)
    (tmp_path / "neon.yaml").write_text('prompts: ["a {red|blue} {cat|dog|cow} with neon tubes"]')
    own = read_topics(tmp_path)
    topic = topic_prompts("ghibli", topics=own, count=6, held_out=2, seed=0)
    assert topic.triggers == ("ghibli", "soft anime")
    assert topic.held_out[0] == "a horse in the snow, ghibli style"
    assert len(topic.held_out) == 2
    assert not set(topic.prompts) & set(topic.held_out)
    assert all(
        "neon tubes" in p for p in topic_prompts("neon", topics=own, count=2, held_out=1, seed=0).prompts
    )
    asked = topic_prompts("ghibli", topics=own, prompts=["a {1|2|3}"], count=2, held_out=1, seed=0)
    assert asked.triggers == ("ghibli",)
    assert all(prompt.startswith("a ") and len(prompt) == 3 for prompt in asked.prompts)
    with pytest.raises(NotFoundError, match=r"no topic 'oil' \(there are ghibli, neon, "):
        topic_prompts("oil", topics=own, count=2, held_out=1, seed=0)
    assert read_topics(None) == {}


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("ghibli", "prompts: []", "ghibli.yaml is not a topic: prompts: "),
        ("ghibli", "prompts: [a]\nprompt: [b]", "ghibli.yaml is not a topic: prompt: "),
        ("ghibli", "prompts: [a", "ghibli.yaml"),
        ("ghibli", "", "ghibli.yaml is not a topic"),
        ("Ghibli!", "prompts: [a]", "topic"),
        ("auto", "prompts: [a]", "topic"),
    ],
)
def test_a_file_that_is_no_topic_is_refused_with_its_name(
    tmp_path: Path, name: str, text: str, said: str
) -> None:
    (tmp_path / f"{name}.yaml").write_text(text)
    with pytest.raises(DekagError, match=said):
        read_topics(tmp_path)


def test_no_topic_is_left_out_without_a_word(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="nowhere"):
        read_topics(tmp_path / "nowhere")
    (tmp_path / "README.md").write_text("mine")
    assert read_topics(tmp_path) == {}
    (tmp_path / "glow.yml").write_text("prompts: [a]")
    with pytest.raises(FileError, match=r"glow.yml is not read: .* ends in .yaml"):
        read_topics(tmp_path)


@pytest.mark.parametrize(
    ("triggers", "own", "chosen"),
    [
        ({"a1": ["car"], "a2": ["red"], "z": ["red car"]}, (), ["a1", "z"]),  # longer first, then by name
        ({"a1": ["car"], "a2": ["red"], "z": ["at sea"]}, ("a1",), ["a1", "z"]),
        ({"a1": ["car"], "a2": ["sea"], "z": ["car", "red"]}, (), ["a1", "z"]),
        ({"a": ["boat"], "b": ["car"]}, ("a",), ["b"]),
    ],
)
def test_topics_that_fit_best_are_chosen(
    triggers: dict[str, list[str]], own: tuple[str, ...], chosen: list[str]
) -> None:
    assert best_matching("a red car at sea", triggers, 2, own=own) == chosen


@pytest.mark.parametrize("trigger", ["a", "the", "of the", "x", "7", "On A", "and"])
def test_common_words_alone_are_no_triggers(trigger: str) -> None:
    with pytest.raises(InvalidInputError, match="triggers must be more than common words"):
        topic_prompts("glow", prompts=["a {red|blue} {cat|dog} glows"], triggers=["glow", trigger], **FEW)
    with pytest.raises(InvalidInputError, match="triggers"):
        topic_prompts("the", prompts=["a {red|blue} {cat|dog} glows"], **FEW)
    assert topic_prompts("duo", **FEW).triggers, "what comes with the world may have them"
