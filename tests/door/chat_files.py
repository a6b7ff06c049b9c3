"""Conversations and preferences as services, hubs and messengers write them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.door.column_files import write_json_lines
from tests.door.content import dialogues, pairs, questions
from tests.door.real_file import RealFile

SYSTEM = "You answer for a shop that sells teapots."
NARROW_SPACE = "\u202f"  # before AM and PM, in English
TOOL = {
    "type": "function",
    "function": {
        "name": "opening_hours",
        "description": "When a shop opens.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def openai_chat(folder: Path) -> None:
    """OpenAI fine-tuning, chat format: ``weight`` 0 leaves a turn unlearned, ``tools``, calls without content.

    https://platform.openai.com/docs/guides/supervised-fine-tuning, quoted in
    https://community.openai.com/t/how-to-assign-weights-during-chat-based-fine-tuning/1060699;
    https://learn.microsoft.com/en-us/azure/ai-services/openai/how-to/fine-tuning-functions for the calls
    """
    rows: list[dict[str, object]] = []
    for number, ((question, answer), (second, reply)) in enumerate(dialogues()):
        messages: list[dict[str, Any]] = [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer, "weight": 0},
            {"role": "user", "content": second},
        ]
        if number % 3:
            rows.append({"messages": [*messages, {"role": "assistant", "content": reply, "weight": 1}]})
            continue
        call = {"id": f"call_{number:04}", "type": "function"}
        call |= {"function": {"name": "opening_hours", "arguments": json.dumps({"city": "Lyon"})}}
        messages += [
            {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": call["id"], "content": '{"opens": 9}'},
            {"role": "assistant", "content": reply},
        ]
        rows.append({"messages": messages, "tools": [TOOL], "parallel_tool_calls": False})
    write_json_lines(folder / "training.jsonl", rows)


def openai_preferences(folder: Path) -> None:
    """OpenAI fine-tuning, preference format: ``input.messages``, ``preferred_output`` and ``non_preferred_output``.

    https://platform.openai.com/docs/guides/direct-preference-optimization
    """
    rows: list[dict[str, object]] = [
        {
            "input": {"messages": [{"role": "user", "content": question}], "tools": [], "parallel_tool_calls": True},
            "preferred_output": [{"role": "assistant", "content": good}],
            "non_preferred_output": [{"role": "assistant", "content": worse}],
        }
        for question, good, worse in pairs()
    ]
    write_json_lines(folder / "preferences.jsonl", rows)


def openai_batch(folder: Path) -> None:
    """OpenAI Batch API: the requests, and the answers in another file and another order, joined by ``custom_id``.

    https://platform.openai.com/docs/guides/batch; the fields as in BatchRequestOutput of
    https://docs.rs/crate/openai-client-base. One request has failed.
    """
    requests: list[dict[str, object]] = []
    answers: list[dict[str, object]] = []
    for number, (question, answer) in enumerate(questions()):
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
        requests.append(
            {
                "custom_id": f"faq-{number}",
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": {"model": "gpt-4o-mini", "messages": messages, "max_tokens": 100},
            }
        )
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": answer, "refusal": None, "annotations": []},
            "logprobs": None,
            "finish_reason": "stop",
        }
        body: dict[str, Any] = {
            "id": f"chatcmpl-{number:08}",
            "object": "chat.completion",
            "created": 1772445600,
            "model": "gpt-4o-mini-2024-07-18",
            "choices": [choice],
            "usage": {"prompt_tokens": 30, "completion_tokens": 8, "total_tokens": 38},
            "system_fingerprint": "fp_0a1b2c3d",
        }
        failed = number == 7
        if failed:
            body = {"error": {"message": "Rate limit reached", "type": "rate_limit_error", "code": None}}
        answers.append(
            {
                "id": f"batch_req_{number:08}",
                "custom_id": f"faq-{number}",
                "response": {"status_code": 429 if failed else 200, "request_id": f"req_{number}", "body": body},
                "error": None,
            }
        )
    write_json_lines(folder / "batch" / "requests.jsonl", requests)
    write_json_lines(folder / "batch" / "batch_68f0c1_output.jsonl", answers[::-1])


def sharegpt_tools(folder: Path) -> None:
    """ShareGPT with the columns ``system`` and ``tools``, as LLaMA-Factory documents it: tools are JSON in a text.

    LLaMA-Factory, data/README.md (observation and function_call turns) and data/glaive_toolcall_en_demo.json
    """
    tools = json.dumps([TOOL["function"]])
    rows = []
    for number, ((question, answer), (second, reply)) in enumerate(dialogues()):
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        turns += [{"from": "human", "value": second}]
        if number % 3 == 0:
            call = {"name": "opening_hours", "arguments": {"city": "Lyon"}}
            turns.append({"from": "function_call", "value": json.dumps(call)})
            turns.append({"from": "observation", "value": '{"opens": 9}'})
        turns.append({"from": "gpt", "value": reply})
        rows.append({"conversations": turns, "system": SYSTEM, "tools": tools if number % 3 == 0 else ""})
    (folder / "sharegpt.json").write_text(json.dumps(rows, indent=2, ensure_ascii=False), encoding="utf-8")


def alpaca_history(folder: Path) -> None:
    """Alpaca with ``history``, as LLaMA-Factory documents it: earlier rounds as [question, answer].

    LLaMA-Factory, data/README.md, "Supervised Fine-Tuning Dataset": the answers in the history are learned too
    """
    rows = [
        {"instruction": second, "input": "", "output": reply, "system": SYSTEM, "history": [[question, answer]]}
        for (question, answer), (second, reply) in dialogues()
    ]
    (folder / "alpaca.json").write_text(json.dumps(rows, indent=2, ensure_ascii=False), encoding="utf-8")


def ultrafeedback(folder: Path) -> None:
    """UltraFeedback binarized, as the hub holds it: chosen, rejected and messages are lists, with scores.

    https://huggingface.co/datasets/HuggingFaceH4/ultrafeedback_binarized (features of the split train_prefs); here
    ``messages`` is the chosen conversation once more
    """
    from datasets import Dataset

    def conversation(question: str, answer: str) -> list[dict[str, str]]:
        return [{"content": question, "role": "user"}, {"content": answer, "role": "assistant"}]

    rows = [
        {
            "prompt": question,
            "prompt_id": f"{number:064x}",
            "chosen": conversation(question, good),
            "rejected": conversation(question, worse),
            "messages": conversation(question, good),
            "score_chosen": 8.5,
            "score_rejected": 2.0,
        }
        for number, (question, good, worse) in enumerate(pairs())
    ]
    Dataset.from_list(rows).to_parquet(folder / "train_prefs-00000-of-00001.parquet")


def hh_pairs(folder: Path) -> None:
    r"""Anthropic's hh-rlhf: two whole dialogues as texts, with ``\n\nHuman:`` and ``\n\nAssistant:``.

    https://github.com/anthropics/hh-rlhf (train.jsonl.gz)
    """
    lines = []
    for ((first, reply), (second, answer)), (_, _, worse) in zip(dialogues(), pairs(), strict=True):
        before = f"\n\nHuman: {first}\n\nAssistant: {reply}\n\nHuman: {second}\n\nAssistant: "
        lines.append(json.dumps({"chosen": before + answer, "rejected": before + worse}, ensure_ascii=False) + "\n")
    (folder / "train.jsonl.gz").write_bytes(gzip.compress("".join(lines).encode(), mtime=0))


def whatsapp_chat(folder: Path) -> None:
    """WhatsApp for Android (2026), Export chat, English (US): a message may go on over lines, media is left out.

    https://faq.whatsapp.com/1180414079177245; layouts gathered in
    https://github.com/emmaakachukwu/whatsapp-chat-parser-rb (README)
    """

    def at(minute: int) -> str:
        return f"3/2/26, {9 + minute // 60}:{minute % 60:02}{NARROW_SPACE}AM - "

    notice = "Messages and calls are end-to-end encrypted. Only people in this chat can read them."
    lines = [at(0) + notice]
    for number, (question, answer) in enumerate(questions()):
        lines.append(f"{at(2 * number + 1)}Jörg Müller: Hello 👋\n{question}")
        if number == 5:
            lines.append(f"{at(2 * number + 1)}Jörg Müller: <Media omitted>")
        lines.append(f"{at(2 * number + 2)}Teapot Shop: {answer}")
    (folder / "WhatsApp Chat with Teapot Shop.txt").write_text("\n".join(lines) + "\n", encoding="utf-8", newline="")


def slack_export(folder: Path) -> None:
    """Slack's workspace export, unpacked: a folder for each channel with a file for each day; answers are in threads.

    https://slack.com/help/articles/220556107-How-to-read-Slack-data-exports
    """
    root = folder / "teapot Slack export"
    (root / "questions").mkdir(parents=True)
    users = [{"id": f"U0{number}", "name": name, "deleted": False} for number, name in enumerate(("joerg", "shop"))]
    joined = {"type": "message", "subtype": "channel_join", "ts": "1772445000.000100"}
    messages: list[dict[str, Any]] = [{**joined, "user": "U00", "text": "<@U00> has joined the channel"}]
    for number, (question, answer) in enumerate(questions()):
        asked, answered = (f"{1772445600 + 60 * number + seconds}.000200" for seconds in (0, 25))
        for user, text, ts in (("U00", question, asked), ("U01", f"<@U00> {answer}", answered)):
            message = {"client_msg_id": f"{number:08}-0000-4000-8000-{user}", "type": "message", "text": text}
            messages.append({**message, "user": user, "ts": ts, "team": "T01", "thread_ts": asked})
    contents = {
        "users.json": users,
        "channels.json": [{"id": "C01", "name": "questions", "members": ["U00", "U01"]}],
        "questions/2026-03-02.json": messages,
    }
    for name, content in contents.items():
        (root / name).write_text(json.dumps(content, indent=4, ensure_ascii=False), encoding="utf-8")


def _chat(write: Callable[[Path], None], path: str, shape: str, **expected: Any) -> RealFile:
    (first, _), (_, reply) = dialogues()[1]  # the first question, so that a lost history shows
    found = {"rows": len(dialogues()), "prompt": first, "answer": reply}
    return RealFile(write=write, path=path, shape=shape, **{**found, **expected})


def _single(write: Callable[[Path], None], path: str, shape: str, **expected: Any) -> RealFile:
    question, answer = questions()[1]
    found = {"rows": len(questions()), "prompt": question, "answer": answer}
    return RealFile(write=write, path=path, shape=shape, **{**found, **expected})


CHAT_FILES = (
    _chat(openai_chat, "training.jsonl", "messages"),
    _single(openai_preferences, "preferences.jsonl", "preference"),
    _single(
        openai_batch,
        "batch",
        "messages",
        rows=len(questions()) - 1,
        says=("custom_id",),
        left_out={"failed": 1},
    ),
    _chat(sharegpt_tools, "sharegpt.json", "sharegpt"),
    _chat(alpaca_history, "alpaca.json", "alpaca", says=("history",)),
    _single(ultrafeedback, "train_prefs-00000-of-00001.parquet", "preference"),
    _chat(hh_pairs, "train.jsonl.gz", "preference", says=("Human",)),
    _single(
        whatsapp_chat,
        "WhatsApp Chat with Teapot Shop.txt",
        "messages",
        says=("Teapot Shop",),
        refusal="which of the two people the model should be only the user knows",
    ),
    _single(
        slack_export,
        "teapot Slack export",
        "messages",
        says=("shop",),
        refusal="which person the model should be only the user knows",
    ),
)
