"""How fast `tunesmith check` looks at rows, and in how much memory: generated rows of about 1 KB, in growing files.

    python bench/data.py                                 20,000, 200,000 and 2,000,000 rows; 2 GB on the disk
    python bench/data.py --sizes 20000 --passes check    the smallest alone, without near duplicates

The rows are {prompt, completion} of made-up prose, the same each time, with exact and near duplicates, e-mail addresses
and a few bad rows among them. Each measurement is a process of its own. Memory is that of the process and its workers
together, a page that several have counted once, sampled a few times a second.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
PASSES = ("check", "near", "prepare")  # all but near duplicates; with them; cleaned, split and written
SIZES = (20_000, 200_000, 2_000_000)
BATCH = 1_000  # rows made at once
REMEMBERED = 10_000  # rows that repeats are taken from
WORDS_A_ROW = (20, 280)
EXACT, NEAR, EMAIL, BAD = 0.01, 0.02, 0.005, 0.0005  # shares of the rows
REPLACED = 20  # of so many words one is another in a near duplicate
SAMPLES_A_SECOND = 4
SYLLABLES = (  # noqa: SIM905
    "a ba be bo ca ce co da de do en er es fa fi fo ga go ha he in is ka la le li lo ma me mi mo na ne no on or pa pe "
    "po ra re ri ro sa se si so ta te ti to un ur va ve vi vo wa we wi ya za st nt ng ch sh th ck ll ss"
).split()
VOCABULARY = 20_000


def write_rows(path: Path, count: int, seed: int = 0) -> int:
    """The rows as JSON lines; returns the bytes. The first rows of a larger file are those of a smaller one."""
    size, chance = 0, random.Random(f"bench/data/{seed}")
    remembered: list[tuple[str, str]] = []
    with path.open("wb") as file:
        for number, row in zip(range(count), _prose(seed), strict=False):
            draw = chance.random()
            if remembered and draw < EXACT + NEAR:
                prompt, completion = chance.choice(remembered)
                row = prompt, completion
                if draw >= EXACT:
                    row = _reworded(prompt, chance), _reworded(completion, chance)
            elif draw > 1 - EMAIL:
                row = row[0], f"{row[1]} Write to {chance.choice(SYLLABLES)}.{number}@mail.example.org."
            if len(remembered) < REMEMBERED:
                remembered.append(row)
            else:
                remembered[chance.randrange(REMEMBERED)] = row
            line = json.dumps({"prompt": row[0], "completion": row[1]}, ensure_ascii=False)
            if chance.random() < BAD:
                line = chance.choice([line[:-2], json.dumps({"prompt": row[0]}), "[]"])
            size += file.write(f"{line}\n".encode())
    return size


def _prose(seed: int) -> Iterator[tuple[str, str]]:
    """Question and answer, of words that are as frequent as Zipf says, in sentences."""
    rng = np.random.default_rng(seed)
    names = random.Random(seed)
    words = ["".join(names.choices(SYLLABLES, k=1 + rank.bit_length() // 5)) for rank in range(1, VOCABULARY + 1)]
    words[500::500] = [f"{word}é" for word in words[500::500]]
    words[150::100] = [str(names.randrange(1_000)) for _ in words[150::100]]
    # Each as it stands inside of a sentence, at its beginning, at its end, and as the whole of one.
    forms = [*words, *(word.title() for word in words), *(f"{word}." for word in words)]
    forms += [f"{word.title()}." for word in words]
    shares = 1 / np.arange(10, VOCABULARY + 10)
    steps = np.cumsum(shares) / shares.sum()
    while True:
        lengths = rng.integers(*WORDS_A_ROW, size=BATCH)
        ends = rng.random(lengths.sum()) < 0.08
        begins = np.roll(ends, 1)
        picked = np.searchsorted(steps, rng.random(lengths.sum())) + VOCABULARY * (begins + 2 * ends)
        row_words = [forms[number] for number in picked.tolist()]
        at = 0
        for length in lengths.tolist():
            cut = at + length // 4 + 1
            yield " ".join(row_words[at:cut]), " ".join(row_words[cut : at + length])
            at += length


def _reworded(text: str, chance: random.Random) -> str:
    words = text.split()
    for at in range(0, len(words), REPLACED):
        words[chance.randrange(at, min(at + REPLACED, len(words)))] = chance.choice(SYLLABLES)
    return " ".join(words)


class Watch:
    """What this process and all it started used while the `with` block ran.

    ``peak``: the most memory they had together, in bytes. ``processor``: seconds of CPU time, up to the last sample.
    """

    def __init__(self) -> None:
        self.peak = 0
        self._ticks: dict[int, int] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()

    @property
    def processor(self) -> float:
        return sum(self._ticks.values()) / os.sysconf("SC_CLK_TCK")

    def sample(self) -> None:
        """Looks once more."""
        ticks = family(os.getpid())
        self._ticks |= ticks
        self.peak = max(self.peak, sum(map(_proportional, ticks)))

    def _watch(self) -> None:
        self.sample()
        while not self._done.wait(1 / SAMPLES_A_SECOND):
            self.sample()


def family(process: int) -> dict[int, int]:
    """A process and all that it started, and those what they started, that run now: clock ticks of CPU time of each."""
    children: dict[int, list[int]] = {}
    ticks: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        member = int(entry.parent.name)
        children.setdefault(int(fields[1]), []).append(member)
        ticks[member] = int(fields[11]) + int(fields[12])
    found = [process]
    for member in found:
        found += children.get(member, [])
    return {member: ticks[member] for member in found}


def _proportional(process: int) -> int:
    """Resident bytes, those shared with other processes by equal parts; 0 of a process that has ended."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def look(job: dict[str, Any]) -> dict[str, Any]:
    """One pass over a file in this process: seconds, the rows that were read, and the peak in bytes."""
    from tunesmith.workflows.check import inspect
    from tunesmith.workflows.prepare_data import prepare_data

    with Watch() as watch:
        begin = time.perf_counter()
        if job["pass"] == "prepare":
            ledger = prepare_data(job["file"], Path(job["file"]).with_name("prepared"), settings=job["settings"]).ledger
            found = {}
        else:
            seen = inspect(job["file"], near=job["pass"] == "near")
            ledger, found = seen.ledger, {finding.id: finding.count for finding in seen.findings}
        seconds = time.perf_counter() - begin
    return {
        "rows": ledger.total.rows.read, "seconds": seconds, "cpu_seconds": watch.processor, "peak_bytes": watch.peak,
        "findings": found,
    }  # fmt: skip


