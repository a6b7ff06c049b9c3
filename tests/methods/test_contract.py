"""What every method promises, on a tiny random model: the same tests for each method and variant."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import AutoPeftModelForCausalLM
from tests.tiny import Row
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from tunesmith.methods.base import Method, trainable_line
from tunesmith.methods.quantized_base import multiply_dequantized, packed_layers
from tunesmith.methods.table import build
from tunesmith.model.weights.added_tokens import AddedTokens, extend, grow
from tunesmith.recipe.methods import METHOD_SETTINGS
from tunesmith.recipe.settings import ModelSettings

MERGE_TOLERANCE = 2e-5  # of logits around 0.5 in size, in float32: the same sum in another order
ADAPTER = r"\.lora_[AB]\.default\.weight$"
HEAD = r"\.lm_head\.modules_to_save\.default\.weight$"
EVA = {"rho": 1.5, "tau": 0.9, "use_label_mask": False, "whiten": True, "adjust_scaling_factors": False}
ROWS = r"\.token_adapter\.trainable_tokens_delta\.default$"
WHOLE = r"\.modules_to_save\.default\.weight$"


@dataclass(frozen=True)
class Case:
    """A method's settings, and which parameters it should train as a regular expression over their names."""

    name: str
    trains: str
    settings: dict[str, Any] = field(default_factory=dict)
    biased: bool = False  # on a model whose attention has biases, and whose output layer is its own
    rounds: bool = False  # at step zero it is the base up to rounding, and so it is for others who load it
    drawn: str = r"\.lora_A\."  # what depends on the seed, over the names of a file
    tokens: bool = False  # with two new ones

    def __str__(self) -> str:
        return "-".join([self.name, *self.settings, *(["tokens"] if self.tokens else [])])


