"""LoRA (arXiv:2106.09685) with PEFT, which gives the layers, their variants and the file format."""

from __future__ import annotations

import copy
import json
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    PeftModelForCausalLM,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.tuners.lora.layer import Embedding as LoraEmbedding
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunesmith.data.batches.layout import TokenRow
from tunesmith.errors import ModelError
from tunesmith.methods import init_eva
from tunesmith.methods.base import SAME_RATE, Method, Origin, exchanged, on_cpu, parameter_groups
from tunesmith.methods.continued_adapter import CONFIG_FILE, WEIGHTS_FILE, read_config_file
from tunesmith.methods.fused_lora import fuse_adapters
from tunesmith.methods.init_residual import apart, as_plain, plain_config, rewrites_base, take_out
from tunesmith.methods.lora_config import (
    adapter_config,
    linear_names,
    refuse_slow_names,
    refuse_unmatched_names,
    refuse_unmatched_patterns,
)
from tunesmith.methods.token_rows import fuse_token_rows, token_rows
from tunesmith.model.modes import kept_modes, seeded
from tunesmith.model.weights.added_tokens import grow_to
from tunesmith.model.weights.finite import ANOTHER, refuse_not_finite
from tunesmith.recipe.methods import AdapterSettings

_ROWS = ".token_adapter.trainable_tokens_delta"  # the end of its names of rows that train alone
_WHOLE = ".modules_to_save."  # in PEFT's names of modules that train whole
# Initialisations of adapters made elsewhere by which PEFT changes base weights.
_REWRITTEN_BY_OTHERS = ("corda", "loftq", "lora_ga")


