"""Loads a run, a checkpoint, an adapter folder or a model to answer prompts, with the template it was trained with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, overload

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tunesmith.data.chat.template import ChatTemplate
from tunesmith.data.examples.message import Message, RowError, openai_message
from tunesmith.deploy.plain_weights import MARK
from tunesmith.deploy.run_prompt import RunPrompt, TrainedPrompt, recorded_prompt, run_prompt
from tunesmith.deploy.same_base import check_base
from tunesmith.errors import DataError, ModelError, RecipeError, RunError
from tunesmith.methods.base import Method
from tunesmith.methods.continued_adapter import CONFIG_FILE, kept_start, read_config_file
from tunesmith.methods.stored_quantization import over_stored
from tunesmith.methods.table import build
from tunesmith.model.base_model import load_base_model
from tunesmith.model.generate import Generation, generate, stream
from tunesmith.model.weights.added_tokens import AddedTokens
from tunesmith.model.weights.device import resolve_device, resolve_dtype
from tunesmith.model.weights.load import CONFIG, read_json_object, stop_ids
from tunesmith.model.weights.resolve import kind, resolve
from tunesmith.model.weights.text_side import make_template, refuse_unknown_tokens, tokenizer_of
from tunesmith.recipe.data import DataSettings, SourceSettings
from tunesmith.recipe.generation import GenerationSettings, settings_by_name
from tunesmith.recipe.methods import LoraSettings, MethodSettings
from tunesmith.recipe.paths import local
from tunesmith.recipe.settings import ModelSettings, Recipe
from tunesmith.runs.consent import Consent
from tunesmith.runs.drift import Change, allowed_kinds
from tunesmith.runs.folder import Run, way_to_checkpoint
from tunesmith.runs.from_python import heard_by
from tunesmith.runs.manifest import MANIFEST, has_manifest, refuse_damaged
from tunesmith.runs.progress import Listener
from tunesmith.runs.start_folder import stored_recipe
from tunesmith.runs.surroundings import library_call
from tunesmith.training.attach import untuned
from tunesmith.training.checkpoint import verify

Turn = Message | Mapping[str, Any]  # a mapping is {role, content}, as OpenAI has it
Prompt = str | Turn | Sequence[Turn]  # the user's text, a turn, or a conversation


@dataclass(frozen=True, slots=True)
class ModelTarget:
    """What a path names: a base model, what was trained on top of it (None: nothing), and its run.

    ``trained``: what the run's rows have around their text, which a merged model records, too. ``base_given``: the base
    is the user's choice, and not what the run or the adapter names.
    """

    base: str
    revision: str | None = None
    checkpoint: Path | None = None
    method: MethodSettings | None = None
    run: Run | None = None
    recipe: Recipe | None = None
    trained: TrainedPrompt | None = None
    base_given: bool = False

    def decoding(self, settings: Mapping[str, Any]) -> GenerationSettings:
        """The settings by name. Without a limit of tokens, that of the run's own evaluation holds."""
        found = settings_by_name(settings)
        if self.recipe is None or found.max_new_tokens is not None or found.max_length is not None:
            return found
        return replace(found, max_new_tokens=self.recipe.evaluation.max_new_tokens)


