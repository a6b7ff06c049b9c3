"""Loads a model folder: its config, its tokenizer, and its weights on a device."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tunesmith.data.chat.tokenizing import is_panic
from tunesmith.errors import ModelError, pip_install, ran_out
from tunesmith.model.weights.foreign_files import (
    refuse_adapter_in,
    refuse_code,
    refuse_impossible_sizes,
    refuse_pickles,
    refuse_unfilled_sizes,
)
from tunesmith.model.weights.foreign_tokenizer import refuse_odd_tokenizer
from tunesmith.model.weights.slow_regex import UNQUANTIZED, refuse_slow_patterns
from tunesmith.model.weights.weight_files import weight_bytes, weight_files
from tunesmith.runs.disk import system_errors

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

CONFIG = "config.json"
MOST_SETTINGS = 2**26  # bytes of a JSON file with settings
_PROBE = "Hello, World 123! \u00e9\u00df \u6f22\u5b57 \U0001f600\n\tx"  # shows a damaged tokenizer at once
_REPACKED, _BLOCK = 32, 64  # outputs that bitsandbytes repacks together, and weights with one constant
_NO_TOKENIZER = "the tokenizer cannot be loaded"
_CODE_REMEDY = (
    "read that code; if you trust it, add --trust-remote-code, or set model.trust_remote_code: true in your recipe."
)
_OTHER_TASK = re.compile(r"MaskedLM|Classification|QuestionAnswering|MultipleChoice|PreTraining|Reward")


def read_json_object(file: Path) -> dict[str, Any]:
    """A JSON file of a model folder. Raises ModelError if it cannot be read or is not an object."""
    try:
        if file.stat().st_size > MOST_SETTINGS:
            raise ModelError(
                "the file is too large for settings", where=str(file), why=f"{MOST_SETTINGS:,} bytes are read"
            )
        found = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError("the file cannot be read", where=str(file), why=str(error)) from error
    except (ValueError, RecursionError) as error:
        raise ModelError("the file is not valid JSON", where=str(file), why=str(error)) from error
    if not isinstance(found, dict):
        raise ModelError("the file is not a JSON object", where=str(file))
    return found


def load_config(folder: Path, *, trust_remote_code: bool = False) -> PretrainedConfig:
    """The config of a model folder as transformers has it, every default filled in.

    Raises:
        ModelError: it is not one of a causal language model, or transformers cannot read it.
    """
    from transformers import AutoConfig

    check_config(folder, trust_remote_code=trust_remote_code)
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError, TypeError) as error:
        raise ModelError(
            "the config cannot be used",
            where=str(folder / CONFIG),
            why="\n".join(str(error).strip().splitlines()[:6]),
            remedy="fetch the model again, or update transformers.",
        ) from error


def check_config(folder: Path, *, trust_remote_code: bool = False) -> None:
    """Refuses a folder that is not a causal language model which transformers knows, before any weight is read.

    Raises:
        ModelError: ``config.json`` names another kind of model, or one that only the folder's own code can build.
    """
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

    file = folder / CONFIG
    if not file.is_file():
        raise ModelError("there is no config.json, so this is no model folder", where=str(folder))
    config = read_json_object(file)
    refuse_code(config, file, trust_remote_code=trust_remote_code)
    refuse_impossible_sizes(config, file)
    model_type = str(config.get("model_type"))
    if model_type not in CONFIG_MAPPING:
        if not trust_remote_code:
            raise _unknown_architecture(model_type, file, has_code="auto_map" in config)
        return
    made_for = " ".join(config.get("architectures") or [model_type])
    other = config.get("is_encoder_decoder") or CONFIG_MAPPING[model_type] not in MODEL_FOR_CAUSAL_LM_MAPPING
    if other or _OTHER_TASK.search(made_for):
        raise ModelError(
            f"{made_for} is not a causal language model",
            where=str(file),
            why="Only models that predict the next token are trained here: no encoders, encoder-decoders, classifiers.",
            remedy="use a model whose page says text-generation.",
        )


def _unknown_architecture(model_type: str, file: Path, *, has_code: bool) -> ModelError:
    if has_code:
        return ModelError(
            "this model needs program code that comes with it",
            where=str(file),
            why=f"model_type {model_type!r} is not part of transformers; auto_map names Python files in the folder.",
            remedy=_CODE_REMEDY,
        )
    return ModelError(f"this architecture is not known: {model_type!r}", where=str(file), remedy="update transformers.")


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of ``folder``, with padding on the left (for generation) and a pad token.

    A tokenizer without a pad token pads with its end-of-text token; no token is added. What is supervised is decided
    by position (``Encoded.supervised``), never by comparing with the pad token, so the two may be the same.

    Raises:
        ModelError: there is no tokenizer, it needs the folder's own code, or it has neither a pad nor an end token.
    """
    from transformers import AutoTokenizer

    from tunesmith.model.weights.tokenizer_files import unreadable_tokenizer

    refuse_odd_tokenizer(folder)
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(
                folder, trust_remote_code=trust_remote_code, local_files_only=True, padding_side="left"
            )
            with suppress(Exception):  # of a tokenizer that knows no such characters: their rows say so
                tokenizer(_PROBE)
    except Exception as error:  # the tokenizers library raises a plain Exception for a file that it cannot read
        raise unreadable_tokenizer(folder, error) or _not_loaded(folder, _NO_TOKENIZER, error) from error
    except BaseException as error:
        if not is_panic(error):
            raise
        raise _not_loaded(folder, _NO_TOKENIZER, RuntimeError(str(error))) from error
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ModelError(
                "the tokenizer has neither a pad nor an end-of-text token",
                where=str(folder / "tokenizer_config.json"),
                remedy='name one there, as "pad_token".',
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes the tokenizer with its chat template, readable by transformers 4 and serving software too.

    transformers 5 names its own class in ``tokenizer_config.json``, which no other version knows; the files are those
    of PreTrainedTokenizerFast, so that name is written. Its list of further special tokens has a name under which
    transformers 4 expects a mapping, so it is written by the name that both read.
    """
    with quiet_transformers(), system_errors():
        tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    settings = read_json_object(path)
    made = dict(settings)
    if settings.get("tokenizer_class") == "TokenizersBackend":
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(settings.get("extra_special_tokens"), list):
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
    if settings != made:
        path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def load_model(
    folder: Path,
    *,
    dtype: torch.dtype,
    device: str,
    trust_remote_code: bool = False,
    load_options: Mapping[str, Any] | None = None,
) -> PreTrainedModel:
    """The weights of ``folder`` (safetensors only) on ``device``, in evaluation mode.

    Loading uses no random numbers: a weight that the files lack is an error, it is never drawn.

    Args:
        load_options: what a method adds to ``from_pretrained``, such as ``quantization_config``.

    Raises:
        ModelError: not a causal language model, damaged, incomplete, or in need of the folder's own code.
    """
    from transformers import AutoModelForCausalLM

    check_config(folder, trust_remote_code=trust_remote_code)
    refuse_pickles(folder)
    refuse_adapter_in(folder)
    refuse_unfilled_sizes(read_json_object(folder / CONFIG), folder)
    options: dict[str, Any] = {
        "dtype": dtype,
        "use_safetensors": True,
        "local_files_only": True,
        "trust_remote_code": trust_remote_code,
        **(load_options or {}),
    }
    _refuse_slow_names(folder, options)
    if "quantization_config" in options:
        options.setdefault("device_map", {"": device})  # quantized weights are made where they stay
    with quiet_transformers(), _load_errors(folder, device):
        loaded = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **options)
        model, report = cast("tuple[PreTrainedModel, dict[str, Any]]", loaded)
        if "device_map" not in options:
            model.to(device)  # pyright: ignore[reportArgumentType]
    _check_report(report, folder)
    _check_finite(model, folder, quantized="quantization_config" in options)
    if "quantization_config" in options:
        _own_memory(model)
    _unpack_odd_layers(model)
    text = model.config.get_text_config()
    if getattr(text, "output_router_logits", False):
        text.output_router_logits = False  # nobody reads them, and transformers cannot generate while it collects them
    return model.eval()


def _refuse_slow_names(folder: Path, options: Mapping[str, Any]) -> None:
    """Refuses regular expressions for the modules that stay unquantized which do not end on the names of this model.

    The config of a quantized model has some, and the method may give others.
    """
    stored = read_json_object(folder / CONFIG).get("quantization_config")
    given = options.get("quantization_config")
    found = [(f"{folder / CONFIG}: quantization_config.", stored if isinstance(stored, Mapping) else {})]
    found += [] if given is None else [("method.", given.to_dict())]
    remedy = "Write the last parts of the names as a list there, such as [q_proj, down_proj]."
    for where, config in found:
        asked = {key: config[key] for key in UNQUANTIZED if config.get(key) is not None}
        for key, value in asked.items():
            if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
                raise ModelError(
                    "it is no list of names", where=f"{where}{key}", why=f"Found {str(value)[:80]}.", remedy=remedy
                )
        refuse_slow_patterns(asked, _module_names(folder, options), where, remedy=remedy)


def _module_names(folder: Path, options: Mapping[str, Any]) -> Iterator[str]:
    """The names of the modules of a model, which is built without weights once they are asked for."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    code = options["trust_remote_code"]
    with quiet_transformers(), _load_errors(folder, "meta"), torch.device("meta"):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=code)
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=code)
    yield from (name for name, _ in model.named_modules() if name)


