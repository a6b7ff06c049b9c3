"""Notes that are taken while rows become tokens. They are reported as findings, each with its rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tunesmith.data.finding import Finding


@dataclass(frozen=True, slots=True)
class NoteKind:
    """One thing that can be noticed about a row."""

    id: str
    severity: Literal["warning", "info"]
    message: str
    remedy: str


OWN_ROWS = NoteKind(
    "turns_in_own_rows",
    "info",
    "the template rewrites earlier turns once they are history, so each assistant turn is trained as a row of its own",
    "nothing to do; data.train_on: last trains one row a conversation",
)
EMPTY_THINKING = NoteKind(
    "no_reasoning",
    "info",
    "the model thinks and the row has no reasoning: an empty thinking block is learned",
    "give the turns reasoning_content, or set data.chat_template_kwargs: {enable_thinking: false} if it is known",
)
IMPLIED_END = NoteKind(
    "implied_end_of_turn",
    "info",
    "the template ends a turn by the header of the next one; that token is learned as the end of the turn",
    "nothing to do",
)
MARKS_EARLY = NoteKind(
    "marks_in_prompt",
    "info",
    "the template's generation marks begin inside the prompt; what belongs to the prompt is not learned",
    "nothing to do; {% generation %} belongs behind the assistant's header",
)
MARKS_SHORT = NoteKind(
    "marks_leave_out",
    "warning",
    "the template's generation marks leave out tokens of the answer, and these are not learned",
    "set {% generation %} around the whole answer in data.chat_template if they should be",
)
MARKS_UNUSED = NoteKind(
    "marks_unused",
    "info",
    "the template's generation marks cannot be used on this row; the whole answer is learned, by prefix rendering",
    "nothing to do",
)
REASONING_LOST = NoteKind(
    "reasoning_lost",
    "warning",
    "the template leaves out the reasoning_content of a learned turn",
    "give a template that writes it in data.chat_template, or put the reasoning into the content",
)
CONTENT_LOST = NoteKind(
    "answer_rewritten",
    "warning",
    "the template drops or rewrites the text of a learned turn",
    "look at the rows with --show, and give another template in data.chat_template",
)
HISTORY_LOST = NoteKind(
    "turns_lost",
    "warning",
    "the template does not write the text of some system, user, tool or earlier assistant turns",
    "look at the rows with --show; put the text into a turn that the template writes",
)
TOOLS_LOST = NoteKind(
    "tools_lost",
    "warning",
    "the template does not write the definitions of some of the row's tools, so the model does not see them",
    "give a template that writes tools in data.chat_template, or describe the tools in the system turn",
)
CONTROL_IN_RAW_TEXT = NoteKind(
    "control_tokens_in_text",
    "info",
    "raw text holds control tokens, which are encoded as tokens",
    "set data.control_tokens: text to encode them as plain text",
)


class Notes:
    """The rows that each note is about."""

    def __init__(self) -> None:
        self._rows: dict[NoteKind, list[str]] = {}

    def note(self, kind: NoteKind, source: str) -> None:
        """Adds a row to a note. Several turns of one row count once."""
        rows = self._rows.setdefault(kind, [])
        if not rows or rows[-1] != source:
            rows.append(source)

    def findings(self) -> list[Finding]:
        """The notes as findings, in the order in which they were first taken."""
        return [Finding(kind.id, kind.severity, rows, kind.message, kind.remedy) for kind, rows in self._rows.items()]

    def take(self) -> Notes:
        """Returns the notes so far and starts again without any."""
        taken = Notes()
        taken._rows, self._rows = self._rows, {}
        return taken

    def merge(self, later: Notes) -> None:
        """Adds the notes about the rows that follow these, as if all had been taken here."""
        for kind, rows in later._rows.items():
            named = self._rows.setdefault(kind, [])
            again = bool(named) and named[-1] == rows[0]  # the last row here is also the first one there
            named += rows[again:]
