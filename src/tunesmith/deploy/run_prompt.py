"""Puts around a prompt what the run's training rows had around theirs: an instruction and a system turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tunesmith.data.examples.example import user_text
from tunesmith.data.examples.message import Message
from tunesmith.errors import RecipeError, RunError
from tunesmith.recipe.settings import Recipe


@dataclass(frozen=True, slots=True)
class RunPrompt:
    """What goes before the user's text. ``from_run``: the instruction is the run's, and not the user's.

    ``system``: the system text that all training rows have. ``systems_differ``: they have different ones, so none is
    sent.
    """

    instruction: str | None = None
    from_run: bool = False
    system: str | None = None
    systems_differ: bool = False

    def around(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        """The messages with the instruction before the last user turn, where training has it.

        Earlier turns stay as they are, like the history of a training row. A turn that begins with the instruction
        already stays as it is, too. A conversation with a system turn keeps its own.
        """
        if self.system is not None and not any(message.role in ("system", "developer") for message in messages):
            messages = (Message("system", self.system), *messages)
        users = [number for number, message in enumerate(messages) if message.role == "user"]
        if self.instruction is None or not users:
            return tuple(messages)
        turn = messages[users[-1]]
        opening = user_text(self.instruction, "x")[:-1]  # with the blank line: other text may begin alike
        if turn.content.startswith(opening):
            return tuple(messages)
        framed = replace(turn, content=user_text(self.instruction, turn.content))
        return (*messages[: users[-1]], framed, *messages[users[-1] + 1 :])

    def note(self, *, system: str | None = None) -> str | None:
        """One line about what goes before the text, where the user gives this system text; None if nothing does."""
        parts = []
        if self.instruction is not None:
            whose = "the run's" if self.from_run else "your"
            parts.append(f"{whose} instruction {self.instruction!r}")
        if self.system is not None and system is None:
            parts.append(f"the run's system turn {self.system!r}")
        if self.systems_differ and system is None:
            parts.append("no system turn, because the training rows have different ones (--system gives one)")
        if not parts:
            return None
        return f"prompt: before your text goes {' and '.join(parts)} (--raw leaves it out)"


def run_prompt(
    recipe: Recipe | None,
    sources: Sequence[Mapping[str, Any]] = (),
    *,
    where: str,
    raw: bool = False,
    instruction: str | None = None,
) -> RunPrompt:
    """What training put around its rows: the instruction of all sources and the system turn of all rows.

    Args:
        recipe: the run's; None for a model without a run.
        sources: what the run records of its sources, as in data.json.
        where: the run, for errors.
        raw: no instruction and no system turn.
        instruction: used in place of the run's.

    Raises:
        RecipeError: raw and an instruction are given.
        RunError: the training sources have different instructions, so any of them could be meant.
    """
    if raw and instruction is not None:
        raise RecipeError("--raw sends no instruction, and --instruction gives one", remedy="Use one of the two.")
    if raw or recipe is None:
        return RunPrompt(instruction)
    systems = {text for source in sources if source["side"] == "train" for text in source.get("systems", [])}
    system = next(iter(systems)) if len(systems) == 1 else None
    found = _instruction(recipe, where) if instruction is None else instruction
    return RunPrompt(found, from_run=instruction is None, system=system, systems_differ=len(systems) > 1)


def _instruction(recipe: Recipe, where: str) -> str | None:
    sources = recipe.data.sources("train")
    found = list(dict.fromkeys(source.instruction for source in sources))
    if len(found) > 1:
        each = "; ".join(
            f"{source.path}: {'none' if source.instruction is None else repr(source.instruction)}" for source in sources
        )
        raise RunError(
            "The training sources of this run have different instructions, so any of them could be meant",
            where=where,
            why=f"{each}.",
            remedy="Choose one with --instruction TEXT (in Python: instruction=TEXT), or send your text alone with "
            "--raw (raw=True).",
        )
    return found[0]
