"""A conversation together with the template that renders it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.data.rendering import Dialect, Renderer, RenderError
from tunesmith.errors import DataError


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns as the template will see them, rendered as far as is asked."""

    renderer: Renderer
    dialect: Dialect
    turns: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]]
    source: str

    def prompt(self, count: int) -> str:
        """The first ``count`` turns with the generation prompt.

        Raises:
            DataError: the template refuses them.
        """
        return self._guarded(self.turns[:count], add_generation_prompt=True)[0]

    def full(self, count: int) -> tuple[str, list[tuple[int, int]]]:
        """The first ``count`` turns, and the characters that {% generation %} marks hold.

        Raises:
            DataError: the template refuses them.
        """
        return self._guarded(self.turns[:count], add_generation_prompt=False)

    def with_turn(self, number: int, turn: Mapping[str, Any]) -> str:
        """The turns up to ``number`` with another one in its place.

        Raises:
            DataError: the template refuses them.
        """
        return self._guarded([*self.turns[:number], turn], add_generation_prompt=False)[0]

    def _guarded(
        self, turns: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool
    ) -> tuple[str, list[tuple[int, int]]]:
        seen = [self.dialect.view(turn) for turn in turns]
        try:
            if add_generation_prompt:
                return self.renderer.render(seen, self.tools, add_generation_prompt=True), []
            return self.renderer.render_marked(seen, self.tools)
        except RenderError as error:
            raise DataError(
                "the chat template refuses this conversation",
                where=self.source,
                why=f"the template says: {error}",
                remedy=_remedy(str(error)),
            ) from error


def _remedy(message: str) -> str:
    lowered = message.lower()
    if "alternate" in lowered:
        return "join neighbouring turns of one role, so that user and assistant alternate, or set data.chat_template."
    if "system" in lowered:
        return "put the system text at the beginning of the first user turn, or set data.chat_template."
    if "tool" in lowered:
        return "use a model whose template knows tools, or give such a template in data.chat_template."
    return "change the row to what the template accepts, or give another template in data.chat_template."
