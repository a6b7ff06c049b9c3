"""Everything before the first step: data, tokenizer, template, rows, and then weights with their method attached.

The cheapest refusal comes first: rows are read before a model is fetched, and encoded before weights are loaded.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from tunesmith import corpus as corpora
from tunesmith import memory, plan
from tunesmith.corpus import Corpus, Survey
from tunesmith.data.finding import Finding
from tunesmith.data.layout import LayoutName, computed_tokens
from tunesmith.data.order import Order
from tunesmith.data.template import ChatTemplate, Encoded
from tunesmith.errors import DataError, RecipeError
from tunesmith.evaluation.compare import STARTED_FROM
from tunesmith.evaluation.compute import check_size, compute_function
from tunesmith.evaluation.judge import Task, make_task
from tunesmith.fallback import require_quantization
from tunesmith.methods import build
from tunesmith.methods.base import Method, refuse_untrained_tokens, shared_line, trainable_line, weights_in
from tunesmith.methods.starting import check_tokens, find_start, in_words, other_base, started, with_targets
from tunesmith.model import attention
from tunesmith.model.added_tokens import NO_TOKENS, AddedTokens, extend, grow
from tunesmith.model.device import check_tf32
from tunesmith.model.fused import fuse
from tunesmith.model.load import load_model, load_tokenizer, resolve_device, resolve_dtype, stop_ids
from tunesmith.model.neftune import add_noise
from tunesmith.model.source import kind, resolve
from tunesmith.plan import Plan
from tunesmith.progress import Listener
from tunesmith.recipe import AdapterSettings, MethodSettings, Recipe
from tunesmith.reporters import check_reporters
from tunesmith.shape import QUANTIZED, method_label
from tunesmith.sizes import linear_modules, shape_of
from tunesmith.tokens import EncodedRows
from tunesmith.training.objectives import preference_objective
from tunesmith.training.optim import check_optimizer
from tunesmith.training.preference import PreferenceObjective

PLANNED_STEPS = 4  # whose rows the budget of a micro-batch is chosen by


@dataclass(slots=True)
class Prepared:
    """What is known before weights are loaded. ``recipe`` has every ``auto`` resolved that needs no weights.

    ``plan`` says what will be in memory. ``task`` is what the run is judged on; None where no row is held out.
    ``selecting`` are the held-out rows that select the step which is judged, none of them in ``task``.
    ``added`` are the tokens that the recipe adds. ``start``: the folder of the adapter that training goes on from.
    """

    recipe: Recipe
    folder: Path
    tokenizer: PreTrainedTokenizerBase
    stops: tuple[int, ...]
    template: ChatTemplate
    survey: Survey
    corpus: Corpus
    task: Task | None
    plan: Plan
    selecting: Task | None = None
    added: AddedTokens = NO_TOKENS
    start: Path | None = None

    @property
    def validation(self) -> Task | None:
        """The rows that validation losses are taken on."""
        return self.selecting or self.task


@dataclass(slots=True)
class Ready:
    """A model with its method attached. ``recipe`` has every ``auto`` resolved."""

    recipe: Recipe
    model: nn.Module
    method: Method


def prepare(recipe: Recipe, listener: Listener, *, start: Path | None = None) -> Prepared:
    """Reads, splits and encodes the data for the recipe's model.

    Args:
        start: where a run keeps its copy of the adapter that it went on from; None: where the recipe says it is.

    Raises:
        DataError, ModelError, RecipeError: what a user can mend.
    """
    _refuse_unusable(recipe)
    asked = recipe
    recipe, start = _from_adapter(recipe, start)
    survey = corpora.survey(
        recipe.data,
        seed=recipe.training.seed,
        method=recipe.method.name,
        objective=recipe.objective.name,
        listener=listener,
    )
    corpora.check_metrics(recipe.evaluation.metrics, survey)
    for note in survey.notes:
        listener.say(note)
    _tell(survey.findings, listener)
    folder = resolve(
        recipe.model.path,
        revision=recipe.model.revision,
        trust_remote_code=recipe.model.trust_remote_code,
        say=listener.say,
    )
    tokenizer = load_tokenizer(folder, trust_remote_code=recipe.model.trust_remote_code)
    added = extend(tokenizer, recipe.model)
    for note in added.notes():
        listener.say(note)
    if start is not None:
        check_tokens(start, dict(zip(added.ids, added.texts, strict=True)), set(tokenizer.get_vocab().values()))
    stops = stop_ids(folder, tokenizer)
    template = corpora.make_template(recipe.data, tokenizer, stops, recipe.model.named_tokens)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=recipe.model.trust_remote_code, local_files_only=True)
    recipe = _say_where_it_starts(recipe, asked, start, config=config, base=folder, listener=listener)
    recipe = _within_positions(recipe, config, listener)
    _say_if_router_is_not_balanced(config, listener)
    _say_if_not_regrouped(recipe, listener)
    _say_if_noisy(recipe, listener)
    survey = replace(survey, settings=recipe.data)
    corpus = corpora.encode(survey, template, listener=listener)
    _tell(corpus.findings, listener)
    task, selecting = make_tasks(survey, corpus, recipe, tokenizer=tokenizer, stops=stops)
    if task is not None and selecting is not None:
        name, selects, judges = recipe.training.metric_for_best_model, selecting.examples, task.examples
        listener.say(f"held-out rows: {selects:,} select the step by {name}, and {judges:,} others judge it")
    _check_logits(recipe, config, [each for each in (task, selecting) if each is not None])
    recipe = _resolve_settings(recipe, survey, listener)
    chosen = _plan(recipe, config, folder, corpus, added)
    recipe = recipe.with_values(
        training={"micro_batch_tokens": chosen.budget, "gradient_checkpointing": chosen.checkpointing}
    )
    return Prepared(recipe, folder, tokenizer, stops, template, survey, corpus, task, chosen, selecting, added, start)


def _refuse_unusable(recipe: Recipe) -> None:
    """What this machine cannot do, before any row is read."""
    training = recipe.training
    check_reporters(training.report_to)
    if training.optim != "adamw_torch" or training.tf32:
        device = resolve_device(recipe.model.device)
        check_optimizer(training.optim, device)
        check_tf32(training.tf32, device)
    if method_label(recipe.method) in QUANTIZED:
        require_quantization(recipe)


def _from_adapter(recipe: Recipe, kept: Path | None) -> tuple[Recipe, Path | None]:
    """Where the recipe goes on from an adapter: with the settings of that adapter's file, and its folder."""
    method = recipe.method
    if not isinstance(method, AdapterSettings) or method.adapter_name_or_path is None:
        return recipe, None
    folder = kept or find_start(method.adapter_name_or_path)
    method = started(method, folder, path=method.adapter_name_or_path if kept else str(folder))
    return recipe.model_copy(update={"method": method}), folder