@dataclass(frozen=True, slots=True, repr=False)
class Tuned:
    """A model that answers. ``model`` is in evaluation mode; ``base()`` is the untuned one.

    ``folder`` is the base's. ``stop_ids`` end an answer, ``added`` are the tokens that its recipe added, and
    ``load_plain`` loads the base without quantization; arguments of ``load_base_model`` may replace its own.
    ``changes`` are those of the base since the training, which the user allowed.
    """

    target: ModelTarget
    folder: Path
    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    template: ChatTemplate
    method: Method | None
    stop_ids: tuple[int, ...]
    load_plain: Callable[..., PreTrainedModel]
    added: AddedTokens
    changes: tuple[Change, ...] = ()

    def __repr__(self) -> str:
        return f"<tunesmith: {self.describe}>"

    @property
    def describe(self) -> str:
        """One line: what was loaded."""
        if self.target.checkpoint is None:
            return f"model {self.target.base}"
        return f"{self.target.checkpoint} on {self.target.base}"

    def run_prompt(self, *, raw: bool = False, instruction: str | None = None) -> RunPrompt:
        """What goes around a prompt. Raises RunError if the run has several instructions and none is chosen."""
        where = self.target.base if self.target.run is None else str(self.target.run.folder)
        return run_prompt(self.target.trained, where=where, raw=raw, instruction=instruction)

    @overload
    def generate(  # pyright: ignore[reportOverlappingOverload]  (a text is a sequence of texts, too)
        self,
        messages: Prompt,
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        raw: bool = False,
        instruction: str | None = None,
        batch_size: int = 16,
        **settings: Any,
    ) -> list[Generation]: ...
    @overload
    def generate(
        self,
        messages: Sequence[Prompt],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        raw: bool = False,
        instruction: str | None = None,
        batch_size: int = 16,
        **settings: Any,
    ) -> list[list[Generation]]: ...
    @library_call()
    def generate(
        self,
        messages: Prompt | Sequence[Prompt],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        raw: bool = False,
        instruction: str | None = None,
        batch_size: int = 16,
        **settings: Any,
    ) -> list[Generation] | list[list[Generation]]:
        """Answers to one prompt or to many: ``num_return_sequences`` of them, for each of many a list of its own.

        Args:
            messages: the user's text, or a conversation of messages or of ``{"role": ..., "content": ...}``, of which
                one may stand alone; or a list of texts and conversations, which are decoded in batches. The run's
                instruction goes before the last user turn, and its system turn first, if the conversation has none.
            tools: definitions of tools, for the chat template.
            raw: leave the run's instruction and system turn out, and mask no personal data.
            instruction: one to use in place of the run's.
            batch_size: sequences decoded at a time.
            settings: those of GenerationSettings; without a limit of tokens, that of the run's evaluation.

        Raises:
            RecipeError: these are no prompts, or a setting is unknown or out of bounds.
            RunError: the run's sources have different instructions and none is chosen.
        """
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise RecipeError(f"batch_size must be a whole number of at least 1, found {batch_size!r}")
        asked = self.target.decoding(settings)
        many, prompts = _prompts(messages)
        ids = [
            self.prompt_ids(each, tools=tools, raw=raw, instruction=instruction, source=f"prompt {number}")
            for number, each in enumerate(prompts, start=1)
        ]
        answers = generate(
            self.model, self.tokenizer, ids, settings=asked, stop_ids=self.stop_ids, batch_size=batch_size
        )
        return answers if many else answers[0]

    def stream(
        self,
        messages: Prompt,
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        raw: bool = False,
        instruction: str | None = None,
        **settings: Any,
    ) -> Iterator[str]:
        """One answer in pieces, as they are decoded. Arguments are those of ``generate``."""
        asked = self.target.decoding(settings)
        prompt = self.prompt_ids(messages, tools=tools, raw=raw, instruction=instruction)
        return stream(self.model, self.tokenizer, prompt, settings=asked, stop_ids=self.stop_ids)

    def prompt_ids(
        self,
        messages: Prompt,
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        raw: bool = False,
        instruction: str | None = None,
        source: str = "the prompt",
        around: RunPrompt | None = None,
    ) -> list[int]:
        """The token ids that ``generate`` sends for these arguments: those of a training row before its answer.

        ``source`` names the prompt in errors. ``around``: what goes around it, in place of ``raw`` and ``instruction``.
        """
        around = around or self.run_prompt(raw=raw, instruction=instruction)
        framed = around.around(_turns(messages, source))
        if around.raw_text:
            if tools:
                raise RecipeError("a model that was trained on raw text takes no tools", remedy="Leave tools out.")
            return self.template.text_ids(around.document(around.masked(framed)[0]), source=source)
        return self.template.prompt_ids(*around.masked(framed, tools), source=source)

    @property
    def device(self) -> str:
        """The device that the model computes on."""
        return str(next(self.model.parameters()).device)

    def reference(self) -> tuple[AbstractContextManager[nn.Module] | None, str | None]:
        """A context with the model to judge against, and what that is; None where nothing was tuned."""
        if self.method is None:
            return None, None
        assert self.target.method is not None
        return untuned(self.method, self.target.method, self.model, device=self.device, load_plain=self.load_plain)

    @contextmanager
    def base(self) -> Iterator[Tuned]:
        """Inside, what this object yields answers as the untuned model."""
        reference, _ = self.reference()
        if reference is None:
            yield self
            return
        with reference as model:
            yield replace(self, model=model, method=None)


