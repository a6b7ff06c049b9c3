"""Conversations as services of language models write them: for their tuning, and when a user exports his chats."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.door.chat_files import SYSTEM
from tests.door.column_files import write_json_lines
from tests.door.content import dialogues
from tests.door.quoted_tables import csv_text
from tests.door.real_file import RealFile

LEFT_OUT = 2
ROLES = ("user", "assistant")


def _turns(rounds: list[tuple[str, str]], names: tuple[str, str]) -> list[tuple[str, str]]:
    """The turns of a conversation as (speaker, text), under a service's names for user and model."""
    return [(name, text) for pair in rounds for name, text in zip(names, pair, strict=True)]


def gemini_tuning(folder: Path) -> None:
    """Vertex AI, supervised tuning of Gemini: contents of parts, and a system instruction.

    https://cloud.google.com/vertex-ai/generative-ai/docs/models/gemini-supervised-tuning-prepare
    """
    rows: list[Mapping[str, object]] = [
        {
            "systemInstruction": {"role": "system", "parts": [{"text": SYSTEM}]},
            "contents": [{"role": role, "parts": [{"text": text}]} for role, text in _turns(each, ("user", "model"))],
        }
        for each in dialogues()
    ]
    write_json_lines(folder / "tuning.jsonl", rows)


def nova_tuning(folder: Path) -> None:
    """Amazon Bedrock, fine-tuning of Nova: messages whose content is a list of parts, and a system list.

    https://docs.aws.amazon.com/nova/latest/userguide/customize-fine-tune-prepare.html
    """
    rows: list[Mapping[str, object]] = [
        {
            "schemaVersion": "bedrock-conversation-2024",
            "system": [{"text": SYSTEM}],
            "messages": [{"role": role, "content": [{"text": text}]} for role, text in _turns(each, ROLES)],
        }
        for each in dialogues()
    ]
    write_json_lines(folder / "nova.jsonl", rows)


def cohere_chat(folder: Path) -> None:
    """Cohere's fine-tuning of chat models: the roles are System, User and Chatbot.

    https://docs.cohere.com/docs/chat-preparing-the-data
    """
    rows: list[Mapping[str, object]] = [
        {
            "messages": [
                {"role": role, "content": text}
                for role, text in [("System", SYSTEM), *_turns(each, ("User", "Chatbot"))]
            ]
        }
        for each in dialogues()
    ]
    write_json_lines(folder / "cohere.jsonl", rows)


def mistral_tuning(folder: Path) -> None:
    """Mistral's fine-tuning: messages, of which a weight of 0 leaves an assistant turn unlearned.

    https://docs.mistral.ai/guides/finetuning
    """
    rows: list[Mapping[str, object]] = []
    for each in dialogues():
        messages: list[dict[str, Any]] = [{"role": role, "content": text} for role, text in _turns(each, ROLES)]
        messages[1]["weight"] = 0
        rows.append({"messages": messages})
    write_json_lines(folder / "mistral.jsonl", rows)


def sharegpt(folder: Path) -> None:
    """ShareGPT as Vicuna was trained on it: id and conversations of human and gpt.

    https://huggingface.co/datasets/anon8231489123/ShareGPT_Vicuna_unfiltered
    """
    rows = [
        {
            "id": f"QWJhYvA_{number}",
            "conversations": [{"from": name, "value": text} for name, text in _turns(each, ("human", "gpt"))],
        }
        for number, each in enumerate(dialogues())
    ]
    (folder / "ShareGPT_V3.json").write_text(json.dumps(rows, indent=2, ensure_ascii=False), encoding="utf-8")


def chatgpt_export(folder: Path) -> None:
    """ChatGPT, Settings > Data controls > Export data (2026): conversations.json, each a tree with its newest branch.

    https://help.openai.com/en/articles/7260999; the fields as in community parsers of the file. One conversation holds
    an image, one has no answer; an answer of each other was made again.
    """
    rows = []
    for number, each in enumerate(dialogues()):
        turns: list[tuple[str, object]] = [("system", ""), *_turns(each, ROLES)]
        if number == 3:
            turns[1] = ("user", {"content_type": "image_asset_pointer", "asset_pointer": "file-service://file-1"})
        if number == 5:
            turns = turns[:2]
        rows.append(_chatgpt_row(number, turns))
    (folder / "conversations.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")


def _chatgpt_row(number: int, turns: list[tuple[str, object]]) -> dict[str, Any]:
    root = f"{number:04}-root"
    mapping: dict[str, Any] = {root: {"id": root, "message": None, "parent": None, "children": [f"{number:04}-0"]}}
    for place, (role, part) in enumerate(turns):
        node, parent = f"{number:04}-{place}", f"{number:04}-{place - 1}" if place else root
        mapping[node] = _chatgpt_node(node, parent, role, part)
        mapping[node]["children"] = [f"{number:04}-{place + 1}"] if place + 1 < len(turns) else []
    if len(turns) > 2:
        again = f"{number:04}-again"
        mapping[again] = _chatgpt_node(again, f"{number:04}-1", "assistant", "An answer that was made again.")
        mapping[f"{number:04}-1"]["children"].insert(0, again)
    return {
        "title": f"Teapots {number}",
        "create_time": 1772445600.0 + number,
        "update_time": 1772445700.0 + number,
        "mapping": mapping,
        "moderation_results": [],
        "current_node": f"{number:04}-{len(turns) - 1}",
        "conversation_id": f"68f0c1d2-{number:04}",
        "is_archived": False,
        "id": f"68f0c1d2-{number:04}",
    }


