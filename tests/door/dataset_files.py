"""Well-known layouts of datasets: questions about a text, trees of messages, and what the hub holds."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.door.column_files import write_json_lines
from tests.door.content import CITIES, dialogues, pairs, questions
from tests.door.real_file import RealFile
from tests.door.spreadsheets import delimited

WITHOUT_ANSWER = 2
NO_ANSWER = (5, 11)  # numbers of the questions that SQuAD 2.0 marks as impossible
ROLES = ("user", "assistant")
WORSE = "No idea, ask somebody else."


def _paragraphs() -> list[tuple[str, str, list[tuple[str, str]]]]:
    """For each shop its title, a text about it, and questions with their answers, which stand in the text."""
    rows, found = questions(), []
    for number, city in enumerate(CITIES):
        asked = rows[3 * number : 3 * number + 3]
        found.append((f"The_shop_in_{city}", f"About the shop in {city}. {' '.join(row[1] for row in asked)}", asked))
    return found


def _squad(*, impossible: bool = False) -> dict[str, Any]:
    """A file of SQuAD; with ``impossible`` one of version 2.0, in which some questions have no answer."""
    articles: list[dict[str, Any]] = []
    for title, context, asked in _paragraphs():
        first = 3 * len(articles)
        questions_of: list[dict[str, Any]] = []
        for number, (question, answer) in enumerate(asked, first):
            span = {"text": answer, "answer_start": context.index(answer)}
            found: dict[str, Any] = {"id": f"5733be284776f4190066{number:04}", "question": question, "answers": [span]}
            if impossible:
                no_answer = number in NO_ANSWER
                found |= {"answers": [] if no_answer else [span], "is_impossible": no_answer}
                found |= {"plausible_answers": [span]} if no_answer else {}
            else:
                found["answers"] = [span, span]  # of two annotators
            questions_of.append(found)
        articles.append({"title": title, "paragraphs": [{"context": context, "qas": questions_of}]})
    return {"data": articles, "version": "v2.0" if impossible else "1.1"}


def squad(folder: Path) -> None:
    """SQuAD 1.1, dev-v1.1.json: articles, paragraphs, questions with the answers of several annotators.

    https://rajpurkar.github.io/SQuAD-explorer
    """
    (folder / "dev-v1.1.json").write_text(json.dumps(_squad()), encoding="utf-8")


def squad_impossible(folder: Path) -> None:
    """SQuAD 2.0, train-v2.0.json: some questions have no answer. GermanQuAD, FQuAD and others have its layout.

    https://rajpurkar.github.io/SQuAD-explorer
    """
    (folder / "train-v2.0.json").write_text(json.dumps(_squad(impossible=True), indent=1), encoding="utf-8")


def squad_hub(folder: Path) -> None:
    """SQuAD on the hub: a row for each question, whose answers are a column of lists.

    https://huggingface.co/datasets/rajpurkar/squad
    """
    from datasets import Dataset

    rows = [
        {
            "id": f"{title}-{number}",
            "title": title,
            "context": context,
            "question": question,
            "answers": {"text": [answer], "answer_start": [context.index(answer)]},
        }
        for title, context, asked in _paragraphs()
        for number, (question, answer) in enumerate(asked)
    ]
    Dataset.from_list(rows).to_parquet(folder / "train-00000-of-00001.parquet")


def _messages() -> Iterator[dict[str, Any]]:
    """Messages of OpenAssistant's trees: two replies to each, of which the second is ranked first."""
    for number, ((question, answer), (second, reply)) in enumerate(dialogues()):
        tree = f"6ab24d72-0181-4594-a9cd-{number:012}"

        def message(
            name: str, parent: str | None, text: str, *, rank: int | None, tree: str = tree, **facts: Any
        ) -> dict[str, Any]:
            role = "prompter" if rank is None else "assistant"
            return {
                "message_id": f"{tree}-{name}",
                "parent_id": None if parent is None else f"{tree}-{parent}",
                "user_id": "c3fe8c76-fc30-4fa7-b7f8-c492f5967d18",
                "created_date": "2026-02-05T14:23:50.983374+00:00",
                "text": text,
                "role": role,
                "lang": "en",
                "review_count": 3,
                "review_result": True,
                "deleted": False,
                "rank": rank,
                "synthetic": False,
                "message_tree_id": f"{tree}-q",
                "tree_state": "ready_for_export",
                **facts,
            }

        yield message("q", None, question, rank=None)
        yield message("w", "q", WORSE, rank=1)
        yield message("a", "q", answer, rank=0)
        yield message("d", "a", "Never mind.", rank=None, deleted=True)
        yield message("s", "a", second, rank=None)
        yield message("r", "s", reply, rank=0)
        if number < WITHOUT_ANSWER:
            yield {
                **message("lone", None, f"Question {number} that nobody answered", rank=None),
                "message_tree_id": tree,
            }


