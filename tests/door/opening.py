"""Opens a real file as a user does in a pipe: `init`, then `train --dry-run`, then what the rows have become."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any, cast

from tests.door.real_file import RealFile

RECIPE, PREPARED = "r.yaml", "prepared"
COMMAND = re.compile(r"tunesmith init [^\n`]+")
RAW = "--format text"  # a way for whoever wants raw text
MOST_COMMANDS = 2  # that are named one after another: how a file is read, and what its columns are
APART = frozenset({"text", "preference", "unpaired_preference"})  # the other shapes are conversations alike
FAST = ("training.num_train_epochs=1", "training.report_to=none", "evaluation.resamples=100")
CHAT_WITH_TOOLS = (
    "{% if tools %}{{ '<|im_start|>system\n' + tools | tojson + '<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + (m['content'] or '') }}"
    "{% if m['tool_calls'] %}{{ m['tool_calls'] | tojson }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command left behind; ``said`` is everything it printed."""

    code: int
    said: str

    @property
    def line(self) -> str:
        """What it said on one line, without progress and JSON."""
        lines = [line.split("\r")[-1].strip() for line in self.said.splitlines()]
        return " | ".join(line for line in lines if line and line[0] != "{" and "it/s]" not in line)

    @property
    def json(self) -> Any:
        """What ``--json`` printed; None if nothing was."""
        lines = [line for line in self.said.splitlines() if line.startswith("{")]
        return json.loads(lines[-1]) if lines else None


@dataclass(frozen=True, slots=True)
class Opened:
    """What became of a file. ``first`` is what a user typed, ``init`` the last `init`: with the command it names."""

    first: Outcome
    init: Outcome
    dry_run: Outcome | None = None
    rows: tuple[tuple[str, str], ...] = ()  # (prompt, answer), of documents (text, "")

    @property
    def trains(self) -> bool:
        """Whether `train` takes what `init` wrote."""
        return self.dry_run is not None and self.dry_run.code == 0

    @property
    def shape(self) -> str:
        """The shape that `init` found."""
        return (self.init.json or {}).get("format", "")

    def holds(self, file: RealFile) -> bool:
        """Whether the rows are what the file holds, by the one that is known and by what they are for."""
        return (self.shape in APART or file.shape in APART) <= (self.shape == file.shape) and any(
            file.prompt in prompt and (not file.answer or file.answer == answer) for prompt, answer in self.rows
        )


def build_tiny_model(folder: Path) -> None:
    """A random llama of two layers with a byte-level tokenizer, and a chat template that renders tools."""
    import torch
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: number for number, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    marks = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    tokenizer.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in marks])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.chat_template = CHAT_WITH_TOOLS
    fast.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        eos_token_id=cast("int", fast.eos_token_id),
        pad_token_id=cast("int", fast.pad_token_id),
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    model.generation_config.eos_token_id = fast.eos_token_id
    model.save_pretrained(folder)


def tunesmith(*argv: str) -> Outcome:
    """Runs a command line in this process as in a pipe, in the present folder."""
    main = import_module("tunesmith.cli.app").__dict__.get("main") or import_module("tunesmith.cli").main
    with _pipe() as printed:
        try:
            main(list(argv))
            code: Any = 0
        except SystemExit as stopped:
            code = stopped.code
        except Exception as fault:  # noqa: BLE001  (a traceback is what the table is to show)
            print(f"TRACEBACK {type(fault).__name__}: {fault}")
            code = 70
        sys.stdout.flush()
        return Outcome(0 if code is None else int(code), printed.getvalue().decode(errors="replace"))


def open_file(file: RealFile, path: Path, *, model: Path, home: Path) -> Opened:
    """The way of a user: `init`; where it refuses, the command that it names, once more; then train's dry run.

    Args:
        path: the file.
        model: a folder with a model.
        home: an empty folder to work in.
    """
    home.mkdir(parents=True, exist_ok=True)
    with _inside(home):
        flags = {"--out": RECIPE, "--model": str(model)}
        first = init = tunesmith("init", str(path), *chain(*flags.items()), "--json")
        for _ in range(MOST_COMMANDS):
            named = [command for command in COMMAND.findall(init.said) if (RAW in command) <= (file.shape == "text")]
            if not init.code or not named:
                break
            argv = shlex.split(named[0].rstrip(". "))[1:]
            missing = {flag: value for flag, value in flags.items() if flag not in argv}
            init = tunesmith(*argv, *chain(*missing.items()), "--json")
        if init.code:
            return Opened(first, init)
        dry_run = tunesmith("train", RECIPE, "--dry-run")
        prepared = tunesmith("prepare", RECIPE, "--out", PREPARED)
        rows = tuple(prepared_rows(home / PREPARED)) if prepared.code == 0 else ()
        return Opened(first, init, dry_run, rows)


def prepared_rows(folder: Path) -> Iterator[tuple[str, str]]:
    """Prompt and last answer of each row that `prepare` has written, of every split."""
    from datasets import DatasetDict, load_from_disk

    splits = load_from_disk(str(folder))
    assert isinstance(splits, DatasetDict)
    for split in splits.values():
        for row in split:
            yield _prompt_and_answer(cast("dict[str, Any]", row))


def train(home: Path) -> tuple[Outcome, str]:
    """Trains what `init` wrote for a few steps, and the verdict."""
    with _inside(home):
        done = tunesmith("train", RECIPE, *FAST, "--json")
    verdict = (done.json or {}).get("verdict") or {}
    return done, str(verdict.get("verdict", "") if isinstance(verdict, dict) else verdict)


def yaml_of(home: Path) -> dict[str, Any]:
    """The recipe that `init` wrote."""
    from ruamel.yaml import YAML

    return YAML(typ="safe").load(home / RECIPE)


def _prompt_and_answer(row: Mapping[str, Any]) -> tuple[str, str]:
    if row.get("text") is not None:
        return row["text"], ""
    chosen = row.get("chosen") or row.get("completion") or []
    messages: Sequence[Mapping[str, Any]] = [*(row.get("messages") or row.get("prompt") or []), *chosen]
    if not messages:
        return json.dumps(dict(row), ensure_ascii=False), ""
    before = "\n".join(message["content"] or "" for message in messages[:-1])
    return before, messages[-1]["content"] or ""


@contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextmanager
def _pipe() -> Iterator[io.BytesIO]:
    """Standard output and error go into one buffer, and standard input is at its end."""
    printed = io.BytesIO()
    before = sys.stdin, sys.stdout, sys.stderr
    sys.stdout = sys.stderr = io.TextIOWrapper(printed, encoding="utf-8", write_through=True)
    with open(os.devnull) as nothing:
        sys.stdin = nothing
        try:
            yield printed
        finally:
            sys.stdout.detach()  # type: ignore[attr-defined]
            sys.stdin, sys.stdout, sys.stderr = before
