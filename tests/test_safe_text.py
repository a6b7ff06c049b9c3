"""Secrets are left out of texts, and nothing in a text acts on a terminal, a page or a card."""

from __future__ import annotations

import json
import time

import pytest

from tunesmith.errors import DataError
from tunesmith.safe_text import (
    escaped,
    escaped_json,
    fenced,
    hide_causes,
    html_text,
    markdown_code,
    markdown_text,
    one_line,
    remember_secrets,
    safe,
    without_known_secrets,
    without_secret_arguments,
    without_secrets,
)

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U"
SECRETS = {
    "password": ("https://me:pl4nted@store.example/a.csv", "https://...@store.example/a.csv"),
    "password with an at sign": ("https://me:pl4@nted@store.example/a.csv", "https://...@store.example/a.csv"),
    "password with a slash": ("https://me:pl4/nted@store.example/a.csv", "https://...@store.example/a.csv"),
    "token as the user": ("https://pl4nted@store.example/a.csv", "https://...@store.example/a.csv"),
    "password of another scheme": ("webdavs://me:pl4nted@store.example/a", "webdavs://...@store.example/a"),
    "chained URL": ("simplecache::https://me:pl4nted@s.example/a", "simplecache::https://...@s.example/a"),
    "signature": ("https://s.example/a.csv?X-Amz-Signature=pl4nted&b=1", "https://s.example/a.csv?..."),
    "path and query alone": ("GET /a.csv?sig=pl4nted failed", "GET /a.csv?... failed"),
    "hub token in a path": (f"https://s.example/hf_pl4nted{'abcd0' * 6}/a.csv", "https://s.example/***/a.csv"),
    "hub token": (f"token hf_pl4nted{'abcd0' * 6} refused", "token *** refused"),
    "AWS key id": ("AKIAPL4NTED0PL4NTED0 is unknown", "*** is unknown"),
    "GitHub token": (f"ghp_pl4nted{'abcd0' * 6} is unknown", "*** is unknown"),
    "GitLab token": ("glpat-pl4ntedpl4ntedpl4nted is unknown", "*** is unknown"),
    "OpenAI key": (f"sk-proj-pl4nted{'abcd0' * 6} is unknown", "*** is unknown"),
    "Slack hook": ("https://hooks.slack.com/services/T0PL4NTED/B0PL4NTED/pl4ntedpl4ntedpl4nted", "https://***"),
    "JWT": (f"it said {JWT}", "it said ***"),
    "bearer": ("Authorization: Bearer pl4ntedpl4ntedpl4nted1", "Authorization: Bearer ***"),
    "password in a setting": ("db: {password: 'pl4nted!x'}", "db: {password: '***'}"),
    "key in a setting": ("wandb_api_key=pl4nted0pl4nted0pl4nted0", "wandb_api_key=***"),
    "password of letters": ("password=pl4ntedword".replace("4", "a"), "password=***"),
    "password of digits, and the user beside it": ("user=me password=73519284 x=1", "user=me password=*** x=1"),
    "password in capitals": ("PASSWORD: correcthorsebattery", "PASSWORD: ***"),
    "password with spaces": ("login(password='pl4nted it, and \\'more', user=1)", "login(password='***', user=1)"),
    "password of another alphabet": ("password=Пароль, sent", "password=***, sent"),
    "password with a type": ('password: str = "pl4nted"', 'password: str = "***"'),
    "password in JSON in JSON": (r"{\"passwd\": \"pl4nted\"}", r"{\"passwd\": \"***\"}"),
    "password in a sentence": ("the password: pl4nted is wrong", "the password: *** is wrong"),
    "short key": ("api_key=abcdef1234567", "api_key=***"),
    "key of letters": ('{"access_key": "pl4nted"}', '{"access_key": "***"}'),
    "key in capitals and small letters": ("clientSecret=pl4nted&scope=a", "clientSecret=***&scope=a"),
    "key of a connection": (
        "DefaultEndpointsProtocol=https;AccountKey=Zm9vYmFyMTIzNDU2Nzg5MGFiY2RlZg==;EndpointSuffix=a",
        "DefaultEndpointsProtocol=https;AccountKey=***;EndpointSuffix=a",
    ),
    "basic": ("Authorization: Basic dXNlcjpzM2NyZXRwYXNz", "Authorization: Basic ***"),
    "basic without its name": ("it sent basic dXNlcjpzM2NyZXRwYXNz", "it sent basic ***"),
    "header in a mapping": ("{'Authorization': 'Bearer pl4nted'}", "{'Authorization': 'Bearer ***'}"),
    "flag": ("tunesmith eval a --judge-key pl4nted --json", "tunesmith eval a --judge-key *** --json"),
    "Telegram bot": ("https://api.telegram.org/bot123456:AApl4nted/getMe", "https://api.telegram.org/bot***/getMe"),
    "Telegram token": ("bot 123456789:AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsaws", "bot ***"),
    "Discord hook": (
        f"https://discord.com/api/webhooks/123456789012/{'pl4nted' * 9}",
        "https://discord.com/api/webhooks/***",
    ),
    "npm token": (f"it said npm_{'pl4nted' * 5}a", "it said ***"),
    "PyPI token": ("it said pypi-AgEIcHlwaS5vcmcCJDEyMzQ1Njc4", "it said ***"),
    "SendGrid key": (f"it said SG.{'pl4nted' * 3}a.{'pl4nted' * 6}a", "it said ***"),
    "Groq key": (f"it said gsk_{'pl4nted0' * 6}", "it said ***"),
    "Replicate token": (f"it said r8_{'pl4nted0' * 4}", "it said ***"),
    "xAI key": (f"it said xai-{'pl4nted0' * 9}", "it said ***"),
    "NVIDIA key": (f"it said nvapi-{'pl4nted-' * 7}a_b", "it said ***"),
    "private key": (f"-----BEGIN RSA PRIVATE KEY-----\n{'pl4nted0' * 8}\n", "***\n"),
}


