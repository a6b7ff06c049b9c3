"""Loads a run, a checkpoint, an adapter folder or a model to answer prompts, with the template it was trained with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tunesmith.data.chat.template import ChatTemplate
from tunesmith.data.examples.message import Message
from tunesmith.deploy.run_prompt import RunPrompt, run_prompt
from tunesmith.errors import ModelError, RecipeError, RunError
from tunesmith.methods.base import Method
from tunesmith.methods.continued_adapter import CONFIG_FILE, START_FOLDER, read_config_file
from tunesmith.methods.table import build
from tunesmith.model.base_model import load_base_model
from tunesmith.model.generate import Generation, generate, stream
from tunesmith.model.weights.added_tokens import AddedTokens
from tunesmith.model.weights.device import resolve_device, resolve_dtype
from tunesmith.model.weights.load import stop_ids
from tunesmith.model.weights.resolve import kind, resolve
from tunesmith.model.weights.text_side import make_template, refuse_unknown_tokens, tokenizer_of
from tunesmith.recipe.data import DataSettings, SourceSettings
from tunesmith.recipe.generation import GenerationSettings
from tunesmith.recipe.methods import AdapterSettings, LoraSettings, MethodSettings
from tunesmith.recipe.paths import local
from tunesmith.recipe.settings import ModelSettings, Recipe
from tunesmith.runs.folder import Run
from tunesmith.runs.progress import Listener, Silent
from tunesmith.runs.start_folder import stored_recipe
from tunesmith.training.attach import untuned


@dataclass(frozen=True, slots=True)
class ModelTarget:
    """What a path names: a base model, what was trained on top of it (None: nothing), and its run."""

    base: str
    revision: str | None = None
    checkpoint: Path | None = None
    method: MethodSettings | None = None
    run: Run | None = None
    recipe: Recipe | None = None


@dataclass(frozen=True, slots=True)
class Tuned:
    """A model that answers. ``model`` is in evaluation mode; ``base()`` is the untuned one.

    ``folder`` is the base's. ``stop_ids`` end an answer, ``added`` are the tokens that its recipe added, and
    ``load_plain`` loads the base without quantization; arguments of ``load_base_model`` may replace its own.
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

    @property
    def describe(self) -> str:
        """One line: what was loaded."""
        if self.target.checkpoint is None:
            return f"model {self.target.base}"
        return f"{self.target.checkpoint} on {self.target.base}"

    def run_prompt(self, *, raw: bool = False, instruction: str | None = None) -> RunPrompt:
        """What goes around a prompt. Raises RunError if the run has several instructions and none is chosen."""
        run = self.target.run
        where, sources = (self.target.base, []) if run is None else (str(run.folder), run.read_json("data.json"))
        return run_prompt(self.target.recipe, sources, where=where, raw=raw, instruction=instruction)

    def generate(
        self,
        messages: str | Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        raw: bool = False,
        instruction: str | None = None,
        **settings: Any,
    ) -> list[Generation]:
        """Answers to one prompt, ``num_return_sequences`` of them.

        Args:
            messages: the user's text, or a conversation. The run's instruction goes before the last user turn,
                and its system turn first, if the conversation has none.
            tools: definitions of tools, for the chat template.
            raw: leave the run's instruction and system turn out.
            instruction: one to use in place of the run's.
            settings: those of GenerationSettings.

        Raises:
            RunError: the run's sources have different instructions and none is chosen.
        """
        asked = GenerationSettings(**settings)
        prompt = self.prompt_ids(messages, tools=tools, raw=raw, instruction=instruction)
        return generate(self.model, self.tokenizer, [prompt], settings=asked, stop_ids=self.stop_ids)[0]

    def stream(
        self,
        messages: str | Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        raw: bool = False,
        instruction: str | None = None,
        **settings: Any,
    ) -> Iterator[str]:
        """One answer in pieces, as they are decoded. Arguments are those of ``generate``."""
        asked = GenerationSettings(**settings)
        prompt = self.prompt_ids(messages, tools=tools, raw=raw, instruction=instruction)
        return stream(self.model, self.tokenizer, prompt, settings=asked, stop_ids=self.stop_ids)

    def prompt_ids(
        self,
        messages: str | Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        raw: bool = False,
        instruction: str | None = None,
    ) -> list[int]:
        """The token ids that ``generate`` sends for these arguments: those of a training row before its answer."""
        turns = (Message("user", messages),) if isinstance(messages, str) else tuple(messages)
        framed = self.run_prompt(raw=raw, instruction=instruction).around(turns)
        return self.template.prompt_ids(framed, tuple(tools))

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


def load(
    target: str | Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    trust_remote_code: bool = False,
    listener: Listener | None = None,
) -> Tuned:
    """Loads a run (its judged or last checkpoint), a checkpoint, an adapter folder, or a model by folder, file or name.

    Raises:
        ModelError: there is no such thing, or it cannot be loaded.
        RunError: the run has no checkpoint yet.
    """
    listener = listener or Silent()
    found = find_target(str(target))
    if found.recipe is not None:
        dtype = found.recipe.model.dtype if dtype == "auto" else dtype
        trust_remote_code = trust_remote_code or found.recipe.model.trust_remote_code
    folder = resolve(found.base, revision=found.revision, trust_remote_code=trust_remote_code, say=listener.say)
    device = _device(found.recipe, device, listener)
    tokenizer, added = _tokenizer(found, folder, trust_remote_code=trust_remote_code)
    template = _template(found, tokenizer, stop_ids(folder, tokenizer), listener)
    method = None
    if found.method is not None:
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
    model = method.load(base, found.checkpoint) if method and found.checkpoint else base
    rows = len(next(base.get_input_embeddings().parameters()))  # after an adapter that brings rows of its own
    refuse_unknown_tokens(template, rows, added=added, where=folder)
    return Tuned(
        found,
        folder,
        model.eval().requires_grad_(False),
        tokenizer=tokenizer,
        template=template,
        method=method,
        stop_ids=template.stop_ids,
        load_plain=load_weights,
        added=added,
    )


def _start(found: ModelTarget) -> Path | None:
    """The run's own copy of the adapter that it continued."""
    goes_on = isinstance(found.method, AdapterSettings) and found.method.adapter_name_or_path is not None
    return found.run.folder / START_FOLDER if goes_on and found.run is not None else None


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
    what = kind(target)
    if what == "run":
        run = Run.open(target)
        if run.result is None:
            raise RunError(
                "This run has no checkpoint yet",
                where=target,
                why=f"Its status is: {run.status().get('status')}.",
                remedy="Let it train to its first save, or finish it with `tunesmith train RECIPE --resume`.",
            )
        return _of_run(run, run.result)
    folder = Path(local(target))
    run = Run(folder.resolve().parent.parent)
    if what in ("adapter", "model") and folder.resolve().parent.name == "checkpoints" and run.exists():
        return _of_run(run, folder)
    if what == "adapter":
        base, revision = _base_of_adapter(folder)
        return ModelTarget(base, revision, folder, LoraSettings())
    return ModelTarget(target)


def _of_run(run: Run, checkpoint: Path) -> ModelTarget:
    recipe = stored_recipe(run)
    return ModelTarget(recipe.model.path, recipe.model.revision, checkpoint, recipe.method, run, recipe)


def _base_of_adapter(folder: Path) -> tuple[str, str | None]:
    """What adapter_config.json names as its base model, and the revision of it."""
    path, config = folder / CONFIG_FILE, read_config_file(folder)
    base = config.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ModelError(
            "The adapter does not say which model it belongs to",
            where=str(path),
            remedy='Fill in "base_model_name_or_path".',
        )
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
