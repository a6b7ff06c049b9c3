"""A factory of small tokenizers for the tests of templates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

TokenizerFactory = Callable[..., object]
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEXTS = ["user assistant system model hello world the answer is two and four think", "a]b a]b ]b\n\n]b\n\n"]


@pytest.fixture(scope="session")
def make_tokenizer() -> TokenizerFactory:
    """make(template, special, bos=, eos=, added=, kind=): a fast tokenizer with these control tokens.

    kind: "bytes" (byte-level BPE with the split of Llama 3), "gpt2" (with that of GPT-2, to which two newlines are one
    token at the end of a text and two tokens inside), "joining" (without a split, so that tokens join across the end of
    a prompt), "metaspace" (SentencePiece-like: a space before every text, bytes as fallback).
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    def metaspace() -> Tokenizer:
        pieces = [
            "▁",
            *"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,!?'[]/<>|_+=",
            "▁t",
            "▁th",
            "▁the",
        ]
        tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
        vocabulary = {token: number for number, token in enumerate(tokens)}
        merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e")]
        model = models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
        tokenizer = Tokenizer(model)
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        tokenizer.decoder = decoders.Sequence(steps)
        return tokenizer

    def byte_level(kind: str) -> Tokenizer:
        tokenizer = Tokenizer(models.BPE())
        steps: list[Any] = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind == "gpt2")]
        if kind == "bytes":
            steps.insert(0, pre_tokenizers.Split(Regex(LLAMA3), "isolated"))
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=330, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        )
        tokenizer.train_from_iterator(TEXTS * 3, trainer)
        return tokenizer

    def make(
        template: str | dict[str, str] | None,
        special: Sequence[str | AddedToken] = (),
        *,
        bos: str = "<B>",
        eos: str = "<E>",
        added: Sequence[str] = (),
        kind: str = "bytes",
    ) -> object:
        tokenizer = metaspace() if kind == "metaspace" else byte_level(kind)
        tokenizer.add_special_tokens(list(dict.fromkeys([bos, eos, *special])))
        tokenizer.add_tokens([AddedToken(token, normalized=False) for token in added])
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, pad_token=eos)
        fast.chat_template = template
        return fast

    return make
