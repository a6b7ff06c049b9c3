"""Names that other people give to the columns of a question and its answer, and the pair that a table has."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tunesmith.data.examples.column_values import MISSING, leaves, texts_of, value_of
from tunesmith.data.examples.labels import is_label, label_text
from tunesmith.data.examples.message import printable
from tunesmith.errors import DataError

SAMPLES, SAMPLE_CHARACTERS = 5, 60
PLACE = "<column>"  # for the name of one
ANSWERED, LABELLED, TITLED = "a question and its answer", "a text and its label", "a title and what stands under it"
# Kinds of pairs: what they are, the names of what is given, the names of what is to be written.
PAIRS: tuple[tuple[str, str, str], ...] = (
    (
        ANSWERED,
        "question query problem prompt instruction user frage pregunta pergunta domanda vraag pytanie вопрос "
        "问题 問題 质问 質問",
        "answer response reply completion solution output assistant antwort réponse reponse respuesta resposta "
        "risposta antwoord odpowiedź odpowiedz ответ 答案 回答 答え",
    ),
    (
        LABELLED,
        "text sentence review comment message body utterance nachricht satz texte phrase texto frase testo tekst "
        "zdanie текст предложение 文本 句子 テキスト 文章 本文",
        "label category class intent sentiment topic kategorie klasse étiquette etiquette catégorie categorie "
        "etiqueta categoría categoria rótulo rotulo classe etichetta etykieta kategoria метка категория класс "
        "标签 类别 分类 ラベル カテゴリ カテゴリー 分類",
    ),
    (
        TITLED,
        "title headline subject titel überschrift titre título titulo titolo tytuł заголовок 标题 タイトル",
        "body content article inhalt contenu contenido conteúdo contenuto inhoud treść содержание 正文 内容 本文",
    ),
    ("the front and the back of a card", "front vorderseite recto anverso", "back rückseite verso reverso"),
    (
        "a source and its target",
        "source src quelle origen origem fonte bron źródło источник 源 原文",
        "target tgt ziel cible objetivo destino alvo doel cel цель 目标 译文 訳文",
    ),
    (
        "an input and its output",
        "input eingabe entrée entrada ввод 输入 入力",
        "output ausgabe sortie salida saída вывод 输出 出力",
    ),
    (
        "a text and its summary",
        "article document text artikel",
        "summary highlights zusammenfassung résumé resumen resumo",
    ),
)
LETTERS = ("q a", "f a", "p r", "q r", "d r", "v a", "p o", "в о", "问 答", "問 答")  # of question and answer
# Columns of a question's choices: A, B, C; option1, option2; choice_a, choice_b.
CHOICE_WORDS = "option|choice|opt|op|opción|opcion|opção|opcao|alternativa|choix|wahl|auswahl|вариант|选项"
CHOICE = re.compile(rf"(?:(?:{CHOICE_WORDS})s?[ _-]?(?=.$))?([a-j]|[1-9])")
ALL_CHOICES = ("choices", "options")
KEY_AND_VALUE = ("key", "value")  # of an object of texts
CONTEXTS = frozenset(("context", "input"))
REPLIES = frozenset(next(answers for kind, _, answers in PAIRS if kind == ANSWERED).split())
# Columns of annotation tools; beside them an answer, a score and a label are the annotator's, not the text's.
ANNOTATIONS = frozenset(("_task_hash", "_input_hash", "annotations", "responses"))
ANNOTATORS_OWN = frozenset(("answer", "score", "label"))


@dataclass(frozen=True, slots=True)
class Proposal:
    """The two columns that look like a pair, the kind of the pair, and pairs of the first rows.

    ``keys``: what else must be said of how the rows are read, as arguments. ``otherwise``: what to do if the pair is
    not right; the error's own remedy where that is empty.
    """

    columns: Mapping[str, str]
    reason: str
    samples: tuple[str, ...]
    keys: tuple[str, ...] = ()
    otherwise: str = ""


class ColumnsUnclear(DataError):
    """The columns do not say for certain what the rows are for; ``proposal``: what they look like, if one pair fits."""

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        why: str | None = None,
        remedy: str | None = None,
        proposal: Proposal | None = None,
    ) -> None:
        super().__init__(what, where=where, why=why, remedy=remedy)
        self.proposal = proposal

    def to_json(self) -> dict[str, str | None]:
        """The parts of a data error; the proposal is for `init` alone."""
        return {**super().to_json(), "error": DataError.__name__}


def is_label_name(name: str) -> bool:
    """Whether a column of this name holds labels."""
    return any(_plain(name) in answers.split() for kind, _, answers in PAIRS if kind == "a text and its label")


def pair_names(kind: str) -> tuple[str, str]:
    """The names of what is asked and of what answers it, for a kind of pairs; each is a text of words."""
    return next((questions, answers) for each, questions, answers in PAIRS if each == kind)


def question_names(names: Sequence[str]) -> list[str]:
    """Those of the names that are known for what is asked, the kinds of pairs in their order."""
    ranks = {word: rank for rank, (_, asking, _) in reversed([*enumerate(PAIRS)]) for word in asking.split()}
    return sorted((name for name in names if _plain(name) in ranks), key=lambda name: ranks[_plain(name)])


def known_names(names: Sequence[str]) -> list[str]:
    """Those of the names that are known for a question or an answer."""
    known = {word for _, questions, answers in PAIRS for word in (*questions.split(), *answers.split())}
    return [name for name in names if _plain(name) in known]


def propose_columns(rows: Sequence[Mapping[str, Any]], fields: tuple[str, str]) -> Proposal | None:
    """The only pair of columns whose names are known for question and answer and whose values are texts.

    Columns are also looked for in objects, and are then named by their paths. A title that stands beside a text with
    a label or an answer is a part of the text. No pair is proposed that passes over a column of answers.
    An answer may also be a number, where no column of texts is one.

    Args:
        rows: the first rows.
        fields: the names of the question's and the answer's field.
    """
    names = leaves(rows)
    known = {_plain(name) for name in names}
    counted = [name for name in names if not (known & ANNOTATIONS and _plain(name) in ANNOTATORS_OWN)]
    counted = [name for name in counted if not set(name) & set(",`\n\r") and name == name.strip()]
    counted = [name for name in counted if f"{name}.2" not in names]  # which of the two is meant is not known
    texts = [name for name in counted if texts_of(rows, name)]
    found = _pairs(texts, texts) or _pairs(texts, [name for name in counted if _is_label(rows, name)])
    replies = [name for name in texts if _plain(name) in REPLIES and not any(name in pair for pair in found)]
    chosen = _replied(found, replies) if replies else _only(found)
    if chosen is None and sorted(texts) == sorted(names) == [*KEY_AND_VALUE]:
        chosen = (*KEY_AND_VALUE, "the columns key and value may be questions and their answers")
    if chosen is None:
        chosen = _letters(counted, texts)
    if chosen is None:
        return None
    question, answer, reason = chosen
    choices = _choices(rows, [name for name in counted if name not in (question, answer)])
    if choices and not set("".join([question, *choices])) & set("{}"):
        listed = [f"{{{name}}}" if len(choices) == 1 else f"{_letter(name)}. {{{name}}}" for name in choices]
        reason += f", and {', '.join(map(printable, choices))} like its choices"
        question = "\n".join([f"{{{question}}}", *listed])
    otherwise = f"say which column is what, such as data.columns: {{{fields[0]}: {PLACE}, {fields[1]}: {PLACE}}}"
    if fields[0] == "prompt":
        asked, said = (PLACE if set(name) & set("{}") else printable(name) for name in (question, answer))
        otherwise += f", or data.columns: {{input: {asked}, output: {said}}} with one data.instruction for all rows"
    columns = {fields[0]: question, fields[1]: answer}
    return Proposal(columns, reason, samples_of(rows, question, answer), otherwise=otherwise)


def _letters(names: Sequence[str], texts: Sequence[str]) -> tuple[str, str, str] | None:
    """Question, answer and reason, where the names are letters of these words, and no choices."""
    known = {_plain(name): name for name in names}
    for question, answer in map(str.split, LETTERS):
        if {question, answer} <= known.keys() and "b" not in known and known[question] in texts:
            pair = known[question], known[answer]
            return *pair, f"the columns {printable(pair[0])} and {printable(pair[1])} look like {ANSWERED}"
    return None


def _letter(name: str) -> str:
    return _plain(name)[-1].upper()


def _choices(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[str]:
    """The columns of a question's choices, of which there are at least two; or the one that holds all of them."""
    found = [name for name in names if CHOICE.fullmatch(_plain(name))]
    stems = {_plain(name)[:-1] for name in found}
    marks = sorted(map(_letter, found))
    if len(stems) == 1 and len(found) > 1 and "".join(marks) in ("ABCDEFGHIJ"[: len(found)], "123456789"[: len(found)]):
        return sorted(found, key=_letter) if stems != {""} or marks[0] == "A" else []
    whole = [name for name in names if _plain(name) in ALL_CHOICES and not isinstance(value_of(rows[0], name), Mapping)]
    return whole if len(whole) == 1 else []


