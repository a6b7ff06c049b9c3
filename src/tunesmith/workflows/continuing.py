"""What a run that continues takes from now, not from when it began, and what it says about the process before it."""

from __future__ import annotations

from pathlib import Path

from tunesmith.planning import memory
from tunesmith.planning.budget import gigabytes
from tunesmith.recipe.settings import Recipe
from tunesmith.runs.edited_recipe import MAY_CHANGE
from tunesmith.runs.folder import Run
from tunesmith.runs.manifest import changes
from tunesmith.runs.progress import Listener
from tunesmith.runs.start_folder import recipe_of
from tunesmith.runs.stored_addresses import write_recipe


def with_rules_of(run: Run, recipe: Recipe, asked: Recipe) -> Recipe:
    """The run's recipe with what may change as it is asked for now. The run folder records the change."""
    keys = [key for _, key in MAY_CHANGE]
    changed = {key: getattr(asked.training, key) for key in keys}
    changed = {key: value for key, value in changed.items() if value != getattr(recipe.training, key)}
    if not changed:
        return recipe
    status = run.status()
    write_recipe(run, recipe_of(run).with_values(training=changed))
    before = status["asked"]
    run.set_status(status["status"], asked={**before, "training": {**before.get("training", {}), **changed}})
    return recipe.with_values(training=changed)


def tell_of_kill(run: Run, device: str, listener: Listener) -> None:
    """Says that the earlier process was killed, and what memory it had last, if the run's status tells so.

    Call it with the folder locked: then no process works in it, whatever its status is.
    """
    status = run.status()
    if status.get("status") != "running":
        return
    held, when = status.get("held_memory"), f"at step {status.get('step') or 0}"
    if held is None and Path(run.folder / "memory.json").is_file() and "memory.json" not in changes(run.folder):
        held, when = run.read_json("memory.json").get("measured"), "in the measured step"
    memory_then = f" It held {gigabytes(held)} {when}, of {memory.limits(device)}." if held else ""
    listener.warn(
        f"the earlier process was killed or its machine went down: its status is still `running`.{memory_then} If the "
        "system killed it because memory ran out, end other programs before you continue, or start over with a lower "
        "training.micro_batch_tokens and --overwrite"
    )
