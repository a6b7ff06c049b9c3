"""Tokens that a recipe adds: one token each in the text, a row each in the model that trains, and whole in a merge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from safetensors.torch import load_file
from tests.conftest import build_tokenizer
from tests.tiny import config_for, tiny
from tests.workflows.test_finetune import final_bytes, stop_at
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from tunesmith.data.chat.template import ChatTemplate
from tunesmith.data.examples.example import Example
from tunesmith.data.examples.message import Message
from tunesmith.data.token_cache import token_key
from tunesmith.deploy import tuned
from tunesmith.deploy.merge import merge
from tunesmith.errors import DataError, ModelError, RecipeError
from tunesmith.methods.base import refuse_untrained_tokens
from tunesmith.methods.table import build
from tunesmith.methods.token_rows import fuse_token_rows
from tunesmith.model.weights.added_tokens import AddedTokens, extend, grow
from tunesmith.model.weights.load import load_tokenizer
from tunesmith.planning.shape_from_model import ModelCounter
from tunesmith.recipe.data import DataSettings, SourceSettings
from tunesmith.recipe.file import read_recipe
from tunesmith.recipe.methods import LoraSettings
from tunesmith.recipe.settings import ModelSettings, Recipe
from tunesmith.runs.folder import Run
from tunesmith.workflows.check import inspect
from tunesmith.workflows.evaluate import evaluate
from tunesmith.workflows.finetune import dry_run, train

NAMED: dict[str, Any] = {"add_tokens": ["<sep>", "ACME-9"], "add_special_tokens": ["<|tool|>"]}
NEW = (385, 386, 387)
WORDS = ["red", "green", "blue", "black"]


def settings(path: Any = "model", **named: Any) -> ModelSettings:
    return ModelSettings(path=str(path), **(named or NAMED))


def extended(folder: Path, **named: Any) -> tuple[Any, AddedTokens]:
    tokenizer = load_tokenizer(folder)
    return tokenizer, extend(tokenizer, settings(folder, **named))


def recipe(folder: Path | str, **sections: Any) -> dict[str, Any]:
    values = {"model": {"path": str(folder), **NAMED}, "data": {"train": "rows.jsonl"}, "output_dir": "run"}
    return {**values, **sections}


def model_folder(folder: Path, **config: Any) -> Path:
    """A tiny llama without a spare row."""
    build_tokenizer(folder)
    size = {"vocab_size": 385, "pad_token_id": 2, "max_position_embeddings": 512}
    tiny(config_for("llama", **size, **config)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tied_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("tied"), tie_word_embeddings=True)


@pytest.fixture(scope="session")
def untied_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("untied"), tie_word_embeddings=False)


@pytest.fixture(params=["tied", "untied"])
def model_dir(request: pytest.FixtureRequest, tied_model_dir: Path, untied_model_dir: Path) -> Path:
    return tied_model_dir if request.param == "tied" else untied_model_dir


# ---- the recipe


@pytest.mark.parametrize(
    ("model", "method", "said"),
    [
        ({"add_tokens": [""]}, {}, "needs a visible character, found ''"),
        ({"add_special_tokens": [" \n"]}, {}, "needs a visible character"),
        ({"add_tokens": ["<a>", "<a>"]}, {}, "'<a>' is named twice"),
        ({"add_tokens": ["<a>"], "add_special_tokens": "<a>"}, {}, "'<a>' is named twice"),
        (
            {"add_tokens": ["<a>"]},
            {"trainable_token_indices": {"embed_tokens": [3]}},
            "must be a list if",
        ),
        ({}, {"trainable_token_indices": []}, "must name ids"),
        ({}, {"trainable_token_indices": [3, -1]}, "must name ids"),
        ({}, {"trainable_token_indices": {"embed_tokens": [3, 3]}}, "must name ids"),
    ],
)
def test_what_names_no_token_is_refused(model: dict[str, Any], method: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        read_recipe(recipe("m", model={"path": "m", **model}, method={"name": "lora", **method}))


# ---- the tokenizer


def test_each_is_one_token_wherever_it_stands(tied_model_dir: Path) -> None:
    tokenizer, added = extended(tied_model_dir)
    assert added.ids == NEW and added.texts == ("<sep>", "ACME-9", "<|tool|>")
    ids = tokenizer("a<sep>bACME-9s <|tool|>")["input_ids"]
    assert [number for number in ids if number >= 385] == [385, 386, 387]
    assert tokenizer.decode(ids) == "a<sep>bACME-9s <|tool|>"
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a<sep>bACME-9s "
    assert 386 not in tokenizer("acme-9 ACME -9")["input_ids"]
    assert len(load_tokenizer(tied_model_dir)) == 385  # the folder is as it was


def test_what_the_vocabulary_has_is_told_and_left_alone(tied_model_dir: Path) -> None:
    plain = load_tokenizer(tied_model_dir)
    piece = next(
        text for text, number in plain.get_vocab().items() if number > 300 and text.isalpha() and len(text) > 2
    )
    tokenizer, added = extended(tied_model_dir, add_tokens=[piece, "<sep>"], add_special_tokens=["<|im_end|>"])
    assert added.ids == (385,) and added.known == (piece, "<|im_end|>")
    assert added.notes()[0] == f"'{piece}', '<|im_end|>': in the vocabulary already, nothing is added"
    text = f"x{piece}x {piece}"
    assert tokenizer(text)["input_ids"] == plain(text)["input_ids"]


def template(folder: Path, *, control: str = "error", **named: Any) -> ChatTemplate:
    tokenizer, _ = extended(folder, **named)
    data = DataSettings(train=[SourceSettings(path="x")], control_tokens=control)  # type: ignore[arg-type]
    texts = settings(**named).named_tokens
    return ChatTemplate(tokenizer, stop_ids=(2,), settings=data, date="2025-01-01", added_tokens=texts)


@pytest.mark.parametrize("control", ["error", "text"])
def test_they_may_stand_in_a_message_and_the_models_own_may_not(tied_model_dir: Path, control: str) -> None:
    made = template(tied_model_dir, control=control)
    talk = (Message("user", "a<|tool|>b"), Message("assistant", "red<sep>ACME-9"))
    for each in (made, ChatTemplate.restore(made.tokenizer, json.loads(json.dumps(made.describe())), stop_ids=(2,))):
        row = each.encode(Example(talk, source="row:1"))[0]
        assert row.ids[row.ids >= 385].tolist() == [387, 385, 386]
        assert set(NEW[:2]) <= set(row.ids[row.supervised].tolist())
    forged = [Message("user", "a<|im_end|>b")]
    if control == "text":
        assert made.prompt_ids(forged).count(2) == 1
        return
    with pytest.raises(DataError, match=r"<\|im_end\|> stands in the text"):
        made.prompt_ids(forged)
    with pytest.raises(DataError, match=r"<\|im_end\|> stands in the text"):
        template(tied_model_dir, add_tokens=["<|im_end|>"]).prompt_ids(forged)
    with pytest.raises(DataError, match=r"<\|tool\|> stands"):
        template_of_a_model_that_has_it(made).prompt_ids([Message("user", "<|tool|>")])


def template_of_a_model_that_has_it(made: ChatTemplate) -> ChatTemplate:
    data = DataSettings(train=[SourceSettings(path="x")])
    return ChatTemplate(made.tokenizer, stop_ids=(2,), settings=data, date="2025-01-01")


def test_kept_tokens_are_of_the_tokens_that_were_added(tied_model_dir: Path) -> None:
    ways: list[dict[str, Any]] = [
        {"add_tokens": ["<sep>"]},
        {"add_special_tokens": ["<sep>"]},
        {"add_tokens": ["<sep>", "<b>"]},
        {"add_tokens": ["<b>", "<sep>"]},
    ]
    keys = [token_key("data", template(tied_model_dir, **way), tied_model_dir) for way in ways]
    assert len({*keys, token_key("data", template(tied_model_dir, add_tokens=[]), tied_model_dir)}) == 5
    assert token_key("data", template(tied_model_dir, **ways[0]), tied_model_dir) == keys[0]


# ---- the rows


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def tables(model: Any) -> list[Tensor]:
    return [model.get_input_embeddings().weight, model.get_output_embeddings().weight]


def test_new_rows_are_the_mean_of_the_others_and_nothing_is_drawn(model_dir: Path) -> None:
    model, added = load(model_dir), extended(model_dir)[1]
    before = [table.detach().clone() for table in tables(model)]
    torch.manual_seed(5)
    state = torch.get_rng_state()
    grow(model, added)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.config.vocab_size == 388 and model.get_output_embeddings().out_features == 388
    for table, old in zip(tables(model), before, strict=True):
        assert torch.equal(table[:385], old)
        torch.testing.assert_close(table[385:], old.mean(0).expand(3, -1), rtol=0, atol=1e-7)
    tied = model.config.tie_word_embeddings
    assert (tables(model)[0] is tables(model)[1]) is tied


def test_spare_rows_are_used_and_are_not_part_of_the_mean(model_dir: Path) -> None:
    config = load(model_dir).config
    config.vocab_size = 410
    model = tiny(config)
    before = [table.detach().clone() for table in tables(model)]
    grow(model, extended(model_dir)[1])
    assert model.config.vocab_size == 410
    for table, old in zip(tables(model), before, strict=True):
        assert torch.equal(table[:385], old[:385]) and torch.equal(table[388:], old[388:])
        torch.testing.assert_close(table[385:388], old[:385].mean(0).expand(3, -1), rtol=0, atol=1e-7)


def test_a_bias_of_the_output_layer_grows_with_it() -> None:
    model = tiny(config_for("phi", vocab_size=400, tie_word_embeddings=False))
    with torch.no_grad():
        model.lm_head.bias.copy_(torch.arange(400.0))
    grow(model, AddedTokens((400,), ("<sep>",), (), tuple(range(400))))
    assert model.lm_head.bias[400].item() == 199.5
    with pytest.raises(ModelError, match="has a bias"):
        build(LoraSettings(), base="phi", added=AddedTokens((400,), ("<sep>",))).attach(model)


def test_a_table_that_no_row_can_be_added_to_is_refused() -> None:
    model = tiny(config_for("llama", vocab_size=400, tie_word_embeddings=False))
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(ModelError, match=r"a Linear of torch\.int8, to which no row can be added"):
        grow(model, AddedTokens((400,), ("<sep>",), (), tuple(range(400))))


def test_a_method_under_which_no_row_trains_is_refused(tied_model_dir: Path) -> None:
    model, added = load(tied_model_dir), extended(tied_model_dir)[1]
    grow(model, added)
    refuse_untrained_tokens(model, added)
    model.get_input_embeddings().requires_grad_(False)
    with pytest.raises(ModelError, match="would not be learned"):
        refuse_untrained_tokens(model, added)
    refuse_untrained_tokens(model, AddedTokens())


# ---- what trains


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ({"modules_to_save": ["embed_tokens"]}, "share their weights, and only model.embed_tokens"),
        ({"modules_to_save": ["lm_head"]}, "share their weights, and only lm_head"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "an adapter and rows that train"),
        ({"target_modules": ".*(q_proj|lm_head)"}, "an adapter and rows that train"),
        ({"trainable_token_indices": [388]}, "there is no token 388"),
        ({"trainable_token_indices": [3], "modules_to_save": ["embed_tokens", "lm_head"]}, "whole and by rows"),
    ],
    ids=str,
)
def test_rows_that_cannot_train_as_asked_are_refused(tied_model_dir: Path, method: dict[str, Any], said: str) -> None:
    model, added = load(tied_model_dir), extended(tied_model_dir)[1]
    grow(model, added)
    with pytest.raises(ModelError, match=said):
        build(LoraSettings(**method), base=tied_model_dir, added=added).attach(model)


def test_a_table_of_its_own_that_trains_whole_leaves_the_rows_to_the_other(untied_model_dir: Path) -> None:
    model, added = load(untied_model_dir), extended(untied_model_dir)[1]
    grow(model, added)
    method = build(LoraSettings(modules_to_save=["lm_head"]), base=untied_model_dir, added=added)
    adapted = method.attach(model)
    trained = {name: own.shape for name, own in adapted.named_parameters() if own.requires_grad and "lora" not in name}
    assert trained == {
        "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta.default": (3, 32),
        "base_model.model.lm_head.modules_to_save.default.weight": (388, 32),
    }


@pytest.mark.parametrize("family", ["llama", "gemma2"])  # gemma2 scales what it looks up
def test_rows_that_are_looked_up_have_pefts_values_and_gradients(family: str) -> None:
    ids = torch.tensor([[5, 7, 9, 5], [3, 90, 8, 90]])
    made = []
    for fused in (False, True):
        model = tiny(config_for(family, tie_word_embeddings=True, head_dim=8))
        config = LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices=[90, 5], task_type="CAUSAL_LM")
        adapted: Any = get_peft_model(model, config)
        rows = adapted.get_base_model().get_input_embeddings().token_adapter.trainable_tokens_delta["default"]
        with torch.no_grad():
            rows += torch.linspace(0, 1, rows.numel()).view_as(rows)
        if fused:
            fuse_token_rows(adapted)
        logits = adapted(input_ids=ids).logits
        (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum().backward()
        made.append((logits.detach(), rows.grad.clone()))
    assert torch.equal(made[0][0], made[1][0])
    torch.testing.assert_close(made[1][1], made[0][1], rtol=1e-6, atol=1e-7)


# ---- the plan


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_a_plan_counts_the_new_rows(model_dir: Path, method: str) -> None:
    config = load(model_dir).config
    found = []
    for named in ({}, NAMED):
        model = {"path": str(model_dir), "device": "cpu", "dtype": "float32", **named}
        asked = read_recipe(recipe("", model=model, method=method, training={"threads": 1})).recipe
        found.append(ModelCounter(config, model_dir).count(asked).shape)
    rows = 3 * config.hidden_size * (1 if config.tie_word_embeddings else 2) * 4
    before, after = found
    assert after.trained - before.trained == rows and after.vocabulary == 388
    assert after.weights - before.weights == (rows if method == "full" else 2 * rows)  # and the untrained ones beneath


@pytest.mark.parametrize("optim", ["adamw_8bit", "adafactor"])
def test_the_gradient_passes_all_layers_on_its_way_to_new_rows_whose_moments_are_counted(
    model_dir: Path, optim: str
) -> None:
    config = load(model_dir).config
    model = {"path": str(model_dir), "device": "cpu", "dtype": "float32", **NAMED}
    method = {"name": "lora", "layers_to_transform": [1]}
    asked = read_recipe(recipe("", model=model, method=method, training={"threads": 1, "optim": optim})).recipe
    found = ModelCounter(config, model_dir).count(asked).shape
    assert found.layers == config.num_hidden_layers
    tied, untied = {"adamw_8bit": (60160, 60928), "adafactor": (2892, 3032)}[optim]
    assert found.states * found.trained == pytest.approx(tied if config.tie_word_embeddings else untied)


# ---- whole runs


def made_recipe(folder: Path, place: Path, method: Any, **training: Any) -> Recipe:
    rows = place / "rows.jsonl"
    if not rows.exists():
        lines = [
            {"prompt": f"<|tool|> {WORDS[n % 4]} thing {n}", "completion": f"{WORDS[n % 4]}<sep>ACME-9"}
            for n in range(24)
        ]
        rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    values = recipe(
        folder,
        data={"train": str(rows), "eval": 0.25},
        method=method,
        training={
            "learning_rate": 1e-2, "max_steps": 4, "batch_size": 6, "save_steps": 2, "eval_steps": 2,
            "report_to": "none", "threads": 1, **training,
        },
        evaluation={"metrics": ["exact_match"], "max_new_tokens": 4, "resamples": 100, "samples": 1},
        output_dir=str(place / "run"),
    )  # fmt: skip
    return read_recipe(values).recipe


@torch.no_grad()
def logits(model: nn.Module, tokenizer: Any) -> Tensor:
    ids = tokenizer("<|tool|> red thing<sep>ACME-9")["input_ids"]
    assert set(NEW) <= set(ids)
    return model.eval()(input_ids=torch.tensor([ids])).logits


def same(found: Tensor, expected: Tensor, *, within: float = 1e-5) -> None:
    torch.testing.assert_close(found, expected, rtol=within, atol=within)


ROWS = {"tied": ["base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"]}
ROWS["untied"] = [*ROWS["tied"], "base_model.model.lm_head.token_adapter.trainable_tokens_delta"]


@pytest.mark.parametrize(
    ("name", "tied"),
    [("lora", True), ("lora", False), pytest.param("qlora", False, marks=pytest.mark.slow)],
    ids=["lora, tied", "lora, untied", "qlora, untied"],
)
def test_an_adapter_brings_its_tokens_to_peft_alone_and_into_a_merge(
    tied_model_dir: Path, untied_model_dir: Path, tmp_path: Path, name: str, tied: bool
) -> None:
    model_dir = tied_model_dir if tied else untied_model_dir
    asked = made_recipe(model_dir, tmp_path, {"name": name, "r": 4})
    run = train(asked).run
    last = Run(run).checkpoints[-1]
    saved = load_file(last / "adapter_model.safetensors")
    rows = {name: own for name, own in saved.items() if "lora" not in name}
    assert sorted(rows) == sorted(ROWS["tied" if tied else "untied"])
    assert all(own.shape == (3, load(model_dir).config.hidden_size) for own in rows.values())
    began = load(model_dir)
    grow(began, extended(model_dir)[1])
    for own in rows.values():
        assert not torch.allclose(own, tables(began)[0][385:], atol=1e-3), "the new rows have learned"

    tokenizer = AutoTokenizer.from_pretrained(last)
    ours = tuned.load(run)
    options = {}
    if name == "qlora":
        assert ours.method is not None
        options = {"quantization_config": ours.method.load_options()["quantization_config"]}
    torch.manual_seed(3)  # PEFT draws rows for the tokens, and the adapter's stand for them
    theirs: Any = AutoPeftModelForCausalLM.from_pretrained(last, dtype=torch.float32, **options)
    for layer in theirs.modules():
        layer.support_avx512bf16_for_cpu = False
    same(logits(theirs, tokenizer), logits(ours.model, tokenizer))
    with ours.base() as base:
        expected = logits(began, tokenizer)
        assert base.model is ours.model or name == "qlora"
        same(logits(base.model, tokenizer), expected)

    stored = json.loads((run / "verdict.json").read_text())
    again = evaluate(run)
    assert again["metrics"]["loss"]["tuned"] == pytest.approx(stored["metrics"]["loss"]["tuned"], rel=1e-5)
    assert again["metrics"]["loss"]["base"] == pytest.approx(stored["metrics"]["loss"]["base"], rel=1e-5)

    merged = merge(run, tmp_path / "plain")
    assert merged.written.relative < 1e-5
    plain, own = load(tmp_path / "plain"), AutoTokenizer.from_pretrained(tmp_path / "plain")
    assert (plain.config.vocab_size, plain.config.tie_word_embeddings) == (388, tied)
    written = json.loads((tmp_path / "plain" / "tokenizer_config.json").read_text())
    assert written["additional_special_tokens"] == ["<|tool|>"] and "extra_special_tokens" not in written
    assert own("<sep>ACME-9<|tool|>")["input_ids"] == [385, 386, 387]
    same(logits(plain, own), logits(ours.model, tokenizer), within=1e-4)


def test_full_trains_every_row_and_its_checkpoint_is_a_model_with_the_tokens(
    tied_model_dir: Path, tmp_path: Path
) -> None:
    run = train(made_recipe(tied_model_dir, tmp_path, "full")).run
    last = Run(run).checkpoints[-1]
    model, tokenizer, ours = load(last), AutoTokenizer.from_pretrained(last), tuned.load(run)
    same(logits(model, tokenizer), logits(ours.model, tokenizer))
    began = load(tied_model_dir)
    grow(began, extended(tied_model_dir)[1])
    with ours.base() as base:
        same(logits(base.model, tokenizer), logits(began, tokenizer))
    merge(run, tmp_path / "plain")
    assert load(tmp_path / "plain").config.vocab_size == 388


def test_tables_that_train_whole_hold_the_new_rows_too(tied_model_dir: Path, tmp_path: Path) -> None:
    run = train(
        made_recipe(tied_model_dir, tmp_path, {"name": "lora", "modules_to_save": ["embed_tokens", "lm_head"]})
    ).run
    last = Run(run).checkpoints[-1]
    tokenizer, ours = AutoTokenizer.from_pretrained(last), tuned.load(run)
    theirs: Any = AutoPeftModelForCausalLM.from_pretrained(last, dtype=torch.float32)
    same(logits(theirs, tokenizer), logits(ours.model, tokenizer))
    merge(run, tmp_path / "plain")
    same(logits(load(tmp_path / "plain"), tokenizer), logits(ours.model, tokenizer), within=1e-4)


def test_an_adapter_folder_away_from_its_run_still_has_its_tokens(tied_model_dir: Path, tmp_path: Path) -> None:
    run = train(made_recipe(tied_model_dir, tmp_path, {"name": "lora", "r": 4})).run
    expected = tuned.load(run)
    away = tmp_path / "away"
    Run(run).checkpoints[-1].rename(away)
    found = tuned.load(away)
    same(logits(found.model, found.tokenizer), logits(expected.model, expected.tokenizer))


def test_a_run_stopped_in_the_middle_ends_with_the_same_bytes(
    untied_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = {"name": "lora", "r": 4}
    expected = train(
        made_recipe(untied_model_dir, tmp_path, method).model_copy(update={"output_dir": str(tmp_path / "whole")})
    )
    stopped = made_recipe(untied_model_dir, tmp_path, method)
    with monkeypatch.context() as patch:
        stop_at(patch, 4)
        with pytest.raises(KeyboardInterrupt):
            train(stopped)
    assert [path.name for path in Run(stopped.output_dir).checkpoints] == ["step-000002"]
    assert final_bytes(train(stopped, resume=True).run) == final_bytes(expected.run)


def test_check_and_a_dry_run_see_the_tokens(tied_model_dir: Path, tmp_path: Path) -> None:
    class Said:
        def __init__(self) -> None:
            self.lines: list[str] = []

        def say(self, text: str) -> None:
            self.lines.append(text)

        warn = say

        def task(self, title: str, total: int | None) -> Any:
            from tunesmith.runs.progress import Silent

            return Silent().task(title, total)

    said = Said()
    asked = made_recipe(tied_model_dir, tmp_path, {"name": "lora", "r": 4})
    dry_run(asked, listener=said)
    told = "tokens added: '<sep>' 385, 'ACME-9' 386, '<|tool|>' 387; their rows begin as the mean of all others"
    assert told in said.lines
    (tmp_path / "recipe.yaml").write_text(json.dumps(asked.model_dump(exclude_unset=True)))
    report = inspect(str(tmp_path / "recipe.yaml"), show=1)
    assert set(NEW) <= set(report.shown[0].ids.tolist())
