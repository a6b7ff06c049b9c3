"""Puts around a prompt what the run's training rows had around theirs: the instruction of its data section."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tunesmith.data.examples.example import user_text
from tunesmith.data.examples.message import Message
from tunesmith.errors import RecipeError, RunError
from tunesmith.recipe.settings import Recipe


@dataclass(frozen=True, slots=True)
class RunPrompt:
    """What goes before the user's text; ``from_run`` if the run says so, and not the user."""

    instruction: str | None = None
    from_run: bool = False

    def around(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        """The messages with the instruction before the last user turn, where training has it.

        Earlier turns stay as they are, like the history of a training row. A turn that begins with the instruction
        already stays as it is, too.
        """
        users = [number for number, message in enumerate(messages) if message.role == "user"]
        if self.instruction is None or not users or messages[users[-1]].content.startswith(self.instruction):
            return tuple(messages)
        turn = messages[users[-1]]
        framed = replace(turn, content=user_text(self.instruction, turn.content))
        return (*messages[: users[-1]], framed, *messages[users[-1] + 1 :])

    @property
    def note(self) -> str | None:
        """One line about what goes before the text; None if nothing does."""
        if self.instruction is None:
            return None
        if not self.from_run:
            return f"prompt: your instruction goes before the text: {self.instruction!r}"
        return (
            "prompt: the run's instruction goes before your text, as in training: "
            f"{self.instruction!r} (--raw leaves it out)"
        )


def run_prompt(recipe: Recipe | None, *, where: str, raw: bool = False, instruction: str | None = None) -> RunPrompt:
    """The instruction that the user gives, or else the one that all training sources of the recipe share.

    Args:
        recipe: the run's; None for a model without a run.
        where: the run, for errors.
        raw: no instruction.
        instruction: used in place of the run's.

    Raises:
        RecipeError: raw and an instruction are given.
        RunError: the training sources have different instructions, so any of them could be meant.
    """
    if raw and instruction is not None:
        raise RecipeError("--raw sends no instruction, and --instruction gives one", remedy="Use one of the two.")
    if raw or instruction is not None or recipe is None:
        return RunPrompt(instruction)
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
    return RunPrompt(found[0], from_run=True)