def _prompts(messages: Prompt | Sequence[Prompt]) -> tuple[bool, Sequence[Prompt]]:
    """Whether these are several prompts, and the prompts. An empty list is no prompt at all.

    Raises:
        RecipeError: it is no prompt, or turns are among prompts.
    """
    if isinstance(messages, str | Message | Mapping):
        return False, [messages]
    each = _listed(messages, "the prompt")
    turns = [isinstance(one, Message | Mapping) for one in each]
    if any(turns) and not all(turns):
        raise RecipeError(
            "the list holds turns and prompts", remedy="Give one conversation, or a list of texts and conversations."
        )
    return not any(turns), [each] if any(turns) else each


def _listed(given: Any, source: str) -> list[Any]:
    """The items of what is no text and no turn. Raises RecipeError if it has none that could be turns or prompts."""
    if not isinstance(given, Iterable) or isinstance(given, bytes) or type(given).__name__ == "DataFrame":
        kind = "" if given is None or isinstance(given, int | float) else f" of the type {type(given).__name__}"
        raise RecipeError(
            f"found {'a value' + kind if kind else given}, which is no prompt",
            where=source,
            remedy='Give a text, a conversation such as [{"role": "user", "content": "..."}], or a list of those.',
        )
    return list(given)


def _turns(prompt: Prompt, source: str) -> tuple[Message, ...]:
    """The turns of a text or a conversation. Raises RecipeError if it is neither, and DataError for a wrong turn."""
    if isinstance(prompt, str):
        return (Message("user", prompt),)
    turns = [prompt] if isinstance(prompt, Message | Mapping) else _listed(prompt, source)
    try:
        return tuple(
            turn if isinstance(turn, Message) else openai_message(turn, f"messages[{number}]")
            for number, turn in enumerate(turns)
        )
    except RowError as error:
        raise DataError(f"{error.field}: found {error.found}, expected {error.expected}", where=source) from None


