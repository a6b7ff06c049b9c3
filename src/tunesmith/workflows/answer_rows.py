"""Answers every row of some data, and writes the answers beside the rows: the library behind `generate --data`.

Rows are answered in chunks of a fixed size, so that a call that goes on where another stopped makes the same batches,
and with them the same answers. The file appears when all rows are answered.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tunesmith.data.examples.example import Example
from tunesmith.data.examples.message import Message
from tunesmith.data.files.prompt_rows import PromptRows, open_prompts
from tunesmith.data.files.reader import BAD_ROWS_SHOWN
from tunesmith.data.files.rows import BadRow, Row, by_reason
from tunesmith.data.files.written_rows import check_ending, write_rows
from tunesmith.deploy.run_prompt import RunPrompt, run_prompt
from tunesmith.deploy.tuned import ModelTarget, Tuned, find_target, load
from tunesmith.errors import DataError, ExportError, ModelError, RecipeError
from tunesmith.evaluation.held_out_recipe import names_of_reading, read_like_training
from tunesmith.model.generate import check_prompts, generate
from tunesmith.model.weights.weight_files import trained_files, weight_files
from tunesmith.recipe.data import SourceSettings
from tunesmith.recipe.file import read_recipe
from tunesmith.recipe.generation import GenerationSettings, settings_by_name
from tunesmith.recipe.paths import local
from tunesmith.recipe.paths import shown as path_shown
from tunesmith.runs.disk import disk_errors
from tunesmith.runs.manifest import sha256_of
from tunesmith.runs.outputs import check_file, output_file, refuse_inputs
from tunesmith.runs.progress import Listener, Silent
from tunesmith.runs.whole_files import refuse_long_name, why_not
from tunesmith.workflows.answers_so_far import AnswersSoFar, answers_so_far, check_place, place_of, was_written

BATCH = 16
CHUNK = 4 * BATCH  # rows that are answered, kept and lost together
COLUMN = "answer"


@dataclass(frozen=True, slots=True)
class AnsweredRows:
    """What was written.

    Args:
        out: the file.
        columns: its columns with the answers.
        rows: rows in it.
        resumed: rows that an earlier call had answered.
        cut: answers that reached their limit of tokens.
        bad: rows that have no prompt; they are not in the file.
        instruction: what went before each prompt.
        changes: of the base since the training, which were allowed.
    """

    out: str
    columns: list[str]
    rows: int
    resumed: int
    cut: int
    bad: list[BadRow]
    instruction: str | None
    changes: list[dict[str, str]]

    def to_json(self) -> dict[str, Any]:
        """Every field as plain values."""
        return asdict(self)


@dataclass(slots=True)
class _Asker:
    """Makes prompts of rows, as training had them."""

    model: Tuned
    settings: GenerationSettings
    system: str | None
    around: RunPrompt

    def ids(self, example: Example) -> list[int] | str:
        """The prompt, or why there is none."""
        turns = example.messages
        if self.system and not any(turn.role in ("system", "developer") for turn in turns):
            turns = (Message("system", self.system), *turns)
        try:
            found = self.model.prompt_ids(turns, tools=example.tools, around=self.around)
            check_prompts(self.model.model, [found], settings=self.settings)
        except (DataError, ModelError, RecipeError) as error:
            return f"{error.what}: {error.why}" if error.why else error.what
        return found


@dataclass(slots=True)
class _Survey:
    """The first pass: ``count`` rows can be answered; ``bad`` ones cannot, and are left out by number.

    ``prompts`` is a hash of all that is asked. ``tools``: a row has some.
    """

    count: int
    bad: dict[int, BadRow]
    columns: list[str]
    prompts: str = ""
    tools: bool = False


def answer_rows(
    target: str | Path,
    data: str,
    out: str | Path,
    *,
    keys: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
    system: str | None = None,
    instruction: str | None = None,
    raw: bool = False,
    overwrite: bool = False,
    listener: Listener | None = None,
    model: str | None = None,
    trust_remote_code: bool = False,
    allow_changes: str | Sequence[str] = (),
) -> AnsweredRows:
    """Answers every row, and writes the rows with their answers to a new file.

    If an earlier call with the same arguments was stopped, its answers are taken and the rest is made.

    Args:
        target: a run, a checkpoint, an adapter folder or a model.
        data: rows to answer, in any format that ``train`` reads. They are read with the run's columns and format. They
            need no answers; those that are there are not looked at.
        out: the file to write: .csv, .tsv, .jsonl, .json, .parquet or .xlsx.
        keys: ``data.KEY=VALUE``: how the rows are read, in place of the run's settings.
        settings: those of GenerationSettings.
        system: a system turn for rows without one.
        instruction: one to use in place of the run's.
        raw: leave the run's instruction and system turn out, and mask no personal data.
        overwrite: replace the file, and forget answers of an earlier call.
        listener: hears the progress; nobody by default.
        model: the base, where it is not at the place that the run or adapter names.
        trust_remote_code: run code that comes with the model. What a run's own recipe says does not count.
        allow_changes: kinds of changes of the base since the training with which rows are answered.

    Raises:
        DataError: the data cannot be read, or rows have no prompt (unless ``data.on_error`` is ``skip``).
        ExportError: the file cannot be written, exists already, or an earlier call asked otherwise.
    """
    listener, to = listener or Silent(), Path(local(out))
    settings_by_name(settings or {})  # raises, before any work
    _check_out(to, data, overwrite=overwrite, inputs=[target, model])
    found = find_target(str(target))
    asked = found.decoding(settings or {})
    prompt = run_prompt(found.trained, where=str(target), raw=raw, instruction=instruction)
    if prompt.raw_text and system:
        prompt.document([Message("system", system)])  # raises, before any work
    source, stops = _source(found, str(target), data, keys)
    rows = _open(found, source, prompt, raw=raw, own_columns=any(key.startswith("data.columns") for key in keys))
    _refuse_part(to, rows)
    listener.say(f"{path_shown(data)}: {rows.said}")
    if rows.own_instruction:
        prompt = _with_own_instructions(prompt, data, instruction, listener)
    tuned = load(
        target, listener=listener, model=model, trust_remote_code=trust_remote_code, allow_changes=allow_changes
    )
    note = prompt.note(system=system)
    if note is not None:
        listener.say(note)
    asker = _Asker(tuned, asked, system, prompt.around_instructed() if rows.shape == "alpaca" else prompt)
    survey = _survey(rows, asker, listener)
    without_tools = None if survey.tools else prompt.note_on_tools()
    if without_tools is not None:
        listener.say(without_tools.replace("this prompt has", "these rows have"))
    _refuse_bad(survey, data, stops=stops, listener=listener)
    asking = {
        **_identity(tuned, rows),
        "settings": asdict(asked),
        "system": system,
        "instruction": prompt.instruction,
        "raw": raw,
        "rows": survey.count,
        "prompts": survey.prompts,
    }
    sequences = asked.num_return_sequences
    with disk_errors(to, ExportError), answers_so_far(to, asking, anew=overwrite, sequences=sequences) as made:
        resumed = made.rows
        if resumed:
            listener.say(f"{resumed:,} of {survey.count:,} rows are answered already; going on with the rest")
        _answer(rows, survey, asker, made, listener)
        columns = _columns(survey.columns, sequences)
        made.finish(to)
        with output_file(to) as file:
            names = [*survey.columns, *columns]
            write_rows(file, lambda: _beside(rows, survey, made, columns), names, to.suffix.lower(), str(to))
        made.remove()
    if made.cut:
        name, limit = (
            ("max_new_tokens", asked.new_tokens(0)) if asked.max_length is None else ("max_length", asked.max_length)
        )
        answers = "1 answer was" if made.cut == 1 else f"{made.cut:,} answers were"
        listener.warn(f"{answers} cut off at {name}={limit}; a larger number lets them end")
    bad, changes = [*survey.bad.values()], [change.to_json() for change in tuned.changes]
    return AnsweredRows(str(to), columns, survey.count, resumed, made.cut, bad, prompt.instruction, changes)


def _check_out(to: Path, data: str, *, overwrite: bool, inputs: Sequence[object]) -> None:
    """Refuses a file that cannot be written or is to stay, before any work."""
    check_ending(to.suffix.lower(), str(to))
    rows = Path(local(data)).resolve()
    if rows == to.resolve():
        raise _replaces_data(to)
    try:
        refuse_long_name(to)
        refuse_long_name(place_of(to))
        if to.is_dir():
            raise ExportError("this is a folder", where=str(to), remedy="Name a file in it, such as answers.csv.")
        if rows in to.resolve().parents and rows.is_dir():
            raise ExportError(
                "the answers cannot go into the folder of the data",
                where=str(to),
                why=f"The next call would read them as rows of {path_shown(data)}.",
                remedy="Name an --out in another folder.",
            )
        to.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExportError(
            "the answers cannot be written", where=str(to), why=why_not(to, error), remedy="Name another --out."
        ) from error
    refuse_inputs(to, inputs)
    check_file(to, overwrite=overwrite or was_written(to))  # such a file is written again, if nobody changed it since
    check_place(to)


def _replaces_data(to: Path) -> ExportError:
    return ExportError("the answers cannot replace the data", where=str(to), remedy="Name another --out.")


def _refuse_part(to: Path, rows: PromptRows) -> None:
    """Refuses a file that is one of several that hold the rows, also through a link."""
    if any(to.exists() and Path(part.name).exists() and to.samefile(part.name) for part in rows.parts):
        raise _replaces_data(to)


def _with_own_instructions(prompt: RunPrompt, data: str, instruction: str | None, listener: Listener) -> RunPrompt:
    """What goes around rows that have an instruction each. Raises DataError if the user gives one, as training does."""
    if instruction is not None:
        raise DataError(
            "an instruction is given for all rows, and the rows have a column 'instruction' of their own",
            where=path_shown(data),
            remedy="Leave --instruction out, or map another column to the input: data.columns={input: COLUMN}.",
        )
    if prompt.instruction is not None:
        listener.say(f"each row has its own instruction; the run's is left out: {prompt.instruction!r}")
    return prompt.around_instructed()


def _source(found: ModelTarget, target: str, data: str, keys: Sequence[str]) -> tuple[SourceSettings, bool]:
    """How the rows are read, and whether bad ones stop the work."""
    given = names_of_reading(keys)
    section = read_like_training(found.recipe, target, data, given={*given, "instruction"})
    section = {"train": section.pop("path"), **section}
    if found.recipe is not None and "on_error" not in given:
        section["on_error"] = found.recipe.data.on_error
    settings = read_recipe({"model": target, "data": section, "output_dir": "unused"}, keys).recipe.data
    return settings.sources("train")[0], settings.on_error == "stop"


def _open(found: ModelTarget, source: SourceSettings, prompt: RunPrompt, *, raw: bool, own_columns: bool) -> PromptRows:
    """The rows. Those of the shape alpaca get the instruction here, as in training; others get it with the template."""
    instruction = prompt.instruction
    if raw and found.trained is not None and any(text is not None for _, text in found.trained.instructions):
        instruction = ""
    wanted = None if found.trained is None else found.trained.shape
    return open_prompts(source, wanted=wanted, instruction=instruction, columns_of_run=not own_columns)


def _survey(rows: PromptRows, asker: _Asker, listener: Listener) -> _Survey:
    """Makes each prompt once, so that what is wrong with a row is known before the first answer."""
    found, prompts = _Survey(0, {}, []), hashlib.sha256()
    columns: dict[str, None] = {}
    with listener.task("reading", None) as advance:
        for number, each in enumerate(rows.rows()):
            advance(number + 1, {})
            if isinstance(each, BadRow):
                found.bad[number] = each
                continue
            row, example = each
            ids = "" if isinstance(example, BadRow) else asker.ids(example)
            fault = example if isinstance(example, BadRow) else _fault(row, ids)
            if fault is not None:
                found.bad[number] = fault
                continue
            found.count += 1
            found.tools = found.tools or (isinstance(example, Example) and bool(example.tools))
            prompts.update(json.dumps(ids).encode())
            columns.update(dict.fromkeys(row.fields))
    found.columns, found.prompts = [*columns], prompts.hexdigest()
    return found


def _fault(row: Row, ids: list[int] | str) -> BadRow | None:
    return BadRow(row.source, "prompt", ids, "a prompt that the model can read", "") if isinstance(ids, str) else None


def _refuse_bad(survey: _Survey, data: str, *, stops: bool, listener: Listener) -> None:
    """Names the rows without a prompt. Raises DataError if they stop the work, or if no other is there."""
    if not survey.bad:
        return
    reasons = by_reason([*survey.bad.values()])
    shown = [said if rows == 1 else f"{rows:,} rows: {said}" for rows, said in reasons[:BAD_ROWS_SHOWN]]
    more = [f"and rows with {len(reasons) - len(shown):,} other reasons"] if len(reasons) > len(shown) else []
    what = f"{len(survey.bad):,} of {len(survey.bad) + survey.count:,} rows cannot be answered"
    why = "\n".join([*shown, *more])
    if stops or not survey.count:
        skip = ", or add data.on_error=skip to leave them out" if survey.count else ""
        rows = "row" if len(survey.bad) == 1 else "rows"
        raise DataError(what, where=path_shown(data), why=why, remedy=f"Correct the {rows}{skip}.")
    listener.warn(f"{what} and are left out:\n{why}")


def _prompts(rows: PromptRows, survey: _Survey) -> Iterator[tuple[Row, Example]]:
    """The rows that are answered, in order."""
    for number, each in enumerate(rows.rows()):
        if number in survey.bad:
            continue
        assert not isinstance(each, BadRow), each
        row, example = each
        assert isinstance(example, Example), example
        yield row, example


def _answer(rows: PromptRows, survey: _Survey, asker: _Asker, made: AnswersSoFar, listener: Listener) -> None:
    """Answers the rows that are not answered yet, and keeps the answers of each chunk."""
    examples = itertools.islice((example for _, example in _prompts(rows, survey)), made.rows, None)
    model, asked = asker.model, asker.settings
    with listener.task("answering", survey.count) as advance:
        advance(made.rows, {})
        while chunk := list(itertools.islice(examples, CHUNK)):
            prompts = [ids for ids in map(asker.ids, chunk) if not isinstance(ids, str)]
            assert len(prompts) == len(chunk), "the data changed while it was answered"
            done = [0]

            def on_batch(answers: int, done: list[int] = done) -> None:
                done[0] += answers
                advance(made.rows + done[0] // asked.num_return_sequences, {})

            answers = generate(
                model.model,
                model.tokenizer,
                prompts,
                settings=asked,
                stop_ids=model.stop_ids,
                batch_size=BATCH,
                first=made.rows,
                on_batch=on_batch,
            )
            cut = sum(not answer.stopped for each in answers for answer in each)
            made.add([[answer.text for answer in each] for each in answers], cut)


def _columns(taken: Iterable[str], sequences: int) -> list[str]:
    """Names of the columns of answers that the rows do not have."""
    taken = {*taken}
    for stem in itertools.chain([COLUMN], (f"model_{COLUMN}{number or ''}" for number in itertools.count())):
        names = [stem] if sequences == 1 else [f"{stem}_{number}" for number in range(1, sequences + 1)]
        if taken.isdisjoint(names):
            return names
    raise AssertionError("there are names without end")


def _beside(
    rows: PromptRows, survey: _Survey, made: AnswersSoFar, columns: Sequence[str]
) -> Iterator[Mapping[str, Any]]:
    """Each row with its answers."""
    for (row, _), answers in zip(_prompts(rows, survey), made.answers(), strict=True):
        yield {**row.fields, **dict(zip(columns, answers, strict=True))}


def _identity(model: Tuned, rows: PromptRows) -> dict[str, Any]:
    """What decides the answers beside the settings: the data and how it is read, the weights, and what computes.

    Contents count, and neither names nor times: a copied run goes on.
    """
    trained = model.target.checkpoint
    weights = [*weight_files(model.folder), *(trained_files(trained) if trained is not None else [])]
    weights.sort()
    reading = rows.source.model_dump(exclude={"path", "weight", "rows", "instruction"})
    return {
        "data": [part.sha256 for part in rows.parts],
        "shape": rows.shape,
        **{f"data.{name}": value for name, value in reading.items()},
        "weights": [(file.name, sha256_of(file)) for file in weights],
        "device": model.device,
        "dtype": str(next(model.model.parameters()).dtype),
        "versions": {name: version(name) for name in ("tunesmith", "torch", "transformers")},
    }