LORA = [
    Case("lora", ADAPTER),
    Case("lora", ADAPTER, {"use_rslora": True, "r": 4}),
    Case("lora", ADAPTER + r"|\.lora_magnitude_vector\.", {"use_dora": True}),
    Case("lora", ADAPTER + r"|[qkv]_proj\.base_layer\.bias$", {"bias": "all", "r": 4}, biased=True),
    Case(
        "lora",
        ADAPTER + r"|q_proj\.base_layer\.bias$",
        {"bias": "lora_only", "target_modules": ["q_proj"]},
        biased=True,
    ),
    Case("lora", ADAPTER + "|" + HEAD, {"modules_to_save": ["lm_head"]}),
    Case("lora", r"[qv]_proj" + ADAPTER, {"target_modules": ["q_proj", "v_proj"]}),
    Case("lora", r"layers\.1\..*" + ADAPTER, {"layers_to_transform": [1], "init_lora_weights": "gaussian"}),
    Case("lora", ADAPTER, {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 64.0}, "lora_dropout": 0.1}),
    Case("lora", ADAPTER, {"init_lora_weights": "pissa"}, rounds=True, drawn="^$"),
    Case(
        "lora",
        ADAPTER,
        {
            "init_lora_weights": "pissa_niter_4",
            "use_rslora": True,
            "rank_pattern": {"q_proj": 2},
            "alpha_pattern": {"up_proj": 9.0},
        },
        rounds=True,
        drawn=r"\.lora_[AB]\.",
    ),
    Case(
        "lora",
        ADAPTER + r"|\.lora_magnitude_vector\.",
        {"init_lora_weights": "pissa", "use_dora": True},
        rounds=True,
        drawn="^$",
    ),
    Case(
        "lora",
        ADAPTER + "|" + HEAD,
        {"init_lora_weights": "olora", "modules_to_save": ["lm_head"]},
        rounds=True,
        drawn="^$",
    ),
    Case(
        "lora",
        ADAPTER + r"|[qkv]_proj\.base_layer\.bias$",
        {"init_lora_weights": "olora", "bias": "all", "lora_dropout": 0.1},
        biased=True,
        rounds=True,
        drawn="^$",
    ),
    Case("lora", ADAPTER, {"init_lora_weights": "eva", "r": 4, "target_modules": ["q_proj", "down_proj"]}, drawn="^$"),
    Case(
        "lora",
        ADAPTER + r"|\.lora_magnitude_vector\.|" + HEAD,
        {"init_lora_weights": "eva", "r": 4, "use_dora": True, "modules_to_save": ["lm_head"], "eva_config": EVA},
        drawn="^$",
    ),
    Case("lora", ADAPTER, {"loraplus_lr_ratio": 16.0, "r": 4}),
    Case("lora", ADAPTER + "|" + ROWS, {"trainable_token_indices": [5, 9]}),
    Case("lora", ADAPTER + "|" + ROWS, tokens=True),
    Case("lora", ADAPTER + r"|\.lora_magnitude_vector\.|" + ROWS, {"use_dora": True}, biased=True, tokens=True),
    Case("lora", ADAPTER + "|" + WHOLE, {"modules_to_save": ["embed_tokens", "lm_head"]}, tokens=True),
]
INT8 = [
    Case("lora", ADAPTER, {"load_in_8bit": True}),
    Case("lora", ADAPTER, {"load_in_8bit": True, "llm_int8_skip_modules": ["down_proj"], "lora_dropout": 0.1}),
    Case("lora", ADAPTER + r"|\.lora_magnitude_vector\.", {"load_in_8bit": True, "use_dora": True}),
    Case("lora", ADAPTER + "|" + HEAD, {"load_in_8bit": True, "modules_to_save": ["lm_head"]}),
    Case("lora", ADAPTER + r"|[qkv]_proj\.base_layer\.bias$", {"load_in_8bit": True, "bias": "all"}, biased=True),
]
QLORA = [
    Case("qlora", ADAPTER),
    Case("qlora", ADAPTER, {"bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": False}),
    Case("qlora", ADAPTER + r"|\.lora_magnitude_vector\.", {"use_dora": True, "use_rslora": True}),
    Case("qlora", ADAPTER + "|" + HEAD, {"modules_to_save": ["lm_head"]}),
    Case("qlora", ADAPTER + r"|[qkv]_proj\.base_layer\.bias$", {"bias": "all"}, biased=True),
    Case(
        "qlora",
        ADAPTER,
        {"init_lora_weights": "eva", "r": 4, "target_modules": ["v_proj"], "loraplus_lr_ratio": 2.0},
        drawn="^$",
    ),
    Case("qlora", ADAPTER + "|" + ROWS, tokens=True),
    Case("qlora", ADAPTER + "|" + ROWS, {"r": 4}, biased=True, tokens=True),
]
FREEZE = [
    Case("freeze", r"\.layers\.[01]\."),
    Case("freeze", r"\.layers\.1\.", {"trainable_layers": 1}),
    Case("freeze", r"\.layers\.1\.|embed_tokens|lm_head", {"trainable_layers": 1, "train_embeddings": True}),
    Case("freeze", r"embed_tokens|lm_head", {"trainable_layers": 0, "train_embeddings": True}, biased=True),
    Case("freeze", r"q_proj\.|model\.norm\.", {"trainable_layers": 0, "trainable_modules": ["q_proj", "model.norm"]}),
    Case("freeze", r"\.0\.mlp\.|\.layers\.1\.", {"trainable_layers": 1, "trainable_modules": r".*\.0\.mlp"}),
    Case("freeze", r"bias$", {"trainable_layers": 0, "trainable_modules": ["bias"]}, biased=True),
]
CASES = [Case("full", "."), Case("full", ".", tokens=True), *FREEZE, *LORA, *INT8, *QLORA]
FOLDERS = ("full", "freeze")  # a checkpoint of these is a model folder


@pytest.fixture(scope="session")
def biased_model_dir(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    """A tiny random qwen2, whose query, key and value projections have biases that are not zero."""
    folder = tmp_path_factory.mktemp("tiny-qwen2")
    config = Qwen2Config(
        vocab_size=400,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = Qwen2ForCausalLM(config)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model_dir).save_pretrained(folder)
    return folder


@dataclass
class Subject:
    """A case with its model folder, and what a test does with them again and again."""

    case: Case
    folder: Path

    def method(self, seed: int = 0) -> Method:
        settings: Any = METHOD_SETTINGS[self.case.name](**self.case.settings)
        return build(settings, base=self.folder, seed=seed, added=self.extended()[1])

    def extended(self) -> tuple[Any, AddedTokens]:
        tokenizer = AutoTokenizer.from_pretrained(self.folder)
        tokens: dict[str, Any] = {"add_tokens": ["<sep>"], "add_special_tokens": ["<|tool|>"]}
        named = tokens if self.case.tokens else {}
        return tokenizer, extend(tokenizer, ModelSettings(path="model", **named))

    def base(self, method: Method) -> Any:
        model = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32, **method.load_options())
        grow(model, self.extended()[1])
        return exact(model).train()

    def same(self, found: Tensor, expected: Tensor) -> None:
        """Bit for bit, or up to rounding where the base was written anew."""
        torch.testing.assert_close(found, expected, rtol=0, atol=MERGE_TOLERANCE if self.case.rounds else 0)

    def tuned(self, method: Method) -> Any:
        """An attached model whose trainable parameters have moved away from where they began."""
        model = method.attach(self.base(method), steps())
        disturb(model)
        return model.eval()


