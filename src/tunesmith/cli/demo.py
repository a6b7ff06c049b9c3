"""`demo`: the whole story on a small task."""

from __future__ import annotations

from pathlib import Path

from tunesmith.cli.options import AsJson, Overwrite
from tunesmith.cli.terminal.session import session

FOLDER = Path("runs", "demo")


def demo(overwrite: Overwrite = False, as_json: AsJson = False) -> None:
    """The whole story in a few minutes.

    Trains the bundled model to turn invoice headers into JSON and judges it. The run is runs/demo.
    """
    with session(as_json) as terminal:
        from tunesmith.workflows.demo import story

        terminal.result(story.run(FOLDER, overwrite=overwrite, listener=terminal))
