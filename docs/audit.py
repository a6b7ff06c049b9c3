"""What `make audit` does: known holes of the pinned versions, and the licence of every dependency.

    python docs/audit.py           # compare constraints.txt with the advisories, and check the licences
    python docs/audit.py --write   # write docs/licences.md from the installed packages

Exit codes: 0 all is well; 2 a licence is not accepted or not known; 3 a pinned version has a known hole; 4 the advisory
service did not answer for every package, so nothing is known about the others.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PINS, PAGE = ROOT / "constraints.txt", ROOT / "docs" / "licences.md"
FINE, LICENCE, HOLE, NO_ANSWER = 0, 2, 3, 4

# Licences under which Tunesmith may use a library by importing it. GPL and AGPL are not among them.
ACCEPTED = frozenset((
    "0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "CNRI-Python", "HPND", "ISC",
    "LGPL-2.1-or-later", "LGPL-3.0-or-later", "LLVM-exception", "MIT", "MIT-CMU", "MPL-2.0", "PSF-2.0",
    "Unlicense", "Zlib",
))  # fmt: skip
# Words of packages that name no SPDX licence.
WORDS = {
    "Apache 2.0": "Apache-2.0",
    "Apache 2.0 License": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD-3-Clause",
    "3-Clause BSD License": "BSD-3-Clause",
    "MIT License": "MIT",
    "ISC License (ISCL)": "ISC",
    "Python Software Foundation License": "PSF-2.0",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "GNU Lesser General Public License v2 or later (LGPLv2+)": "LGPL-2.1-or-later",
    "GNU Lesser General Public License v3 (LGPLv3)": "LGPL-3.0-or-later",
    "The MIT License (MIT)": "MIT",
}
# Packages of which the metadata do not say it all: read in their own licence files.
READ = {
    "axe-playwright-python": "MIT AND MPL-2.0",  # the second one of axe-core, which it contains
    "colorama": "BSD-3-Clause",  # for Windows only, so it may not be installed
    "odfpy": "Apache-2.0 OR GPL-2.0-or-later OR LGPL-2.1-or-later",
}


def pinned(text: str) -> dict[str, str]:
    """The versions by name that a constraints file pins."""
    lines = (line.split("#")[0].strip() for line in text.splitlines())
    return dict(line.split("==", 1) for line in lines if "==" in line)


def licence_of(name: str) -> str | None:
    """The licence of an installed package as SPDX writes it; None if it is not installed or says nothing."""
    if name in READ:
        return READ[name]
    try:
        said = metadata.metadata(name)
    except metadata.PackageNotFoundError:
        return None
    if expression := said.get_all("License-Expression"):
        return str(expression[0])
    names = [line.rpartition(" :: ")[2] for line in said.get_all("Classifier") or [] if line.startswith("License ::")]
    names = [each for each in names if each != "OSI Approved"] or [str(said.get_all("License", [""])[0]).split("\n")[0]]
    return " AND ".join(WORDS.get(each, each) for each in names) or None


def is_accepted(licence: str | None) -> bool:
    """Whether an expression of SPDX can be met with accepted licences alone: all of one of its alternatives."""
    if licence is None:
        return False
    alternatives = re.split(r"\s+OR\s+", licence.replace("(", " ").replace(")", " "))
    return any(
        all(part.strip() in ACCEPTED for part in re.split(r"\s+(?:AND|WITH)\s+", alternative.strip()))
        for alternative in alternatives
    )


def page(licences: Mapping[str, str | None]) -> str:
    """docs/licences.md."""
    rows = [f"| {name} | {licence or 'unknown'} |" for name, licence in licences.items()]
    return "\n".join(
        [
            "# Licences of the dependencies",
            "",
            "Each package that `constraints.txt` pins, with its licence. Tunesmith is under Apache-2.0. It does not",
            "contain these packages: pip installs them. `make audit` checks that each licence is accepted, and",
            "`python docs/audit.py --write` writes this page.",
            "",
            "| package | licence |",
            "|---|---|",
            *rows,
            "",
        ]
    )


def refused(licences: Mapping[str, str | None]) -> list[str]:
    """A line for each package whose licence is not accepted."""
    return [
        f"{name}: {licence or 'no licence is known'}" for name, licence in licences.items() if not is_accepted(licence)
    ]


def judged(said: str, names: Iterable[str]) -> tuple[int, list[str]]:
    """The exit code, and lines about what pip-audit printed as JSON.

    pip-audit itself ends with 0 where it could look up nothing: a package that it skipped counts as not compared here.
    """
    try:
        found: list[dict[str, Any]] = json.loads(said)["dependencies"]
    except (ValueError, KeyError):
        return NO_ANSWER, ["The advisory service did not answer. Nothing was compared."]
    holes = [(each, hole) for each in found for hole in each.get("vulns", [])]
    compared = {each["name"].lower() for each in found if "vulns" in each}
    missed = [name for name in names if name.lower() not in compared]
    lines = []
    for each, hole in holes:
        lines.append(
            f"{each['name']} {each['version']}: {hole['id']}, fixed in {', '.join(hole['fix_versions']) or '-'}"
        )
    if missed:
        some = ", ".join(missed[:5]) + (", ..." if len(missed) > 5 else "")
        lines.append(f"The advisory service did not answer for {len(missed)} of {len(missed) + len(compared)}: {some}.")
    return (HOLE if holes else NO_ANSWER if missed else FINE), lines or [f"No known hole in {len(compared)} packages."]


def main() -> int:
    """Checks licences, then holes. The worst finding decides the exit code."""
    pins = pinned(PINS.read_text(encoding="utf-8"))
    licences = {name: licence_of(name) for name in pins}
    if "--write" in sys.argv[1:]:
        PAGE.write_text(page(licences), encoding="utf-8")
        return FINE
    wrong = refused(licences)
    print(f"licences: {len(licences) - len(wrong)} of {len(licences)} packages accepted (docs/licences.md)")
    for line in wrong:
        print(f"  {line}")
    command = ["pip-audit", "-r", str(PINS), "--no-deps", "--disable-pip", "-f", "json", "--progress-spinner", "off"]
    beside = Path(sys.executable).with_name("pip-audit")
    auditor = ROOT / ".venv-audit" / "bin" / "pip-audit"
    found = next((path for path in (auditor, beside) if path.exists()), None)
    done = subprocess.run([str(found), *command[1:]], capture_output=True, text=True) if found else None
    code, lines = judged(done.stdout, pins) if done else (NO_ANSWER, ["pip-audit is not installed: run `make audit`."])
    print("holes:", *lines, sep="\n  ")
    if code == NO_ANSWER:
        print("What to do: run `make audit` again with a connection to pypi.org. Until then nothing is known.")
    return HOLE if code == HOLE else LICENCE if wrong else code


if __name__ == "__main__":
    sys.exit(main())
