"""Prepares a run before weights are loaded: data, tokenizer, template, encoded rows, tasks and the memory plan.

The cheapest checks come first: rows are read before a model is fetched, and encoded before weights are loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PretrainedConfig

from tunesmith.data.chat.template import Encoded
from tunesmith.data.corpus import Corpus, encode_corpus
from tunesmith.data.files.locations import refuse_missing
from tunesmith.data.finding import Finding
from tunesmith.data.survey import Survey, check_metrics, survey_rows
from tunesmith.evaluation.metrics.base import COMPUTE_METRICS_KEY, DURING_KEY
from tunesmith.evaluation.metrics.computed import check_size
from tunesmith.evaluation.metrics.user_functions import import_function
from tunesmith.evaluation.task import Task
from tunesmith.methods.continued_adapter import (
    check_tokens,
    find_start,
    in_words,
    other_base,
    started,
    tokens_of_start,
    with_targets,
)
from tunesmith.methods.stored_quantization import over_stored
from tunesmith.model.weights.added_tokens import AddedTokens
from tunesmith.model.weights.device import check_tf32, resolve_device, resolve_dtype
from tunesmith.model.weights.resolve import kind
from tunesmith.model.weights.text_side import TextSide, date_of, text_side
from tunesmith.planning import budget, memory
from tunesmith.planning.budget import Plan
from tunesmith.planning.fallback import require_quantization
from tunesmith.planning.shape_from_model import ModelCounter, linear_modules
from tunesmith.recipe.methods import QUANTIZED, AdapterSettings, method_label
from tunesmith.recipe.paths import local
from tunesmith.recipe.settings import Recipe
from tunesmith.runs.progress import Listener
from tunesmith.runs.reporters import check_reporters, chosen_reporters
from tunesmith.training.objectives.table import preference_objective
from tunesmith.training.optim import check_optimizer
from tunesmith.training.step_rows import first_steps, longest_part, order_of, rate_warnings
from tunesmith.training.tasks import make_tasks


@dataclass(frozen=True, slots=True)
class Prepared:
    """A run before weights are loaded. ``recipe`` has every ``auto`` resolved that needs no weights.

    ``plan`` predicts the memory. ``task`` has the rows that judge the run; it is None if no row is held out.
    ``selecting`` has the held-out rows that select the judged step; none of them are in ``task``. ``start`` is the
    folder of the adapter that training continues from,
    ``started_in`` the one that the run began in.
    """

    recipe: Recipe
    text: TextSide
    survey: Survey
    corpus: Corpus
    plan: Plan
    task: Task | None
    selecting: Task | None
    start: Path | None
    started_in: Path

    @property
    def folder(self) -> Path:
        """The base model's folder."""
        return self.text.folder

    @property
    def added(self) -> AddedTokens:
        """The tokens that the recipe adds."""
        return self.text.added

    @property
    def rows(self) -> Sequence[Encoded]:
        """The rows to train on."""
        return self.corpus.train

    def rows_of_steps(self) -> Iterator[Sequence[Encoded]]:
        """The rows of each optimizer step, read one step at a time."""
        for window in order_of(self.recipe, self.corpus).windows():
            yield self.corpus.rows_of(window.rows)