@pytest.mark.parametrize("kind", SECRETS)
def test_a_secret_is_left_out_of_a_text_and_of_an_error(kind: str) -> None:
    text, seen = SECRETS[kind]
    assert without_secrets(text) == seen == without_secrets(seen)
    error = DataError(text, where=text, why=text, remedy=text)
    assert "l4nt" not in f"{error}{error.to_json()}".lower()
    assert safe(text) == seen


@pytest.mark.parametrize(
    "text",
    [
        "https://host:8080/a@b",
        "http://[::1]:80/a@b",
        "gs://project@bucket/t.csv",
        "hf://datasets/user/name@main/rows.csv",
        "s3://bucket/a:b@c.csv",
        "training.max_new_tokens=64, data.key=rows, eos_token: <|im_end|>",
        "sha256: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "what?.csv",
        "password: str | None = None, token: null, secret: 12 rows, api_key=${API_KEY}, api_key: OPENAI_API_KEY",
        "set password=<your password>, token=docs/deploy.md, or --hf-token TOKEN; --api-key is needed",
        "seconds_per_token=0.52, pad_token=abc, unexpected token: end, compat=new, format: a, sort key: a",
        "The recipe may be a secret: keep it to yourself. A newline follows that token: everyday traps.",
        "${{ secrets.HF }}, password: ${{ secrets.HF }}, password={password}",
        "Password: must contain 8 characters",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert without_secrets(text) == text


@pytest.mark.parametrize(
    "text",
    ["password=", "password=[", "password={", "password=a,", "token: ", "key:", "--api-key ", 'secret="\\', "=:"],
)
def test_a_text_full_of_names_takes_a_time_that_grows_with_its_length(text: str) -> None:
    def seconds(count: int) -> float:
        began = time.process_time()
        without_secrets(text * count)
        return time.process_time() - began

    seconds(10)
    longer, shorter = (min(seconds(count) for _ in range(3)) for count in (16_000, 1_000))
    assert longer < 80 * max(shorter, 0.005)  # 16 times as long; a square would be 256


def test_what_the_environment_and_an_address_hold_is_known_in_every_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "f00df00df00df00df00d")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:env pass@host")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "training")
    remember_secrets("https://me:pl4%40nted@host/a?X-Amz-Signature=Abcdef9&format=training")
    said = "f00df00df00df00df00d, env pass, pl4@nted, pl4%40nted and Abcdef9 are wrong in training of me"
    assert without_known_secrets(said) == "***, ***, ***, *** and *** are wrong in training of me"


def test_the_value_of_a_secret_argument_is_hidden() -> None:
    command = ["train.py", "--hf-token", "abc", "--password=q", "HF_TOKEN=1", "data.key=rows", "--api_key", "-x"]
    assert without_secret_arguments(command) == [
        "train.py", "--hf-token", "***", "--password=***", "HF_TOKEN=***", "data.key=rows", "--api_key", "-x",
    ]  # fmt: skip
    assert without_secret_arguments(["--judge-key", "abc", "a.judge.api_key=a"])[1:] == ["***", "a.judge.api_key=***"]


def test_a_cause_that_says_a_secret_is_cut_off() -> None:
    error = DataError("it cannot be read")
    error.__cause__ = ValueError("harmless")
    hide_causes(error)
    assert str(error.__cause__) == "harmless"
    error.__cause__.__context__ = OSError("403 for https://me:pl4nted@host/")
    hide_causes(error)
    assert error.__cause__.__context__.args and error.__cause__.__suppress_context__


ATTACKS = (
    "\x1b]0;OWNED\x07", "\x1b[2J", "\x9b31m", "\x1b]8;;http://x\x1b\\", "\u202eexe.txt", "\u2066a", "\r", "\x7f\b",
)  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_acts_on_a_terminal_a_page_or_a_card(attack: str) -> None:
    forbidden = set(attack) & {chr(code) for code in [*range(32), 0x7F, 0x9B, 0x202E, 0x2066]}
    for shown in (escaped(attack), one_line(attack), html_text(attack), markdown_text(attack), markdown_code(attack)):
        assert not forbidden & set(shown)
    line = json.dumps({"a": attack}, ensure_ascii=False)
    assert not forbidden & set(escaped_json(line)) and json.loads(escaped_json(line)) == {"a": attack}


def test_letters_and_marks_of_any_language_stay() -> None:
    text = "a\tb\nשלום\u200f, سلام \u200e发 🏴\u200d☠️ é"
    assert escaped(text) == text


def test_markdown_is_read_as_it_stands() -> None:
    assert markdown_text("[x](javascript:1) <b>|`a`\n# my_file.csv __x__") == (
        "\\[x\\](javascript:1) \\<b\\>\\|\\`a\\` # my_file.csv \\_\\_x\\_\\_"
    )
    assert markdown_code("a`b") == "`` a`b ``" and markdown_code("a|b\nc") == "`a|b c`"
    assert fenced(["```", "x"], "yaml") == ["````yaml", "```\nx", "````"]
