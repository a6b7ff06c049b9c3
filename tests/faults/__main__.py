"""``python -m tests.faults [PART OF A NAME ...]`` prints the table of faults; ``--help`` lists its flags."""

from __future__ import annotations

import argparse
import math
import os
import sys
import time

from tests.faults.processes import warm
from tests.faults.table import Row, as_text, faults_by_module, run_rows


def main() -> None:
    """Runs the chosen rows. Exits with 1 if anything was lost, and with 2 if no row was chosen."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="rows whose name has this in it; all by default")
    parser.add_argument("--module", help="rows of this module only")
    parser.add_argument("--short", action="store_true", help="the form that `make test` runs")
    parser.add_argument("--seconds", type=float, default=math.inf, help="a row begins no new try after so many")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="rows at a time")
    asked = parser.parse_args()
    modules = faults_by_module()
    faults = modules.get(asked.module, []) if asked.module else [each for found in modules.values() for each in found]
    faults = [each for each in faults if not asked.names or any(name in each.name for name in asked.names)]
    if not faults:
        parser.error(f"no row has {' or '.join(asked.names or ['anything'])} in its name")
    if asked.short:
        faults = [each for each in faults if each.short]
    warm()
    began = time.monotonic()

    def done(row: Row) -> None:
        print(f"{row.name}: {row.tries} tries, {len(row.lost)} lost, {row.seconds:g} s", file=sys.stderr, flush=True)

    rows = run_rows(faults, whole=not asked.short, jobs=asked.jobs, done=done, at_most=asked.seconds)
    print(as_text(rows, time.monotonic() - began))
    sys.exit(any(row.lost for row in rows))


if __name__ == "__main__":
    main()
