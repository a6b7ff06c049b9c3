"""Checks every row of the data and shows what would be learned, before anything trains: the library behind `check`.

Without a model nothing heavy is imported. With one, rows become tokens exactly as a run would make them; only its
tokenizer is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tunesmith.data.accounts import refuse_lost
from tunesmith.data.checks.personal import finds_phones, masked
from tunesmith.data.checks.scripts import knows_languages
from tunesmith.data.corpus import encode_corpus
from tunesmith.data.files.locations import refuse_missing
from tunesmith.data.files.reader import own_eval_split
from tunesmith.data.files.rows import BadRow, LeftOut
from tunesmith.data.finding import Finding, Severity, rows_in_words
from tunesmith.data.ledger import Ledger
from tunesmith.data.report import summary
from tunesmith.data.survey import Survey, survey_rows
from tunesmith.errors import DataError, pip_install
from tunesmith.evaluation.metrics.answers import check_metrics_exist
from tunesmith.evaluation.metrics.user_functions import functions_allowed
from tunesmith.model.weights.text_side import text_side
from tunesmith.recipe.data import DataSettings, SourceSettings
from tunesmith.recipe.file import read_recipe
from tunesmith.recipe.objectives import OBJECTIVE_SHAPES
from tunesmith.recipe.row_shape import RowShape
from tunesmith.recipe.settings import ModelSettings, Recipe
from tunesmith.runs.consent import Consent, stored_in
from tunesmith.runs.notebook import html_table, paragraph
from tunesmith.runs.progress import Listener, Silent

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tunesmith.data.chat.template import Encoded
    from tunesmith.data.encoded_rows import RefusedRow


SCHEMA = 1  # of to_json; a key that changes its meaning or goes away raises it
RECIPE_ENDINGS = (".yaml", ".yml")
FINDINGS_NAMED = 3


@dataclass(slots=True)
class Inspection:
    """What `check` reports. ``shown``, ``tokenizer`` and token counts are there where a model was named.

    ``stops`` is whether bad rows stop a run (``data.on_error``).
    """

    notes: list[str]
    sources: list[dict[str, Any]]
    ledger: Ledger
    findings: list[Finding]
    bad: list[BadRow]
    stops: bool
    lengths: dict[str, Any]
    labels: dict[str, Any] | None
    scripts: list[dict[str, Any]]
    languages: dict[str, Any] | None
    diversity: dict[str, Any]
    shown: list[Encoded] = field(default_factory=list)
    tokenizer: PreTrainedTokenizerBase | None = None

    @property
    def is_good(self) -> bool:
        """Whether a run could begin: no row that stops it, and no finding that makes its verdict worthless."""
        return all(finding.severity != "error" for finding in self.findings)

    @property
    def judgement(self) -> str:
        """The whole in two or three sentences."""
        rows = self.ledger.total.rows
        usable = rows.read - rows.invalid
        parts = [f"{rows_in_words(usable)} can be used" + (f", {rows.invalid:,} cannot" if rows.invalid else "") + "."]
        grave = [finding for finding in self.findings if finding.severity == "error"]
        doubtful = [finding for finding in self.findings if finding.severity == "warning"]
        if grave:
            parts.append(f"Not ready to train on: {_named(grave)}.")
        elif doubtful:
            parts.append(f"Ready to train on, but look at {_named(doubtful)} first.")
        else:
            parts.append("Ready to train on: no problems were found.")
        return " ".join(parts)

    def to_json(self) -> dict[str, Any]:
        """The report as plain values; ``docs/cli.md`` describes it."""
        return {
            "schema": SCHEMA,
            "good": self.is_good,
            "judgement": self.judgement,
            "notes": self.notes,
            "sources": self.sources,
            "ledger": self.ledger.to_json(),
            "lengths": self.lengths,
            "labels": self.labels,
            "scripts": self.scripts,
            "languages": self.languages,
            "diversity": self.diversity,
            "findings": [finding.to_json() for finding in self.findings],
            "bad": [asdict(row) for row in self.bad],
            "shown": self._shown_json(),
        }

    def __str__(self) -> str:
        lines = [f"{each.severity}: {each.message}" for each in self.findings]
        return "\n".join([self.judgement, *lines])

    def _repr_html_(self) -> str:
        rows = ((each.severity, each.id, each.count, each.message, each.remedy) for each in self.findings)
        header = ("severity", "finding", "rows", "what", "what to do")
        return paragraph(self.judgement) + (html_table(header, rows) if self.findings else "")

    def _shown_json(self) -> list[dict[str, Any]]:
        if self.tokenizer is None:
            return []
        from tunesmith.data.chat.show import spans

        return [
            {
                "source": row.source,
                "tokens": len(row.ids),
                "supervised": int(row.supervised.sum()),
                "pieces": [[text, learned] for text, learned in spans(row, self.tokenizer)],
            }
            for row in self.shown
        ]


def _named(found: list[Finding]) -> str:
    names = [f"{finding.id.replace('_', ' ')} ({finding.count:,})" for finding in found[:FINDINGS_NAMED]]
    more = len(found) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")


def inspect(
    data: str | Mapping[str, Any] | Recipe,
    *,
    settings: Sequence[str] = (),
    model: str | None = None,
    format: RowShape = "auto",
    columns: Mapping[str, str] | None = None,
    instruction: str | None = None,
    against: str | None = None,
    near: bool = True,
    show: int = 0,
    trust_remote_code: bool = False,
    listener: Listener | None = None,
) -> Inspection:
    """Looks at the rows of a data source, or of a recipe (``.yaml``), whose model then makes the tokens.

    Args:
        data: file, folder, dataset or URL of rows, or a recipe: a YAML file, a mapping or a Recipe.
        settings: ``key=value`` over the data section, such as ``encoding=cp1250``.
        model: the model whose tokenizer and chat template are used.
        format: shape of the rows; with columns and instruction, on top of the recipe's.
        columns: field to column of the file.
        instruction: one instruction for all rows.
        against: rows, read as the data is, that should not be in it.
        near: look for near duplicates.
        show: training rows to hand back as tokens; needs a model.
        trust_remote_code: run code that comes with the model, also where a stored recipe asks for it.
        listener: hears what goes on; nobody by default.

    Raises:
        DataError: the data cannot be read, no row is good, or a row cannot become tokens.
        ModelError: the model's tokenizer cannot be loaded.
        RecipeError: the recipe is wrong.
    """
    listener = listener or Silent()
    section, source, seed, method = settings_of(
        data,
        model,
        settings,
        format=format,
        columns=columns,
        instruction=instruction,
        consent=Consent(trust_remote_code),
    )
    other = None if against is None else SourceSettings.model_validate(
        {**section.sources("train")[0].model_dump(exclude_unset=True), "path": against, "split": None, "name": None}
    )  # fmt: skip
    found = survey_rows(
        section.model_copy(update={"on_error": "skip"}),
        seed=seed,
        method=method,
        against=other,
        near=near,
        stops=section.on_error == "stop",
        listener=listener,
    )
    seen = found.scan
    rows = np.flatnonzero(seen.own)
    longest = int(rows[seen.characters[rows].argmax()])
    report = Inspection(
        notes=[*found.notes, *_not_looked_for()],
        sources=[_without_personal_data(source) for source in found.sources],
        ledger=found.ledger(),
        findings=found.findings,
        bad=[row for row in found.rejected if not isinstance(row, LeftOut)],
        stops=section.on_error == "stop",
        lengths=summary.lengths(seen.characters[rows], "characters", seen.places(np.array([longest]))[0]),
        labels=summary.labels(seen),
        scripts=summary.scripts(seen),
        languages=summary.languages(seen),
        diversity=summary.diversity(seen),
    )
    if source is not None:
        _tokens(report, found, source, show=show, listener=listener)
    return report


def _without_personal_data(source: dict[str, Any]) -> dict[str, Any]:
    """What is known of a source, with its system texts masked."""
    return {**source, "systems": [text and masked(text) for text in source["systems"]]}


def _not_looked_for() -> list[str]:
    """What is left out because its package is not installed, with the command that installs it."""
    missing = [
        name for name, is_there in (("phone numbers", finds_phones()), ("languages", knows_languages())) if not is_there
    ]
    return [f"not looked for: {' and '.join(missing)} ({pip_install('check')} adds them)"] if missing else []


def settings_of(
    data: str | Mapping[str, Any] | Recipe,
    model: str | None,
    overrides: Sequence[str] = (),
    *,
    format: RowShape = "auto",
    columns: Mapping[str, str] | None = None,
    instruction: str | None = None,
    consent: Consent,
) -> tuple[DataSettings, ModelSettings | None, int, str | None]:
    """Data section, model, seed and method of a recipe, or of plain data with what was said of it.

    Args:
        overrides: ``key=value`` over the data section.
        consent: what the user lets a stored recipe run. Its functions are not run here.
    """
    given = {"format": format, "columns": dict(columns or {}), "instruction": instruction}
    given = {name: value for name, value in given.items() if value not in ("auto", {}, None)}
    named = None if model is None else ModelSettings(path=model, trust_remote_code=consent.trust_remote_code)
    overrides = [override if override.startswith("data.") else f"data.{override}" for override in overrides]
    if isinstance(data, str) and not data.endswith(RECIPE_ENDINGS):
        raw = {"model": "unused", "data": _plain_section(data, given), "output_dir": "unused"}
        return read_recipe(raw, overrides).recipe.data, named, 0, None
    loaded, stored = read_recipe(data, overrides), stored_in(data)
    if named and stored is not None:
        consent.check_rows(loaded, stored)
    recipe = loaded.recipe if named else consent.given(loaded, stored)
    if stored is None:
        with functions_allowed(consent.of_recipe(loaded, None)):
            check_metrics_exist(recipe.evaluation)
    refuse_missing(recipe.data)
    if recipe.data.format == "auto" and recipe.objective.name in OBJECTIVE_SHAPES:
        given = {"format": OBJECTIVE_SHAPES[recipe.objective.name], **given}
    return recipe.data.model_copy(update=given), named or recipe.model, recipe.training.seed, recipe.method.name


def _plain_section(data: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Nothing is held out of plain data but what it holds out itself, so that every row is looked at."""
    own = own_eval_split(SourceSettings.model_validate({"path": data, **given}))
    return {"train": data, **({"eval": 0.0} if own is None else {}), **given}


