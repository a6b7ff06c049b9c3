"""The tokenizer inside a GGUF file, rebuilt so that text is split as it was when the model was trained.

A GGUF file holds the vocabulary and the merges, but of the rule that splits text before the merges only a name
(``tokenizer.ggml.pre``). A wrong rule still yields valid ids, only other ones than in training, so an unknown name
is refused. The rules are those of llama.cpp (``llm_tokenizer_bpe`` in src/llama-vocab.cpp).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.errors import ModelError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.pre_tokenizers import PreTokenizer
    from transformers import PreTrainedTokenizerFast

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
    model = models.BPE(vocab=vocabulary, merges=merges, ignore_merges=rule in _WHOLE_WORDS_FIRST)
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
    """Vocabularies other than byte-level BPE (sentencepiece): their splitting is part of the vocabulary's kind."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).backend_tokenizer