def _chatgpt_node(node: str, parent: str, role: str, part: object) -> dict[str, Any]:
    kind = "text" if isinstance(part, str) else "multimodal_text"
    message = {
        "id": node,
        "author": {"role": role, "name": None, "metadata": {}},
        "create_time": 1772445601.5,
        "content": {"content_type": kind, "parts": [part]},
        "status": "finished_successfully",
        "end_turn": True,
        "weight": 1.0,
        "metadata": {},
        "recipient": "all",
    }
    return {"id": node, "message": message, "parent": parent, "children": []}


def claude_export(folder: Path) -> None:
    """Claude, Settings > Privacy > Export data (2026): conversations.json with the turns of human and assistant.

    https://support.claude.com/en/articles/9450526. One conversation has a file attached, one has no answer.
    """
    rows = []
    for number, each in enumerate(dialogues()):
        turns = _turns(each, ("human", "assistant"))[: 1 if number == 5 else None]
        files = [{"file_name": "invoice.pdf"}] if number == 3 else []
        rows.append(
            {
                "uuid": f"7f0c1d2e-{number:04}",
                "name": f"Teapots {number}",
                "summary": "",
                "created_at": "2026-03-02T10:00:00.000000Z",
                "updated_at": "2026-03-02T10:05:00.000000Z",
                "account": {"uuid": "1b2c3d4e-0000"},
                "chat_messages": [
                    {
                        "uuid": f"{number:04}-{place}",
                        "text": text,
                        "content": [{"type": "text", "text": text, "citations": []}],
                        "sender": sender,
                        "created_at": "2026-03-02T10:00:01.000000Z",
                        "updated_at": "2026-03-02T10:00:01.000000Z",
                        "attachments": [],
                        "files": files if place == 0 else [],
                    }
                    for place, (sender, text) in enumerate(turns)
                ],
            }
        )
    (folder / "conversations.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")


def turns_in_a_cell(folder: Path) -> None:
    """A table whose cells hold conversations as JSON, as ``json.dumps`` in a data frame's column gives it."""
    cells = [
        json.dumps([{"role": role, "content": text} for role, text in _turns(each, ROLES)]) for each in dialogues()
    ]
    rows = [("id", "messages"), *((str(number), cell) for number, cell in enumerate(cells))]
    (folder / "chats.csv").write_text(csv_text(rows, ","), encoding="utf-8", newline="")


def turns_as_python(folder: Path) -> None:
    """pandas 3.1, ``to_csv`` of a column of lists: the cells are what Python prints, with single quotes.

    https://pandas.pydata.org/docs/reference/api/pandas.DataFrame.to_csv.html
    """
    import pandas as pd

    turns = [[{"from": name, "value": text} for name, text in _turns(each, ("human", "gpt"))] for each in dialogues()]
    pd.DataFrame({"conversations": turns}).to_csv(folder / "chats.csv", index=False)


def powershell_jsonl(folder: Path) -> None:
    """Windows PowerShell 5.1, ``python make.py > chats.jsonl``: UTF-16LE with a mark, and CRLF.

    https://learn.microsoft.com/en-us/powershell/module/microsoft.powershell.core/about/about_redirection
    """
    lines = [
        json.dumps({"messages": [{"role": role, "content": text} for role, text in _turns(each, ROLES)]})
        for each in dialogues()
    ]
    (folder / "chats.jsonl").write_bytes(("\ufeff" + "".join(f"{line}\r\n" for line in lines)).encode("utf-16-le"))


def _chat(write: Callable[[Path], None], path: str, shape: str = "messages", **expected: Any) -> RealFile:
    (first, _), (_, reply) = dialogues()[1]  # the first question, so that a lost history shows
    found: dict[str, Any] = {"rows": len(dialogues()), "prompt": first, "answer": reply}
    return RealFile(write=write, path=path, shape=shape, **{**found, **expected})


SERVICE_FILES = (
    _chat(gemini_tuning, "tuning.jsonl", says=("Gemini",)),
    _chat(nova_tuning, "nova.jsonl"),
    _chat(cohere_chat, "cohere.jsonl"),
    _chat(mistral_tuning, "mistral.jsonl"),
    _chat(sharegpt, "ShareGPT_V3.json", "sharegpt"),
    _chat(
        chatgpt_export,
        "conversations.json",
        rows=len(dialogues()) - LEFT_OUT,
        says=("ChatGPT",),
        left_out={"with tools, images or files": 1, "without an answer": 1},
    ),
    _chat(
        claude_export,
        "conversations.json",
        rows=len(dialogues()) - LEFT_OUT,
        says=("Claude",),
        left_out={"with tools, images or files": 1, "without an answer": 1},
    ),
    _chat(turns_in_a_cell, "chats.csv"),
    _chat(turns_as_python, "chats.csv", "sharegpt"),
    _chat(powershell_jsonl, "chats.jsonl", says=("UTF-16",)),
)
