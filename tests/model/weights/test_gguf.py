"""Converting a GGUF file: the same model, the same tokens, or a refusal."""

from __future__ import annotations

import json
import resource
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.planning.test_disk_space import recipe_of, refused_early
from transformers import AutoModelForCausalLM, AutoTokenizer

from tunesmith.errors import ModelError
from tunesmith.model.weights import gguf
from tunesmith.model.weights.gguf_header import refuse_lying_header
from tunesmith.planning.disk_space import CheckpointBytes, least_checkpoint
from tunesmith.planning.model_size import model_size
from tunesmith.runs.built_folders import PROVENANCE
from tunesmith.runs.manifest import sha256_of


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def silent(text: str) -> None:
    del text


def test_converted_model_has_the_logits_of_the_original(
    write_gguf: Callable[..., Path], tiny_model_dir: Path, cache: Path
) -> None:
    folder = gguf.from_gguf(write_gguf(cache.parent / "tiny.gguf"), say=silent)
    ids = torch.tensor([[5, 6, 7, 8, 9, 10]])
    before = AutoModelForCausalLM.from_pretrained(tiny_model_dir)(ids).logits
    after = AutoModelForCausalLM.from_pretrained(folder)(ids).logits
    assert torch.equal(before, after)


@pytest.mark.parametrize(
    "method",
    ["lora", {"name": "qlora", "r": 4}, {"name": "lora", "target_modules": ["self_attn.q_proj", "up_proj"]}, "full"],
)
def test_the_least_checkpoint_is_known_before_the_conversion(
    write_gguf: Callable[..., Path], cache: Path, method: Any
) -> None:
    path = write_gguf(cache.parent / "tiny.gguf", extra={"rope_freqs.weight": np.ones(4, dtype=np.float32)})
    folder = gguf.from_gguf(path, say=silent)
    early, exact = (least_checkpoint(recipe_of(each, method=method)) for each in (path, folder))
    assert early.optimizer == exact.optimizer > 0
    assert early.weights == pytest.approx(exact.weights, abs=0 if method != "full" else 5000)  # the file has a header
    assert early.weights <= exact.weights
    path.write_bytes(path.read_bytes()[:200])
    assert least_checkpoint(recipe_of(path, method=method)) == CheckpointBytes(0, 0)


def test_what_cannot_fit_is_refused_before_a_file_is_converted(write_gguf: Callable[..., Path], tmp_path: Path) -> None:
    refused_early(str(write_gguf(tmp_path / "tiny.gguf")), "lora", tmp_path)


