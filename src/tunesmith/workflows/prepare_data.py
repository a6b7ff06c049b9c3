"""Cleans and splits rows and writes them as a dataset folder: the library behind `prepare`.

The same reader and the same rules as `check` and `train`: what this writes to ``train`` is what a run of the same data
section would train on. Rows are streamed, so a large file needs no more memory than a small one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tunesmith.data.accounts import refuse_lost
from tunesmith.data.corpus import encode_corpus
from tunesmith.data.examples.example import Example
from tunesmith.data.examples.message import Message
from tunesmith.data.examples.row_shapes import PREFERENCES
from tunesmith.data.files.rows import BadRow
from tunesmith.data.ledger import OUTCOMES, Ledger
from tunesmith.data.placement import OUTCOME
from tunesmith.data.survey import Survey, survey_rows
from tunesmith.errors import DataError, RecipeError
from tunesmith.model.weights.text_side import text_side
from tunesmith.recipe.file import dump_section
from tunesmith.recipe.paths import shown
from tunesmith.recipe.row_shape import RowShape
from tunesmith.recipe.settings import ModelSettings, Recipe
from tunesmith.runs.consent import Consent
from tunesmith.runs.notebook import html_table, paragraph
from tunesmith.runs.outputs import refuse_inputs, refuse_shut, refuse_strangers
from tunesmith.runs.progress import Listener, Silent
from tunesmith.runs.whole_files import REPLACING, is_half_replaced, place_for, recover_folder, whole_folder, why_not
from tunesmith.safe_text import fenced, markdown_text
from tunesmith.workflows.check import settings_of

if TYPE_CHECKING:
    from datasets import Features


SPLITS = {"trained": "train", "held_out": "validation", "test": "test"}
REJECTED = "rejected.jsonl"
WRITTEN = (
    REJECTED, "dataset_dict.json", "README.md",
    *(f"{split}/{name}" for split in SPLITS.values() for name in ("*.arrow", "state.json", "dataset_info.json")),
)  # fmt: skip
"""What is in the folder."""


@dataclass(frozen=True, slots=True)
class PreparedData:
    """What was written: rows by split, and the ledger."""

    folder: Path
    splits: dict[str, int]
    ledger: Ledger
    rejected: int

    def __str__(self) -> str:
        return f"Wrote {self.folder}: " + ", ".join(f"{name} {rows:,}" for name, rows in self._counts())

    def _repr_html_(self) -> str:
        return paragraph(f"Wrote {self.folder}.") + html_table(("split", "rows"), self._counts())

    def _counts(self) -> list[tuple[str, int]]:
        return [*self.splits.items(), *([(REJECTED, self.rejected)] if self.rejected else [])]

    def to_json(self) -> dict[str, Any]:
        """``{folder, splits, ledger, rejected}``."""
        return {
            "folder": str(self.folder),
            "splits": self.splits,
            "ledger": self.ledger.to_json(),
            "rejected": self.rejected,
        }


def prepare_data(
    data: str | Mapping[str, Any] | Recipe,
    out: str | Path,
    *,
    settings: Sequence[str] = (),
    model: str | None = None,
    format: RowShape = "auto",
    columns: Mapping[str, str] | None = None,
    instruction: str | None = None,
    ray: bool = False,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    listener: Listener | None = None,
) -> PreparedData:
    """Writes a ``datasets`` folder with a card, and every row that is not in it to ``rejected.jsonl``.

    Args:
        data: file, folder, dataset or URL of rows, or a recipe: a YAML file, a mapping or a Recipe.
        out: the folder, which must not be there yet.
        settings: ``key=value`` over the data section, such as ``clean=[dedupe]``.
        model: whose tokenizer counts tokens; needed for ``clean.max_length`` where the data is no recipe.
        format: shape of the rows; with columns and instruction, on top of the recipe's.
        columns: field to column of the file.
        instruction: one instruction for all rows.
        ray: look at the rows on a Ray cluster; the result is the same.
        overwrite: replace a dataset that is in the folder.
        trust_remote_code: run code that comes with the model, also where a stored recipe asks for it.
        listener: hears what goes on; nobody by default.

    Raises:
        DataError: the data cannot be read, a split would be empty, or the folder cannot be written.
        RecipeError: the settings contradict each other.
    """
    listener, named = listener or Silent(), data if isinstance(data, str) else "the recipe"
    folder = place_for(out)
    refuse_inputs(folder, [data, model], kind=DataError)
    refuse_shut(folder, kind=DataError)
    recover_folder(folder.absolute(), earlier=None if overwrite else [REJECTED, "dataset_dict.json"])
    _check_free(folder, overwrite=overwrite)
    section, source, seed, method = settings_of(
        data,
        model,
        settings,
        format=format,
        columns=columns,
        instruction=instruction,
        consent=Consent(trust_remote_code),
    )
    counted = {"max_length", "too_long"} & section.model_fields_set
    if source is None and (section.clean.max_length or counted):
        raise RecipeError(
            f"{'clean.max_length' if section.clean.max_length else min(counted)} counts tokens, and no model is named",
            where="data.clean" if section.clean.max_length else "data",
            remedy="Name one with --model, or give a recipe.",
        )
    survey = survey_rows(section, seed=seed, method=method, ray=ray, listener=listener)
    if survey.raw_text != bool(survey.scan.raw_text[survey.scan.good].any()):
        raise DataError(
            "documents and conversations cannot be written as one dataset",
            where=named,
            why="A dataset has one shape: messages, or text.",
            remedy="prepare them separately, and name both folders in data.train",
        )
    for note in survey.notes:
        listener.say(note)
    outcome, ledger, refused = survey.outcome, survey.ledger(), {}
    refuse_lost(ledger, section)
    if source is not None:
        outcome, ledger, refused = _with_tokens(survey, source, listener)
    with _dataset_folder(folder, overwrite=overwrite) as making:
        splits = _write(survey, outcome, making, listener)
        rejected = _write_rejected(survey, outcome, refused, making)
        (making / "README.md").write_text(_card(shown(named), survey, ledger, splits), encoding="utf-8")
    return PreparedData(folder, splits, ledger, rejected)


def _with_tokens(
    survey: Survey, model: ModelSettings, listener: Listener
) -> tuple[np.ndarray, Ledger, dict[int, BadRow]]:
    """Outcomes and ledger once the rows have tokens, rows that are too long included, and rows that have none."""
    text = text_side(model, survey.settings, say=listener.say)
    made = encode_corpus(replace(survey, settings=text.data), text.template, listener=listener)
    outcome = survey.outcome.copy()
    outcome[made.left_out] = OUTCOME["too_long"]
    refused = {row.example: row.bad_row() for row in made.refused}
    outcome[[*refused]] = OUTCOME["invalid"]
    return outcome, made.ledger, refused


def _check_free(folder: Path, *, overwrite: bool) -> None:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if folder.is_dir() and is_half_replaced(folder):
        refuse_strangers(folder, [*WRITTEN, *REPLACING], kind=DataError)
        return
    ours = (folder / REJECTED).is_file() and (folder / "dataset_dict.json").is_file()
    if not (overwrite and ours):
        raise DataError(
            "the folder is not empty",
            where=str(folder),
            why=f"It {'holds a' if ours else 'does not hold a'} dataset that `tunesmith prepare` wrote.",
            remedy="name another folder" + (", or add --overwrite" if ours else ""),
        )
    refuse_strangers(folder, WRITTEN, kind=DataError)


@contextmanager
def _dataset_folder(folder: Path, *, overwrite: bool) -> Iterator[Path]:
    """Inside, an empty folder that becomes ``folder`` if nobody else has put something there meanwhile."""
    to = folder.absolute()
    try:
        with whole_folder(to, last="dataset_dict.json") as making:
            yield making
            _check_free(folder, overwrite=overwrite)
    except OSError as error:
        raise DataError(
            "the dataset cannot be written",
            where=str(folder),
            why=why_not(to, error),
            remedy="name a folder with room that you may write to",
        ) from error


def _write(survey: Survey, outcome: np.ndarray, folder: Path, listener: Listener) -> dict[str, int]:
    """Each split streamed into one Arrow file; returns its rows."""
    from datasets import Dataset, DatasetDict
    from datasets.arrow_writer import ArrowWriter

    names = {OUTCOME[name]: split for name, split in SPLITS.items() if (outcome == OUTCOME[name]).any()}
    streams = folder / ".streams"
    streams.mkdir()
    total, done = int(np.isin(outcome, list(names)).sum()), 0
    features = _features(survey)
    with ExitStack() as stack, listener.task("writing", total) as advance:
        writers = {
            split: stack.enter_context(ArrowWriter(features=features, path=str(streams / f"{split}.arrow")))
            for split in names.values()
        }
        for block in survey.scan.examples():
            for split, rows in _by_split(block, outcome, names).items():
                writers[split].write_batch({name: [row.get(name) for row in rows] for name in features})
                done += len(rows)
            advance(done, {})
        for writer in writers.values():
            writer.finalize()
    splits: Any = {split: Dataset.from_file(str(streams / f"{split}.arrow")) for split in names.values()}
    with _no_bars():
        DatasetDict(splits).save_to_disk(str(folder))
    shutil.rmtree(streams)
    return {split: len(rows) for split, rows in splits.items()}


@contextmanager
def _no_bars() -> Iterator[None]:
    """datasets draws bars of its own, under ours."""
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _by_split(
    block: list[tuple[int, Example]], outcome: np.ndarray, names: Mapping[int, str]
) -> dict[str, list[dict[str, Any]]]:
    rows: dict[str, list[dict[str, Any]]] = {}
    for number, example in block:
        split = names.get(int(outcome[number]))
        if split is not None:
            rows.setdefault(split, []).append(_row(example))
    return rows


def _features(survey: Survey) -> Features:
    """Columns of {messages}, {text}, or TRL's two shapes of preferences: those that every reader of chat data knows.

    Raises:
        DataError: some of the rows are preferences and some are not.
    """
    from datasets import Features, List, Value

    text = Value("string")
    if survey.raw_text:
        return Features({"text": text, "source": text})
    function = {"name": text, "arguments": text}
    turn = {
        "role": text,
        "content": text,
        "train": Value("bool"),
        "tool_calls": List({"id": text, "type": text, "function": function}),
        "tool_call_id": text,
        "name": text,
        "reasoning_content": text,
    }
    shapes = {each.reader.shape for each in survey.scan.sources}
    preferences = [shape for shape in PREFERENCES if shape in shapes]
    if preferences and len(shapes) > 1:
        raise DataError(
            "rows of preferences and other rows do not go into one dataset",
            why=f"the shapes are {', '.join(sorted(shapes))}",
            remedy="prepare them one by one",
        )
    own = {
        "preference": {"prompt": List(turn), "chosen": List(turn), "rejected": List(turn)},
        "unpaired_preference": {"prompt": List(turn), "completion": List(turn), "label": Value("bool")},
    }.get(preferences[0] if preferences else "", {"messages": List(turn)})
    return Features({**own, "tools": text, "source": text})


def _row(example: Example) -> dict[str, Any]:
    if example.text is not None:
        return {"text": example.text, "source": example.source}
    turns = [_turn(message) for message in example.messages]
    rest = {"tools": _json(example.tools) if example.tools else None, "source": example.source}
    if example.rejected is not None:
        return {"prompt": turns[:-1], "chosen": turns[-1:], "rejected": [_turn(example.rejected)], **rest}
    if example.label is not None:
        return {"prompt": turns[:-1], "completion": turns[-1:], "label": example.label, **rest}
    return {"messages": turns, **rest}


def _turn(message: Message) -> dict[str, Any]:
    turn = {**message.to_template(), "train": message.train if message.role == "assistant" else None}
    turn["tool_calls"] = [
        {**call, "function": {**call["function"], "arguments": _json(call["function"]["arguments"])}}
        for call in message.tool_calls
    ] or None
    return turn


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _write_rejected(survey: Survey, outcome: np.ndarray, refused: Mapping[int, BadRow], folder: Path) -> int:
    """A line for every row that is in no split: why, and the row itself where it is no example."""
    away = np.flatnonzero(~np.isin(outcome, [OUTCOME[name] for name in SPLITS]))
    bad = {**dict(zip(np.flatnonzero(~survey.scan.good).tolist(), survey.rejected, strict=True)), **refused}
    with (folder / REJECTED).open("w", encoding="utf-8") as file:
        for number, source in zip(away.tolist(), survey.scan.places(away), strict=True):
            line: dict[str, Any] = {"source": source, "reason": OUTCOMES[outcome[number]]}
            if number in bad:
                line |= {name: value for name, value in asdict(bad[number]).items() if name != "source"}
            file.write(_json(line) + "\n")
    return len(away)


def _card(data: str, survey: Survey, ledger: Ledger, splits: Mapping[str, int]) -> str:
    """The dataset's README: where it comes from, what was done, where every row went."""
    files = [file for source in survey.sources for file in source["files"]]
    lines = [
        "---",
        "configs:",
        "- config_name: default",
        "---",
        f"# Rows of {markdown_text(data)}",
        "",
        "Written by `tunesmith prepare`. Read it with `datasets.load_from_disk`, or name the folder in a recipe.",
        "",
        "| split | rows |",
        "|---|---|",
        *(f"| {split} | {rows:,} |" for split, rows in splits.items()),
        "",
        "## Where every row went",
        "",
        *(f"- {markdown_text(line)}" for line in ledger.in_words()),
        f"- what is in no split is named in `{REJECTED}`",
        "",
        "## Sources",
        "",
        "| file | sha256 |",
        "|---|---|",
        *(f"| {markdown_text(file['path'])} | {file['sha256']} |" for file in files),
        "",
        "## Settings",
        "",
        *fenced([dump_section("data", survey.settings).rstrip()], "yaml"),
        "",
    ]
    return "\n".join(lines)