def _say_where_it_starts(
    recipe: Recipe, asked: Recipe, start: Path | None, *, config: PretrainedConfig, base: Path, listener: Listener
) -> Recipe:
    """Names the targets of the adapter that it goes on from as a recipe would, and says what its file decides."""
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
    """A function of the user's gets all logits at a time, so it is imported and they are counted now."""
    if recipe.evaluation.compute_metrics is None:
        return
    compute_function(recipe.evaluation.compute_metrics)
    for task in tasks:
        labels = sum(int(row.supervised[1:].sum()) for row in task.rows)
        check_size(labels, config.get_text_config().vocab_size)


def make_tasks(
    survey: Survey,
    corpus: Corpus,
    recipe: Recipe,
    *,
    tokenizer: PreTrainedTokenizerBase,
    stops: tuple[int, ...],
) -> tuple[Task | None, Task | None]:
    """The rows that judge, and the rows that select the step to judge, where the recipe asks for that.

    With a test side the test rows judge and all held-out rows select. Without one, held-out rows are halved by the last
    bit of the hash that splits them, so that what stays together (rows of one prompt) is in one half.

    Raises:
        DataError: a half is empty, or a metric cannot score a truth.
    """
    made: dict[str, Any] = {"tokenizer": tokenizer, "stops": stops, "recipe": recipe}
    if not recipe.training.selects or not len(corpus.held_out):
        return make_held_out_task(survey, corpus, **made), None
    if len(corpus.test):
        return make_held_out_task(survey, corpus, rows=corpus.test, **made), make_held_out_task(survey, corpus, **made)
    half = survey.scan.draw[corpus.held_out.examples] & np.uint64(1)
    judging, selecting = (corpus.held_out.select(np.flatnonzero(half == side)) for side in (1, 0))
    if not len(judging) or not len(selecting):
        raise DataError(
            "The held-out rows are too few to select a step and to judge it",
            where="data.eval",
            why=f"Of {_examples(corpus.held_out)} rows, split by prompt, {_examples(selecting)} would select and "
            f"{_examples(judging)} judge; a row that selects must not judge.",
            remedy="Hold out more rows, give data.test, or leave load_best_model_at_end and early stopping out.",
        )
    return (
        make_held_out_task(survey, corpus, rows=judging, **made),
        make_held_out_task(survey, corpus, rows=selecting, **made),
    )


