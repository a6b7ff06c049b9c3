"""The bench of the guards: the names that it wraps are there, in every module, and nothing is counted twice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys
sys.path.insert(0, "bench")
import guards
from tunesmith.runs import folder, manifest
clock = guards.Clock()
guards.wrap_all(clock)
assert folder.expect is manifest.expect and folder.expect.__wrapped__
from pathlib import Path
place = Path(sys.argv[1])
(place / "weights").write_bytes(bytes(2**20))
manifest.write_manifest(place)
assert manifest.damage(place) == {}
print(*(f"{name} {calls}" for name, calls in sorted(clock.calls.items())), sep=",")
assert sum(clock.seconds.values()) > 0
"""


def test_every_guard_is_wrapped_wherever_it_was_imported_to_and_counted_once(tmp_path: Path) -> None:
    top = Path(__file__).parents[1]
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(command, cwd=top, capture_output=True, text=True)
    assert done.stdout == "runs.manifest.damage 1,runs.manifest.write_manifest 1\n", done.stderr
