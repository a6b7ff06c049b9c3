from __future__ import annotations

import socket

import pytest
from ftfy.badness import is_bad
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.checks.scripts import language_of, mixed_word, script_of, wrongly_decoded


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("hello", "Latin"),
        ("naïve ｈｅｌｌｏ", "Latin"),
        ("привет, Jo", "Cyrillic"),
        ("今天天气很好", "Han"),
        ("ひらがな", "Hiragana"),
        ("カタカナ", "Katakana"),
        ("한국어", "Hangul"),
        ("العربية", "Arabic"),
        ("עברית", "Hebrew"),
        ("हिन्दी", "Devanagari"),
        ("ไทย", "Thai"),
        ("123 + ① µ 🙂", "none"),
        ("", "none"),
    ],
)
def test_the_script_is_that_of_most_letters(text: str, script: str):
    assert script_of(text) == script


def test_a_long_text_is_looked_at_as_a_whole():
    assert script_of("a" * 900 + "я" * 5_000) == "Cyrillic"


@pytest.mark.parametrize("word", ["pаypal", "Привeт", "Gооgle", "Αpple", "AВС"])
def test_a_word_with_look_alikes_is_mixed(word: str):
    text = f"see {word} here"
    place = mixed_word(text)
    assert place is not None
    assert text[slice(*place)] == word


@pytest.mark.parametrize(
    "text", ["plain", "привет, Jo", "SMSка", "testтест", "5 μm", "TNFα", "ΔHrxn", "2πr", "φύλλο", "é"]
)
def test_names_units_and_formulas_are_not_mixed(text: str):
    assert mixed_word(text) is None


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Der Hund läuft schnell über die grüne Wiese und bellt.", "de"),
        ("Le chat est assis sur la table de la cuisine.", "fr"),
        ("Сегодня хорошая погода, и мы идём гулять в парк.", "ru"),
        ("This is a sentence\nover two lines, and SOME OF IT shouts.", "en"),
        ("short", "unknown"),
        ("a" * 100, "unknown"),
        ("12345 " * 20, "unknown"),
    ],
)
def test_the_language_is_told_without_a_network(monkeypatch: pytest.MonkeyPatch, text: str, language: str):
    def refuse(*args: object) -> None:
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert language_of(text) == language


@given(st.text(st.characters(exclude_categories=())))
def test_every_text_has_a_script_and_a_language(text: str):
    assert script_of(text)
    assert len(language_of(text)) == 2 or language_of(text) == "unknown"
    mixed_word(text)


@given(st.text(st.sampled_from("aZ Ãâ€™©ÐŸÑŒœ°×²√±≈‚Ä╔▓«»“ВГРЂЎў€Ββ\xa0\x9dāØÙ1.—й今")))
def test_text_is_decoded_wrongly_where_ftfy_says_so(text: str):
    assert (wrongly_decoded(text) is not None) == is_bad(text)