def oasst_messages(folder: Path) -> None:
    """OpenAssistant's oasst_ready.messages.jsonl.gz: a message a line, each with the id of the one it replies to.

    https://huggingface.co/datasets/OpenAssistant/oasst1 (the fields); two trees have no reply.
    """
    lines = "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in _messages())
    (folder / "2026-04-12_oasst_ready.messages.jsonl.gz").write_bytes(gzip.compress(lines.encode(), mtime=0))


def oasst_hub(folder: Path) -> None:
    """OpenAssistant on the hub: the messages as a table.

    https://huggingface.co/datasets/OpenAssistant/oasst1/viewer
    """
    from datasets import Dataset

    Dataset.from_list([*_messages()]).to_parquet(folder / "train-00000-of-00001.parquet")


def oasst_trees(folder: Path) -> None:
    """OpenAssistant's oasst_ready.trees.jsonl.gz: a tree a line, its replies within one another.

    https://huggingface.co/datasets/OpenAssistant/oasst1 (oasst1: message trees)
    """
    nodes = {each["message_id"]: {**each, "replies": []} for each in _messages()}
    for each in nodes.values():
        if each["parent_id"] is not None:
            nodes[each["parent_id"]]["replies"].append(each)
    trees = [each for each in nodes.values() if each["parent_id"] is None]
    rows = [
        {"message_tree_id": each["message_tree_id"], "tree_state": each["tree_state"], "prompt": each} for each in trees
    ]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "2026-04-12_oasst_ready.trees.jsonl.gz").write_bytes(gzip.compress(lines.encode(), mtime=0))


def question_answer_object(folder: Path) -> None:
    """One object of questions with their answers, as chatbots of a web page and many hands write it."""
    (folder / "faq.json").write_text(json.dumps(dict(questions()), indent=2, ensure_ascii=False), encoding="utf-8")


def dolly(folder: Path) -> None:
    """Databricks' databricks-dolly-15k.jsonl: an instruction, a context that may be empty, a response, a category.

    https://huggingface.co/datasets/databricks/databricks-dolly-15k
    """
    rows: list[Mapping[str, object]] = [
        {"instruction": question, "context": context if number else "", "response": answer, "category": "closed_qa"}
        for _, context, asked in _paragraphs()
        for number, (question, answer) in enumerate(asked)
    ]
    write_json_lines(folder / "databricks-dolly-15k.jsonl", rows)


def alpaca_hub(folder: Path) -> None:
    """Stanford's Alpaca on the hub: instruction, input and output, and all of them as one text.

    https://huggingface.co/datasets/tatsu-lab/alpaca
    """
    from datasets import Dataset

    rows = [
        {
            "instruction": question,
            "input": "",
            "output": answer,
            "text": f"Below is an instruction.\n\n### Instruction:\n{question}\n\n### Response:\n{answer}",
        }
        for question, answer in questions()
    ]
    Dataset.from_list(rows).to_parquet(folder / "train-00000-of-00001.parquet")


def ultrachat(folder: Path) -> None:
    """UltraChat 200k on the hub: the first turn as prompt, its hash, and the whole conversation as messages.

    https://huggingface.co/datasets/HuggingFaceH4/ultrachat_200k
    """
    from datasets import Dataset

    rows = []
    for number, rounds in enumerate(dialogues()):
        turns = [{"content": text, "role": role} for pair in rounds for role, text in zip(ROLES, pair, strict=True)]
        rows.append({"prompt": rounds[0][0], "prompt_id": f"{number:064x}", "messages": turns})
    Dataset.from_list(rows).to_parquet(folder / "train_sft-00000-of-00003.parquet")


def kto(folder: Path) -> None:
    """TRL 1.16, unpaired preferences: a prompt, an answer, and whether it is good.

    https://huggingface.co/docs/trl/dataset_formats#unpaired-preference
    """
    rows: list[Mapping[str, object]] = [
        {"prompt": question, "completion": good if number % 2 else worse, "label": bool(number % 2)}
        for number, (question, good, worse) in enumerate(pairs())
    ]
    write_json_lines(folder / "kto.jsonl", rows)


def dpo_messages(folder: Path) -> None:
    """TRL 1.16, preferences as conversations whose prompt is part of both.

    https://huggingface.co/docs/trl/dataset_formats#preference (implicit prompt)
    """
    rows: list[Mapping[str, object]] = []
    for question, good, worse in pairs():
        asked = {"role": "user", "content": question}
        rows.append(
            {
                name: [asked, {"role": "assistant", "content": text}]
                for name, text in (("chosen", good), ("rejected", worse))
            }
        )
    write_json_lines(folder / "preferences.jsonl", rows)


