from __future__ import annotations

import random
import time
import tracemalloc

import pytest

from tunesmith.errors import RecipeError
from tunesmith.recipe.file import parse_override, read_recipe

GOOD = "model: m\ndata: {train: a.jsonl}\noutput_dir: o\n"
NAMES = "abcdefghijklmnopqrstuvwxyz"


def doubled(first: str, line: str, times: int) -> str:
    """Each line stands for the one before it several times."""
    return first + "".join(line.format(new=NAMES[n + 1], old=NAMES[n]) for n in range(times))


BOMBS = {
    "lists of lists": (doubled("a: &a [1, 2]\n", "{new}: &{new} [*{old}, *{old}, *{old}, *{old}]\n", 20), "20,000"),
    "mappings": (doubled("a: &a {x: 1}\n", "{new}: &{new} {{p: *{old}, q: *{old}}}\n", 24), "20,000"),
    "merged keys": (doubled("a: &a {x: 1}\n", "{new}: &{new}\n  <<: [*{old}, *{old}]\n", 24), "20,000"),
    "a value in itself": ("a: &a [*a]\n", "stands inside"),
    "a merge of itself": ("x: &x\n  <<: *x\n", "stands inside"),
    "the whole in itself": ("&all\na: *all\n", "stands inside"),
    "lists without an end": ("a: " + "[" * 100_000, "levels"),
    "mappings in mappings": ("a: " + "{a: " * 5000 + "1" + "}" * 5000, "levels"),
    "levels of lines": ("".join(" " * n + "a:\n" for n in range(500)), "levels"),
    "a call": ("model: !!python/object/apply:os.system ['touch PWNED']\n", "tag"),
    "a name": ("model: !!python/name:os.system\n", "tag"),
    "a renamed tag": ("%TAG ! tag:yaml.org,2002:python/\n---\nmodel: !name:os.system x\n", "tag"),
    "an unknown tag": ("model: !secret x\n", "tag"),
    "bytes": ("model: !!binary aGk=\n", "tag"),
    "a number that is none": ("model: !!int hello\n", "tag"),
    "a number of nothing": ("model: !!float\n", "tag"),
    "a long number": ("training: {seed: " + "9" * 5000 + "}\n", "digits"),
    "a long hexadecimal number": ("training: {seed: 0x" + "f" * 50_000 + "}\n", "digits"),
    "a long key": ("? " + "k" * 5000 + "\n: 1\n", "key"),
    "a list as a key": ("? [a, b]\n: 1\n", "key"),
    "a megabyte": ("model: " + "b" * 2_000_000, "characters"),
    "many keys": ("".join(f"k{n}: 1\n" for n in range(30_000)), "20,000"),
}


@pytest.mark.parametrize(("text", "said"), BOMBS.values(), ids=BOMBS)
def test_a_recipe_that_would_grow_or_run_something_is_refused_at_once_with_its_line(text, said, tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(text, encoding="utf-8")
    began = time.process_time()
    tracemalloc.start()
    with pytest.raises(RecipeError) as caught:
        read_recipe(file)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert said in caught.value.what
    assert str(caught.value.where).startswith(f"{file}:")
    assert caught.value.remedy
    assert time.process_time() - began < 10
    assert most < 64 * 2**20
    assert not (tmp_path / "PWNED").exists()


@pytest.mark.parametrize("value", ["!!python/name:os.system x", "&a [*a]", "9" * 5000, "!!int x", "[" * 1000])
def test_the_value_of_a_flag_has_the_same_limits(value):
    with pytest.raises(RecipeError):
        parse_override(f"model={value}")


def test_anchors_aliases_merges_and_plain_tags_work_as_before(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(
        GOOD + "training: &t {seed: !!int 3, batch_size: 4, save_strategy: !!str no}\nevaluation: {samples: &n 2}\n",
        encoding="utf-8",
    )
    recipe = read_recipe(file).recipe
    assert (recipe.training.seed, recipe.training.save_strategy, recipe.evaluation.samples) == (3, "no", 2)
    assert parse_override("a.b=[&x 1, *x]") == (("a", "b"), [1, 1])
    assert parse_override("a.b={<<: {c: 1}, d: 2}")[1] == {"c": 1, "d": 2}


def test_whatever_stands_in_a_value_is_read_or_refused():
    """Pieces of YAML in a random order; seeds that once ended in a traceback are below."""
    pieces = [*"{}[],:&*!?|>-#%@`'\"\n \t", "&a", "*a", "<<", "!!int ", "!!float ", "!!set", "---", "...", "0x", "1e9"]
    pieces += [".nan", "~", "? ", ": ", "- ", "\\", "\0", "é", "2001-01-01", "!!binary ", "%YAML 1.1\n---\n", "x"]
    choose = random.Random(14)
    for _ in range(1500):
        text = "".join(choose.choice(pieces) for _ in range(choose.randint(1, 25)))
        try:
            parse_override(f"a={text}")
        except RecipeError as error:
            assert error.what, text


@pytest.mark.parametrize("value", ["!!float ", "!!int ", "!!!int &!!set", "!!int 0x{[", "!!float .nan1e9", "!!int é"])
def test_tagged_numbers_that_are_none_are_refused(value):
    with pytest.raises(RecipeError):
        parse_override(f"a={value}")
