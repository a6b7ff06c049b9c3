"""A base model whose template ends answers with another token than its own settings stop on, from training to merge."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tunesmith.deploy import tuned
from tunesmith.deploy.merge import merge
from tunesmith.runs.folder import Run
from tunesmith.runs.progress import Silent
from tunesmith.workflows.check import inspect
from tunesmith.workflows.finetune import train

END_OF_TEXT, END_OF_TURN = 0, 2
WORDS = ["red", "green", "blue", "black", "white", "brown", "pink"]


class Heard(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    """A model with ChatML that stops on the end of a text alone."""
    folder = shutil.copytree(tiny_model_dir, tmp_path_factory.mktemp("base") / "base")
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        settings = json.loads((folder / name).read_text())
        settings |= {"eos_token": "<|endoftext|>"} if "tokenizer" in name else {"eos_token_id": END_OF_TEXT}
        (folder / name).write_text(json.dumps(settings))
    return folder


def values(folder: Path, base: Path, method: str) -> dict[str, Any]:
    path = folder / "rows.jsonl"
    rows = [{"prompt": f"Name the colour. {WORDS[n % 7]} thing {n}", "completion": WORDS[n % 7]} for n in range(28)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "model": str(base),
        "data": {"train": str(path), "eval": 0.25},
        "method": {"name": method},
        "training": {
            "learning_rate": 1e-2, "max_steps": 8, "batch_size": 8, "micro_batch_tokens": 160, "save_steps": 8,
            "report_to": "none", "threads": 1,
        },
        "evaluation": {"resamples": 100, "samples": 0},
        "output_dir": str(folder / "run"),
    }  # fmt: skip


@pytest.mark.parametrize("method", ["lora", "full"])
def test_what_is_saved_stops_where_the_template_ends_answers(tmp_path: Path, base: Path, method: str) -> None:
    heard = Heard()
    run = train(values(tmp_path, base, method), listener=heard).run
    [line] = [line for line in heard.lines if line.startswith("stop tokens:")]
    assert "<|im_end|>" in line and "<|endoftext|>" in line
    checkpoint = Run(run).checkpoints[-1]
    folders = [run, checkpoint]
    if method == "lora":
        folders.append(Path(merge(run, tmp_path / "plain").folder))
    for folder in folders[1:]:
        saved = json.loads((folder / "generation_config.json").read_text())
        assert saved["eos_token_id"] == [END_OF_TEXT, END_OF_TURN]
    made = [tuned.load(folder) for folder in folders]
    assert [each.stop_ids for each in made] == [(END_OF_TEXT, END_OF_TURN)] * len(folders)
    answers = [each.generate("Name the colour. red thing 3", max_new_tokens=24)[0] for each in made]
    assert len({answer.text for answer in answers}) == 1


def test_a_model_alone_stops_there_too_and_says_so(base: Path, tmp_path: Path) -> None:
    heard = Heard()
    assert tuned.load(base, listener=heard).stop_ids == (END_OF_TEXT, END_OF_TURN)
    assert [line for line in heard.lines if line.startswith("stop tokens:")]
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "Hi", "completion": "Hello"}\n')
    [row] = inspect(str(path), model=str(base), near=False, show=1).shown
    assert row.ids[row.supervised][-1] == END_OF_TURN
