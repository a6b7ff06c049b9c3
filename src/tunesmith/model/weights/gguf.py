"""Converts a GGUF file into a model folder: float32 safetensors, ``config.json`` and the tokenizer.

GGUF holds arrays and metadata only, so it cannot run code. Weights are dequantized exactly, to float32.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from contextlib import redirect_stderr
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tunesmith.data.chat.tokenizing import is_panic
from tunesmith.errors import ModelError
from tunesmith.model.weights.gguf_header import refuse_lying_header
from tunesmith.model.weights.load import quiet_transformers, save_tokenizer
from tunesmith.runs.built_folders import build_once
from tunesmith.runs.cache import Say, cache_dir, to_stderr
from tunesmith.runs.file_hashes import known_sha256

if TYPE_CHECKING:
    from gguf import GGUFReader
    from tokenizers import Tokenizer
    from tokenizers.pre_tokenizers import PreTokenizer
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


_CONVERSION = 1  # raised when the conversion changes, so that a folder of an older release is not used any more
_ORIGINAL = "use the model's original folder or hub id (safetensors) instead."

_CONTROL, _USER_DEFINED = 3, 4  # tokenizer.ggml.token_type

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD, _MARKS, _SPACES = r"[^\r\n\p{L}\p{N}]?\p{L}+", r" ?[^\s\p{L}\p{N}]+[\r\n]*", r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}{{1,3}}|{_MARKS}|{_SPACES}"
_QWEN2 = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}|{_MARKS}|{_SPACES}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
_MARKS_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_TEKKEN = rf"{_CASED[0]}|{_CASED[1]}|\p{{N}}|{_MARKS_SLASH}|{_SPACES}"
_GPT4O = rf"{_CASED[0]}{_CONTRACTIONS}?|{_CASED[1]}{_CONTRACTIONS}?|\p{{N}}{{1,3}}|{_MARKS_SLASH}|{_SPACES}"

_LISTS = {"tokenizer.ggml.tokens": str, "tokenizer.ggml.merges": str, "tokenizer.ggml.token_type": int}
_TEXTS = ("general.architecture", "tokenizer.ggml.model", "tokenizer.ggml.pre", "tokenizer.chat_template")
_IDS = tuple(f"tokenizer.ggml.{name}_token_id" for name in ("bos", "eos", "eot", "eom", "unknown", "padding"))

_GPT2_NAMES = ("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling")
_DIGIT_NAMES = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
_SPLITS = {
    **dict.fromkeys(
        ("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "dbrx", "smaug-bpe"), _LLAMA3
    ),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2", "megrez"), _QWEN2),
    **dict.fromkeys(("tekken",), _TEKKEN),
    **dict.fromkeys(("gpt-4o", "llama4"), _GPT4O),
}
_WHOLE_WORDS_FIRST = ("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "tekken")
_COMPOSED = ("qwen2", "deepseek-r1-qwen")  # their tokenizers normalize to NFC


def build_tokenizer(metadata: Mapping[str, Any], path: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of the GGUF file at ``path``, whose metadata is ``metadata``.

    Raises:
        ModelError: the file has no tokenizer, or one whose splitting rule is not known.
    """
    from transformers import PreTrainedTokenizerFast

    tokens = metadata.get("tokenizer.ggml.tokens")
    if not tokens:
        raise ModelError("the GGUF file holds no tokenizer", where=str(path), remedy="use a complete model file.")
    byte_level = metadata.get("tokenizer.ggml.model") == "gpt2"
    backend = _byte_level(metadata, path) if byte_level else _by_transformers(path)
    named = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    ids = {name: metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in named.items()}
    architecture = metadata["general.architecture"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        clean_up_tokenization_spaces=False,
        model_max_length=metadata.get(f"{architecture}.context_length", int(1e30)),
        **{name: tokens[number] for name, number in ids.items() if number is not None},
    )
    tokenizer.chat_template = metadata.get("tokenizer.chat_template")
    return tokenizer


def _byte_level(metadata: Mapping[str, Any], path: Path) -> Tokenizer:
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    rule = metadata.get("tokenizer.ggml.pre", "")
    merges = [tuple(merge.split(" ", 1)) for merge in metadata.get("tokenizer.ggml.merges", [])]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    try:
        model = models.BPE(vocab=vocabulary, merges=merges, ignore_merges=rule in _WHOLE_WORDS_FIRST)
    except Exception as error:  # the library raises no narrower class
        raise _damaged_tokenizer(path, error) from error
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = _pre_tokenizer(rule, path)
    tokenizer.decoder = decoders.ByteLevel()
    if rule in _COMPOSED:
        tokenizer.normalizer = normalizers.NFC()
    kinds = metadata.get("tokenizer.ggml.token_type", [])
    added = [(token, kind) for token, kind in zip(tokens, kinds, strict=False) if kind in (_CONTROL, _USER_DEFINED)]
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=kind == _CONTROL) for token, kind in added])
    _add_begin_and_end(tokenizer, metadata)
    return tokenizer