@library_call()
def load(
    target: str | Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    trust_remote_code: bool = False,
    progress: bool = True,
    listener: Listener | None = None,
    model: str | None = None,
    allow_changes: str | Sequence[str] = (),
) -> Tuned:
    """Loads a run (its judged or last checkpoint), a checkpoint, an adapter folder, or a model by folder, file or name.

    Args:
        target: the run, checkpoint, adapter or model.
        device: cpu or cuda; that of the run by default.
        dtype: of the weights; that of the run by default.
        trust_remote_code: run code that comes with the model. What a run's own recipe says does not count.
        progress: show what is done, such as a download.
        listener: hears it in place of that.
        model: the base, where it is not at the place that the run or adapter names.
        allow_changes: kinds of changes of the base since the training with which it is loaded, such as ``["weights"]``.

    Raises:
        ModelError: there is no such thing, or it cannot be loaded.
        RunError: the run has no checkpoint yet, it is damaged, or its base has changed since the training.
    """
    listener, allowed = heard_by(listener, progress), allowed_kinds(allow_changes)
    found = with_base(find_target(str(target)), model)
    verify(found.checkpoint, found.run, listener)
    if found.recipe is not None:
        dtype = found.recipe.model.dtype if dtype == "auto" else dtype
        check_code(found, trust_remote_code=trust_remote_code)
    folder = base_folder(found, trust_remote_code=trust_remote_code, listener=listener)
    changes = check_base(found.run, found.recipe, folder, allowed, listener)
    device = _device(found.recipe, device, listener)
    tokenizer, added = _tokenizer(found, folder, trust_remote_code=trust_remote_code)
    template = _template(found, tokenizer, stop_ids(folder, tokenizer), listener)
    method = None
    if found.method is not None:
        found = replace(found, method=_over_files(found.method, folder))
        assert found.method is not None
        method = build(found.method, base=str(folder), device=device, added=added, start=_start(found))
    load_weights = partial(
        load_base_model,
        folder=folder,
        dtype=resolve_dtype(dtype, device, say=listener.warn),
        device=device,
        trust_remote_code=trust_remote_code,
        added=added,
    )
    base = load_weights(load_options=method.load_options() if method else {})
    loaded = method.load(base, found.checkpoint) if method and found.checkpoint else base
    rows = len(next(base.get_input_embeddings().parameters()))  # after an adapter that brings rows of its own
    refuse_unknown_tokens(template, rows, added=added, where=folder)
    return Tuned(
        found,
        folder,
        loaded.eval().requires_grad_(False),
        tokenizer=tokenizer,
        template=template,
        method=method,
        stop_ids=_stops(found, template),
        load_plain=load_weights,
        added=added,
        changes=changes,
    )


def _stops(found: ModelTarget, template: ChatTemplate) -> tuple[int, ...]:
    """The ids that end an answer; after training on raw text also the one that ends a text."""
    raw_text = found.trained is not None and found.trained.raw_text
    return tuple(dict.fromkeys((*template.stop_ids, *([template.text_end] if raw_text else []))))


def with_base(found: ModelTarget, model: str | None) -> ModelTarget:
    """The target with another base. Raises ModelError for a plain model, which has none."""
    if model is None:
        return found
    if found.checkpoint is None:
        raise ModelError(
            "a plain model has no other base",
            where=found.base,
            why=None if Path(local(found.base)).exists() else "There is no folder of this name here.",
            remedy=f"Leave --model out, or load {model} itself.",
        )
    return replace(found, base=model, revision=None, base_given=True)


def check_code(found: ModelTarget, *, trust_remote_code: bool) -> None:
    """Raises RunError if the target's own recipe asks to run the code of its base, and the user did not."""
    if found.run is not None and found.recipe is not None and not found.base_given:
        Consent(trust_remote_code).check_model(found.recipe, found.run.folder)


def base_folder(found: ModelTarget, *, trust_remote_code: bool, listener: Listener) -> Path:
    """The base's folder. Raises ModelError that says where the base is named, and how to name another."""
    try:
        return resolve(found.base, revision=found.revision, trust_remote_code=trust_remote_code, say=listener.say)
    except ModelError as error:
        if found.checkpoint is None:
            raise
        if found.base_given:
            raise ModelError(error.what, where="--model", why=error.why, remedy=error.remedy) from error
        file, key = (found.checkpoint / CONFIG_FILE, "base_model_name_or_path")
        manifest = f", and remove {MANIFEST} beside it" if has_manifest(found.checkpoint) else ""
        if found.run is not None:
            file, key, manifest = found.run.folder / "recipe.yaml", "model.path", ""
        raise ModelError(
            f"the model that was tuned cannot be found: {found.base}",
            where=f"{file}: {key}",
            why=f"{error.what[0].upper()}{error.what[1:]}. {error.why or ''}".strip(),
            remedy=f"Add --model MODEL (in Python, model=...) with the place of that model here, or correct {key} in "
            f"that file{manifest}.",
        ) from error


