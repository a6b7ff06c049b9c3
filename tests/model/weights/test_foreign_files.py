"""Model and adapter folders of somebody else: nothing of theirs runs, and what is refused says what to do."""

from __future__ import annotations

import json
import os
import resource
import shutil
import struct
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tunesmith.errors import ModelError, TunesmithError
from tunesmith.methods.continued_adapter import read_config_file
from tunesmith.model.weights.config_file import read_config
from tunesmith.model.weights.load import load_config, load_model, load_tokenizer
from tunesmith.model.weights.resolve import resolve
from tunesmith.workflows.first_rows import _counted

INDEX = "model.safetensors.index.json"


class Canary:
    """A pickle that writes a file when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.fixture
def folder(tiny_model_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "ran"


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values))


def load(folder: Path, **options: Any) -> Any:
    found = resolve(str(folder))
    load_tokenizer(found, **options)
    return load_model(found, dtype=torch.float32, device="cpu", **options)


def as_pickle(folder: Path, name: str, canary: Path | None) -> None:
    weights: dict[str, Any] = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    content = weights if canary is None else {**weights, "x": Canary(canary)}
    torch.save(content, folder / name)
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, name)}
    (folder / INDEX).write_text(json.dumps(index))
    save_file({"x": torch.zeros(1)}, folder / "other.safetensors")


@pytest.mark.parametrize("name", ["weights.bin", "w.pt", "model.ckpt", "a.safetensors.bin", "w.pkl", "weights"])
@pytest.mark.parametrize("harmless", [True, False])
def test_an_index_that_names_a_pickle_is_refused_and_nothing_is_opened(
    folder: Path, canary: Path, name: str, harmless: bool
) -> None:
    as_pickle(folder, name, None if harmless else canary)
    for act in (lambda: load(folder), lambda: load_model(folder, dtype=torch.float32, device="cpu")):
        with pytest.raises(ModelError, match="the weights are a pickle, which is not loaded") as caught:
            act()
        assert "save_pretrained" in str(caught.value.remedy)
    assert not canary.exists()


def test_the_way_that_the_message_names_turns_a_pickle_into_safetensors(folder: Path, tmp_path: Path) -> None:
    before = load_file(folder / "model.safetensors")
    as_pickle(folder, "weights.bin", None)
    (folder / INDEX).rename(folder / "pytorch_model.bin.index.json")
    (folder / "other.safetensors").unlink()
    with pytest.raises(ModelError, match="the weights are a pickle"):
        load(folder)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(tmp_path / "new")
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "new")
    after = load(tmp_path / "new").state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


@pytest.mark.parametrize("name", ["../model2.safetensors", "/tmp/model.safetensors", "sub/model.safetensors"])
def test_an_index_names_files_of_its_own_folder_only(folder: Path, name: str) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(weights, name)}))
    with pytest.raises(ModelError, match="outside of the model's folder"):
        load(folder)


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_an_index_that_names_no_plain_file_is_refused_before_it_is_opened(folder: Path, kind: str) -> None:
    odd = folder / "odd.safetensors"
    os.mkfifo(odd) if kind == "pipe" else odd.mkdir()
    load(folder)  # nothing names it
    (folder / "model.safetensors").unlink()
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": odd.name, "b": "x" * 300 + ".safetensors"}}))
    with pytest.raises(ModelError, match="names what is no plain file") as caught:
        load(folder)
    assert odd.name in str(caught.value.why)


def test_sizes_are_held_to_the_files_that_are_loaded(folder: Path) -> None:
    (folder / "consolidated.safetensors").write_bytes(bytes(100_000_000))  # a damaged one that nobody loads
    load(folder)
    change(folder / "config.json", vocab_size=2_000_000)
    with pytest.raises(ModelError, match="describes a larger model than its files hold"):
        load(folder)


@pytest.mark.parametrize("text", ["[", "[]", "{}", '{"weight_map": 3}', "[" * 100_000, '{"weight_map": ["a"]}'])
def test_an_index_that_is_none_is_one_message(folder: Path, text: str) -> None:
    (folder / INDEX).write_text(text)
    with pytest.raises(ModelError, match="index of the weights cannot be read"):
        load(folder)


@pytest.mark.parametrize("name", ["x.safetensors.index.json", "../x.safetensors.index.json", "model.safetensors", ""])
def test_a_config_that_names_its_weights_is_refused_and_the_remedy_works(folder: Path, canary: Path, name: str) -> None:
    as_pickle(folder, "weights.bin", canary)
    (folder / INDEX).rename(folder / "x.safetensors.index.json")
    change(folder / "config.json", transformers_weights=name)
    for act in (lambda: load_config(folder), lambda: load_model(folder, dtype=torch.float32, device="cpu")):
        with pytest.raises(ModelError, match="names the files of weights itself") as caught:
            act()
        assert "take transformers_weights out of config.json" in str(caught.value.remedy)
    change(folder / "config.json", transformers_weights=None)
    with pytest.raises(ModelError, match="the weights are a pickle"):
        load(folder)
    assert not canary.exists()


def test_weights_of_another_name_load_by_their_usual_name(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "x.safetensors")
    change(folder / "config.json", transformers_weights="x.safetensors")
    with pytest.raises(ModelError, match="names the files of weights itself"):
        load(folder)
    (folder / "x.safetensors").rename(folder / "model.safetensors")
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({key: values[key] for key in values if key != "transformers_weights"})
    )
    assert load(folder) is not None


@pytest.mark.parametrize("name", ["../model2.safetensors", "weights.bin"])
def test_an_index_of_any_name_is_checked(folder: Path, name: str) -> None:
    index = {"metadata": {}, "weight_map": {"a": name}}
    (folder / "x.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"outside of the model's folder|are a pickle"):
        load(folder)


KERNELS = {
    "attention of a hub": {"_attn_implementation": "evil/kernel"},
    "the same without the underscore": {"attn_implementation": "evil/kernel@main:run"},
    "for a part": {"_attn_implementation": {"text_config": "evil/kernel"}},
    "in a part": {"text_config": {"_attn_implementation": "evil/kernel"}},
    "the inner name": {"_attn_implementation_internal": "evil/kernel"},
    "a name that nobody knows": {"_attn_implementation": "os.system"},
    "experts of a hub": {"_experts_implementation": "evil/experts"},
    "kernels": {"use_kernels": True},
    "a table of kernels": {"kernel_config": {"RMSNorm": "evil/norm:Norm"}},
    "its own trust": {"trust_remote_code": True},
}


@pytest.mark.parametrize("values", KERNELS.values(), ids=KERNELS)
def test_a_config_that_asks_for_a_program_is_refused_and_the_remedy_works(folder: Path, values: dict[str, Any]) -> None:
    before = (folder / "config.json").read_text()
    change(folder / "config.json", **values)
    for act in (load, load_config):
        with pytest.raises(ModelError, match="the config asks for") as caught:
            act(folder)
        assert "out of config.json" in str(caught.value.remedy)
    (folder / "config.json").write_text(before)
    assert load(folder) is not None


@pytest.mark.parametrize("name", ["sdpa", "eager", None])
def test_attention_that_transformers_has_itself_may_be_named(folder: Path, name: str | None) -> None:
    change(folder / "config.json", _attn_implementation=name)
    assert load(folder) is not None


def write_code(folder: Path, canary: Path) -> None:
    for name in ("configuration_x.py", "modeling_x.py", "tokenization_x.py", "x.py", "generate.py"):
        (folder / name).write_text(f"open({str(canary)!r}, 'w').close()\n")
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(f"open({str(canary)!r}, 'w').close()\n")


@pytest.mark.parametrize(
    "auto", [{"AutoConfig": "configuration_x.C", "AutoModelForCausalLM": "modeling_x.M"}, {"AutoConfig": "o/r--x.C"}]
)
def test_code_beside_a_model_that_transformers_knows_is_left_alone(
    folder: Path, canary: Path, auto: dict[str, str]
) -> None:
    write_code(folder, canary)
    change(folder / "config.json", auto_map=auto)
    change(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_x.T", None]})
    change(folder / "generation_config.json", custom_generate="x", trust_remote_code=True)
    assert type(load(folder)).__name__ == "LlamaForCausalLM"
    assert not canary.exists()


@pytest.mark.parametrize("kind", ["MyTokenizer", "os.system", "../x.T", "tokenization_x.T"])
def test_a_tokenizer_class_that_nobody_knows_runs_nothing(folder: Path, canary: Path, kind: str) -> None:
    write_code(folder, canary)
    change(
        folder / "tokenizer_config.json",
        tokenizer_class=kind,
        auto_map={"AutoTokenizer": ["tokenization_x.T", "tokenization_x.T"]},
    )
    try:
        assert load_tokenizer(folder).encode("Paris") != []
    except ModelError as error:
        assert error.remedy
    assert not canary.exists()


def test_a_model_with_an_adapter_in_it_does_not_become_another_base(folder: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(other)}))
    with pytest.raises(ModelError, match="a model and an adapter"):
        load_model(folder, dtype=torch.float32, device="cpu")


ADAPTERS = {
    "a module to import": {"megatron_config": {"a": 1}, "megatron_core": "evil"},
    "a pickle to open": {"prompt_tuning_init_state_dict_path": "x.bin"},
    "a library of its own": {"auto_mapping": {"base_model_class": "A", "parent_library": "evil.code"}},
    "other adapters": {"peft_type": "XLORA", "adapters": {"1": "evil/adapter"}},
    "its own trust": {"trust_remote_code": True},
    "a rank that its file has not": {"r": 20_000_000},
    "the same for a module": {"rank_pattern": {"q_proj": 20_000_000}},
    "a rank that is a text": {"r": "8"},
    "a rank that is a number with a point": {"r": 2e7},
    "ranks that are a list": {"rank_pattern": [3]},
    "the mask of a rank that its file has not": {"peft_type": "ADALORA", "rank_pattern": {"q_proj": [True] * 2000}},
    "more prompts than its file has": {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 10**9},
    "more layers than its file has": {"layer_replication": [[0, 10**9]]},
    "layers that are none": {"layer_replication": [["a"]]},
}


@pytest.mark.parametrize("values", ADAPTERS.values(), ids=ADAPTERS)
def test_an_adapter_that_asks_for_more_than_weights_is_refused(tmp_path: Path, values: dict[str, Any]) -> None:
    config = {"peft_type": "LORA", "target_modules": ["q_proj"], "megatron_core": "megatron.core"}
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, **values}))
    with pytest.raises(ModelError) as caught:
        read_config_file(tmp_path)
    assert caught.value.remedy
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    assert read_config_file(tmp_path) == config


@pytest.mark.parametrize("shape", [[8, 64], [20_000_000, 1], [20_000_000, 0]])
def test_the_ranks_of_an_adapter_are_those_of_its_weights(tmp_path: Path, shape: list[int]) -> None:
    weights = {
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.zeros(shape, dtype=torch.int8),
        "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight": torch.zeros(64, 8),
    }
    save_file(weights, tmp_path / "adapter_model.safetensors")
    config: dict[str, Any] = {"peft_type": "LORA", "target_modules": ["q_proj"], "r": 20_000_000}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="does not fit its weights") as caught:
        read_config_file(tmp_path)
    assert "the adapter's file, whose largest rank is 8" in str(caught.value.why)
    for fits in ({"r": 8}, {"r": 16, "rank_pattern": {"q_proj": 8}}, {"r": 8, "layer_replication": [[0, 4], [2, 6]]}):
        (tmp_path / "adapter_config.json").write_text(json.dumps(config | fits))
        assert read_config_file(tmp_path) == config | fits


def test_a_large_rank_that_the_weights_have_is_read(tmp_path: Path) -> None:
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    save_file({name: torch.zeros(2000, 3000, dtype=torch.int8)}, tmp_path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "target_modules": ["q_proj"], "r": 2000}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    assert read_config_file(tmp_path) == config


def test_an_adapter_of_peft_with_its_own_mapping_is_read(tmp_path: Path) -> None:
    mapping = {"base_model_class": "LlamaForCausalLM", "parent_library": "transformers.models.llama.modeling_llama"}
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"auto_mapping": mapping, "target_modules": r".*\.q_proj"})
    )
    assert read_config_file(tmp_path)["auto_mapping"] == mapping


def header(tensors: dict[str, Any], data: bytes = b"", length: int | None = None) -> bytes:
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}


LIES = {
    "a header of 2**63 bytes": header({}, length=2**63),
    "a header of 90 MB": header({}, length=90_000_000),
    "a header that is longer than the file": header({"a": tensor([1], 0, 4)}, b"abcd", length=5000),
    "a tensor of a terabyte": header({"a": tensor([2**19, 2**19], 0, 2**40)}, b"abcd"),
    "a shape beyond its bytes": header({"a": tensor([2**30], 0, 4)}, b"abcd"),
    "a shape that overflows": header({"a": tensor([2**40, 2**40, 2**40], 0, 4)}, b"abcd"),
    "offsets backwards": header({"a": tensor([1], 4, 0)}, b"abcd"),
    "negative offsets": header({"a": tensor([1], -4, 0)}, b"abcd"),
    "tensors in one place": header({"a": tensor([1], 0, 4), "b": tensor([1], 0, 4)}, b"abcd"),
    "a hole": header({"a": tensor([1], 4, 8)}, b"abcdefgh"),
    "no JSON": struct.pack("<Q", 8) + b"notjson!",
    "nested JSON": struct.pack("<Q", 100_000) + b"[" * 100_000,
    "nothing": b"",
    "seven bytes": b"1234567",
    "another type": header({"a": {"dtype": "F999", "shape": [1], "data_offsets": [0, 4]}}, b"abcd"),
}


@pytest.mark.parametrize("content", LIES.values(), ids=LIES)
def test_weights_whose_header_lies_are_refused_before_memory_is_taken(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(ModelError) as caught:
        load(folder)
    assert caught.value.remedy
    assert str(caught.value.where).startswith(str(folder))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000
    assert time.process_time() - began < 10


SIZES: dict[str, dict[str, Any]] = {
    "a vocabulary of a billion": {"vocab_size": 10**9},
    "a large vocabulary": {"vocab_size": 10**8},
    "a width of a million": {"hidden_size": 2**20},
    "layers of a billion": {"num_hidden_layers": 10**9},
    "a thousand layers": {"num_hidden_layers": 1000},
    "experts": {"num_local_experts": 10**9},
    "heads": {"num_attention_heads": 10**8},
    "a wide inner layer": {"intermediate_size": 10**9},
    "less than nothing": {"vocab_size": -5},
    "a number that is none": {"hidden_size": 1e300},
}


@pytest.mark.parametrize("values", SIZES.values(), ids=SIZES)
def test_a_config_of_a_model_that_the_files_do_not_hold_takes_no_memory(folder: Path, values: dict[str, Any]) -> None:
    change(folder / "config.json", **values)
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(ModelError) as caught:
        load(folder)
    assert caught.value.remedy
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000
    assert time.process_time() - began < 5


@pytest.mark.parametrize("values", [{"num_hidden_layers": 10**9}, {"vocab_size": 10**12}, {"hidden_size": 10**9}])
def test_a_plan_from_such_a_config_is_refused_too(folder: Path, values: dict[str, Any]) -> None:
    change(folder / "config.json", **values)
    with pytest.raises(ModelError, match="a size that no model has"):
        read_config(str(folder / "config.json"))


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' * 50_000, "{}" + " " * (2**26 + 1)])
def test_a_config_that_is_nested_or_huge_is_one_message(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(ModelError):
        load(folder)


def test_a_tokenizer_with_such_a_pattern_is_loaded_as_it_gives_up_by_itself(folder: Path) -> None:
    whole = json.loads((folder / "tokenizer.json").read_text())
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    whole["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, whole["pre_tokenizer"]]}
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    assert load_tokenizer(folder).encode("Paris")


ALWAYS = {"type": "Split", "behavior": "Isolated", "invert": False}
REPLACE = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10}
PAD = {"direction": "Left", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "a"}
NAMED = {"single": [{"SpecialToken": {"id": "x", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]}
TOKENIZERS: dict[str, dict[str, Any]] = {
    "a pattern that is none": {"pre_tokenizer": {**ALWAYS, "pattern": {"Regex": "("}}},
    "replacements that multiply": {"normalizer": {"type": "Sequence", "normalizers": [REPLACE] * 9}},
    "a long beginning": {"normalizer": {"type": "Prepend", "prepend": "x" * 10_000_000}},
    "rows of ten billion tokens": {"padding": {**PAD, "strategy": {"Fixed": 10**10}}},
    "rows of a multiple": {"padding": {**PAD, "strategy": "BatchLongest", "pad_to_multiple_of": 10**10}},
    "a map of 4 GB": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "/////w=="}},
    "a map of nothing": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
    "a short map": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "CAAAAAAAAAAAAAAA"}},
    "an unknown token in its frame": {
        "post_processor": {"type": "TemplateProcessing", **NAMED, "pair": NAMED["single"], "special_tokens": {}}
    },
    "pieces of no length": {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
    "an empty model": {"model": {"type": "Unigram", "unk_id": 0, "vocab": []}},
    "merges of nothing": {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["x y"]}},
}


@pytest.mark.parametrize("values", TOKENIZERS.values(), ids=TOKENIZERS)
def test_a_tokenizer_that_would_end_the_process_is_one_message(folder: Path, values: dict[str, Any]) -> None:
    change(folder / "tokenizer.json", **values)
    began = time.process_time()
    with pytest.raises(ModelError) as caught:
        load_tokenizer(folder)
    assert caught.value.remedy
    assert time.process_time() - began < 10


@pytest.mark.parametrize("name", [name for name in TOKENIZERS if "unknown token" not in name])
def test_init_counts_with_no_such_tokenizer_either(folder: Path, name: str) -> None:
    change(folder / "tokenizer.json", **TOKENIZERS[name])
    began = time.process_time()
    try:
        counted = _counted(["Paris", "two words"], folder)
    except TunesmithError as error:
        assert error.remedy
    else:
        assert counted is None or counted < 100
    assert time.process_time() - began < 10


def test_init_counts_without_padding_and_says_in_one_message_what_a_tokenizer_gives_up_on(folder: Path) -> None:
    plain = _counted(["Paris"], folder)
    change(folder / "tokenizer.json", padding={**PAD, "strategy": {"Fixed": 1000}})
    assert _counted(["Paris"], folder) == plain
    change(folder / "tokenizer.json", pre_tokenizer={**ALWAYS, "pattern": {"Regex": r"(?:\w|\d)+\s"}})
    with pytest.raises(TunesmithError, match="gives up on this text"):
        _counted(["1" * 200], folder)