def _examples(rows: EncodedRows) -> int:
    return len(np.unique(rows.examples))


def make_held_out_task(
    survey: Survey,
    corpus: Corpus,
    *,
    tokenizer: PreTrainedTokenizerBase,
    stops: tuple[int, ...],
    recipe: Recipe,
    rows: Sequence[Encoded] | None = None,
) -> Task | None:
    """What to judge on; raw text is judged by its tokens alone. Raises DataError for what no metric can score.

    Args:
        rows: to judge on, where those are not all that are held out.
    """
    if not len(corpus.held_out):
        return None
    task = make_task(
        corpus.held_out if rows is None else rows,
        corpus.groups,
        tokenizer=tokenizer,
        stop_ids=stops,
        settings=recipe.evaluation,
        objective=preference_objective(recipe),
        labels=corpus.labels,
        raw_text=survey.scan.raw_text,
    )
    return replace(task, sources=_rows_by_source(survey, task))


def _rows_by_source(survey: Survey, task: Task) -> dict[str, np.ndarray]:
    """The task's rows of each path, where there are several."""
    paths = np.array([each.settings.path for each in survey.scan.sources])
    examples = [row.example for row in task.rows[:: 1 if task.preferences is None else task.preferences.together]]
    of_rows = paths[survey.scan.source[examples]]
    names = np.unique(of_rows).tolist()
    return {name: np.flatnonzero(of_rows == name) for name in names} if len(names) > 1 else {}


def _within_positions(recipe: Recipe, config: PretrainedConfig, listener: Listener) -> Recipe:
    """A model cannot see past its positions, so ``max_length`` is at most their number."""
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)  # a state-space model has none
    if limit is None or recipe.data.max_length <= limit:
        return recipe
    listener.say(f"data.max_length: {recipe.data.max_length} -> {limit}, the positions that this model has")
    return recipe.with_values(data={"max_length": limit})


def _say_if_router_is_not_balanced(config: PretrainedConfig, listener: Listener) -> None:
    """transformers would add the router's auxiliary loss, which depends on the micro-batch. Ours never does."""
    if getattr(config.get_text_config(), "output_router_logits", False):
        listener.say(
            "router: trained without its auxiliary loss, which this model's config asks for (output_router_logits); "
            "the loss is that of the supervised tokens alone, whatever the micro-batches"
        )


def _say_if_not_regrouped(recipe: Recipe, listener: Listener) -> None:
    """kto's estimate depends on the micro-batch, so that one keeps its examples; see training/kto.py."""
    objective = preference_objective(recipe)
    if objective is not None and objective.indivisible > 1:
        listener.say(
            f"{recipe.objective.name}: a micro-batch is {objective.indivisible} examples, whatever "
            "training.micro_batch_tokens is, because the KL is estimated on them; training.per_device_train_batch_size "
            "sets how many"
        )


def _say_if_noisy(recipe: Recipe, listener: Listener) -> None:
    """Why nothing is saved; see model/neftune.py."""
    if recipe.training.neftune_noise_alpha is not None:
        listener.say(
            "neftune: noise on the embeddings, scaled by each row's own length (transformers takes the padded length "
            "of the batch); rows share no prefix then, so no repeated token is saved"
        )


def _tell(findings: Sequence[Finding], listener: Listener) -> None:
    for finding in findings:
        rows = f" ({', '.join(finding.rows[:3])}{', ...' if finding.count > 3 else ''})" if finding.count else ""
        (listener.say if finding.severity == "info" else listener.warn)(f"{finding.message}{rows}")