class Lora(Method):
    """Low-rank updates beside frozen weights. Adapter weights are float32 whatever the base is held in.

    PiSSA and OLoRA take the adapter out of the base (``init_residual``). In memory the base then holds residuals, and
    a copy of each adapted weight for ``reference``; ``state``, and so what is saved, is plain LoRA of twice the rank
    over the base as it was. ``load`` with the run's own settings takes that apart again, bit for bit.
    """

    name = "lora"

    def __init__(self, settings: AdapterSettings, origin: Origin) -> None:
        self.settings = settings
        self.origin = origin
        self._config: PeftConfig | None = None
        # PEFT trains biases, and some initialisations rewrite weights, in place: what they were, for `reference`.
        self._replaced: WeakKeyDictionary[nn.Module, list[tuple[Tensor, Tensor]]] = WeakKeyDictionary()
        self._begun: WeakKeyDictionary[nn.Module, dict[str, Tensor]] = WeakKeyDictionary()  # A0 and B0 of residuals
        # The weights, on the CPU, of the adapter that a model continues.
        self._starts: WeakKeyDictionary[nn.Module, dict[str, Tensor]] = WeakKeyDictionary()
        # What an adapter made elsewhere brings beside what it trains: an embedding that was resized.
        self._brought: WeakKeyDictionary[nn.Module, dict[str, Tensor]] = WeakKeyDictionary()

    def attach(self, model: PreTrainedModel, batches: Iterable[Iterable[TokenRow]] | None = None) -> PeftModel:
        """Freezes the model and adds adapters drawn from the seed alone; step zero equals the base.

        Where an adapter is to be continued, it is that one, and step zero equals the base with it.

        Args:
            batches: rows of each optimizer step in order; only eva reads them.

        Raises:
            ModelError: a setting names modules that the model does not have, or that PEFT cannot adapt.
        """
        if self.origin.start is not None:
            return self._started(model, self.origin.start)
        if self.settings.init_lora_weights == "eva" and batches is None:
            raise ModelError("eva begins from rows, and there are none here", where="method.init_lora_weights")
        refuse_slow_names(vars(self.settings), model, "method.")
        config = self._own_config(model)
        refuse_unmatched_names(self.settings, model)
        config.trainable_token_indices = token_rows(self.settings, model, self.origin.added.ids)
        linears = linear_names(model)
        try:
            adapted = self._wrap(model, config, rows=batches)
        except ValueError as error:
            raise ModelError(
                "the adapter does not fit this model",
                where="method",
                why=str(error),
                remedy=f"linear modules of this model: {', '.join(linears)}",
            ) from error
        refuse_unmatched_patterns(self.settings, adapted)
        return adapted

    def _own_config(self, model: PreTrainedModel) -> LoraConfig:
        config = adapter_config(self.settings, model)
        config.base_model_name_or_path, config.revision = self.origin.base, self.origin.revision
        return config

    def _started(self, model: PreTrainedModel, start: Path) -> PeftModel:
        """Puts on the adapter to continue, whose weights are kept for ``reference``. Raises ModelError as ``load``."""
        adapted = self._load(model, start)
        assert self._config is not None
        self._config.base_model_name_or_path, self._config.revision = self.origin.base, self.origin.revision
        self._starts[adapted] = on_cpu(self._trained_weights(adapted))
        return adapted

    def _prepare_base(self, model: PreTrainedModel, config: PeftConfig) -> None:
        """Makes the base ready for adapters. Raises ModelError where the configuration does not fit it."""

    def _wrap(
        self,
        model: PreTrainedModel,
        config: PeftConfig,
        *,
        begun: dict[str, Tensor] | None = None,
        rows: Iterable[Iterable[TokenRow]] | None = None,
    ) -> PeftModel:
        """Adds PEFT's layers and gives them their first values.

        Args:
            begun: A0 and B0 of a run that is resumed and whose adapter was taken out of the base.
            rows: the rows of each optimizer step of a new run.
        """
        self._prepare_base(model, config)
        before = [(live, live.detach().clone()) for live in _changed_in_place(model, config)]
        mode, init = model.training, getattr(config, "init_lora_weights", True)
        taken_out = rewrites_base(init)
        if taken_out:
            config = copy.deepcopy(config)
            config.init_lora_weights = True  # type: ignore[attr-defined]
        with seeded(self.origin.seed, model.device):
            adapted = PeftModelForCausalLM(model, config, autocast_adapter_dtype=True)
            if taken_out:
                replaced, self._begun[adapted] = take_out(adapted, str(init), begun)
                before += replaced
            if init == "eva" and rows is not None:
                init_eva.begin(adapted, rows)
        self._replaced[adapted] = before
        self._config = plain_config(config) if taken_out else config  # type: ignore[arg-type]
        fuse_adapters(adapted)
        fuse_token_rows(adapted)
        return adapted.train(mode)

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """See ``base.parameter_groups``; under LoRA+ as PEFT's ``create_loraplus_optimizer`` groups them."""
        ratio = self.settings.loraplus_lr_ratio
        if ratio is None:
            return parameter_groups(model)
        embeddings = {
            id(own)
            for module in model.modules()
            if isinstance(module, LoraEmbedding)
            for held in (module.lora_embedding_A, module.lora_embedding_B)
            for own in held.parameters()
        }

        def rate_of(name: str, parameter: nn.Parameter) -> Mapping[str, float]:
            if id(parameter) in embeddings:
                return {"learning_rate": self.settings.loraplus_lr_embedding}
            return {"lr_ratio": ratio} if "lora_B" in name or parameter.ndim == 1 else SAME_RATE

        return parameter_groups(model, rate_of)

    @contextmanager
    def reference(self, model: nn.Module) -> Iterator[nn.Module]:
        """Inside, adapters are off, and modules_to_save and weights that were changed in place are as they were.

        A model that continues an adapter has that adapter's weights in place of the trained ones.
        """
        assert isinstance(model, PeftModel)
        with ExitStack() as stack:
            stack.enter_context(kept_modes(model))
            start = self._starts.get(model)
            if start is not None:
                live = adapter_weights(model, parameters=True)
                stack.enter_context(exchanged([(live[name], tensor) for name, tensor in start.items()]))
                yield model
                return
            stack.enter_context(exchanged(self._replaced.get(model, [])))
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Careful, disabling adapter layers with bias")
                stack.enter_context(model.disable_adapter())
            yield model

    def state(self, model: nn.Module) -> dict[str, Tensor]:
        """The active adapter by the names of PEFT's files; of the embeddings only what the adapter itself brought."""
        return on_cpu(self._plain_weights(model))

    def _plain_weights(self, model: nn.Module) -> dict[str, Tensor]:
        """The adapter's tensors as they fit the base that was loaded."""
        return {**self._trained_weights(model), **self._brought.get(model, {})}

    def _trained_weights(self, model: nn.Module) -> dict[str, Tensor]:
        return as_plain(adapter_weights(model), self._begun.get(model, {}))

    def save(self, state: dict[str, Tensor], to: Path) -> None:
        """Writes adapter_model.safetensors and adapter_config.json as PEFT does, but with every list in order."""
        assert self._config is not None, "save before attach or load"
        to.mkdir(parents=True, exist_ok=True)
        save_file(state, to / WEIGHTS_FILE, metadata={"format": "pt"})
        values = {**self._config.to_dict(), "inference_mode": True}
        text = json.dumps(values, indent=2, sort_keys=True, default=sorted)  # PEFT keeps module names in sets
        (to / CONFIG_FILE).write_text(text, encoding="utf-8")

    def load(self, model: PreTrainedModel, path: Path) -> PeftModel:
        """Puts an adapter folder, ours or another PEFT adapter, onto an untuned model.

        The adapter trains, except prompts, which PEFT can only run.

        Raises:
            ModelError: there is no adapter, it is not in safetensors, or it does not fit this model.
        """
        if self.origin.start is None:
            return self._load(model, path)
        adapted = self._started(model, self.origin.start)
        with _fitting(path):
            _put_weights(adapted, _read_adapter(path))
        return adapted

    def _load(self, model: PreTrainedModel, path: Path) -> PeftModel:
        weights, begun = _read_adapter(path), None
        asked = read_config_file(path)  # which refuses what PEFT would do for it
        refuse_slow_names(asked, model, f"{path / CONFIG_FILE}: ")
        with _fitting(path):
            config = PeftConfig.from_pretrained(str(path))
            config.inference_mode = config.is_prompt_learning
            _grow_embeddings(model, weights, config)
            if self.settings.rewrites_base:  # a checkpoint of this run: its configuration is that of the plain form
                refuse_slow_names(vars(self.settings), model, "method.")
                weights, begun = apart(weights)
                own = self._own_config(model)
                own.trainable_token_indices = getattr(config, "trainable_token_indices", None)
                config = own
            elif rewrites_base(getattr(config, "init_lora_weights", True)):
                weights, config = self._as_plain(model, config, weights)
            adapted = self._wrap(model, config, begun=begun)
            _put_weights(adapted, weights)
            if not config.is_prompt_learning:
                there = adapter_weights(adapted)
                self._brought[adapted] = {key: own for key, own in weights.items() if _is_brought(key, there)}
        return adapted

    def _as_plain(
        self, model: PreTrainedModel, config: PeftConfig, weights: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], PeftConfig]:
        """Turns an adapter of another tool over a residual into one over the base: PEFT decomposes the base once."""
        assert isinstance(config, LoraConfig)
        bare = copy.deepcopy(config)
        bare.modules_to_save, bare.bias, bare.use_dora = None, "none", False
        adapted = self._wrap(model, bare)
        for live, original in self._replaced[adapted]:
            live.data = original
        tuner = adapted.base_model
        assert isinstance(tuner, BaseTuner)
        tuner.unload()
        return as_plain(weights, self._begun[adapted]), plain_config(config)

    def merge(self, model: nn.Module) -> PreTrainedModel:
        """Base plus update, in the dtype of the base, in a copy of the model. Raises ModelError over packed weights."""
        assert isinstance(model, PeftModel)
        if not all(parameter.is_floating_point() for parameter in model.parameters()):
            raise ModelError("lora cannot merge into quantized weights", remedy="use method: qlora, which can")
        return merged(copy.deepcopy(model))

    def merge_onto(self, plain: PreTrainedModel, model: nn.Module) -> PreTrainedModel:
        """Adds the adapter of ``model`` to ``plain``, other weights of the base, which is changed and returned.

        Raises:
            ModelError: the adapter does not fit them.
        """
        assert isinstance(model, PeftModel)
        weights, config = self._plain_weights(model), copy.deepcopy(model.active_peft_config)
        if model in self._begun:
            assert isinstance(config, LoraConfig)
            config = plain_config(config)
        _grow_embeddings(plain, weights, config)
        with seeded(self.origin.seed):
            adapted = PeftModelForCausalLM(plain, config)
        try:
            set_peft_model_state_dict(adapted, weights)
        except RuntimeError as error:
            raise ModelError("the adapter does not fit these weights", why=str(error)) from error
        return merged(adapted.to(plain.device))  # pyright: ignore[reportArgumentType]