def with_context(rows: Sequence[Mapping[str, Any]], found: Proposal) -> Proposal:
    """The proposal with the only column of what an instruction is about, such as Dolly's context, if there is one."""
    question, answer = found.columns["prompt"], found.columns["completion"]
    about = [name for name in leaves(rows) if _plain(name) in CONTEXTS and name not in (question, answer)]
    if _plain(question) != "instruction" or len(about) != 1 or not texts_of(rows, about[0]):
        return found
    reason = f"the columns {question}, {about[0]} and {answer} look like an instruction, its input and its answer"
    return replace(found, columns={"instruction": question, "input": about[0], "output": answer}, reason=reason)


def samples_of(rows: Sequence[Mapping[str, Any]], question: str, answer: str) -> tuple[str, ...]:
    """Pairs of the first rows, to be shown."""
    return tuple(f"{_short(value_of(row, question))} -> {_short(value_of(row, answer))}" for row in rows[:SAMPLES])


def _pairs(asking: Sequence[str], answering: Sequence[str]) -> dict[tuple[str, str], str]:
    """Pairs of columns whose names are known, and what they are."""
    found: dict[tuple[str, str], str] = {}
    for kind, questions, answers in PAIRS:
        for question in (name for name in asking if _plain(name) in questions.split()):
            for answer in (name for name in answering if _plain(name) in answers.split() and name != question):
                found.setdefault((question, answer), kind)
    return found


