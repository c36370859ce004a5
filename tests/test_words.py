"""Words in any script, and phrases found in them."""

from __future__ import annotations

import unicodedata

import pytest

from dekag.words import Phrases, folded, words


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a boat that won't sink", "a boat that won t sink"),
        ("ñu on a u-boat", "ñu on a u boat"),
        ("İstanbul ISTANBUL", "i̇stanbul istanbul"),
        ("STRASSE straße", "strasse strasse"),
        ("ΣΊΣΥΦΟΣ Σίσυφος", "σίσυφοσ σίσυφοσ"),
        ("ＮＥＯＮ ﬁsh ⅷ", "neon fish viii"),
        ("x̄ is not x", "x̄ is not x"),
        ("赤いﾈｺ、3D風", "赤 い ネ コ 3d 風"),
        ("می‌خواهم میخواهم", "میخواهم میخواهم"),
        ("co\u00adop \ufeffneon", "coop neon"),
        ("क्षेत्र में नाव", "क्षेत्र में नाव"),
        ("\u202bסירה אדומה\u202c", "סירה אדומה"),
        ("a\u200bboat", "a boat"),
        ("👩\u200d🚀 👩🚀 ❤\ufe0f❤ 🇩🇪🇫🇷", "👩\u200d🚀 👩 🚀 ❤ ❤ 🇩🇪 🇫🇷"),
        ("c++ and c#, *neon*", "c + + and c # * neon *"),
        ("\u200d\u200b … — ( )", ""),
    ],
)
def test_text_is_split_into_words(text: str, found: str) -> None:
    assert words(text) == tuple(found.split())


@pytest.mark.parametrize(
    ("phrase", "text"),
    [
        ("été", "un bateau l'e\u0301te\u0301"),
        ("ÉTÉ", "en été"),
        ("船", "一艘红船在海滩上"),
        ("红船", "一艘红船在海滩上"),
        ("แมว", "วาดแมวสีแดง"),
        ("ネコ", "赤いﾈｺの絵"),
        ("лодка", "красная Лодка, неон"),
        ("고양이", "빨간 고양이 한 마리"),
        ("고양이", unicodedata.normalize("NFD", "빨간 고양이")),
        ("קשת", "ציור של קשת!"),
        ("🐱", "a🐱b"),
        ("c++", "the c++ logo"),
        ("red-boat", "a Red  boat"),
    ],
)
def test_phrases_that_are_said(phrase: str, text: str) -> None:
    assert words(phrase) in Phrases(words(text))


@pytest.mark.parametrize(
    ("phrase", "text"),
    [
        ("été", "a boat that won't sink"),
        ("ñu", "a u-boat"),
        ("été", "ete"),
        ("neon", "a neonatal ward"),
        ("лод", "красная лодка"),
        ("红船", "红色的船"),
        ("고양이", "길고양이"),
        ("👩", "👩\u200d🚀"),
        ("c++", "c is not plus"),
        ("e", "e\u0301"),
        ("…", "… anything"),
        ("\u200d", "👩\u200d🚀"),
    ],
)
def test_phrases_that_are_not_said(phrase: str, text: str) -> None:
    assert words(phrase) not in Phrases(words(text))


def test_folding_twice_changes_nothing() -> None:
    everything = [chr(code) for code in range(0x11_0000) if not 0xD800 <= code < 0xE000]
    assert [each for each in everything if folded(folded(each)) != folded(each)] == []
