"""Fixtures that many tests share: a tiny random model on disk, and the bundled model where it is in the cache."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from tests.bare_install import EXTRAS, missing

from tunesmith.errors import TunesmithError, pip_install
from tunesmith.runs.cache import cache_dir

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# A background job of a shell ignores Ctrl-C, and one below `nohup` SIGHUP; so would every process that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXTS = [
    "Translate English to French. Hello, how are you? Bonjour, comment allez-vous?",
    "system user assistant You are a helpful assistant. What is the capital of France? Paris.",
    '{"number": "INV-2024", "date": "2024-03-01", "amount": "12.50", "currency": "EUR"}',
]


def build_tokenizer(folder: Path) -> None:
    """A byte-level BPE with ChatML and, like the bundled model, a pad token that is the end-of-turn token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
    )
    fast.chat_template = CHATML
    fast.save_pretrained(folder)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Skips a test that fails because the packages of an extra are not installed, and names the extra."""
    try:
        return (yield)
    except (AssertionError, ModuleNotFoundError, TunesmithError) as error:
        named = re.findall(r"pip install 'tunesmith\[([a-z0-9]+)\]'", str(error))
        extras = [extra for extra in named if extra in EXTRAS and missing(extra)]
        if isinstance(error, ModuleNotFoundError):
            extras += [extra for extra in EXTRAS if (error.name or "").split(".")[0] in missing(extra)]
        if not extras:
            raise
        pytest.skip(f"needs {pip_install(extras[0])}")


@pytest.fixture(autouse=True)
def _ctrl_c() -> Iterator[None]:
    """The command line leaves Ctrl-C to the system once its work is done. The process of the tests goes on."""
    yield
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _as_in_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """No width of a screen, which some libraries leave in the environment."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What tests make stays out of the user's cache; the models in it are still found, and a fetched one is kept."""
    folder = tmp_path_factory.mktemp("cache")
    for name in ("models", "downloads"):
        kept = cache_dir() / name
        kept.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(kept)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNESMITH_CACHE", str(folder))
        yield


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random two-layer llama in fp32, its config, generation_config and ChatML tokenizer."""
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny-llama")
    build_tokenizer(folder)
    config = LlamaConfig(
        vocab_size=400,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=2)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def smollm2_dir() -> Path:
    """The bundled model's folder; the test is skipped where it can neither be found nor fetched."""
    from tunesmith.errors import ModelError
    from tunesmith.model.weights.resolve import resolve

    try:
        return Path(resolve("smollm2-135m-instruct"))
    except ModelError as error:
        pytest.skip(f"the bundled model is not at hand: {error.what}")
