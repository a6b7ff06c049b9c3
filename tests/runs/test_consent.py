"""What counts as the user's own word about code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import tunesmith
from tunesmith.errors import RunError
from tunesmith.evaluation.held_out_recipe import evaluation_recipe, typed_names
from tunesmith.recipe.file import LoadedRecipe, read_recipe
from tunesmith.runs.consent import Consent, flags_of, stored_in
from tunesmith.runs.folder import Run
from tunesmith.runs.stored_addresses import addresses_allowed, refuse_stored_addresses, write_recipe

SOURCE = Path(tunesmith.__file__).parent
TRUSTING = "model: {path: m, trust_remote_code: true}\ndata: {train: rows.jsonl}\noutput_dir: out\n"
FUNCTIONS = {"metrics": ["loss", "score.py:score"], "compute_metrics": "own.py:all"}


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A run folder with a recipe that runs code."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text(TRUSTING)
    (run / "status.json").write_text("{}")
    return run


def read(run: Path, *overrides: str) -> LoadedRecipe:
    return read_recipe(run / "recipe.yaml", overrides)


def test_a_recipe_is_stored_if_a_run_is_beside_it(stored: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(TRUSTING)
    (tmp_path / "link.yaml").symlink_to(stored / "recipe.yaml")
    (tmp_path / "linked").symlink_to(stored)
    assert stored_in(tmp_path / "mine.yaml") is None
    assert stored_in({"model": "m"}) is None
    for name in ("run/recipe.yaml", "link.yaml", "linked/recipe.yaml", "run/../run/recipe.yaml", "run/another.yaml"):
        assert stored_in(tmp_path / name) == stored_in(str(tmp_path / name)) == stored.resolve()


@pytest.mark.parametrize(
    ("consent", "overrides", "trusts"),
    [
        (Consent(), [], None),
        (Consent(allow_functions=True), [], None),
        (Consent(trust_remote_code=True), [], True),
        (Consent(), ["model.trust_remote_code=true"], True),
        (Consent(), ["model.trust_remote_code=false"], False),
        (Consent(), ["model.path=other"], False),  # the user's model, to which the run's word does not go over
        (Consent(trust_remote_code=True), ["model.path=other"], True),
        (Consent(), ["training.seed=1"], None),
    ],
)
def test_a_stored_recipe_trusts_what_the_user_says(
    stored: Path, consent: Consent, overrides: list[str], trusts: bool | None
) -> None:
    loaded = read(stored, *overrides)
    if trusts is None:
        with pytest.raises(RunError, match=r"(?s)add --trust-remote-code \(in Python: trust_remote_code=True\)"):
            consent.given(loaded, stored)
    else:
        assert consent.given(loaded, stored).model.trust_remote_code == trusts


def test_a_recipe_of_the_users_own_is_taken_at_its_word(stored: Path) -> None:
    loaded = read(stored)
    assert Consent().given(loaded, None) is loaded.recipe
    plain = read_recipe({"model": "m", "data": {"train": "x"}, "output_dir": "out"})
    assert not Consent().given(plain, None).model.trust_remote_code
    assert Consent(trust_remote_code=True).given(plain, None).model.trust_remote_code


def test_functions_come_from_the_recipes_folder_the_run_or_the_users_folder(
    stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    evaluation = read_recipe(
        {"model": "m", "data": {"train": "x"}, "evaluation": FUNCTIONS, "output_dir": "out"}
    ).recipe.evaluation
    own, here = tmp_path / "recipes", tmp_path

    def found(consent: Consent, *typed: str, run: Path | None = None) -> dict[str, Any]:
        return consent.functions(evaluation, typed=typed, own=own, run=run)

    while_training = evaluation.model_copy(update={"metrics": [], "compute_metrics": None, "during": ["score.py:a"]})
    with pytest.raises(RunError, match=r"(?s)evaluation\.during.*"):
        Consent().functions(while_training, typed=["metrics"], own=own, run=stored)
    both = ("score.py:score", "own.py:all")
    allowing = Consent(allow_functions=True)
    assert found(Consent()) == dict.fromkeys(both, own)
    assert found(Consent(), "metrics") == {"score.py:score": here, "own.py:all": own}
    with pytest.raises(
        RunError, match=r"(?s)run/recipe\.yaml: evaluation\.metrics.*score\.py:score.*--allow-functions"
    ):
        found(Consent(trust_remote_code=True), run=stored)
    with pytest.raises(RunError, match=r"(?s)evaluation\.compute_metrics.*own\.py:all.*allow_functions=True"):
        found(Consent(), "metrics", run=stored)
    assert found(Consent(), "metrics", "compute_metrics", run=stored) == dict.fromkeys(both, here)
    assert found(allowing, run=stored) == dict.fromkeys(both, stored)
    (stored / "functions").mkdir()
    assert found(allowing, run=stored) == dict.fromkeys(both, stored / "functions")
    assert found(allowing, "metrics", run=stored) == {"score.py:score": here, "own.py:all": stored / "functions"}


JUDGE = {"base_url": "https://foreign.example/v1", "model": "m", "api_key_env": "HOME"}


@pytest.mark.parametrize(
    ("typed", "key", "words"),
    [
        (["judge.timeout=5"], "HOME", "send its held-out rows.*variable HOME as the key.*judge.base_url=.*api_key_env"),
        (["judge.model=other", "judge.prompt='{first}{second}'"], None, "send its held-out rows"),
        (["judge.base_url=https://mine.example"], "HOME", "variable HOME as the key.*add evaluation.judge.api_key_env"),
        (["judge.api_key_env=MINE"], "HOME", "send its held-out rows.*foreign.example"),
        (["judge.base_url=https://mine.example"], None, None),
        (["judge.base_url=https://mine.example", "judge.api_key_env=null"], "HOME", None),
        (["judge.base_url=https://mine.example", "judge.api_key_env=MINE"], "HOME", None),
        (["judge={base_url: https://mine.example, model: m}"], "HOME", None),
        (["judge={base_url: https://mine.example, model: m}", "judge.timeout=5"], "HOME", None),
    ],
)
def test_a_key_of_the_judge_is_no_consent_to_its_address_and_its_variable(
    stored: Path, typed: list[str], key: str | None, words: str | None
) -> None:
    """For `train`, whose keys have their section, and for `eval`, whose keys need none."""
    loaded = read_recipe(
        {
            "model": "m",
            "data": {"train": "x"},
            "evaluation": {"metrics": ["judge"], "judge": {**JUDGE, "api_key_env": key}},
            "output_dir": "out",
        },
        [f"evaluation.{each}" for each in typed],
    )
    evaluation = evaluation_recipe(loaded.recipe, "run", None, typed).evaluation
    asks = [
        lambda: Consent().of_recipe(loaded, stored),
        lambda: Consent().functions(evaluation, typed=typed_names(typed), own=stored, run=stored),
    ]
    for ask in asks:
        if words is None:
            assert ask() == {}
        else:
            with pytest.raises(RunError, match=f"(?s){words}"):
                ask()
    assert Consent(allow_functions=True).of_recipe(loaded, stored) == {}


def test_the_flags_that_a_run_needs_are_named(stored: Path) -> None:
    recipe = read(stored).recipe
    assert flags_of(recipe) == " --trust-remote-code"
    plain = recipe.with_values(model={"trust_remote_code": False})
    assert flags_of(plain) == ""
    assert flags_of(plain.with_values(evaluation={"metrics": ["score.py:f"]})) == " --allow-functions"
    assert flags_of(plain.with_values(evaluation={"during": ["score.py:f"]})) == " --allow-functions"
    assert (
        flags_of(recipe.with_values(evaluation={"compute_metrics": "a:b"})) == " --trust-remote-code --allow-functions"
    )


INSIDE = "http://127.0.0.1:9/rows.jsonl"


@pytest.mark.parametrize(
    ("address", "words"),
    [
        (INSIDE, "Its server would learn that you read it"),
        ("https://example.org/rows.jsonl", "Its server would learn that you read it"),
        ("HTTP://[::1]/rows.jsonl", "Its server would learn that you read it"),
        ("zip://rows.jsonl::http://127.0.0.1/rows.zip", "Its server would learn that you read it"),
        ("s3://bucket/rows.jsonl", "s3:// is read with your own access"),
        ("smb://host/share/rows.jsonl", "smb:// is read with your own access"),
        ("simplecache::sftp://host/rows.jsonl", "is read with your own access"),
        ("://host/rows.jsonl", "form is unusual"),
        ("hf://datasets/user/rows/rows.jsonl", None),
        ("file:///rows.jsonl", None),
        ("user/rows@main", None),
        ("rows.jsonl", None),
    ],
)
def test_rows_of_a_stored_recipe_come_from_no_address_without_the_users_word(
    stored: Path, address: str, words: str | None
) -> None:
    (stored / "recipe.yaml").write_text(f"model: m\ndata: {{train: '{address}'}}\noutput_dir: out\n")
    recipe = read(stored).recipe
    if words is None:
        assert Consent().given(read(stored), stored) is not None
        refuse_stored_addresses(recipe, stored)
        return
    for ask in (lambda: Consent().given(read(stored), stored), lambda: refuse_stored_addresses(recipe, stored)):
        with pytest.raises(
            RunError, match=rf"(?s)recipe\.yaml: data\.train.*({words}).*add data\.train=.*--allow-functions"
        ):
            ask()
    assert Consent().given(read(stored), None) is not None, "a recipe that the user names is the user's word"


def test_an_address_is_allowed_by_its_key_by_the_flag_and_by_a_run_that_began_here(
    stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    (stored / "recipe.yaml").write_text(f"model: m\ndata: {{train: '{INSIDE}'}}\noutput_dir: out\n")
    for typed in ([], ["data.train.format=text"], ["data.test=0.1"]):
        with pytest.raises(RunError, match="asks to read rows from"):
            Consent().given(read(stored, *typed), stored)
    for typed in ([f"data.train={INSIDE}"], [f"data.train.path={INSIDE}"], ["data.train=mine.jsonl"]):
        Consent().given(read(stored, *typed), stored)
    Consent(allow_functions=True).given(read(stored), stored)
    recipe = read(stored).recipe
    for allowed in ([INSIDE], None):
        with addresses_allowed(allowed):
            refuse_stored_addresses(recipe, stored)
    write_recipe(Run(stored), recipe)
    Consent().given(read(stored), stored)
    (stored / "recipe.yaml").write_text(f"model: m\ndata: {{train: '{INSIDE}', test: '{INSIDE}2'}}\noutput_dir: out\n")
    with pytest.raises(RunError, match="asks to read rows from"):
        Consent().given(read(stored), stored)


def test_every_writer_of_a_runs_recipe_notes_that_it_was_written_here() -> None:
    written = [
        path for path in SOURCE.rglob("*.py") if re.search(r"write_\w+\((\"recipe\.yaml\"|RECIPE),", path.read_text())
    ]
    assert [path.name for path in written] == ["stored_addresses.py"]