def test_a_conversion_writes_no_bar_of_a_library(
    write_gguf: Callable[..., Path], cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path, said = write_gguf(cache.parent / "tiny.gguf"), []
    capfd.readouterr()
    gguf.from_gguf(path, say=said.append)
    assert tuple(capfd.readouterr()) == ("", "")
    assert any(line.startswith("Converting tiny.gguf to safetensors, once") for line in said)


def test_converted_config_is_plain_and_exact(
    write_gguf: Callable[..., Path], tiny_model_dir: Path, cache: Path
) -> None:
    folder = gguf.from_gguf(write_gguf(cache.parent / "tiny.gguf"), say=silent)
    found = json.loads((folder / "config.json").read_text())
    wanted = json.loads((tiny_model_dir / "config.json").read_text())
    same = ("rms_norm_eps", "rope_parameters", "head_dim", "tie_word_embeddings", "eos_token_id", "pad_token_id")
    assert {name: found.get(name) for name in same} == {name: wanted.get(name) for name in same}
    assert found["architectures"] == ["LlamaForCausalLM"]
    assert found["dtype"] == "float32"
    assert not {"quantization_config", "_model_name_or_path", "_name_or_path"} & set(found)


def test_converted_tokenizer_keeps_special_tokens_template_and_text(
    write_gguf: Callable[..., Path], tiny_model_dir: Path, cache: Path
) -> None:
    folder = gguf.from_gguf(write_gguf(cache.parent / "tiny.gguf"), say=silent)
    original, converted = AutoTokenizer.from_pretrained(tiny_model_dir), AutoTokenizer.from_pretrained(folder)
    assert (
        converted("<|im_start|>user\nHello<|im_end|>").input_ids
        == original("<|im_start|>user\nHello<|im_end|>").input_ids
    )
    assert converted.chat_template == original.chat_template
    for text in ("Hello world", "  two\n\n lines ", "don't , do . that ?", "日本語 🙂 e\u0301", "١٢٣ ½"):
        assert converted.decode(converted(text).input_ids) == text


def test_smollm_splits_digits_before_spaces(write_gguf: Callable[..., Path], cache: Path) -> None:
    digits = AutoTokenizer.from_pretrained(gguf.from_gguf(write_gguf(cache.parent / "a.gguf"), say=silent))
    together = AutoTokenizer.from_pretrained(
        gguf.from_gguf(write_gguf(cache.parent / "b.gguf", pre="gpt-2"), say=silent)
    )
    assert digits.backend_tokenizer.pre_tokenizer.pre_tokenize_str("in  2024")[1:] == [
        ("ĠĠ", (2, 4)), ("2", (4, 5)), ("0", (5, 6)), ("2", (6, 7)), ("4", (7, 8)),
    ]  # fmt: skip
    assert together.backend_tokenizer.pre_tokenizer.pre_tokenize_str("in  2024")[1:] == [
        ("Ġ", (2, 3)), ("Ġ2024", (3, 8)),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("llama-bpe", ["Year", "Ġ", "202", "4", "'S", "Ġfun"]),
        ("qwen2", ["Year", "Ġ", "2", "0", "2", "4", "'S", "Ġfun"]),
        ("tekken", ["Year", "Ġ", "2", "0", "2", "4", "'S", "Ġfun"]),
        ("gpt-4o", ["Year", "Ġ", "202", "4", "'S", "Ġfun"]),
    ],
)
def test_known_rules_split_as_in_llama_cpp(pre: str, pieces: list[str]) -> None:
    from tunesmith.model.weights.gguf import _pre_tokenizer

    found = _pre_tokenizer(pre, Path("x.gguf")).pre_tokenize_str("Year 2024'S fun")
    assert [piece for piece, _ in found] == pieces


def test_begin_token_is_added_only_where_the_file_says_so(write_gguf: Callable[..., Path], cache: Path) -> None:
    plain = AutoTokenizer.from_pretrained(gguf.from_gguf(write_gguf(cache.parent / "a.gguf"), say=silent))
    path = write_gguf(cache.parent / "b.gguf", add_bos_token=True)
    begins = AutoTokenizer.from_pretrained(gguf.from_gguf(path, say=silent))
    assert begins("Hello").input_ids == [begins.bos_token_id, *plain("Hello").input_ids]


@pytest.mark.parametrize("pre", ["tomorrows-rule", None])
def test_unknown_splitting_rule_is_refused(write_gguf: Callable[..., Path], cache: Path, pre: str | None) -> None:
    with pytest.raises(ModelError, match="splits text by a rule that is not known"):
        gguf.from_gguf(write_gguf(cache.parent / "tiny.gguf", pre=pre), say=silent)


def test_scaled_rotary_frequencies_are_refused(write_gguf: Callable[..., Path], cache: Path) -> None:
    path = write_gguf(cache.parent / "tiny.gguf", extra={"rope_freqs.weight": np.array([1, 8], dtype=np.float32)})
    with pytest.raises(ModelError, match="rotary frequencies are scaled"):
        gguf.from_gguf(path, say=silent)


def test_a_weight_that_the_model_has_no_place_for_is_refused(write_gguf: Callable[..., Path], cache: Path) -> None:
    path = write_gguf(cache.parent / "tiny.gguf", extra={"blk.0.attn_q.bias": np.ones(64, dtype=np.float32)})
    with pytest.raises(ModelError, match="would change the model"):
        gguf.from_gguf(path, say=silent)
    assert [entry.suffix for entry in (cache / "models").iterdir()] == [".lock"]