def arena(folder: Path) -> None:
    """LMSYS' Chatbot Arena on the hub: two conversations, and which model has won. Every sixth is a tie.

    https://huggingface.co/datasets/lmsys/chatbot_arena_conversations
    """
    from datasets import Dataset

    rows = []
    for number, (question, good, worse) in enumerate(pairs()):
        texts = (good, worse) if number % 2 else (worse, good)
        winner = "tie" if number % 6 == 5 else ("model_b", "model_a")[number % 2]
        row: dict[str, Any] = {"question_id": f"q{number}", "model_a": "alpaca-13b", "model_b": "koala-13b"}
        row |= {"winner": winner, "judge": "arena_user_1", "turn": 1, "language": "English"}
        for side, text in zip("ab", texts, strict=True):
            turns = (("user", question), ("assistant", text))
            row[f"conversation_{side}"] = [{"content": content, "role": role} for role, content in turns]
        rows.append(row)
    Dataset.from_list(rows).to_parquet(folder / "train-00000-of-00001.parquet")


def two_answers(folder: Path) -> None:
    """A comparison in a spreadsheet: a prompt, two responses and the better one. Every sixth is a tie."""
    rows = [("prompt", "response_a", "response_b", "winner")]
    for number, (question, good, worse) in enumerate(pairs()):
        winner = "tie" if number % 6 == 5 else "ba"[number % 2]
        rows.append((question, *((good, worse) if number % 2 else (worse, good)), winner))
    (folder / "comparisons.csv").write_bytes(delimited(rows, ",").encode())


def wikipedia(folder: Path) -> None:
    """Wikipedia on the hub, as JSON lines: pages of raw text with id, address and title.

    https://huggingface.co/datasets/wikimedia/wikipedia
    """
    rows: list[Mapping[str, object]] = [
        {"id": str(number), "url": f"https://en.wikipedia.org/wiki/{number}", "title": question, "text": answer * 3}
        for number, (question, answer) in enumerate(questions())
    ]
    write_json_lines(folder / "wiki.jsonl", rows)


def openai_completions(folder: Path) -> None:
    """OpenAI's older fine-tuning files: a prompt that ends with a separator, and a completion that begins with a space.

    https://platform.openai.com/docs/guides/legacy-fine-tuning
    """
    rows: list[Mapping[str, object]] = [
        {"prompt": f"{question}\n\n###\n\n", "completion": f" {answer} END"} for question, answer in questions()
    ]
    write_json_lines(folder / "prepared.jsonl", rows)


def _single(write: Callable[[Path], None], path: str, shape: str = "prompt_completion", **expected: Any) -> RealFile:
    question, answer = questions()[1]
    found: dict[str, Any] = {"rows": len(questions()), "prompt": question, "answer": answer}
    return RealFile(write=write, path=path, shape=shape, **{**found, **expected})


def _tree(write: Callable[[Path], None], path: str, **expected: Any) -> RealFile:
    (first, _), (_, reply) = dialogues()[1]
    found: dict[str, Any] = {"rows": len(dialogues()), "prompt": first, "answer": reply, "says": ("best-ranked",)}
    found["left_out"] = {"without an answer": WITHOUT_ANSWER}
    return RealFile(write=write, path=path, shape="messages", **{**found, **expected})


ABOUT_BERLIN = _paragraphs()[0][1]
COMPARED = sum(number % 6 != 5 for number in range(len(pairs())))
DATASET_FILES = (
    _single(squad, "dev-v1.1.json", says=("SQuAD", "the first of the answers")),
    _single(
        squad_impossible,
        "train-v2.0.json",
        rows=len(questions()) - WITHOUT_ANSWER,
        prompt=ABOUT_BERLIN,
        says=("SQuAD",),
        left_out={"without an answer": WITHOUT_ANSWER},
    ),
    _single(squad_hub, "train-00000-of-00001.parquet", says=("SQuAD",)),
    _tree(oasst_messages, "2026-04-12_oasst_ready.messages.jsonl.gz", says=("best-ranked", "parent_id")),
    _tree(oasst_hub, "train-00000-of-00001.parquet", says=("best-ranked", "parent_id")),
    _tree(oasst_trees, "2026-04-12_oasst_ready.trees.jsonl.gz"),
    _single(question_answer_object, "faq.json", columns={"prompt": "key", "completion": "value"}, says=("24 texts",)),
    _single(
        dolly,
        "databricks-dolly-15k.jsonl",
        "alpaca",
        columns={"instruction": "instruction", "input": "context", "output": "response"},
    ),
    _single(alpaca_hub, "train-00000-of-00001.parquet", "alpaca"),
    RealFile(
        ultrachat,
        "train_sft-00000-of-00003.parquet",
        len(dialogues()),
        "messages",
        dialogues()[1][0][0],
        dialogues()[1][1][1],
    ),
    _single(kto, "kto.jsonl", "unpaired_preference", says=("kto",)),
    _single(dpo_messages, "preferences.jsonl", "preference"),
    _single(arena, "train-00000-of-00001.parquet", "preference", rows=COMPARED, says=("tie",)),
    _single(two_answers, "comparisons.csv", "preference", rows=COMPARED, says=("tie",)),
    _single(wikipedia, "wiki.jsonl", "text", prompt=questions()[1][1], answer=""),
    _single(openai_completions, "prepared.jsonl", answer=f" {questions()[1][1]} END"),
)