def prepare_training(
    recipe: Recipe, listener: Listener, *, start: Path | None = None, started_in: Path | None = None
) -> Prepared:
    """Reads, splits and encodes the data for the recipe's model.

    Args:
        recipe: as the user gave it, or as a run that continues has stored it.
        listener: hears what is found.
        start: the run's own copy of the adapter that it continues from; None: the one that the recipe names.
        started_in: the folder in which a run that continues began; None: the current one.

    Raises:
        DataError, ModelError, RecipeError: an error that the user can fix.
    """
    _refuse_unusable(recipe)
    refuse_missing(recipe.data)
    asked = recipe
    recipe, start = _from_adapter(recipe, start)
    survey = survey_rows(
        recipe.data,
        seed=recipe.training.seed,
        method=recipe.method.name,
        objective=recipe.objective.name,
        listener=listener,
    )
    check_metrics(recipe.evaluation.metrics, survey)
    check_metrics(recipe.evaluation.during, survey, key=DURING_KEY)
    for note in survey.notes:
        listener.say(note)
    _tell(survey.findings, listener)
    text = text_side(recipe.model, recipe.data, say=listener.say)
    if start is not None:
        recipe, text = _with_tokens_of(start, recipe, text, listener)
        new = dict(zip(text.added.ids, text.added.texts, strict=True))
        check_tokens(start, new, set(text.tokenizer.get_vocab().values()))
    if text.data is not recipe.data:
        recipe = recipe.with_values(data={"max_length": text.data.max_length})
    recipe = _say_where_it_starts(recipe, asked, start, config=text.config, base=text.folder, listener=listener)
    method, changed = over_stored(recipe.method, text.config, where=recipe.model.path)
    if method is not recipe.method:
        recipe = recipe.model_copy(update={"method": method})
        require_quantization(recipe)
    for note in [*([changed] if changed else []), *_notes(recipe, text.config)]:
        listener.say(note)
    survey = replace(survey, settings=recipe.data)
    corpus = encode_corpus(survey, text.template, listener=listener)
    _tell(corpus.findings, listener)
    task, selecting = make_tasks(survey, corpus, recipe, tokenizer=text.tokenizer, stops=text.stop_ids)
    if task is not None and selecting is not None:
        name, selects, judges = recipe.training.metric_for_best_model, selecting.examples, task.examples
        listener.say(f"held-out rows: {selects:,} select the step by {name}, and {judges:,} others judge it")
    _check_logits(recipe, text.config, [each for each in (task, selecting) if each is not None])
    recipe = _resolve_settings(recipe, survey, listener)
    for warning in rate_warnings(recipe, order_of(recipe, corpus).total_steps):
        listener.warn(warning)
    plan = _plan(recipe, text, corpus)
    recipe = recipe.with_values(
        training={"micro_batch_tokens": plan.budget, "gradient_checkpointing": plan.checkpointing}
    )
    return Prepared(recipe, text, survey, corpus, plan, task, selecting, start, started_in or Path.cwd())


def _refuse_unusable(recipe: Recipe) -> None:
    """Raises RecipeError for settings that this machine cannot run, before any row is read."""
    training = recipe.training
    check_reporters(chosen_reporters(training.report_to))
    if training.optim != "adamw_torch" or training.tf32:
        device = resolve_device(recipe.model.device)
        check_optimizer(training.optim, device)
        check_tf32(training.tf32, device)
    if method_label(recipe.method) in QUANTIZED:
        require_quantization(recipe)


def _from_adapter(recipe: Recipe, kept: Path | None) -> tuple[Recipe, Path | None]:
    """If the recipe continues from an adapter: the recipe with that adapter's settings, and the adapter's folder."""
    method = recipe.method
    if not isinstance(method, AdapterSettings) or method.adapter_name_or_path is None:
        return recipe, None
    folder = kept or find_start(method.adapter_name_or_path)
    method = started(method, folder, path=method.adapter_name_or_path if kept else str(folder))
    return recipe.model_copy(update={"method": method}), folder


def _with_tokens_of(start: Path, recipe: Recipe, text: TextSide, listener: Listener) -> tuple[Recipe, TextSide]:
    """Adds the tokens that the adapter to continue brings, if the recipe names none itself."""
    if recipe.model.named_tokens:
        return recipe, text
    plain, special = tokens_of_start(start, text.tokenizer.get_vocab())
    if not plain and not special:
        return recipe, text
    listener.say(f"tokens of the adapter that its base lacks: {', '.join(map(repr, [*plain, *special]))}")
    recipe = recipe.with_values(model={"add_tokens": plain, "add_special_tokens": special})
    return recipe, text_side(recipe.model, recipe.data, say=lambda line: None)


