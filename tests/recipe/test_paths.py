"""Secrets of URLs stay out of messages and stored recipes."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from tunesmith.errors import DataError, RecipeError
from tunesmith.recipe.file import dump, read_recipe
from tunesmith.recipe.paths import is_shortened, local, shown
from tunesmith.recipe.settings import Recipe

SECRET = "https://store.example/rows.csv?X-Signature=abc123&Expires=9"
HIDDEN = "https://store.example/rows.csv?..."
PLAIN = {"model": "m", "data": {"train": SECRET, "eval": [{"path": SECRET, "split": "test"}]}, "output_dir": "runs/x"}


@pytest.mark.parametrize(
    ("path", "seen"),
    [
        (SECRET, HIDDEN),
        ("https://me:secret@store.example/rows.csv", "https://...@store.example/rows.csv"),
        ("https://token@store.example/rows.csv?a=b", "https://...@store.example/rows.csv?..."),
        ("https://store.example/rows.csv", "https://store.example/rows.csv"),
        ("hf://datasets/user/name@main/rows.csv", "hf://datasets/user/name@main/rows.csv"),
        ("what?.csv", "what?.csv"),
        ("user/name@main", "user/name@main"),
    ],
)
def test_a_url_is_shown_without_its_secrets(path: str, seen: str):
    assert shown(path) == seen == shown(seen)
    assert is_shortened(seen) == (path != seen)


def test_the_address_is_read_and_only_the_path_is_dumped():
    recipe = read_recipe(PLAIN).recipe
    (source,) = recipe.data.sources("train")
    assert (source.path, source.address) == (HIDDEN, SECRET)
    assert pickle.loads(pickle.dumps(source)).address == SECRET  # noqa: S301 - made here
    for text in (dump(recipe), str(recipe.model_dump()), recipe.model_dump_json(), repr(recipe)):
        assert HIDDEN in text and "abc123" not in text
    again = read_recipe(recipe, ["training.seed=3"]).recipe
    assert [each.address for each in (*again.data.sources("train"), *again.data.sources("eval"))] == [SECRET, SECRET]


def test_a_stored_recipe_gets_its_addresses_from_the_one_that_is_asked_for():
    asked = read_recipe(PLAIN).recipe
    stored = Recipe.model_validate({**PLAIN, "data": {"train": HIDDEN}})
    (source,) = stored.data.sources("train")
    assert source.address == HIDDEN
    assert source.with_address_of(asked.data.sources("train")).address == SECRET
    assert source.with_address_of([]) is source


def test_no_message_has_the_query_of_a_url():
    error = DataError(f"no {SECRET}", where=SECRET, why=f"got '{SECRET}'", remedy=f"run `tunesmith init '{SECRET}'`")
    assert "abc123" not in str(error) and "abc123" not in str(error.to_json())
    assert error.where == HIDDEN and error.remedy == f"run `tunesmith init '{HIDDEN}'`"
    with pytest.raises(RecipeError) as refused:
        read_recipe(PLAIN, [f"data.trian={SECRET}"])
    assert "abc123" not in str(refused.value)


def test_the_home_folder_is_meant_by_a_tilde_unless_a_file_has_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert local("~/x") == f"{tmp_path}/x" == local(Path("~/x"))
    assert local("~nobody-of-this-name/x") == "~nobody-of-this-name/x"
    (tmp_path / "~x").touch()
    assert local("~x") == "~x"


@pytest.mark.parametrize(
    ("path", "seen"),
    [
        ("webdavs://bob:PASSWD@host/t.csv", "webdavs://...@host/t.csv"),
        ("adl+x://bob:PASSWD@host/t.csv?sig=SECRET", "adl+x://...@host/t.csv?..."),
        ("gs://project@bucket/t.csv", "gs://project@bucket/t.csv"),
        ("s3://bucket/a:b@c.csv", "s3://bucket/a:b@c.csv"),
    ],
)
def test_a_password_is_hidden_whatever_the_scheme(path: str, seen: str) -> None:
    assert shown(path) == seen and is_shortened(seen) == (path != seen)