def adapter_weights(model: nn.Module, *, parameters: bool = False) -> dict[str, Tensor]:
    """The adapter's tensors, not copies, by the names of PEFT's files; as parameters, or detached."""
    assert isinstance(model, PeftModel)
    assert isinstance(model.active_adapter, str), "one adapter is active at a time"
    return get_peft_model_state_dict(
        model,
        state_dict=model.state_dict(keep_vars=parameters),
        adapter_name=model.active_adapter,
        save_embedding_layers=False,
    )


def merged(adapted: PeftModel) -> PreTrainedModel:
    """Adds the adapter to the weights of this very model and removes PEFT's layers. Raises ModelError for prompts."""
    if adapted.active_peft_config.is_prompt_learning:
        raise ModelError("a prompt adapter cannot be merged", why="it adds tokens, not weights")
    tuner = adapted.base_model
    assert isinstance(tuner, BaseTuner)
    _own_shared_weights(adapted)
    plain = tuner.merge_and_unload()
    assert isinstance(plain, PreTrainedModel)
    return plain


def _own_shared_weights(adapted: PeftModel) -> None:
    """Gives adapted layers weights of their own, so that an update of a tied head does not change the embedding."""
    uses = Counter(id(parameter) for _, parameter in adapted.named_parameters(remove_duplicate=False))
    tied = {
        id(each)
        for own in adapted.modules()
        if isinstance(own, TrainableTokensLayer) and own.tied_adapter
        for each in (own, own.tied_adapter)
    }  # the same rows go into both
    for module in adapted.modules():
        if isinstance(module, BaseTunerLayer) and id(module) not in tied:
            layer = module.get_base_layer()
            for name, parameter in list(layer.named_parameters(recurse=False)):
                if uses[id(parameter)] > 1:
                    setattr(layer, name, nn.Parameter(parameter.detach().clone(), requires_grad=False))


