"""Loading: what is in the files and nothing else, or a refusal that says why."""

from __future__ import annotations

import base64
import json
import shutil
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.utils import logging

from tunesmith.errors import ModelError, RecipeError
from tunesmith.model.weights import device
from tunesmith.model.weights.device import resolve_device, resolve_dtype
from tunesmith.model.weights.load import load_model, load_tokenizer, quiet_transformers, stop_ids

TIKTOKEN = b"".join(b"%s %d\n" % (base64.b64encode(bytes([byte])), byte) for byte in range(256))


@pytest.fixture
def folder(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, to spoil."""
    return Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))


def change(path: Path, **values: Any) -> None:
    found = json.loads(path.read_text(encoding="utf-8")) | values
    path.write_text(json.dumps({name: value for name, value in found.items() if value is not None}))


def load_on_cpu(folder: Path, *, trust_remote_code: bool = False) -> Any:
    return load_model(folder, dtype=torch.float32, device="cpu", trust_remote_code=trust_remote_code)


def rewrite_weights(folder: Path, rewrite: Callable[[dict[str, torch.Tensor]], None]) -> None:
    weights = load_file(folder / "model.safetensors")
    rewrite(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_weights_are_loaded_on_the_device_in_the_dtype_that_was_asked_for(tiny_model_dir: Path) -> None:
    model = load_on_cpu(tiny_model_dir)
    assert {(own.dtype, str(own.device)) for own in model.parameters()} == {(torch.float32, "cpu")}
    assert not model.training
    assert model.config._attn_implementation == "sdpa"
    assert load_tokenizer(tiny_model_dir).padding_side == "left"


def test_loading_twice_gives_equal_weights_and_uses_no_random_numbers(tiny_model_dir: Path) -> None:
    before = torch.get_rng_state()
    first, second = (load_on_cpu(tiny_model_dir).state_dict() for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_bfloat16_is_loaded_as_asked(tiny_model_dir: Path) -> None:
    model = load_model(tiny_model_dir, dtype=torch.bfloat16, device="cpu")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_a_missing_weight_is_refused_and_not_made_up(folder: Path) -> None:
    rewrite_weights(folder, lambda weights: weights.__delitem__("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(ModelError, match=r"lack weights(.*\n)*.*1 missing: model\.layers\.1\.mlp\.up_proj\.weight"):
        load_on_cpu(folder)


def test_a_weight_of_another_shape_is_refused(folder: Path) -> None:
    rewrite_weights(folder, lambda weights: weights.update({"model.norm.weight": torch.ones(7)}))
    with pytest.raises(ModelError, match=r"do not fit config\.json"):
        load_on_cpu(folder)


def test_weights_cut_short_are_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match="the model cannot be loaded"):
        load_on_cpu(folder)


def test_a_pickle_is_not_loaded_even_when_asked_directly(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="the model cannot be loaded"):
        load_on_cpu(folder)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "t5", "is_encoder_decoder": True, "architectures": ["T5Model"]}, "not a causal language model"),
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "BertForMaskedLM is not a causal"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification is not a causal"),
        ({"model_type": "of_tomorrow"}, "this architecture is not known: 'of_tomorrow'"),
    ],
)
def test_what_is_no_causal_language_model_is_refused(folder: Path, values: dict[str, Any], message: str) -> None:
    change(folder / "config.json", **values)
    with pytest.raises(ModelError, match=message):
        load_on_cpu(folder)


def test_code_of_a_model_runs_only_when_the_recipe_says_so(folder: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    (folder / "configuration_own.py").write_text(
        f"open({str(ran)!r}, 'w').close()\nfrom transformers import LlamaConfig\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
    )
    (folder / "modeling_own.py").write_text(
        "from transformers import LlamaForCausalLM\nfrom .configuration_own import OwnConfig\n"
        "class OwnForCausalLM(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    auto = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    change(folder / "config.json", model_type="own", architectures=["OwnForCausalLM"], auto_map=auto)
    with pytest.raises(ModelError, match=r"program code(.*\n)*.*model\.trust_remote_code: true"):
        load_on_cpu(folder)
    assert not ran.exists()
    assert type(load_on_cpu(folder, trust_remote_code=True)).__name__ == "OwnForCausalLM"
    assert ran.exists()


def test_code_of_a_tokenizer_is_refused_too(folder: Path) -> None:
    (folder / "tokenization_own.py").write_text("raise SystemExit")
    change(
        folder / "tokenizer_config.json",
        tokenizer_class="OwnTokenizer",
        auto_map={"AutoTokenizer": [None, "tokenization_own.OwnTokenizer"]},
    )
    change(folder / "config.json", model_type="own")
    with pytest.raises(ModelError, match=r"model\.trust_remote_code: true"):
        load_tokenizer(folder)


def test_a_folder_without_a_tokenizer_is_refused(folder: Path) -> None:
    for path in [*folder.glob("tokenizer*")]:
        path.unlink()
    with pytest.raises(ModelError, match="the tokenizer cannot be loaded"):
        load_tokenizer(folder)


def test_a_tokenizer_file_that_is_newer_than_the_library_names_the_versions_and_the_update(folder: Path) -> None:
    change(folder / "tokenizer.json", model={"type": "Unheard", "vocab": {}})
    change(folder / "config.json", transformers_version="99.1")
    with pytest.raises(ModelError) as caught:
        load_tokenizer(folder)
    assert (caught.value.what, caught.value.where) == ("the tokenizer cannot be loaded", str(folder / "tokenizer.json"))
    assert "saved with transformers 99.1; here is" in str(caught.value.why)
    assert "pip install --upgrade tokenizers transformers" in str(caught.value.remedy)


@pytest.mark.parametrize(
    ("content", "why", "remedy"),
    [
        ('{"version": "1.0", "trunc', "It is damaged: ", "fetch the model again"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "pointer of Git LFS", "git lfs pull"),
    ],
)
def test_a_tokenizer_file_that_is_not_whole_is_to_be_fetched_again(
    folder: Path, content: str, why: str, remedy: str
) -> None:
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(ModelError) as caught:
        load_tokenizer(folder)
    assert why in str(caught.value.why) and remedy in str(caught.value.remedy)


@pytest.mark.parametrize(
    ("content", "package"),
    [(b"\n\x0e\n\x05<unk>", "sentencepiece"), (TIKTOKEN, "tiktoken")],
    ids=["sentencepiece", "tiktoken"],
)
def test_a_tokenizer_that_needs_a_package_names_the_extra_that_brings_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, package: str
) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(content)
    change(folder / "tokenizer_config.json", tokenizer_class="LlamaTokenizer")
    for name in (package, f"{package}.load"):  # as if it were not installed
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr("tunesmith.model.weights.tokenizer_files.find_spec", lambda name: None)
    with pytest.raises(
        ModelError, match=rf"read with the package {package}(?s:.*)pip install 'tunesmith\[{package}\]'"
    ):
        load_tokenizer(folder)
    extras = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert any(needed.startswith(package) for needed in extras[package])


def test_a_tokenizer_without_pad_token_pads_with_its_end_token_and_does_not_grow(folder: Path) -> None:
    size = len(load_tokenizer(folder))
    change(folder / "tokenizer_config.json", pad_token=None)
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.pad_token, tokenizer.pad_token_id, len(tokenizer)) == ("<|im_end|>", 2, size)


def test_a_tokenizer_with_neither_pad_nor_end_token_is_refused(folder: Path) -> None:
    change(folder / "tokenizer_config.json", pad_token=None, eos_token=None)
    with pytest.raises(ModelError, match="neither a pad nor an end-of-text token"):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [(2, 0, (2,)), ([2, 0], 1, (2, 0)), (None, 0, (0,)), (None, [0, 1], (0, 1)), (None, None, (2,))],
)
def test_generation_stops_where_the_nearest_file_says(
    folder: Path, generation: Any, config: Any, expected: tuple[int, ...]
) -> None:
    change(folder / "generation_config.json", eos_token_id=generation)
    change(folder / "config.json", eos_token_id=config)
    assert stop_ids(folder, load_tokenizer(folder)) == expected


def test_dtype_auto_on_a_cpu_is_float32_and_float16_is_refused() -> None:
    assert resolve_dtype("auto", "cpu") == torch.float32
    with pytest.raises(RecipeError, match=r"model\.dtype: float16 is not used on a CPU"):
        resolve_dtype("float16", "cpu")
    with pytest.raises(RecipeError, match="is no dtype"):
        resolve_dtype("int8", "cpu")


@pytest.mark.parametrize(("units", "lines"), [(True, 0), (False, 1)])
def test_bfloat16_on_a_cpu_without_units_is_warned_of(monkeypatch: pytest.MonkeyPatch, units: bool, lines: int) -> None:
    said: list[str] = []
    monkeypatch.setattr(device, "cpu_has_bf16", lambda: units)
    assert resolve_dtype("bfloat16", "cpu", say=said.append) == torch.bfloat16
    assert len(said) == lines


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert resolve_device("auto") == "cpu"
    for name in ("cuda", "cuda:0", "cpu:1"):
        with pytest.raises(RecipeError, match="this machine has no device"):
            resolve_device(name)
    with pytest.raises(RecipeError, match="there is no device 'gpu'"):
        resolve_device("gpu")


def test_transformers_is_quiet_only_while_loading() -> None:
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    with quiet_transformers():
        assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (40, False)  # logging.ERROR
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_bundled_tokenizer_is_the_one_the_model_was_trained_with(smollm2_dir: Path) -> None:
    tokenizer: Any = load_tokenizer(smollm2_dir)
    asked = tokenizer.apply_chat_template([{"role": "user", "content": ""}], tokenize=True)["input_ids"]
    # The ids that the makers' own tokenizer gives for the default system turn.
    system = [1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407, 19712, 8182]
    assert asked == [*system, 2, 198, 1, 4093, 198, 2, 198]
    assert tokenizer.tokenize("in  2024") == ["in", "ĠĠ", "2", "0", "2", "4"]
    assert tokenizer("<|endoftext|><|im_start|><|im_end|>").input_ids == [0, 1, 2]
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, len(tokenizer)) == (2, 2, 49152)


def test_bundled_tokenizer_gives_every_text_back(smollm2_dir: Path) -> None:
    tokenizer = load_tokenizer(smollm2_dir)
    texts = ["", " ", "Hello world", " leading and trailing ", "\r\n\t two\n\n  lines", "don't , do . that ? I 'm"]
    texts += [
        "2024-03-01 1.234,56 €",
        "日本語テスト、中文 字符 한국어",
        "\U0001f469\u200d\U0001f467\U0001f3fd \u2764\ufe0f",
    ]
    texts += [
        "e\u0301 \u00e9 \ufdfa \u200b\ufeff\u202e\u00a0",
        "\u0661\u0662\u0663 \u00bd \u2167",
        "<|im_start",
        "\x00\x01\x7f",
    ]
    assert [tokenizer.decode(tokenizer(text).input_ids) for text in texts] == texts


@pytest.mark.slow
def test_bundled_model_knows_the_capital_of_france(smollm2_dir: Path) -> None:
    tokenizer: Any = load_tokenizer(smollm2_dir)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    answer = load_on_cpu(smollm2_dir).generate(ids, max_new_tokens=16, do_sample=False)[0, ids.shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"
