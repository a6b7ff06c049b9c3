"""The command `demo`: trains and judges a small model."""

from __future__ import annotations

from pathlib import Path

from tunesmith.cli.options import AsJson, Overwrite
from tunesmith.cli.terminal.session import session

FOLDER = Path("runs", "demo")


def demo(overwrite: Overwrite = False, as_json: AsJson = False) -> None:
    """Train and judge a small model in a few minutes.

    The bundled model learns to turn invoice headers into JSON. The run is runs/demo.
    """
    with session(as_json) as terminal:
        from tunesmith.workflows.demo import story

        terminal.result(story.run(FOLDER, overwrite=overwrite, listener=terminal))