def _say_where_it_starts(
    recipe: Recipe, asked: Recipe, start: Path | None, *, config: PretrainedConfig, base: Path, listener: Listener
) -> Recipe:
    """Names the adapter's target modules as a recipe does, and says which settings the adapter decides."""
    if start is None:
        return recipe
    method, before = recipe.method, asked.method
    assert isinstance(method, AdapterSettings) and isinstance(before, AdapterSettings)
    method = with_targets(method, before, linear_modules(config, recipe), start)
    listener.say(in_words(method))
    other = other_base(start, base, recipe.model.path)
    if other is not None:
        listener.warn(other)
    return recipe.model_copy(update={"method": method})


def _check_logits(recipe: Recipe, config: PretrainedConfig, tasks: Sequence[Task]) -> None:
    """Imports the user's function of all logits now, and checks that the logits are not too many to hold."""
    if recipe.evaluation.compute_metrics is None:
        return
    import_function(recipe.evaluation.compute_metrics, where=COMPUTE_METRICS_KEY)
    for task in tasks:
        labels = sum(int(row.supervised[1:].sum()) for row in task.rows)
        check_size(labels, config.get_text_config().vocab_size)


def _notes(recipe: Recipe, config: PretrainedConfig) -> Iterator[str]:
    """What differs from other libraries, or from the settings."""
    if getattr(config.get_text_config(), "output_router_logits", False):  # its loss would depend on the micro-batch
        yield (
            "router: trained without its auxiliary loss, which this model's config asks for (output_router_logits); "
            "the loss is that of the supervised tokens alone, whatever the micro-batches"
        )
    objective = preference_objective(recipe)
    if objective is not None and objective.indivisible > 1:
        yield (
            f"{recipe.objective.name}: a micro-batch is {objective.indivisible} examples, whatever "
            "training.micro_batch_tokens is, because the KL is estimated on them; training.per_device_train_batch_size "
            "sets how many"
        )
    if recipe.training.neftune_noise_alpha is not None:
        yield (
            "neftune: noise on the embeddings, scaled by each row's own length (transformers takes the padded length "
            "of the batch); rows share no prefix then, so no repeated token is saved"
        )


def _tell(findings: Sequence[Finding], listener: Listener) -> None:
    for finding in findings:
        rows = f" ({', '.join(finding.rows[:3])}{', ...' if finding.count > 3 else ''})" if finding.count else ""
        if finding.severity == "info":
            listener.say(f"{finding.message}{rows}")
        else:
            listener.warn(f"{finding.message}{rows}")


def _resolve_settings(recipe: Recipe, survey: Survey, listener: Listener) -> Recipe:
    """Resolves every ``auto`` except the plan's, from recipe and machine, never from a timing."""
    training, model = recipe.training, recipe.model
    device = resolve_device(model.device)
    dtype = resolve_dtype(model.dtype, device, say=listener.warn)
    is_here = kind(model.path) in ("model", "gguf")
    return recipe.with_values(
        model={
            "path": str(Path(local(model.path)).resolve()) if is_here else model.path,
            "device": device,
            "dtype": str(dtype).removeprefix("torch."),
        },
        data={
            "date": date_of(recipe.data),
            "too_long": survey.rule_of_long_rows,
        },
        training={
            "learning_rate": recipe.learning_rate,
            "threads": budget.threads() if training.threads == "auto" else training.threads,
            "report_to": chosen_reporters(training.report_to),
        },
    )


def _plan(recipe: Recipe, text: TextSide, corpus: Corpus) -> Plan:
    """Chooses micro-batch and checkpointing from model, recipe, data and total memory."""
    return budget.choose(
        ModelCounter(text.config, text.folder).count(recipe, text.added).shape,
        recipe.training,
        longest=longest_part(recipe, corpus),
        memory=memory.total_memory(recipe.model.device),
        where=recipe.model.path,
        steps=first_steps(recipe, corpus),
    )