def _resolve_settings(recipe: Recipe, survey: Survey, listener: Listener) -> Recipe:
    """Every ``auto`` but the plan's: a function of recipe and machine, never of a timing."""
    training, model = recipe.training, recipe.model
    device = resolve_device(model.device)
    dtype = resolve_dtype(model.dtype, device, say=listener.warn)
    local = kind(model.path) in ("model", "gguf")
    return recipe.with_values(
        model={
            "path": str(Path(model.path).expanduser().resolve()) if local else model.path,
            "device": device,
            "dtype": str(dtype).removeprefix("torch."),
        },
        data={
            "date": recipe.data.date or time.strftime("%Y-%m-%d"),
            "too_long": survey.rule_of_long_rows,
        },
        training={
            "learning_rate": recipe.learning_rate,
            "threads": plan.threads() if training.threads == "auto" else training.threads,
        },
    )


def _plan(recipe: Recipe, config: PretrainedConfig, folder: Path, corpus: Corpus, added: AddedTokens) -> Plan:
    """Micro-batch and checkpointing: a function of model, recipe, data and total memory."""
    return plan.choose(
        shape_of(config, recipe, folder, added),
        recipe.training,
        longest=longest_part(recipe, corpus),
        memory=memory.total_memory(recipe.model.device),
        where=recipe.model.path,
        steps=first_steps(recipe, corpus),
    )


def _computed(recipe: Recipe, corpus: Corpus) -> list[EncodedRows]:
    """The rows that go through the model in this run."""
    return [corpus.train, corpus.held_out, *([corpus.test] if recipe.training.selects else [])]


def longest_part(recipe: Recipe, corpus: Corpus) -> int:
    """Tokens of what cannot be divided among micro-batches: a row, a pair of answers, a group of kto's.

    Rows that are only judged count too. kto's groups are those of the first epoch.
    """
    objective = preference_objective(recipe)
    sides = [rows for rows in _computed(recipe, corpus) if len(rows)]
    if objective is None:
        return max(int(rows.lengths.max()) for rows in sides)
    layout = recipe.training.wanted_layout
    longest = 0
    for rows in sides:
        order = order_of(recipe, corpus).epoch_rows(0) if rows is corpus.train else np.arange(len(rows))
        longest = max(longest, _longest_of(rows, order, objective, layout))
    return longest


def _longest_of(rows: EncodedRows, order: np.ndarray, objective: PreferenceObjective, layout: LayoutName) -> int:
    """Of one side; the order is of kto's examples, because pairs depend on none."""
    answers, size = objective.answers, objective.indivisible
    lengths = rows.lengths.reshape(-1, answers).sum(1)
    if size == 1:
        order = np.argsort(-lengths, kind="stable")
    longest = 0
    for start in range(0, len(order), size):
        part = order[start : start + size]
        if size == 1 and layout != "padded" and lengths[part[0]] <= longest:
            break  # no pair that follows has as many tokens, shared or not
        encoded = [rows[number * answers + answer] for number in part.tolist() for answer in range(answers)]
        longest = max(longest, computed_tokens(objective.rows(encoded), layout=layout))
    return longest


def first_steps(recipe: Recipe, corpus: Corpus) -> list[list[Encoded]]:
    """The rows of a few steps, to see what they share; none where they share nothing or come in pairs."""
    if recipe.training.wanted_layout != "tree" or corpus.together > 1:
        return []
    windows = islice(order_of(recipe, corpus).windows(), PLANNED_STEPS)
    return [[corpus.train[number] for number in window.rows] for window in windows]


def order_of(recipe: Recipe, corpus: Corpus) -> Order:
    """Which rows each step of the run sees."""
    settings = recipe.training
    return Order(
        corpus.weights,
        sources=corpus.train_sources,
        quotas=corpus.quotas,
        batch_size=settings.batch_size,
        epochs=settings.num_train_epochs,
        max_steps=settings.max_steps,
        seed=settings.seed,
    )


def load(prepared: Prepared, checkpoint: Path | None, listener: Listener) -> Ready:
    """Weights, attention and method; the layout that only a loaded model can tell.

    Args:
        checkpoint: continue from this one, with the layout that the recipe has resolved; None: begin anew.

    Raises:
        ModelError: the weights cannot be loaded, or the method does not fit them.
        RecipeError: the recipe asks for a layout that the model does not admit.
    """
    recipe = prepared.recipe
    method = make_method(prepared)
    base = load_base(prepared, method.load_options())
    model = method.load(base, checkpoint) if checkpoint else method.attach(base, _rows_of_steps(prepared))
    refuse_untrained_tokens(base, prepared.added)
    fuse(base)
    if recipe.training.neftune_noise_alpha is not None:
        add_noise(base, recipe.training.neftune_noise_alpha)
    for line in filter(None, (trainable_line(model), shared_line(model))):
        listener.say(line)
    layout = recipe.training.layout if checkpoint else _layout(prepared, model, listener)
    if recipe.training.gradient_checkpointing:
        _recompute(base)
    if recipe.model.device == "cpu":
        (memory.give_back_large_blocks if recipe.training.gradient_checkpointing else memory.keep_freed_blocks)()
    return Ready(recipe.with_values(training={"layout": layout}), model, method)


