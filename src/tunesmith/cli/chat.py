"""The command `chat`: a conversation in the terminal."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any

from tunesmith.cli.answers import say_prompt, stream_answer
from tunesmith.cli.options import (
    AllowChanges,
    BaseModel,
    GenerationKeys,
    OtherInstruction,
    RawOption,
    SystemOption,
    TargetArgument,
    TrustRemoteCode,
    generation_settings,
)
from tunesmith.cli.terminal.console import Terminal
from tunesmith.cli.terminal.session import session
from tunesmith.errors import RecipeError, TunesmithError
from tunesmith.runs.stopping import Terminated, heard

if TYPE_CHECKING:
    from tunesmith.data.examples.message import Message
    from tunesmith.deploy.tuned import Tuned

WELCOME = "/help lists the commands, /exit or Ctrl-D ends the chat, Ctrl-C stops an answer."
COMMANDS = {
    "/help": "lists the commands",
    "/reset": "starts over: the history is empty, and the system message stays",
    "/exit": "ends the chat, as Ctrl-D does",
}
OTHERS = "Every other line is a message; history is kept. Ctrl-C stops an answer."


def chat(
    target: TargetArgument,
    settings: GenerationKeys = None,
    system: SystemOption = None,
    instruction: OtherInstruction = None,
    raw: RawOption = False,
    model: BaseModel = None,
    trust_remote_code: TrustRemoteCode = False,
    allow_changes: AllowChanges = None,
) -> None:
    """Talk with a model.

    Each line is a message; history is kept. The run's instruction goes before the newest message, as in training.
    /help lists the commands: /reset starts over, /exit or Ctrl-D ends the chat. Ctrl-C stops an answer.
    """
    with session() as terminal:
        wanted = generation_settings(settings)
        if wanted.get("num_return_sequences", 1) != 1:
            raise RecipeError("A chat has one answer to each message", remedy="Leave num_return_sequences out.")
        from tunesmith.deploy import tuned

        loaded = tuned.load(
            target,
            listener=terminal,
            model=model,
            trust_remote_code=trust_remote_code,
            allow_changes=allow_changes or (),
        )
        wanted |= {"raw": raw, "instruction": instruction}
        say_prompt(loaded, wanted, terminal, system=system)
        _Chat(loaded, wanted, system=system, terminal=terminal).run()


class _Chat:
    """The messages so far, and the loop that reads and answers. Unless a person types, an error ends the chat."""

    def __init__(self, model: Tuned, settings: dict[str, Any], *, system: str | None, terminal: Terminal) -> None:
        self.model, self.settings, self.system, self.terminal = model, settings, system, terminal
        self.interactive = sys.stdin.isatty()
        self.messages: list[Message] = []

    def run(self) -> None:
        """Reads and answers until the input ends."""
        self._reset()
        if self.interactive:
            import readline  # noqa: F401  input() then has line editing and a history

            self.terminal.note(f"{self.model.describe}\n{WELCOME}")
        while (line := self._read()) is not None:
            if line == "/exit":
                return
            if line == "/reset":
                self._reset()
                self.terminal.note("The history is empty.")
            elif line == "/help":
                self._help()
            elif self._is_unknown(line):
                self.terminal.note(f"There is no command {line}. {', '.join(COMMANDS)} are the commands.")
            elif line:
                self._reply(line)

    def _help(self) -> None:
        for name, meaning in COMMANDS.items():
            self.terminal.note(f"{name:<7} {meaning}")
        self.terminal.note(OTHERS)

    def _is_unknown(self, line: str) -> bool:
        """Whether a person typed one word that looks like a command, such as /quit. In a pipe it is a message."""
        return self.interactive and re.fullmatch(r"/[a-z]+", line) is not None

    def _reset(self) -> None:
        from tunesmith.data.examples.message import Message

        self.messages = [Message("system", self.system)] if self.system else []

    def _read(self) -> str | None:
        """The next line, without surrounding white space; None at the end."""
        if not self.interactive:
            line = sys.stdin.readline()
            return line.strip() if line else None
        try:
            return input("> ").strip()
        except EOFError:
            self.terminal.note("")
            return None
        except Terminated:
            raise
        except KeyboardInterrupt:
            heard()
            self.terminal.note(f"\n{WELCOME}")
            return ""

    def _reply(self, line: str) -> None:
        """Answers a message. An answer that Ctrl-C stops stays in the history; a message that fails does not."""
        from tunesmith.data.examples.message import Message

        asked = [*self.messages, Message("user", line)]
        pieces: list[str] = []
        try:
            stream_answer(self.model, asked, self.settings, self.terminal, pieces=pieces)
        except Terminated:
            raise
        except KeyboardInterrupt:
            if not self.interactive:
                raise
            heard()
            self.terminal.note("\n(stopped)")
        except TunesmithError as error:
            if not self.interactive:
                raise
            self.terminal.error(error)
            return
        if pieces:
            self.messages = [*asked, Message("assistant", "".join(pieces))]