def test_a_file_that_is_not_gguf_is_refused(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "page.gguf"
    path.write_text("<html>rate limited</html>")
    with pytest.raises(ModelError, match="not a GGUF file"):
        gguf.from_gguf(path, say=silent)


def test_a_gguf_cut_short_is_refused(write_gguf: Callable[..., Path], cache: Path) -> None:
    path = write_gguf(cache.parent / "tiny.gguf")
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(ModelError, match="cannot be read"):
        gguf.from_gguf(path, say=silent)


def test_conversion_happens_once_a_file_and_gives_the_same_bytes(write_gguf: Callable[..., Path], cache: Path) -> None:
    said: list[str] = []
    path = write_gguf(cache.parent / "tiny.gguf")
    first = gguf.from_gguf(path, say=said.append)
    digest = sha256_of(first / "model.safetensors")
    assert gguf.from_gguf(path, say=said.append) == first
    assert len(said) == 1
    provenance = json.loads((first / PROVENANCE).read_text())
    assert provenance["source_sha256"] == sha256_of(path)
    assert provenance["files"]["model.safetensors"]["sha256"] == digest
    (first / PROVENANCE).unlink()  # not whole any more: converted again
    again = gguf.from_gguf(path, say=said.append)
    assert (len(said), sha256_of(again / "model.safetensors")) == (3, digest), said  # also that it is made again


def test_the_weights_of_a_file_are_counted_without_a_conversion(
    write_gguf: Callable[..., Path], tiny_model_dir: Path, cache: Path
) -> None:
    path = write_gguf(cache.parent / "tiny.gguf")
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    found = model_size(str(path))
    assert (found.parameters, found.basis) == (
        sum(weight.numel() for weight in model.parameters()),
        "the file's weights",
    )
    assert not cache.exists()
    path.write_bytes(b"no GGUF")
    assert model_size(str(path)).parameters is None


def lying(*, fields: int = 1, tensors: int = 0, body: bytes = b"", key: bytes = b"k") -> bytes:
    head = struct.pack("<4sIQQ", b"GGUF", 3, tensors, fields)
    return head + struct.pack("<Q", len(key)) + key + body


LIES = {
    "a list of 2**40 values": lying(body=struct.pack("<IIQ", 9, 0, 2**40) + b"\0" * 24),
    "a list of 2**40 texts": lying(body=struct.pack("<IIQ", 9, 8, 2**40) + b"\0" * 24),
    "lists in lists": lying(body=struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 50_000),
    "a long list of empty texts": lying(body=struct.pack("<IIQ", 9, 8, 5_000_000) + b"\0" * 40_000_000),
    "a text of 2**60 characters": lying(body=struct.pack("<IQ", 8, 2**60)),
    "2**60 keys": lying(fields=2**60),
    "2**60 tensors": lying(fields=0, tensors=2**60),
    "a name of 2**63 characters": struct.pack("<4sIQQQ", b"GGUF", 3, 0, 1, 2**63),
    "a value of an unknown type": lying(body=struct.pack("<I", 77)),
    "a tensor of 2**32 dimensions": lying(fields=0, tensors=1, body=struct.pack("<I", 2**32 - 1) + b"\0" * 40),
    "a tensor of 2**62 weights": lying(fields=0, tensors=1, body=struct.pack("<IQIQ", 1, 2**62, 0, 0)),
    "a tensor whose size overflows": lying(fields=0, tensors=1, body=struct.pack("<IQQIQ", 2, 2**33, 2**33, 0, 0)),
    "a tensor far away": lying(fields=0, tensors=1, body=struct.pack("<IQIQ", 1, 1, 0, 2**60)),
    "nothing behind the magic": b"GGUF",
    "the other order of bytes": struct.pack(">4sIQQ", b"GGUF", 3, 2**40, 2**40),
}


@pytest.mark.parametrize("content", LIES.values(), ids=LIES)
def test_a_header_that_lies_is_refused_at_once(tmp_path: Path, cache: Path, content: bytes) -> None:
    path = tmp_path / "lying.gguf"
    path.write_bytes(content)
    for act in (lambda: gguf.parameters_in(path), lambda: gguf.from_gguf(path, say=silent)):
        before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        with pytest.raises(ModelError, match="cannot be read") as caught:
            act()
        assert caught.value.remedy == "fetch the file again."
        assert time.process_time() - began < 3
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


def test_a_header_of_a_real_file_is_passed_whole(write_gguf: Callable[..., Path], tmp_path: Path) -> None:
    refuse_lying_header(write_gguf(tmp_path / "tiny.gguf"))
    path = tmp_path / "cut.gguf"
    path.write_bytes((tmp_path / "tiny.gguf").read_bytes()[:-40])
    with pytest.raises(ValueError, match="A tensor ends behind"):
        refuse_lying_header(path)
