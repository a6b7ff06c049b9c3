"""Fills in the templates of somebody's tasks, with the limits of time, memory and output that chat templates have."""

from __future__ import annotations

from typing import Any

import jinja2

from tunesmith.data.chat.budget import SECONDS, TemplateLimitError
from tunesmith.data.chat.limits import LimitedEnvironment
from tunesmith.data.chat.rendering import TEMPLATE_FAULTS
from tunesmith.errors import RecipeError

LONGEST = 2**20  # characters that one template writes; the harness reads some of them as lists of Python


class TaskTemplate(jinja2.Template):
    """A template that fills itself in within the limits, and fails with an error of Jinja alone."""

    def render(self, *args: Any, **kwargs: Any) -> str:
        """The text for one row.

        Raises:
            RecipeError: it takes too much time or memory, or uses a regular expression.
            TemplateError: it fails on the row.
        """
        environment = self.environment
        assert isinstance(environment, TaskEnvironment)
        environment.budget.begin(kwargs, SECONDS)
        try:
            text = super().render(*args, **kwargs)
        except TemplateLimitError as error:
            what = error.what.removeprefix("the chat template ").replace("for one conversation", "for one row")
            raise _too_much(what) from error
        except RecursionError as error:
            raise jinja2.TemplateRuntimeError("its parts call each other without an end") from error
        except jinja2.TemplateError:
            raise
        except TEMPLATE_FAULTS as error:
            raise jinja2.TemplateRuntimeError(f"{type(error).__name__}: {error}") from error
        if len(text) > LONGEST:
            raise _too_much(f"writes more than {LONGEST:,} characters")
        return text


class TaskEnvironment(LimitedEnvironment):
    """The sandbox of chat templates in the place of the harness's environment."""

    template_class = TaskTemplate

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_filter("regex_replace", _refuse_expression)

    def from_string(self, *args: Any, **kwargs: Any) -> jinja2.Template:
        """A compiled template. Raises TemplateError if it cannot be compiled."""
        try:
            return super().from_string(*args, **kwargs)
        except jinja2.TemplateError:
            raise
        except (SyntaxError, RecursionError, MemoryError, ValueError, TypeError) as error:  # of Python's own compiler
            raise jinja2.TemplateRuntimeError("its blocks or brackets lie too deep in each other") from error


def _too_much(what: str) -> RecipeError:
    return RecipeError(
        "A template of a task takes too much time or memory",
        where="--tasks",
        why=f"It {what}. Files of others may be made to stop the machine.",
        remedy="Correct the template in the task's file. If you trust the files of the folder and the code that they "
        "name, add --allow-functions: then templates have no limits.",
    )


def _refuse_expression(*_: Any, **__: Any) -> str:
    raise RecipeError(
        "A template of a task uses a regular expression (the filter regex_replace)",
        where="--tasks",
        why="A regular expression can take time without an end, and nothing could stop it.",
        remedy="Use the filter replace, or prepare the text in the data. If you trust the files of the folder and the "
        "code that they name, add --allow-functions. A task of the harness itself also works without --include-path.",
    )