def _over_files(method: MethodSettings, base: Path) -> MethodSettings:
    """The method over the files of the base, which may be packed: an adapter over 4-bit files is QLoRA's."""
    return over_stored(method, read_json_object(base / CONFIG), where=base.name)[0]


def _start(found: ModelTarget) -> Path | None:
    """The run's own copy of the adapter that it continued."""
    return None if found.run is None else kept_start(found.run.folder, found.method)


def _device(recipe: Recipe | None, asked: str, listener: Listener) -> str:
    """The device that is asked for; by default that of the run, if this machine has it."""
    if recipe is None or asked != "auto":
        return resolve_device(asked)
    try:
        return resolve_device(recipe.model.device)
    except RecipeError as error:
        listener.warn(f"{error.what}; the run was trained there")
        return resolve_device("auto")


def find_target(target: str) -> ModelTarget:
    """Says what a path names. Raises ModelError if there is nothing there, RunError for a run without checkpoint."""
    try:
        what = kind(target, where="TARGET")
    except ModelError:
        refuse_damaged(Path(local(target)))  # it may have lost a file
        raise
    if what == "run":
        run = Run.open(target)
        if run.result is None:
            raise RunError(
                "This run has no checkpoint yet",
                where=target,
                why=f"Its status is: {run.status().get('status')}.",
                remedy=way_to_checkpoint(run),
            )
        return _of_run(run, run.result)
    folder = Path(local(target))
    run = Run(folder.resolve().parent.parent)
    if what in ("adapter", "model") and folder.resolve().parent.name == "checkpoints" and run.exists():
        return _of_run(run, folder)
    if what == "adapter":
        base, revision = _base_of_adapter(folder)
        return ModelTarget(base, revision, folder, LoraSettings(), trained=recorded_prompt(folder / MARK))
    return ModelTarget(target, trained=recorded_prompt(folder / MARK) if what == "model" else None)


def _of_run(run: Run, checkpoint: Path) -> ModelTarget:
    recipe = stored_recipe(run)
    trained = TrainedPrompt.of_run(recipe, run.read_json("data.json"))
    return ModelTarget(recipe.model.path, recipe.model.revision, checkpoint, recipe.method, run, recipe, trained)


def _base_of_adapter(folder: Path) -> tuple[str, str | None]:
    """What adapter_config.json names as its base model, and the revision of it."""
    path, config = folder / CONFIG_FILE, read_config_file(folder)
    base = config.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ModelError(
            "The adapter does not say which model it belongs to",
            where=str(path),
            remedy='Fill in "base_model_name_or_path" with a hub id, a folder or a bundled name.',
        )
    beside = folder / base  # as `merge --keep-adapter` writes it
    if not Path(base).is_absolute() and (beside / CONFIG).is_file():
        return str(beside), None
    return base, config.get("revision")


def _tokenizer(
    found: ModelTarget, base: Path, *, trust_remote_code: bool
) -> tuple[PreTrainedTokenizerBase, AddedTokens]:
    """A checkpoint's own tokenizer, where it has one: with its template, as it was trained.

    Where the run added tokens it is the base's tokenizer with the same tokens added, which is the same one.
    """
    model = ModelSettings(path=found.base) if found.recipe is None else found.recipe.model
    own = found.checkpoint if found.checkpoint and (found.checkpoint / "tokenizer_config.json").is_file() else None
    folder = base if own is None or model.named_tokens else own
    return tokenizer_of(folder, model.model_copy(update={"trust_remote_code": trust_remote_code}))


def _template(
    found: ModelTarget, tokenizer: PreTrainedTokenizerBase, stops: Sequence[int], listener: Listener
) -> ChatTemplate:
    if found.run is not None:
        return ChatTemplate.restore(tokenizer, found.run.read_json("template.json"), stop_ids=stops)
    settings = DataSettings(train=[SourceSettings(path="none")])  # only the template's settings matter
    return make_template(settings, tokenizer, stops, say=listener.say)
