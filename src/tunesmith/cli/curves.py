"""`runs curves`: the curves of one or several runs as a picture."""

from __future__ import annotations

from typing import Annotated

import typer

from tunesmith.cli.options import AsJson, Overwrite
from tunesmith.cli.session import session


def draw_curves(
    runs: Annotated[list[str], typer.Argument(metavar="RUN", help="Run folders.", show_default=False)],
    out: Annotated[str, typer.Option("--out", metavar="FILE", help="A .svg, .html or .png file.")],
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Draw loss, validation loss, learning rate and gradient norm over the steps of runs.

    SVG and HTML need nothing else and hold everything in one file; PNG needs matplotlib.
    """
    with session(as_json) as terminal:
        from tunesmith import curves

        found = curves.draw(runs, out, overwrite=overwrite)
        terminal.write(f"Wrote {out}: {', '.join(run.name for run in found)}.")
        terminal.result({"file": out, "runs": [run.to_json() for run in found]})
