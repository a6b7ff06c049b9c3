"""Small tables in code pages: western letters are cp1252, and what would be a guess is refused with the right one."""

from __future__ import annotations

import pytest
from tests.door.content import questions

from tunesmith.data.files.encodings import find_encoding
from tunesmith.errors import DataError

WESTERN = {
    "German": "Frage;Antwort\nGröße Tee?;3 cm\nPreis?;4 Euro\n",
    "one letter": "name,city\nRenée,Paris\nLuc,Lyon\n",
    "French": "texte;catégorie\nRenée;reçu\nLuc;payé\nZoé;reçu\n",
    "French, a letter alone": "texte;label\nà Paris;oui\nà Lyon;non\nl’été;où\n",
    "Spanish": "pregunta;respuesta\n¿Dónde está?;Aquí\n¿mañana?;sí\n",
    "Portuguese": "pergunta;resposta\nNão sei;limões\nOnde?;lá, São Paulo\n",
    "Danish": "spørgsmål;svar\nHvor er øen?;på kortet\n",
    "marks": "text,price\n“Tea” – it’s good,3 €\nCoffee,4 €\n",
    "Icelandic": "spurning;svar\nHvað er það?;Þetta er gott\nHver?;Guðrún\n",
}
OTHERS = {
    "cp850": ("Frage;Antwort\nGröße Tee?;3 cm\nPreis für Käse?;4 Euro\n", "cp850"),
    "mac_roman": ("texte;catégorie\nRenée;reçu\nLuc;payé\nZoé;reçu\n", "mac_roman"),
    "cp1250, Hungarian": ("kérdés;válasz\nMennyi az idő?;Hét óra\nKi beszél?;Győző\n", "cp1250"),
    "cp1250, Romanian": ("întrebare;răspuns\nCine vorbeşte?;Ion, dacă vrei\nUnde?;în casă\n", "cp1250"),
    "cp1250, Croatian": ("pitanje;odgovor\nGdje je kuća?;ovdje, čovječe\nTko?;Đuro\n", "cp1250"),
    "cp1251": ("вопрос;ответ\nГде он?;тут и там\n", "cp1251"),
}


@pytest.mark.parametrize("name", WESTERN)
def test_western_letters_in_a_small_table_are_cp1252_and_said_with_a_sample(name: str) -> None:
    found = find_encoding(iter([WESTERN[name].encode("cp1252")]), "t.csv")
    assert found.name == "cp1252"
    word = found.said.partition("(for example ")[2].strip("')\"")
    assert word in WESTERN[name] and not word.isascii()


@pytest.mark.parametrize("name", OTHERS)
def test_letters_that_may_be_others_are_refused_and_the_right_ones_are_shown(name: str) -> None:
    text, encoding = OTHERS[name]
    with pytest.raises(DataError, match="several encodings fit it") as caught:
        find_encoding(iter([text.encode(encoding)]), "t.csv")
    shown = [each for each in str(caught.value.why).split("; ") if f"{encoding}: " in each]
    assert shown and any(line[:20] in str(caught.value.why) for line in text.splitlines())


@pytest.mark.parametrize(("language", "encoding"), [("polish", "cp1250"), ("russian", "cp1251"), ("japanese", "cp932")])
def test_letters_of_other_code_pages_are_not_taken_for_western_ones(language: str, encoding: str) -> None:
    text = "".join(f"{question};{answer}\n" for question, answer in questions(language))
    assert find_encoding(iter([text.encode(encoding)]), "t.csv").name == encoding
