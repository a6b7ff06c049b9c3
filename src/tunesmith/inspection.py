"""What is in the data and what would be learned from it, before anything trains: the library behind `check`.

Without a model nothing heavy is imported. With one, rows become tokens exactly as a run would make them; only its
tokenizer is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from tunesmith import corpus as corpora
from tunesmith.corpus import Examples
from tunesmith.data.check import Finding, Ledger
from tunesmith.data.example import Example
from tunesmith.data.read import BadRow, own_eval_split
from tunesmith.evaluation.text import check_names
from tunesmith.progress import Listener, Silent
from tunesmith.recipe import DataSettings, ModelSettings, Shape, SourceSettings
from tunesmith.recipe_file import read_recipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tunesmith.data.template import Encoded

RECIPE_ENDINGS = (".yaml", ".yml")
ROWS_NAMED = 20


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of a row that trains: the median, and the longest with its place."""

    median: int
    longest: int
    longest_row: str


@dataclass(slots=True)
class Inspection:
    """What `check` reports. ``lengths``, ``shown``, ``tokenizer`` and token counts are there where a model was named.

    ``stops`` is whether bad rows stop a run (``data.on_error``).
    """

    notes: list[str]
    sources: list[dict[str, Any]]
    ledger: Ledger
    findings: list[Finding]
    bad: list[BadRow]
    stops: bool
    lengths: Lengths | None = None
    shown: list[Encoded] = field(default_factory=list)
    tokenizer: PreTrainedTokenizerBase | None = None

    @property
    def is_good(self) -> bool:
        """Whether a run could begin: no row that stops it, and no finding that makes its verdict worthless."""
        return not (self.bad and self.stops) and all(finding.severity != "error" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """``{"good", "notes", "sources", "rows", "tokens", "lengths", "findings", "bad", "shown"}``."""
        ledger = self.ledger.to_json()
        return {
            "good": self.is_good,
            "notes": self.notes,
            "sources": self.sources,
            "rows": ledger["rows"],
            "tokens": ledger["tokens"] if self.lengths else None,
            "lengths": asdict(self.lengths) if self.lengths else None,
            "findings": [asdict(finding) for finding in self.findings],
            "bad": [asdict(row) for row in self.bad],
            "shown": self._shown_json(),
        }

    def _shown_json(self) -> list[dict[str, Any]]:
        if self.tokenizer is None:
            return []
        from tunesmith.data.show import plain_text

        return [
            {
                "source": row.source,
                "tokens": len(row.ids),
                "supervised": int(row.supervised.sum()),
                "text": plain_text(row, self.tokenizer),
            }
            for row in self.shown
        ]


def inspect(
    data: str,
    *,
    model: str | None = None,
    format: Shape = "auto",
    columns: Mapping[str, str] | None = None,
    instruction: str | None = None,
    show: int = 0,
    listener: Listener | None = None,
) -> Inspection:
    """Looks at the rows of a data source, or of a recipe (``.yaml``), whose model then makes the tokens.

    Args:
        data: file, folder, dataset or URL of rows, or a recipe.
        model: the model whose tokenizer and chat template are used.
        format: shape of the rows; with columns and instruction, on top of the recipe's.
        columns: field to column of the file.
        instruction: one instruction for all rows.
        show: training rows to hand back as tokens; needs a model.
        listener: hears what goes on; nobody by default.

    Raises:
        DataError: the data cannot be read, no row is good, or a row cannot become tokens.
        ModelError: the model's tokenizer cannot be loaded.
        RecipeError: the recipe is wrong.
    """
    listener = listener or Silent()
    given = {"format": format, "columns": dict(columns or {}), "instruction": instruction}
    given = {name: value for name, value in given.items() if value not in ("auto", {}, None)}
    if data.endswith(RECIPE_ENDINGS):
        recipe = read_recipe(data).recipe
        check_names(recipe.evaluation.metrics)
        settings = recipe.data.model_copy(update=given)
        source = recipe.model if model is None else ModelSettings.model_validate({"path": model})
        seed, method = recipe.training.seed, recipe.method.name
    else:
        settings = _plain_settings(data, given)
        source = None if model is None else ModelSettings.model_validate({"path": model})
        seed, method = 0, None
    examples = corpora.read_examples(settings.model_copy(update={"on_error": "skip"}), seed=seed, method=method)
    found = Inspection(
        notes=examples.notes,
        sources=examples.sources,
        ledger=_ledger(examples),
        findings=examples.findings,
        bad=examples.rejected,
        stops=settings.on_error == "stop",
    )
    if source is not None:
        _tokens(found, examples, settings, source, show=show, listener=listener)
    return found


def _plain_settings(data: str, given: Mapping[str, Any]) -> DataSettings:
    """Nothing is held out of plain data but what it holds out itself, so that every row is looked at."""
    own = own_eval_split(SourceSettings.model_validate({"path": data, **given}))
    return DataSettings.model_validate({"train": data, "eval": 0.0 if own is None else None, **given})


def _ledger(examples: Examples) -> Ledger:
    ledger = Ledger()
    for source in examples.sources:
        counts = ledger.source(source["path"])
        counts.read += source["rows"]
        counts.invalid += source["invalid"]
    for example in examples.train:
        ledger.source(examples.origin[id(example)]).trained += 1
    for example in examples.held_out:
        ledger.source(examples.origin[id(example)]).held_out += 1
    ledger.check()
    return ledger


def _tokens(
    found: Inspection,
    examples: Examples,
    settings: DataSettings,
    model: ModelSettings,
    *,
    show: int,
    listener: Listener,
) -> None:
    """Adds what only a tokenizer can tell. Rows that are too long become a finding, so that the rest is still seen."""
    from tunesmith.model.load import load_tokenizer, stop_ids
    from tunesmith.model.source import resolve

    trusted = model.trust_remote_code
    folder = resolve(model.path, revision=model.revision, trust_remote_code=trusted, say=listener.say)
    tokenizer = load_tokenizer(folder, trust_remote_code=trusted)
    template = corpora.make_template(settings, tokenizer, stop_ids(folder, tokenizer))
    lenient = settings.model_copy(update={"too_long": "drop"}) if settings.too_long == "error" else settings
    corpus = corpora.encode(examples, template, lenient, listener=listener)
    found.tokenizer, found.ledger, found.shown = tokenizer, corpus.ledger, corpus.train[:show]
    found.findings = [finding for finding in found.findings if finding.id != "long_rows"]  # it was a guess
    found.findings += template.findings
    lost = _lost(examples.train, corpus.train) + _lost(examples.held_out, corpus.held_out)
    if lost and settings.too_long == "error":
        found.findings.append(_too_long(lost, settings.max_length))
    by_length = sorted(corpus.train, key=lambda row: len(row.ids))
    longest = by_length[-1]
    found.lengths = Lengths(len(by_length[len(by_length) // 2].ids), len(longest.ids), longest.source)


def _lost(examples: Sequence[Example], kept: Sequence[Encoded]) -> list[str]:
    numbers = {row.example for row in kept}
    return [example.source for number, example in enumerate(examples) if number not in numbers]


def _too_long(rows: Sequence[str], max_length: int) -> Finding:
    return Finding(
        id="too_long",
        severity="error",
        count=len(rows),
        rows=list(rows[:ROWS_NAMED]),
        message=f"{len(rows):,} rows have more than {max_length:,} tokens (data.max_length)",
        remedy="raise data.max_length (it costs memory), or set data.too_long: drop or truncate",
    )
