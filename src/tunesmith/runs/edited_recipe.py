"""What may differ in the recipe that a run keeps: places, which the user corrects there, and how it is written."""

from __future__ import annotations

import json
from pathlib import Path

from tunesmith.errors import TunesmithError
from tunesmith.recipe.complaints import Path_, dotted
from tunesmith.recipe.file import leaves, portable, read_recipe
from tunesmith.safe_text import escaped

# Keys that may differ when a run continues: a step that stops the run has changed nothing, so nothing is computed anew.
MAY_CHANGE = (("training", "on_nonfinite"), ("training", "max_skipped_steps"), ("training", "check_disk"))
SELECTING = ("max_rows", "seed", "compute_metrics")  # of the evaluation: which rows select a step, and by what
BY_ANSWERS = ("during", "during_rows", "normalize", "json_schema", "answer_pattern", "max_new_tokens")
_SPLITS = ("train", "eval", "test")


def is_place(path: Path_) -> bool:
    """Whether a setting says where something is. The contents are compared instead."""
    name = dotted(path)
    return of_rows(path) or name in ("output_dir", "model.path", "data.chat_template", "method.adapter_name_or_path")


def of_rows(path: Path_) -> bool:
    """Whether a setting says where rows are."""
    return path[0] == "data" and len(path) > 1 and path[1] in _SPLITS and path[-1] == "path"


def judges_only(key: str, *, selects: bool, by_answers: bool = False) -> bool:
    """Whether a setting decides how the result is judged, and no byte of the weights.

    Args:
        key: with dots, as ``evaluation.max_rows``; after ``recipe.yaml: `` for one that was edited there.
        selects: whether held-out rows select the step that the run ends with.
        by_answers: whether their answers do.
    """
    section, _, name = key.removeprefix("recipe.yaml: ").partition(".")
    deciding = (*(SELECTING if selects else ()), *(BY_ANSWERS if by_answers else ()))
    return section == "evaluation" and name.partition(".")[0].partition("[")[0] not in deciding


def says_the_same(recipe: Path, fingerprint: Path) -> bool:
    """Whether a run's recipe.yaml has the values that the run began with, except places and what may change."""
    apart = _apart(recipe, fingerprint)
    return apart is not None and all(is_place(path) or path in MAY_CHANGE for path in apart)


def edits(recipe: Path, fingerprint: Path) -> list[str]:
    """What a run's recipe.yaml says otherwise than when the run began, such as ``model.path: was 'a', is 'b'``."""
    apart = _apart(recipe, fingerprint) or {}
    return [escaped(f"{dotted(path)}: was {was!r}, is {now!r}") for path, (was, now) in apart.items()]


def _apart(recipe: Path, fingerprint: Path) -> dict[Path_, tuple[object, object]] | None:
    """The values that differ, with what they were and are; None if one of the files cannot be read."""
    try:
        began = dict(leaves(portable(read_recipe(json.loads(fingerprint.read_bytes())["recipe"]).recipe)))
        now = dict(leaves(portable(read_recipe(recipe).recipe)))
    except (OSError, ValueError, KeyError, TypeError, RecursionError, TunesmithError):
        return None  # whatever reads them says what is wrong with them
    paths = [path for path in {**began, **now} if began.get(path) != now.get(path)]
    return {path: (began.get(path), now.get(path)) for path in paths}
