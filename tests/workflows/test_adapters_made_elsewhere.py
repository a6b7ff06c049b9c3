"""Adapters with added tokens, as PEFT makes them over a tied model: answered with, merged and trained further."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tests.workflows.test_added_tokens import model_folder
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from tunesmith.deploy import tuned
from tunesmith.deploy.adapter_folder import hand_over
from tunesmith.deploy.merge import merge
from tunesmith.errors import ModelError
from tunesmith.runs.folder import Run
from tunesmith.workflows.finetune import train

KINDS: dict[str, dict[str, Any]] = {
    "both tables whole": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "one table whole": {"modules_to_save": ["embed_tokens"]},
    "tables tied": {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "resized only": {},
    "new rows only": {"trainable_token_indices": [385, 386]},
}


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model.eval()(torch.tensor([[5, 6, 385, 8, 386, 9]])).logits


def grown(base: Path, size: int) -> Any:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.resize_token_embeddings(size)
    return model


@pytest.fixture(params=KINDS)
def adapter(request: pytest.FixtureRequest, tiny_model_dir: Path, tmp_path: Path) -> Path:
    """An adapter over a base with two new tokens, with its tokenizer."""
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_model_dir)
    tokenizer.add_tokens(["<part>", "<price>"])
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"], **KINDS[request.param])
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = get_peft_model(grown(tiny_model_dir, len(tokenizer)), config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter += 0.05 * torch.randn(parameter.shape)
    model.save_pretrained(str(tmp_path / "adapter"))
    tokenizer.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def as_peft_has_it(adapter: Path, base: Path) -> Tensor:
    return logits(PeftModel.from_pretrained(grown(base, 387), str(adapter)))


def test_it_answers_and_merges_as_peft_has_it(adapter: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    expected = as_peft_has_it(adapter, tiny_model_dir)
    loaded = tuned.load(adapter)
    assert torch.equal(logits(loaded.model), expected)
    assert loaded.tokenizer.convert_tokens_to_ids("<price>") == 386
    assert len(loaded.generate("hello <part>", max_new_tokens=2)) == 1
    merge(adapter, tmp_path / "merged")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    torch.testing.assert_close(logits(plain), expected, rtol=0, atol=1e-6)


def as_its_readme_says(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the Python of a handed-over folder's README makes, run beside the folder."""
    monkeypatch.chdir(folder.parent)
    names: dict[str, Any] = {}
    exec((folder / "README.md").read_text().split("```python\n")[1].split("```")[0], names)
    return names


def test_the_readme_of_a_folder_with_its_base_loads_it(
    adapter: Path, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hand_over(adapter, tmp_path / "both")
    made = as_its_readme_says(tmp_path / "both", monkeypatch)
    assert torch.equal(logits(made["model"]), as_peft_has_it(adapter, tiny_model_dir))
    assert made["tokenizer"].convert_tokens_to_ids("<price>") == 386
    for file in adapter.glob("*token*"):
        file.unlink()
    hand_over(adapter, tmp_path / "bare")
    assert "<price>" not in as_its_readme_says(tmp_path / "bare", monkeypatch)["tokenizer"].get_vocab()


def test_the_readme_loads_tokens_for_which_the_base_has_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tied", "untied"):
        base = model_folder(tmp_path / name / "base", tie_word_embeddings=name == "tied")
        for kind, method in (("rows", {}), ("whole", {"modules_to_save": ["embed_tokens", "lm_head"]})):
            place = tmp_path / f"{name}-{kind}"
            place.mkdir()
            values = recipe_from(base, base, place, max_steps=1)
            values["model"] = {"path": str(base), "add_tokens": ["<part>", "<price>"]}
            values["method"] = {"name": "lora", "r": 2, **method}
            run = train(values).run
            both = tmp_path / f"{name}-{kind}-both"
            hand_over(run, both)
            made = as_its_readme_says(both, monkeypatch)
            assert torch.equal(logits(made["model"]), logits(tuned.load(run).model)), (name, kind)


def recipe_from(adapter: Path, base: Path, folder: Path, **training: Any) -> dict[str, Any]:
    rows = [{"prompt": f"The <part> number {n}", "completion": f"<price> {n}"} for n in range(12)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "model": str(base),
        "data": {"train": str(folder / "rows.jsonl"), "eval": 0.25},
        "method": {"name": "lora", "adapter_name_or_path": str(adapter)},
        "training": {"max_steps": 2, "batch_size": 4, "report_to": "none", "threads": 1, **training},
        "evaluation": {"resamples": 100, "samples": 0, "max_new_tokens": 2},
        "output_dir": str(folder / "run"),
    }


def test_training_goes_on_from_it_with_its_tokens(adapter: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    expected = as_peft_has_it(adapter, tiny_model_dir)
    run = train(recipe_from(adapter, tiny_model_dir, tmp_path, learning_rate=1e-9)).run
    last = Run(run).checkpoints[-1]
    # Two steps of 1e-9 change next to nothing, so this is where training began.
    torch.testing.assert_close(as_peft_has_it(last, tiny_model_dir), expected, rtol=0, atol=1e-5)
    loaded = tuned.load(run)
    torch.testing.assert_close(logits(loaded.model), expected, rtol=0, atol=1e-5)
    assert loaded.target.recipe is not None and loaded.target.recipe.model.add_tokens == ["<part>", "<price>"]
    assert 385 in loaded.prompt_ids("The <part> number 3"), "the tokens are whole, as the adapter learned them"
    merge(run, tmp_path / "merged")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    torch.testing.assert_close(logits(plain), expected, rtol=0, atol=1e-5)


def test_other_tokens_than_its_own_are_refused(adapter: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    recipe = recipe_from(adapter, tiny_model_dir, tmp_path)
    recipe["model"] = {"path": str(tiny_model_dir), "add_tokens": ["<price>", "<part>"]}
    with pytest.raises(ModelError, match=r"other added tokens(.|\n)*'<part>', '<price>'; the recipe: '<price>'"):
        train(recipe)
