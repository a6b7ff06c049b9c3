"""The comparison of methods: its rows, its figures and its plot. A whole run on a tiny model is in it, too."""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from bench import methods, process

from tunesmith.recipe.file import read_recipe

RUN = {
    "trainable": 460_800, "tokens": 1000, "training_seconds": 4.0, "seconds": 90.0, "peak_bytes": 2_500_000_000,
    "metrics": {"exact_match": {"base": 0.1, "tuned": 0.8, "interval": [0.6, 0.75]}, "loss": {"tuned": 0.25}},
}  # fmt: skip


def banking(path: Path, intents: int, of_each: int) -> Path:
    numbers = itertools.product(range(of_each), range(intents))
    rows = [(f"message {number} about {intent}", f"intent_{intent}") for number, intent in numbers]
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "category"), *rows])
    return path


def read(path: Path) -> list[tuple[str, ...]]:
    with path.open(encoding="utf-8", newline="") as file:
        return [tuple(row) for row in csv.reader(file)][1:]


def test_so_many_rows_of_each_intent_are_drawn_and_the_same_each_time(tmp_path: Path) -> None:
    source = banking(tmp_path / "all.csv", intents=5, of_each=9)
    assert methods.write_rows(tmp_path / "a.csv", source, of_each=3, most=None) == 15
    methods.write_rows(tmp_path / "b.csv", source, of_each=3, most=None)
    found = read(tmp_path / "a.csv")
    assert found == read(tmp_path / "b.csv")
    assert sorted(intent for _, intent in found) == sorted(f"intent_{intent}" for intent in range(5) for _ in range(3))
    assert set(found) <= set(read(source))
    assert methods.write_rows(tmp_path / "c.csv", source, of_each=None, most=7) == 7


def test_figures_are_those_of_the_run() -> None:
    found = methods.figures(RUN)
    assert found["tokens_per_second"] == 250
    assert found["peak_gb"] == 2.5
    assert found["interval"] == pytest.approx([0.7, 0.85])
    line = methods.table_of({"lora": found}).splitlines()[-1]
    assert [part for part in line.split() if part != "to"] == [
        "lora", "460,800", "2.50", "250", "1.5", "0.250", "0.800", "0.700", "0.850",
    ]  # fmt: skip


def test_the_plot_has_a_bar_in_each_panel_for_each_method_inside_the_picture() -> None:
    found = {name: methods.figures(RUN) for name in methods.METHODS}
    tree = ElementTree.fromstring(methods.plot(found, "rows & rates"))
    space = "{http://www.w3.org/2000/svg}"
    bars = [each for each in tree.iter(f"{space}rect") if each.get("fill") == "#1f6feb"]
    assert len(bars) == 3 * len(methods.METHODS)
    for bar in bars:
        assert float(bar.get("x", "")) + float(bar.get("width", "")) <= float(tree.get("width", ""))
        assert float(bar.get("y", "")) + 13 <= float(tree.get("height", ""))
    assert {"rows & rates", *methods.METHODS} <= {each.text for each in tree.iter(f"{space}text")}


@pytest.mark.parametrize("name", methods.METHODS)
def test_every_methods_recipe_is_accepted(name: str, tmp_path: Path, tiny_model_dir: Path) -> None:
    arguments = argparse.Namespace(model=str(tiny_model_dir), epochs=2, threads=1)
    recipe = read_recipe(methods.recipe_for(methods.METHODS[name], arguments, tmp_path)).recipe
    assert recipe.method.name == methods.METHODS[name]["name"]
    assert recipe.learning_rate == methods.learning_rate(recipe.method.name, str(tiny_model_dir))


@pytest.mark.slow
def test_a_method_is_trained_judged_and_measured(tmp_path: Path, tiny_model_dir: Path) -> None:
    banking(tmp_path / "train.csv", intents=4, of_each=4)
    banking(tmp_path / "test.csv", intents=4, of_each=2)
    arguments = argparse.Namespace(model=str(tiny_model_dir), epochs=1, threads=1)
    recipe: dict[str, Any] = methods.recipe_for(methods.METHODS["lora"], arguments, tmp_path)
    result = process.run(
        Path(sys.executable), methods.HERE / "finetuned.py", {"threads": 1, "recipe": recipe}, limit=240
    )
    found = methods.figures(json.loads(json.dumps(result)))
    assert 0 <= found["exact_match"] <= 1 and found["tokens_per_second"] > 0
    assert result["trainable"] > 0 and result["tokens"] > 16 * 10
    assert found["peak_gb"] > 0.1