def _tokens(report: Inspection, found: Survey, model: ModelSettings, *, show: int, listener: Listener) -> None:
    """Adds what only a tokenizer can tell. Rows that are too long become a finding, so that the rest is still shown."""
    text = text_side(model, found.settings, say=listener.say)
    settings = text.data
    stops = "error" in (settings.if_too_long(raw_text=True), settings.if_too_long(raw_text=False))
    lenient = settings.model_copy(update={"max_lost": None, **(_lenient(settings) if stops else {})})
    try:
        made = encode_corpus(replace(found, settings=lenient), text.template, listener=listener)
    except DataError as error:  # reported as a finding, so that the rest is still shown
        rows = [error.where] if error.where else []
        message = " ".join(filter(None, [error.what, f"({error.why.replace(chr(10), '; ')})" if error.why else None]))
        report.findings.insert(0, Finding("no_tokens", "error", rows, message, error.remedy or "correct the row"))
        return
    report.tokenizer, report.ledger = text.tokenizer, made.ledger
    report.shown = list(made.train[:show])
    report.findings = [finding for finding in report.findings if finding.id != "long_rows"]  # it was a guess
    report.findings += made.findings
    report.findings[:0] = _refusals(made.refused, "error" if report.stops else "warning")
    if stops and len(made.left_out):
        words = f"{rows_in_words(len(made.left_out))} have more than {settings.max_length:,} tokens (data.max_length)"
        split = ", split" if found.scan.raw_text[made.left_out].any() else ""
        remedy = f"raise data.max_length (it costs memory), or set data.too_long: drop{split} or truncate"
        report.findings.insert(0, Finding("too_long", "error", found.scan.places(made.left_out), words, remedy))
    try:
        refuse_lost(made.ledger, settings)
    except DataError as error:
        words = f"{error.what} ({error.why})"
        report.findings.insert(0, Finding("too_many_lost", "error", [], words, error.remedy or ""))
    longest = made.encoded[int(made.encoded.lengths.argmax())].source
    report.lengths = summary.lengths(made.encoded.lengths, "tokens", longest)


def _refusals(refused: Sequence[RefusedRow], severity: Severity) -> list[Finding]:
    """One finding for each thing that was said of rows that cannot become tokens."""
    first: dict[str, RefusedRow] = {}
    for row in refused:
        first.setdefault(row.what, row)
    found = []
    for what, row in first.items():
        rows = [each.source for each in refused if each.what == what]
        message = f"{what} ({row.why})" if row.why else what
        found.append(Finding("no_tokens", severity, rows, message, row.remedy or "correct the rows"))
    return found


def _lenient(settings: DataSettings) -> dict[str, Any]:
    """Rows that would stop a run are dropped; raw text is split where it would be."""
    split = settings.if_too_long(raw_text=True) == "split"
    clean = settings.clean.model_copy(update={"max_length": True})
    return {"too_long": "split" if split else "drop", "clean": clean}