def _rows_of_steps(prepared: Prepared) -> Iterator[Sequence[Encoded]]:
    """The rows of each optimizer step, read as they are asked for."""
    for window in order_of(prepared.recipe, prepared.corpus).windows():
        yield prepared.corpus.rows_of(window.rows)


def _recompute(base: PreTrainedModel) -> None:
    """Gradient checkpointing. Raises RecipeError for a model without it."""
    if not base.supports_gradient_checkpointing:
        raise RecipeError(
            "This model cannot recompute its layers",
            where="training.gradient_checkpointing",
            why=f"{type(base).__name__} does not support it in transformers.",
            remedy="Set training.gradient_checkpointing: false, and a smaller micro_batch_tokens if memory is short.",
        )
    base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    base.disable_input_require_grads()  # reentrant checkpointing needs it; here frozen layers would pass gradients


def make_method(prepared: Prepared) -> Method:
    """The recipe's method. An adapter points to a hub id where that is the base, else to the base's folder."""
    recipe = prepared.recipe
    name, _, revision = recipe.model.path.partition("@")
    hub = kind(recipe.model.path) == "hub"
    return build(
        recipe.method,
        base=name if hub else str(prepared.folder),
        revision=recipe.model.revision or revision or None if hub else None,
        seed=recipe.training.seed,
        device=recipe.model.device,
        added=prepared.added,
        start=prepared.start,
    )


def load_base(prepared: Prepared, options: Mapping[str, Any]) -> PreTrainedModel:
    """The untuned weights with rows for added tokens, attending through ``model/attention.py``."""
    settings = prepared.recipe.model
    model = load_model(
        prepared.folder,
        dtype=getattr(torch, settings.dtype),
        device=settings.device,
        trust_remote_code=settings.trust_remote_code,
        **options,
    )
    grow(model, prepared.added)
    attention.install(model)
    return model


def untuned(
    method: Method, settings: MethodSettings, model: nn.Module, *, device: str, load_plain: Callable[[], nn.Module]
) -> tuple[AbstractContextManager[nn.Module], str]:
    """A context with the model to judge against, and what it is.

    That is the untuned model, over quantized weights the unquantized one where it fits beside the other. Where training
    went on from an adapter it is what the user had before, the base with that adapter.

    Args:
        load_plain: loads the unquantized base.
    """
    if isinstance(settings, AdapterSettings) and settings.adapter_name_or_path is not None:
        return method.reference(model), STARTED_FROM
    if method_label(settings) not in QUANTIZED:
        return method.reference(model), "untuned"
    parameters = sum(weights_in(parameter) for parameter in model.parameters())
    if not plan.unquantized_base_fits(parameters, memory=memory.total_memory(device)):
        return method.reference(model), "untuned, quantized"

    @contextmanager
    def unquantized() -> Iterator[nn.Module]:
        yield load_plain()

    return unquantized(), "untuned, unquantized"


def _layout(prepared: Prepared, model: nn.Module, listener: Listener) -> LayoutName:
    """Probed with the method attached, which at step zero is the base: a 4-bit layer must not run before."""
    settings = prepared.recipe.training
    probe = attention.probe(
        model, prepared.corpus.train, device=prepared.recipe.model.device
    )  # refuses what sees ahead
    if settings.layout == "padded":
        return settings.layout
    listener.say(f"layout: this model {probe.reason}")
    if settings.layout != "auto" and not probe.shares:
        raise RecipeError(
            "This model cannot share prefixes" if settings.layout == "tree" else "This model cannot keep rows apart",
            where="training.layout",
            why=probe.reason,
            remedy="Set training.layout: auto or padded.",
        )
    return settings.wanted_layout if probe.shares else "padded"