@pytest.fixture(params=CASES, ids=str)
def subject(request: pytest.FixtureRequest, tiny_model_dir: Path, biased_model_dir: Path) -> Subject:
    case: Case = request.param
    return Subject(case, biased_model_dir if case.biased else tiny_model_dir)


def exact(model: Any) -> Any:
    """Keeps bitsandbytes from computing in bfloat16, and from rounding activations (see tunesmith.methods)."""
    for layer in model.modules():
        layer.support_avx512bf16_for_cpu = False
    multiply_dequantized(packed_layers(model, "Linear8bitLt"))
    return model


def disturb(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


def steps() -> list[list[Row]]:
    """The rows of two optimizer steps, half of each supervised; few tokens are frequent, as in a language."""
    random = np.random.default_rng(5)
    rows = [Row(2 + random.geometric(0.2, 40)) for _ in range(60)]
    return [rows[:30], rows[30:]]


def ids() -> Tensor:
    """Some tokens, with the ids that new ones have in those cases: spare rows of the models."""
    made = torch.randint(3, 400, (2, 12), generator=torch.Generator().manual_seed(3))
    made[0, 3:5] = torch.tensor([385, 386])
    return made


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model(input_ids=ids()).logits


def bytes_of(model: nn.Module) -> dict[str, bytes]:
    tensors = model.state_dict()
    return {name: own.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for name, own in tensors.items()}


def trainable(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_only_the_expected_parameters_train(subject: Subject) -> None:
    method = subject.method()
    model = subject.tuned(method).train()
    expected = {name for name, _ in model.named_parameters() if re.search(subject.case.trains, name)}
    groups = method.parameter_groups(model)
    assert {name for group in groups for name in group["names"]} == trainable(model) == expected != set()
    before = bytes_of(model)
    optimizer = torch.optim.SGD([{"params": group["params"]} for group in groups], lr=0.1)
    model(input_ids=ids(), labels=ids()).loss.backward()
    optimizer.step()
    after = bytes_of(model)
    tied = {"lm_head.weight"} if "model.embed_tokens.weight" in expected else set()  # one weight on the tiny llama
    if not subject.case.biased and any("tokens_delta" in name for name in expected):
        tied = {"base_model.model.lm_head.token_adapter.trainable_tokens_delta.default"}
    assert {name for name in before if before[name] != after[name]} == expected | tied


def test_step_zero_equals_the_base(subject: Subject) -> None:
    method = subject.method()
    base = subject.base(method).eval()
    before = logits(base)
    subject.same(logits(method.attach(base, steps()).eval()), before)


def test_the_reference_is_the_base_and_leaves_no_trace(subject: Subject) -> None:
    method = subject.method()
    base = logits(subject.base(method).eval())
    model = subject.tuned(method).train()
    before, trains, random = bytes_of(model), trainable(model), torch.get_rng_state()
    with method.reference(model) as reference:
        assert torch.equal(logits(reference.eval()), base)
    assert all(module.training for module in model.modules())
    assert (bytes_of(model), trainable(model)) == (before, trains)
    assert torch.equal(torch.get_rng_state(), random)
    assert not torch.allclose(logits(model.eval()), base, atol=1e-3)


def test_the_reference_is_left_after_an_error_too(subject: Subject) -> None:
    method = subject.method()
    model = subject.tuned(method)
    before = bytes_of(model)
    with pytest.raises(KeyboardInterrupt), method.reference(model):
        raise KeyboardInterrupt
    assert bytes_of(model) == before


def test_save_then_load_is_identical(subject: Subject, tmp_path: Path) -> None:
    method = subject.method()
    model = subject.tuned(method)
    state = method.state(model)
    method.save(state, tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.suffix not in {".json", ".safetensors"}]
    again = subject.method(seed=5)
    loaded = again.load(subject.base(again), tmp_path).eval()
    assert trainable(loaded) == trainable(model)
    restored = again.state(loaded)
    assert restored.keys() == state.keys()
    assert all(torch.equal(restored[name], state[name]) for name in state)
    assert torch.equal(logits(loaded), logits(model))
    with method.reference(model) as one, again.reference(loaded) as other:
        assert torch.equal(logits(one), logits(other))


def test_state_is_a_copy(subject: Subject) -> None:
    method = subject.method()
    model = subject.tuned(method)
    state = method.state(model)
    kept = {name: tensor.clone() for name, tensor in state.items()}
    disturb(model)
    assert all(torch.equal(state[name], kept[name]) and state[name].is_contiguous() for name in state)


def test_merge_keeps_the_logits_and_the_model(subject: Subject, tmp_path: Path) -> None:
    method = subject.method()
    model = subject.tuned(method)
    tuned, before = logits(model), bytes_of(model)
    merged = method.merge(model)
    assert bytes_of(model) == before
    assert torch.equal(logits(model), tuned)
    assert (logits(merged.eval()) - tuned).abs().max() < MERGE_TOLERANCE
    assert all(parameter.is_floating_point() for parameter in merged.parameters())
    merged.save_pretrained(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert "quantization_config" not in plain.config.to_dict()
    assert torch.equal(logits(plain), logits(merged))


def test_the_ecosystem_loads_what_is_saved(subject: Subject, tmp_path: Path) -> None:
    method = subject.method()
    model = subject.tuned(method)
    method.save(method.state(model), tmp_path)
    subject.extended()[0].save_pretrained(tmp_path)
    auto = AutoModelForCausalLM if subject.case.name in FOLDERS else AutoPeftModelForCausalLM
    options = {key: value for key, value in method.load_options().items() if key == "quantization_config"}
    loaded: Any = auto.from_pretrained(tmp_path, dtype=torch.float32, **options)
    subject.same(logits(exact(loaded).eval()), logits(model))
    assert len(AutoTokenizer.from_pretrained(tmp_path)) == len(subject.extended()[0])


def test_what_is_drawn_depends_on_the_seed_alone(subject: Subject) -> None:
    def drawn(seed: int, before: int) -> dict[str, Tensor]:
        torch.manual_seed(before)
        method = subject.method(seed)
        base = subject.base(method)
        random = torch.get_rng_state()
        state = method.state(method.attach(base, steps()))
        assert torch.equal(torch.get_rng_state(), random)
        return state

    one, same, other = drawn(0, 1), drawn(0, 2), drawn(3, 1)
    assert all(torch.equal(one[name], same[name]) for name in one)
    changed = {name for name in one if not torch.equal(one[name], other[name])}
    assert changed == {name for name in one if re.search(subject.case.drawn, name)}


def test_evaluation_between_steps_does_not_change_training(subject: Subject) -> None:
    def gradients(evaluate: bool) -> dict[str, Tensor]:
        method = subject.method()
        model = subject.tuned(method)
        if evaluate:
            logits(model.eval())
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model.train()(input_ids=ids(), labels=ids()).loss.backward()
        return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}

    one, other = gradients(evaluate=False), gradients(evaluate=True)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_every_parameter_that_trains_gets_a_gradient(subject: Subject) -> None:
    model = subject.tuned(subject.method())
    model(input_ids=ids(), labels=ids()).loss.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)) == (name in trainable(model)), name


