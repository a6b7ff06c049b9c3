"""What a stored recipe says about code is asked for again, because the run may be somebody else's.

A recipe that the user names is the user's own word. The recipe in a run folder is not: the sender of the folder wrote
it.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.errors import RunError
from tunesmith.recipe.complaints import dotted
from tunesmith.recipe.endpoint import JudgeSettings
from tunesmith.recipe.file import LoadedRecipe
from tunesmith.recipe.paths import local
from tunesmith.recipe.settings import EvaluationSettings, Recipe
from tunesmith.runs.run_files import FUNCTIONS
from tunesmith.runs.stored_addresses import addresses_of, refuse_stored_addresses


@dataclass(frozen=True, slots=True)
class Consent:
    """What the user lets a stored recipe do: run the model's own code; run functions, ask its judge, read its rows."""

    trust_remote_code: bool = False
    allow_functions: bool = False

    def given(self, loaded: LoadedRecipe, run: Path | None) -> Recipe:
        """The recipe with the user's consent.

        Args:
            loaded: the recipe.
            run: the run's folder, if that is where the recipe is stored.

        Raises:
            RunError: a stored recipe runs the model's code, or reads rows from inside, and the user did not say so.
        """
        recipe, typed = loaded.recipe, typed_keys(loaded, "model")
        if run is not None:
            self.check_rows(loaded, run)
        if run is not None and "trust_remote_code" not in typed:
            if "path" in typed:  # the user's choice of a model, and not the run's
                return recipe.with_values(model={"trust_remote_code": self.trust_remote_code})
            self.check_model(recipe, run)
        elif self.trust_remote_code and not recipe.model.trust_remote_code:
            return recipe.with_values(model={"trust_remote_code": True})
        return recipe

    def check_rows(self, loaded: LoadedRecipe, run: Path) -> None:
        """Raises RunError if the stored recipe of a run reads rows from an address that the user did not name."""
        if self.allow_functions:
            return
        typed = typed_keys(loaded, "data")
        said = {f"data.{key}" for key in ("train", "eval", "test") if {key, f"{key}.path"} & typed}
        own = [address for address, key in addresses_of(loaded.recipe).items() if key in said]
        refuse_stored_addresses(loaded.recipe, run, own=own)

    def check_model(self, recipe: Recipe, run: Path) -> None:
        """Raises RunError if the stored recipe of a run asks for the model's code, and the user did not."""
        if recipe.model.trust_remote_code and not self.trust_remote_code:
            raise RunError(
                "This run asks to run Python code that comes with its model",
                where=f"{run / 'recipe.yaml'}: model.trust_remote_code",
                why=f"The model is {recipe.model.path}. A run of somebody else could name any code.",
                remedy="Read the Python files of the model; if you trust them, add --trust-remote-code (in Python: "
                "trust_remote_code=True).",
            )

    def functions(
        self, evaluation: EvaluationSettings, *, typed: Collection[str], own: Path, run: Path | None
    ) -> dict[str, Path]:
        """The functions of a recipe that may run, with the folder that each comes from.

        Args:
            evaluation: the settings that name them.
            typed: the keys that the user has typed, such as ``metrics`` and ``judge.timeout``; the functions of a key
                that was typed come from the current folder.
            own: the folder of the recipe.
            run: the run's folder, if that is where the recipe is stored.

        Raises:
            RunError: a stored recipe names a function or an endpoint, and the user did not allow it.
        """
        if run is not None:
            own = run / FUNCTIONS if (run / FUNCTIONS).is_dir() else run
        found: dict[str, Path] = {}
        named = {
            "metrics": evaluation.metrics,
            "during": evaluation.during,
            "compute_metrics": [evaluation.compute_metrics or ""],
        }
        for key, names in named.items():
            functions = [name for name in names if ":" in name]
            if functions and run is not None and key not in typed and not self.allow_functions:
                raise RunError(
                    f"This run asks to run Python functions that its recipe names: {', '.join(functions)}",
                    where=f"{run / 'recipe.yaml'}: evaluation.{key}",
                    why="A run of somebody else could name any code.",
                    remedy=f"Read the Python files below {own}; if you trust them, add --allow-functions (in Python: "
                    "allow_functions=True).",
                )
            found |= dict.fromkeys(functions, Path.cwd() if key in typed else own)
        judge = evaluation.judge if "judge" in evaluation.metrics else None
        if judge is not None and run is not None and not self.allow_functions:
            _refuse_stored_judge(judge, typed, run)
        return found

    def of_recipe(self, loaded: LoadedRecipe, run: Path | None) -> dict[str, Path]:
        """The same of a recipe that was read."""
        evaluation = loaded.recipe.evaluation
        return self.functions(evaluation, typed=typed_keys(loaded, "evaluation"), own=loaded.folder, run=run)


def _refuse_stored_judge(judge: JudgeSettings, typed: Collection[str], run: Path) -> None:
    """Raises RunError unless the user typed both where the rows go and the variable whose value goes with them.

    Other keys of the judge, such as ``judge.timeout``, say nothing about that.
    """
    if "judge" in typed:  # as a whole
        return
    keyed = judge.api_key_env is not None and "judge.api_key_env" not in typed
    if "judge.base_url" in typed and not keyed:
        return
    own, key = "", ""
    if "judge.base_url" not in typed:
        own = f" evaluation.judge.base_url={shlex.quote(judge.base_url)}"
    if keyed:
        key = f", with the value of the environment variable {judge.api_key_env} as the key"
        own += f" evaluation.judge.api_key_env={judge.api_key_env}"
    raise RunError(
        f"This run asks to send its held-out rows and answers to {judge.base_url}{key}",
        where=f"{run / 'recipe.yaml'}: evaluation.judge",
        why="A run of somebody else could name any address, and any variable of the environment as its key.",
        remedy="If you trust the address, add --allow-functions (in Python: allow_functions=True), or say it yourself: "
        f"add{own}. Or name other metrics.",
    )


def typed_keys(loaded: LoadedRecipe, section: str) -> set[str]:
    """The keys of a section that were given as ``section.key=value``; keys of a key in full, such as ``judge.model``.

    A key of a mapping does not stand for the mapping: ``section.judge.model=x`` is not the whole ``judge``.
    """
    return {
        dotted(path[1:])
        for path, origin in loaded.origins.items()
        if len(path) > 1 and path[0] == section and origin == "flag"
    }


def flags_of(recipe: Recipe) -> str:
    """The flags that a command on a run with this recipe needs, each after a space."""
    evaluation = recipe.evaluation
    named = (*evaluation.metrics, *evaluation.during, evaluation.compute_metrics or "")
    functions = any(":" in name or name == "judge" for name in named)
    flags = {" --trust-remote-code": recipe.model.trust_remote_code, " --allow-functions": functions}
    return "".join(flag for flag, needed in flags.items() if needed)


def stored_in(recipe: Any) -> Path | None:
    """The run's folder, if this is the name of a recipe that is stored in one."""
    if not isinstance(recipe, str | Path):
        return None
    file = Path(local(recipe))
    folders = [file.resolve().parent, file.parent]
    return next((folder for folder in folders if (folder / "status.json").exists()), None)