def summary(runs: list[dict[str, Any]]) -> str:
    """The one line that a script reads. `linear`: time a row at the largest size over that at the size before it."""
    largest = max(run["rows"] for run in runs)
    of_pass = {name: [run for run in runs if run["pass"] == name] for name in PASSES}
    ratios = [
        (last["seconds"] / last["rows"]) / (before["seconds"] / before["rows"])
        for some in of_pass.values()
        for before, last in [sorted(some, key=lambda run: run["rows"])[-2:]] * (len(some) > 1)
    ]
    said = [
        f"{name}_rows_per_second={run['rows'] / run['seconds']:.0f}"
        for name, some in of_pass.items()
        for run in some
        if run["rows"] == largest
    ]
    said.append(f"peak_gib={max(run['peak_bytes'] for run in runs) / 2**30:.2f}")
    return " ".join([*said, *([f"linear={max(ratios):.2f}"] if ratios else [])])


def main() -> None:
    arguments = _arguments()
    if arguments.job:
        asked, answered = arguments.job
        answered.write_text(json.dumps(look(json.loads(asked.read_text(encoding="utf-8")))), encoding="utf-8")
        return
    runs: list[dict[str, Any]] = []
    print(f"  {'rows':>9} {'MB':>6} {'pass':<8} {'seconds':>8} {'of CPU':>8} {'rows/s':>7} {'peak GiB':>8}")
    for size in arguments.sizes:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "rows.jsonl"
            written = write_rows(path, size)
            for name in arguments.passes:
                runs.append({"pass": name, "bytes": written, **_run(path, name, arguments)})
                _show(runs[-1])
        if arguments.out:
            _save(arguments.out, runs, arguments)
    print("\n" + summary(runs))


def _run(path: Path, name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    import process

    job = {
        "pass": name,
        "file": str(path),
        "settings": ["clean=[dedupe]", "on_error=skip"],
        "threads": arguments.threads,
    }
    return process.run(Path(sys.executable), Path(__file__), job, limit=arguments.limit)


def _show(run: dict[str, Any]) -> None:
    print(
        f"  {run['rows']:9,} {run['bytes'] / 1e6:6.0f} {run['pass']:<8} {run['seconds']:8.1f} "
        f"{run['cpu_seconds']:8.1f} {run['rows'] / run['seconds']:7.0f} {run['peak_bytes'] / 2**30:8.2f}",
        flush=True,
    )


def _save(path: Path, runs: list[dict[str, Any]], arguments: argparse.Namespace) -> None:
    cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "")
    about = {
        "cpu": cpu.partition(":")[2].strip() or platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**about, "summary": summary(runs), "runs": runs}, indent=1)
    path.write_text(text + "\n", encoding="utf-8")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("job", nargs="*", type=Path, help=argparse.SUPPRESS)  # of one pass: asked and answered
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES), help="rows of each file")
    parser.add_argument("--passes", nargs="+", choices=PASSES, default=["check", "near"])
    parser.add_argument("--threads", type=int, default=1, help="of OpenMP in each process")
    parser.add_argument("--limit", type=float, default=7200, help="seconds of a pass")
    parser.add_argument("--out", type=Path, help="the report, as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