def _changed_in_place(model: nn.Module, config: PeftConfig) -> list[Tensor]:
    """The base parameters that PEFT changes in place: trained biases, and all of them under some initialisations."""
    init = str(getattr(config, "init_lora_weights", "")).lower()
    everything, bias = init.startswith(_REWRITTEN_BY_OTHERS), getattr(config, "bias", "none") != "none"
    named = model.named_parameters()
    return [own for name, own in named if everything or (bias and name.rpartition(".")[2] == "bias")]


def _read_adapter(path: Path) -> dict[str, Tensor]:
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        if not (path / file).is_file():
            raise ModelError(
                "this is not an adapter folder",
                where=str(path),
                why=f"it has no {file}",
                remedy="put the file back, or name another checkpoint or adapter folder, with safetensors: pickled "
                "weights (.bin) are not read",
            )
    try:
        weights = load_file(path / WEIGHTS_FILE, device="cpu")
    except SafetensorError as error:
        raise ModelError("the adapter cannot be read", where=str(path / WEIGHTS_FILE), why=str(error)) from error
    refuse_not_finite(weights, where=path / WEIGHTS_FILE, remedy=ANOTHER)
    # If the embedding was resized, PEFT writes a module that trains whole twice, and reads it by its plain name.
    return {key: own for key, own in weights.items() if key.replace(_WHOLE, ".") not in weights or _WHOLE not in key}


def _is_brought(key: str, trained: Mapping[str, Tensor]) -> bool:
    """Whether a tensor of an adapter's file is neither trained nor the untrained form of a module that trains."""
    return key not in trained and "lora_" not in key and ".original_module." not in key and not key.endswith(_ROWS)


@contextmanager
def _fitting(path: Path) -> Iterator[None]:
    """Raises ModelError where PEFT cannot put the adapter in a folder onto the model."""
    try:
        yield
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ModelError(
            "the adapter does not fit this model",
            where=str(path),
            why=str(error),
            remedy=f"name the model that {CONFIG_FILE} gives as base_model_name_or_path",
        ) from error


def _put_weights(adapted: PeftModel, weights: dict[str, Tensor]) -> None:
    """Raises ValueError where they are not those of the adapter."""
    result = set_peft_model_state_dict(adapted, weights)
    if adapted.active_peft_config.is_prompt_learning:  # PEFT loads prompts apart from what the result is about
        return
    trained = {key for key, parameter in adapted.named_parameters() if parameter.requires_grad}
    missing = [key for key in result.missing_keys if key in trained]
    # PEFT writes the rows of an embedding once more for an output layer that is tied to it, and does not read them.
    rows = {key: own for key, own in weights.items() if key.endswith(_ROWS)}
    twice = {key for key in rows if sum(torch.equal(rows[key], own) for own in rows.values()) > 1}
    unknown = [key for key in result.unexpected_keys if key not in twice]
    if missing or unknown:
        raise ValueError(f"missing: {missing[:5]}, not known: {unknown[:5]}")


def rows_for_tokens(indices: Mapping[str, Sequence[int]] | Sequence[int] | None) -> int:
    """The rows that an embedding must have for PEFT's ``trainable_token_indices``."""
    each = indices.values() if isinstance(indices, Mapping) else [indices or []]
    return 1 + max((max(ids, default=-1) for ids in each), default=-1)


def _grow_embeddings(model: PreTrainedModel, weights: dict[str, Tensor], config: PeftConfig) -> None:
    """Resizes the embedding to that of an adapter made elsewhere, which may have added tokens."""
    embedding = model.get_input_embeddings()
    assert isinstance(embedding.weight, Tensor)
    name = next(key for key, module in model.named_modules() if module is embedding)
    needed = rows_for_tokens(getattr(config, "trainable_token_indices", None))
    if needed > len(embedding.weight):
        grow_to(model, needed)
    for part in ("weight", "base_layer.weight", "token_adapter.base_layer.weight"):
        key = f"base_model.model.{name}.{part}"
        if key in weights and len(weights[key]) > len(embedding.weight):
            grow_to(model, len(weights[key]))
        elif key in weights and len(weights[key]) < len(embedding.weight):
            model.resize_token_embeddings(len(weights[key]))