def _only(found: Mapping[tuple[str, str], str]) -> tuple[str, str, str] | None:
    """Question, answer and reason, where there is one pair, or a text with a label and a title beside it."""
    labelled = [pair for pair, kind in found.items() if kind == LABELLED]
    titled = [pair for pair, kind in found.items() if kind == TITLED]
    if len(found) == 1:
        (question, answer), kind = next(iter(found.items()))
        return question, answer, f"the columns {printable(question)} and {printable(answer)} look like {kind}"
    if len(found) > 2 or len(labelled) != 1 or len(titled) != 1 or titled[0][1] != labelled[0][0]:
        return None
    (title, text), label = titled[0], labelled[0][1]
    if title.rpartition(".")[0] != text.rpartition(".")[0] or set(title + text) & set("{}"):
        return text, label, f"the columns {printable(text)} and {printable(label)} look like {LABELLED}"
    reason = f"the columns {title} and {text} look like a text in two parts, and {printable(label)} like its label"
    return f"{{{title}}}\n\n{{{text}}}", label, reason


def _replied(found: Mapping[tuple[str, str], str], replies: Sequence[str]) -> tuple[str, str, str] | None:
    """Question, answer and reason, where one title and its text stand beside one answer to them."""
    if len(found) != 1 or len(replies) != 1:
        return None
    ((title, text), kind), answer = next(iter(found.items())), replies[0]
    if kind != TITLED or title.rpartition(".")[0] != text.rpartition(".")[0] or set(title + text) & set("{}"):
        return None
    reason = f"the columns {title} and {text} look like a text in two parts, and {printable(answer)} like its answer"
    return f"{{{title}}}\n\n{{{text}}}", answer, reason


def _plain(name: str) -> str:
    """The name, or the last of a path, in the form in which names are compared."""
    return unicodedata.normalize("NFC", name.rpartition(".")[2]).strip().casefold()


def _is_label(rows: Sequence[Mapping[str, Any]], name: str) -> bool:
    values = [value_of(row, name) for row in rows]
    values = [value for value in values if value is not None and value is not MISSING]
    return bool(values) and all(map(is_label, values))


def _short(value: object) -> str:
    value = label_text(value, "") if is_label(value) and abs(value) < 1e15 else value
    return short(str("" if value is None or value is MISSING else value))


def short(text: str) -> str:
    """The beginning of a text on one line, with a mark where it is cut."""
    cut = len(text) > SAMPLE_CHARACTERS  # texts of first rows come with one character more, where they go on
    text = " ".join(text.split())
    return printable(f"{text[: SAMPLE_CHARACTERS - 3].rstrip()}..." if cut else text)