def test_decay_is_for_matrices_only(subject: Subject) -> None:
    method = subject.method()
    model = subject.tuned(method)
    for group in method.parameter_groups(model):
        for name, parameter in zip(group["names"], group["params"], strict=True):
            assert group["decay"] == (parameter.ndim > 1), name


def test_the_printed_line_is_pefts(subject: Subject, capsys: pytest.CaptureFixture[str]) -> None:
    model = subject.tuned(subject.method())
    if subject.case.name in FOLDERS:
        total = sum(parameter.numel() for parameter in model.parameters())
        trains = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        share = f"{100 * trains / total:.4f}"
        expected = f"trainable params: {trains:,d} || all params: {total:,d} || trainable%: {share}"
    else:
        model.print_trainable_parameters()
        expected = capsys.readouterr().out.strip()
    assert trainable_line(model) == expected


SAVE_ALL = """
import json, sys, torch
from tests.methods.test_contract import steps
from pathlib import Path
from transformers import AutoModelForCausalLM
from tunesmith.methods.table import build
from tunesmith.recipe.methods import METHOD_SETTINGS
for number, (name, settings, folder) in enumerate(json.loads(sys.argv[2])):
    method = build(METHOD_SETTINGS[name](**settings), base=folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **method.load_options())
    method.save(method.state(method.attach(model, steps())), Path(sys.argv[1]) / str(number))
"""


@pytest.mark.slow
def test_two_processes_write_the_same_bytes(tmp_path: Path, tiny_model_dir: Path, biased_model_dir: Path) -> None:
    folders = {True: str(biased_model_dir), False: str(tiny_model_dir)}
    plain = [case for case in CASES if not case.tokens]
    cases = json.dumps([(case.name, case.settings, folders[case.biased]) for case in plain])
    for seed in ("1", "2"):
        command = [sys.executable, "-c", SAVE_ALL, str(tmp_path / seed), cases]
        subprocess.run(
            command, check=True, env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        )
    files = sorted(path.relative_to(tmp_path / "1") for path in (tmp_path / "1").rglob("*") if path.is_file())
    assert len(files) >= 2 * len(plain)
    for file in files:
        assert (tmp_path / "1" / file).read_bytes() == (tmp_path / "2" / file).read_bytes(), file