def _pre_tokenizer(rule: str, path: Path) -> PreTokenizer:
    from tokenizers import Regex, pre_tokenizers

    if rule in _GPT2_NAMES:
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if rule in _DIGIT_NAMES:
        first: PreTokenizer = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([first, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    if rule in _SPLITS:
        first = pre_tokenizers.Split(Regex(_SPLITS[rule]), behavior="isolated")
        return pre_tokenizers.Sequence([first, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    known = sorted([*_GPT2_NAMES, *_DIGIT_NAMES, *_SPLITS])
    raise ModelError(
        f"the GGUF file splits text by a rule that is not known here: {rule or '(none named)'}",
        where=f"{path}, tokenizer.ggml.pre",
        why=f"Another rule would give other tokens than the model was trained on. Known: {', '.join(known)}.",
        remedy="use the model's original folder or hub id (safetensors and tokenizer.json) instead.",
    )


def _add_begin_and_end(tokenizer: Tokenizer, metadata: Mapping[str, Any]) -> None:
    from tokenizers import processors

    tokens = metadata["tokenizer.ggml.tokens"]
    wanted = [name for name in ("bos", "eos") if metadata.get(f"tokenizer.ggml.add_{name}_token")]
    ids = {name: metadata[f"tokenizer.ggml.{name}_token_id"] for name in wanted}
    if ids:
        begin, end = ([tokens[ids[name]]] if name in ids else [] for name in ("bos", "eos"))
        special = [(tokens[number], number) for number in ids.values()]
        tokenizer.post_processor = processors.TemplateProcessing(single=[*begin, "$A", *end], special_tokens=special)


def _by_transformers(path: Path) -> Tokenizer:
    """The tokenizer of other vocabularies (sentencepiece), which transformers builds: their kind says how to split."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).backend_tokenizer
    except BaseException as error:
        if not (isinstance(error, Exception) or is_panic(error)):  # the library raises no narrower class
            raise
        raise _damaged_tokenizer(path, error) from error


def _damaged_tokenizer(path: Path, error: BaseException) -> ModelError:
    return ModelError(
        "the tokenizer of the GGUF file cannot be read", where=str(path), why=str(error), remedy=_ORIGINAL
    )


def from_gguf(path: Path, *, say: Say = to_stderr) -> Path:
    """The model folder of a ``.gguf`` file, converted once into the cache and found there by the file's sha256.

    Raises:
        ModelError: the file is damaged, of an unknown architecture, or would lose weights in the conversion.
    """
    check_magic(path)
    digest = known_sha256(path, say=say)
    folder = converted_folder(path.stem, digest)

    def build(to: Path) -> dict[str, object]:
        return {"source": path.name, "source_sha256": digest, **convert(path, to, say=say)}

    return build_once(folder, build, say=say)


def converted_folder(name: str, sha256: str) -> Path:
    """The cache folder of a converted model, by the hash of what it is made from. It need not exist yet."""
    return cache_dir() / "models" / f"{name}-{sha256[:16]}-v{_CONVERSION}"


def check_magic(path: Path) -> None:
    """Raises ModelError for a file that is not GGUF, whatever its name says."""
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise ModelError(
            "this is not a GGUF file",
            where=str(path),
            why=f"It begins with {magic!r} instead of b'GGUF'; a download may have been cut short.",
            remedy="fetch the file again.",
        )


def convert(path: Path, to: Path, *, say: Say = to_stderr) -> dict[str, object]:
    """Writes the model in ``path`` to the folder ``to`` and returns the facts for its provenance file."""
    reader, metadata = _read(path)
    elements = sum(int(tensor.n_elements) for tensor in reader.tensors)
    say(f"Converting {path.name} to safetensors, once ({elements * 4 / 1e9:.1f} GB of float32).")
    tokenizer = build_tokenizer(metadata, path)
    model = _load(path)
    _check_whole(model, reader, path)
    _tidy(model, metadata)
    with quiet_transformers():
        model.save_pretrained(to)
    save_tokenizer(tokenizer, to)
    return {
        "licence": metadata.get("general.license"),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dtype": "float32",
        "converted_by": {name: version(name) for name in ("transformers", "gguf", "tokenizers")},
        "format": _CONVERSION,
    }


def parameters_in(path: Path) -> int:
    """The number of weights in the file. Raises ModelError if it cannot be read, or is one part of several."""
    check_magic(path)
    reader, _ = _read(path)
    return _held(reader)


def _held(reader: GGUFReader) -> int:
    return sum(int(tensor.n_elements) for tensor in reader.tensors if not tensor.name.startswith("rope_freqs"))


def _read(path: Path) -> tuple[GGUFReader, dict[str, Any]]:
    from gguf import GGUFReader

    try:
        refuse_lying_header(path)
        reader = GGUFReader(path)
        metadata = {"split.count": 1, **{name: field.contents() for name, field in reader.fields.items()}}
        if "general.architecture" not in metadata:
            raise ValueError("It names no architecture.")
        _check_kinds(metadata)
    except (ValueError, IndexError, KeyError, OverflowError, struct.error) as error:
        raise ModelError(
            "the GGUF file cannot be read", where=str(path), why=str(error), remedy="fetch the file again."
        ) from error
    if metadata["split.count"] > 1:
        raise ModelError(
            "the GGUF file is one part of several",
            where=str(path),
            why=f"The model is split into {metadata['split.count']} files.",
            remedy="join them with llama.cpp's `gguf-split --merge` first.",
        )
    return reader, metadata


def _check_kinds(metadata: Mapping[str, Any]) -> None:
    """Raises ValueError if a key that is read here has a value of another kind than it should."""
    for key in _TEXTS:
        if not isinstance(metadata.get(key, ""), str):
            raise ValueError(f"{key} is no text.")
    for key, kind in _LISTS.items():
        found = metadata.get(key, [])
        if not isinstance(found, list) or not all(isinstance(each, kind) for each in found):
            raise ValueError(f"{key} is not what it should be.")
    if not all(" " in merge for merge in metadata.get("tokenizer.ggml.merges", [])):
        raise ValueError("A merge joins one token only.")
    tokens = len(metadata.get("tokenizer.ggml.tokens", []))
    for key in _IDS:
        number = metadata.get(key)
        if number is not None and not (isinstance(number, int) and 0 <= number < tokens):
            raise ValueError(f"{key} is {str(number)[:40]}, and there are {tokens:,} tokens.")
    for name in ("bos", "eos"):
        if metadata.get(f"tokenizer.ggml.add_{name}_token") and f"tokenizer.ggml.{name}_token_id" not in metadata:
            raise ValueError(f"tokenizer.ggml.{name}_token_id is missing.")
    for key in ("split.count", f"{metadata['general.architecture']}.context_length"):
        if not isinstance(metadata.get(key, 1), int):
            raise ValueError(f"{key} is no number.")


def _load(path: Path) -> PreTrainedModel:
    import torch
    from transformers import AutoModelForCausalLM

    try:
        # Its bar of the tensors cannot be turned off, and it writes where standard error was when it began.
        with quiet_transformers(), redirect_stderr(StringIO()):
            loaded = AutoModelForCausalLM.from_pretrained(
                path.parent, gguf_file=path.name, dtype=torch.float32, output_loading_info=True
            )
            model, report = cast("tuple[PreTrainedModel, dict[str, Any]]", loaded)
    except (ValueError, KeyError, NotImplementedError, RuntimeError) as error:
        raise ModelError(
            "this GGUF file cannot be turned into a trainable model", where=str(path), why=str(error), remedy=_ORIGINAL
        ) from error
    if report["missing_keys"]:
        raise _lost(path, f"The file has no weights for: {', '.join(sorted(report['missing_keys'])[:5])}.")
    return model


def _check_whole(model: PreTrainedModel, reader: GGUFReader, path: Path) -> None:
    """Raises ModelError if the model lacks weights of the file: transformers skips tensors that it does not know."""
    import numpy as np

    scaled = [tensor for tensor in reader.tensors if tensor.name.startswith("rope_freqs") and np.any(tensor.data != 1)]
    if scaled:
        raise _lost(path, "Its rotary frequencies are scaled (rope_freqs), which would be dropped.")
    held = _held(reader)
    loaded = sum(parameter.numel() for parameter in model.parameters())
    if held != loaded:
        raise _lost(path, f"The file holds {held:,} weights and the model made from it {loaded:,}.")


def _lost(path: Path, why: str) -> ModelError:
    return ModelError("converting this GGUF file would change the model", where=str(path), why=why, remedy=_ORIGINAL)


def _tidy(model: PreTrainedModel, metadata: Mapping[str, Any]) -> None:
    """Removes the mark of quantization, and writes the settings as the model's makers wrote them."""
    import numpy as np

    config = model.config
    of_converter = [(config, "quantization_config"), (config, "_model_name_or_path"), (config, "unk_token_id")]
    for owner, name in [*of_converter, (model, "hf_quantizer")]:
        if name in vars(owner):
            delattr(owner, name)
    for name, value in vars(config).items():
        if isinstance(value, float):
            setattr(config, name, float(str(np.float32(value))))  # 9.999999747378752e-06 was 1e-5 before float32
    ends = [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    distinct = list(dict.fromkeys(end for end in ends if end is not None))
    if len(distinct) > 1 and model.generation_config is not None:
        model.generation_config.eos_token_id = distinct
