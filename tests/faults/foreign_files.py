"""Recipes, templates, models and data of somebody else that would run a program, fill the memory or never end.

The payloads are those of the tests. Each is tried in a fork of its own with a limit of CPU time. It survives if one
message comes out, nothing ran, and the memory stayed within a bound.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.data.chat.template_bombs import BOMBS, ESCAPES
from tests.data.chat.template_bombs import FAULTS as TEMPLATE_FAULTS
from tests.faults.table import Fault, Try

SECONDS, MEGABYTES = 30, 450
CANARY = "PWNED"


def outcome(act: Callable[[], object], folder: Path, *, may_end_well: bool = False) -> str | None:
    """What was lost when ``act`` ran in a fork: None if it ended in one message with a remedy, and nothing ran."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        _said_by_child(act, write)
    os.close(write)
    with open(read, "rb") as pipe:
        said = pipe.read().decode(errors="replace")
    _, status = os.waitpid(child, 0)
    if (folder / CANARY).exists():
        return "it ran"
    if status or not said:
        name = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else status
        return f"ended by {name}"
    kind, megabytes = said.split("|", 1)
    if int(megabytes) > MEGABYTES:
        return f"took {megabytes} MB"
    return None if kind == "message" or (kind == "well" and may_end_well) else kind


def _said_by_child(act: Callable[[], object], write: int) -> None:
    from tunesmith.data.chat.rendering import RenderError
    from tunesmith.errors import TunesmithError

    kind = "nothing was said"
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        signal.alarm(4 * SECONDS)  # for what waits and computes nothing
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            act()
            kind = "well"
        except RenderError:
            kind = "message"
        except TunesmithError as error:
            kind = "message" if error.remedy else f"no remedy: {error.what}"
        except BaseException as error:  # noqa: BLE001 (that is a loss)
            kind = f"traceback {type(error).__name__}"
        more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
        os.write(write, f"{kind}|{more}".encode(errors="replace"))
    finally:
        os._exit(0)


def _some(table: dict[str, Any], whole: bool) -> list[tuple[str, Any]]:
    return list(table.items()) if whole else list(table.items())[:4]


def _templates(folder: Path, whole: bool) -> Iterator[Try]:
    from tests.data.chat.test_limits import rendered

    for name, source in [*_some(BOMBS, whole), *_some(TEMPLATE_FAULTS, whole)]:
        yield Try(name, outcome(lambda source=source: rendered(source), folder))
    for name, source in _some(ESCAPES, whole):
        yield Try(name, outcome(lambda source=source: _inside(rendered(source)), folder, may_end_well=True))


def _inside(text: str) -> None:
    words = ("<class", "<module", "<function", "__globals__':", "root:", "<built-in")
    assert not any(word in text for word in words), "Python's inside was written"


def _recipes(folder: Path, whole: bool) -> Iterator[Try]:
    from tests.recipe.test_yaml_limits import BOMBS as RECIPES

    from tunesmith.recipe.file import read_recipe

    for name, (text, _) in _some(RECIPES, whole):
        (folder / "recipe.yaml").write_text(text, encoding="utf-8")
        yield Try(name, outcome(lambda: read_recipe(folder / "recipe.yaml"), folder))


def _models(folder: Path, whole: bool) -> Iterator[Try]:
    from tests.data.chat.test_tokenizing import PATTERNS, made, slow_tokenizer
    from tests.model.weights import test_foreign_files as cases
    from tests.model.weights import test_slow_regex as slow
    from tests.model.weights.test_gguf import LIES as GGUF_LIES

    from tunesmith.methods.continued_adapter import read_config_file
    from tunesmith.model.weights.gguf import parameters_in

    tiny = folder / "tiny"
    child = os.fork()  # computing in this process would keep later forks from computing
    if child == 0:
        _make_model(tiny)
        os._exit(0)
    os.waitpid(child, 0)
    model = folder / "model"

    def fresh() -> Path:
        shutil.rmtree(model, ignore_errors=True)
        return Path(shutil.copytree(tiny, model))

    for name in ("weights.bin", "w.pt", "model.ckpt", "w.pkl", "weights"):
        fresh()
        canary = os.fork()
        if canary == 0:
            cases.as_pickle(model, name, folder / CANARY)
            os._exit(0)
        os.waitpid(canary, 0)
        yield Try(f"an index that names {name}", outcome(lambda: cases.load(model), folder))
    for name, values in [*_some(cases.KERNELS, whole), *_some(cases.SIZES, whole)]:
        cases.change(fresh() / "config.json", **values)
        yield Try(f"a config with {name}", outcome(lambda: cases.load(model), folder))
    for name, values in _some(cases.TOKENIZERS, whole):
        cases.change(fresh() / "tokenizer.json", **values)
        yield Try(f"a tokenizer with {name}", outcome(lambda: cases.load(model), folder))
    for pattern in PATTERNS if whole else PATTERNS[:1]:
        shutil.rmtree(model, ignore_errors=True)
        slow_tokenizer(tiny, model, pattern)
        act = lambda: made(model).text_ids("1" * 200)  # noqa: E731
        yield Try(f"a tokenizer with the pattern {pattern}", outcome(act, folder))
    for name, content in _some(cases.LIES, whole):
        (fresh() / "model.safetensors").write_bytes(content)
        yield Try(f"weights with {name}", outcome(lambda: cases.load(model), folder))
    for name, content in _some(GGUF_LIES, whole):
        path = folder / "lying.gguf"
        path.write_bytes(content)
        yield Try(f"a GGUF file with {name}", outcome(lambda path=path: parameters_in(path), folder))
    for name, values in _some(cases.ADAPTERS, whole):
        adapter = {"peft_type": "LORA", "target_modules": ["q_proj"], **values}
        (folder / "adapter_config.json").write_text(json.dumps(adapter))
        yield Try(f"an adapter with {name}", outcome(lambda: read_config_file(folder), folder))
    for pattern in slow.BAD if whole else slow.BAD[:2]:
        act = lambda pattern=pattern: slow.refused_as_targets(pattern)  # noqa: E731
        yield Try(f"the pattern {pattern[:20]}", outcome(act, folder))


def _make_model(folder: Path) -> None:
    from tests.conftest import build_tokenizer
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    build_tokenizer(folder)
    config = LlamaConfig(
        vocab_size=400, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, bos_token_id=1, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=2)
    model.save_pretrained(folder)


def _packed(folder: Path, whole: bool) -> Iterator[Try]:
    from tests.data.files import test_expansion as cases

    for name in cases.PARQUET if whole else cases.PARQUET[:1]:
        path = cases.made_by_another_process(name, folder / "rows.parquet")
        yield Try(f"parquet: {name}", outcome(lambda path=path: cases.passed(path), folder))
    for suffix in (".gz", ".zst", ".xz") if whole else ():
        path = folder / f"rows.jsonl{suffix}"
        cases.packed(suffix, path)
        yield Try(f"2 GB of rows in {suffix}", outcome(lambda path=path: cases.passed(path), folder))


FAULTS = [
    Fault("foreign templates", _templates),
    Fault("foreign recipes", _recipes),
    Fault("foreign models", _models),
    Fault("packed bombs", _packed),
]