def _own_memory(model: PreTrainedModel) -> None:
    """Copies the weights that were not quantized, because one embedding would keep the whole file mapped."""
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.device.type == "cpu" and tensor.is_floating_point():
            tensor.data = tensor.data.clone()


def _unpack_odd_layers(model: PreTrainedModel) -> None:
    """Lets 4-bit layers compute with their dequantized weights where bitsandbytes cannot repack them for a CPU.

    On a CPU with AVX512-BF16 it repacks each layer in its first pass in evaluation mode, and raises an error unless the
    outputs are a multiple of 32 and the inputs one of the block size (``functional._convert_weight_packed_for_cpu``).
    """
    for module in model.modules():
        if type(module).__name__ == "Linear4bit":
            layer = cast("Any", module)
            block = getattr(layer.weight.quant_state, "blocksize", _BLOCK)
            if layer.out_features % _REPACKED or layer.in_features % block:
                layer.support_avx512bf16_for_cpu = False


def stop_ids(folder: Path, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The ids that generation stops on: ``generation_config``'s, else the config's, else the tokenizer's end token.

    Raises:
        ModelError: none of them names one.
    """
    files = [folder / name for name in ("generation_config.json", CONFIG)]
    found = [read_json_object(file).get("eos_token_id") for file in files if file.is_file()]
    for value in [*found, tokenizer.eos_token_id]:
        if value is not None and value != []:
            return tuple(value) if isinstance(value, list) else (int(value),)
    raise ModelError(
        "nothing says on which token generation stops",
        where=str(folder),
        remedy='name it in generation_config.json, as "eos_token_id".',
    )


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Inside, transformers writes no warnings and no progress bars. What matters becomes a ModelError."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def _load_errors(folder: Path, device: str) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, KeyError, ImportError, AttributeError, SafetensorError) as error:
        if ran_out(error):
            raise _too_large(folder, device, error) from error
        raise _not_loaded(folder, "the model cannot be loaded", error) from error
    except (MemoryError, RuntimeError) as error:
        if ran_out(error):
            raise _too_large(folder, device, error) from error
        if "mismatch" not in str(error):
            raise
        raise _not_loaded(folder, "the weights do not fit config.json", error) from error


def _too_large(folder: Path, device: str, error: BaseException) -> ModelError:
    files = weight_bytes(folder)
    return ModelError(
        f"the model does not fit into the memory of {device}",
        where=str(folder),
        why=f"Its weights are {files / 2**30:.1f} GB on the disk. {''.join(str(error).splitlines()[:1])}".strip(),
        remedy="use a smaller model, or method qlora.",
    )


def _check_report(report: Mapping[str, Any], folder: Path) -> None:
    names = sorted([*report["missing_keys"], *(str(key) for key in report["mismatched_keys"])])
    if names:
        raise ModelError(
            "the files lack weights that the model needs",
            where=str(folder),
            why=f"{len(names)} missing: {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}",
            remedy="fetch the model again; a model made for another task (classification, embedding) has no "
            "language-model head and cannot be used.",
        )


def _check_finite(model: PreTrainedModel, folder: Path, *, quantized: bool) -> None:
    """Refuses weights with infinite values or NaN. Of a model that is quantized now, the files are read: codes hide it.

    Raises:
        ModelError: it names the tensors.
    """
    import torch
    from safetensors import safe_open

    from tunesmith.model.weights.finite import refuse_not_finite

    half = any(own.dtype is torch.float16 for own in model.parameters())
    wider = "; float16 has no room above 65504, so use model.dtype: float32 or bfloat16" if half else ""
    remedy = f"fetch the model again{wider}."
    refuse_not_finite(dict(model.named_parameters()), where=folder, remedy=remedy)
    for file in weight_files(folder) if quantized else ():
        with safe_open(file, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118
                refuse_not_finite({name: stored.get_tensor(name)}, where=file, remedy=remedy)


def _not_loaded(folder: Path, what: str, error: Exception) -> ModelError:
    text = str(error).strip() or type(error).__name__
    if "trust_remote_code" in text:
        return ModelError(what, where=str(folder), why="It needs Python code of its folder.", remedy=_CODE_REMEDY)
    first = "\n".join(text.splitlines()[:6])
    if isinstance(error, ImportError) and "bitsandbytes" in text:
        why = f"Its weights are stored in few bits, which bitsandbytes reads: {first}"
        return ModelError(
            what,
            where=str(folder),
            why=why,
            remedy=f"{pip_install('8bit')}, or take the model as it was before it was quantized.",
        )
    return ModelError(what, where=str(folder), why=first, remedy="fetch the model again, or update transformers.")
