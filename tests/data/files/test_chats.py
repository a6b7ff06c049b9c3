"""Chats of WhatsApp and Slack are refused with what to do, and lines that only look alike are not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tunesmith.data.files.reader import open_source
from tunesmith.errors import DataError
from tunesmith.recipe.data import SourceSettings

ANDROID = "5/6/26, 8:0{}\u202fPM - {}: Hello there.\n"
IPHONE = "[06.05.26, 20:0{}:11] {}: Hallo.\n"
ISO = "2026-05-06, 20:0{} - {}: Hej.\n"


@pytest.mark.parametrize("line", [ANDROID, IPHONE, ISO])
def test_a_whatsapp_chat_is_refused_and_both_ways_out_work(tmp_path: Path, line: str) -> None:
    chat = tmp_path / "chat.txt"
    chat.write_text("".join(line.format(n, "Ann" if n % 2 else "Bo") + "and more\n" for n in range(8)))
    with pytest.raises(DataError) as caught:
        open_source(SourceSettings(path=str(chat)))
    assert caught.value.what == "this is a WhatsApp chat, and the person whom the model should be is not known"
    assert caught.value.why == "they are Bo, Ann"
    assert "set data.format: text" in str(caught.value.remedy)
    assert open_source(SourceSettings(path=str(chat), format="text")).shape == "text"
    written = str(caught.value.remedy).partition("as a line ")[2].partition(" of chat.jsonl")[0]
    (tmp_path / "chat.jsonl").write_text(f"{written}\n")
    assert open_source(SourceSettings(path=str(tmp_path / "chat.jsonl"))).shape == "messages"


def test_a_slack_export_and_its_day_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "team" / "help").mkdir(parents=True)
    for name in ("users.json", "channels.json"):
        (tmp_path / "team" / name).write_text('[{"id": "C1", "name": "help"}]')
    day = [{"type": "message", "user": "U1", "text": "Hi", "ts": "1.2"}, {"type": "message", "text": "?", "ts": "1.3"}]
    (tmp_path / "team" / "help" / "2026-05-06.json").write_text(json.dumps(day))
    for path, why in ((tmp_path / "team", "they are in users.json"), (tmp_path / "team" / "help", "they are U1")):
        with pytest.raises(DataError, match="the person whom") as caught:
            open_source(SourceSettings(path=str(path)))
        assert caught.value.why == why


def test_a_log_and_a_diary_are_text(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text("2026-05-06 20:01:11 error: disk full\n5/6/26, we went home: late.\nSee [1.2.3] there: yes.\n" * 5)
    assert open_source(SourceSettings(path=str(log))).shape == "text"


def test_exports_of_telegram_and_discord_are_refused_with_the_people_and_conversations_are_not(tmp_path: Path) -> None:
    telegram = [{"id": n, "type": "message", "from": "Ann" if n % 2 else "Bo", "text": "Hi"} for n in range(4)]
    discord = [{"id": str(n), "content": "Hi", "author": {"name": "Ann" if n % 2 else "Bo"}} for n in range(4)]
    path = tmp_path / "result.json"
    for messages in (telegram, discord):
        path.write_text(json.dumps({"name": "Ann", "messages": messages}))
        with pytest.raises(DataError, match="these are chat messages, and the person whom") as caught:
            open_source(SourceSettings(path=str(path)))
        assert caught.value.why == "they are Bo, Ann"
    turns = [{"role": "user", "content": "Hi", "name": "Bo"}, {"role": "assistant", "content": "Hello"}]
    path.write_text(json.dumps({"messages": turns}))
    assert open_source(SourceSettings(path=str(path))).shape == "messages"
