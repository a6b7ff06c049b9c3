"""Training beside other work: the speed of each trainer alone and beside a busy process, in turn in one run.

    python bench/busy.py                                            ours, and TRL tuned
    python bench/busy.py --settings OMP_WAIT_POLICY=active threads=1    ours under other settings as well

Every trainer is loaded once and stopped (SIGSTOP) between its turns, so that slow minutes of the machine meet all of
them. A busy process takes its share of the cores away: of three threads on two cores that always want to run, two get
2/3 of the machine. ``kept`` is the speed beside as a share of the speed alone, and ``of possible`` compares it with
that bound.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import environments
import report
import workloads
from transformers import AutoTokenizer

from tunesmith.model.weights.resolve import resolve

HERE = Path(__file__).resolve().parent
BUSY = "while True: pass"  # one Python process that never waits
ROWS = 4  # of an optimizer step: a turn is a few steps, and a turn beside other work may take ten times as long
LOADING = 300.0  # seconds until the first step is done


class Running:
    """One trainer, stopped unless it has its turn."""

    def __init__(self, name: str, command: list[str | Path], job: dict[str, Any], settings: dict[str, str]) -> None:
        self.name = name
        self._folder = tempfile.TemporaryDirectory()
        here = Path(self._folder.name)
        self._progress = here / "steps"
        (here / "job.json").write_text(json.dumps({**job, "progress": str(self._progress)}), encoding="utf-8")
        offline = {"OMP_NUM_THREADS": str(job["threads"]), "HF_HUB_OFFLINE": "1", "TMPDIR": str(here)}
        self._said = (here / "output.txt").open("wb")
        self._started = subprocess.Popen(
            [*command, here / "job.json", here / "result.json"], env={**os.environ, **offline, **settings},
            stdout=self._said, stderr=self._said, stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip

    def wait(self, steps: int, limit: float) -> list[float]:
        """Seconds of the next ``steps`` steps that begin from now on."""
        before, end = len(self._seconds()), time.monotonic() + limit
        while len(self._seconds()) <= before + steps:  # the step under way does not count
            if self._started.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"{self.name} made {len(self._seconds()) - before} of {steps} steps in {limit:.0f} s")
            time.sleep(0.05)
        return self._seconds()[before + 1 : before + 1 + steps]

    def stop(self) -> None:
        os.killpg(self._started.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.killpg(self._started.pid, signal.SIGCONT)

    def end(self) -> None:
        if self._started.poll() is None:
            os.killpg(self._started.pid, signal.SIGKILL)
        self._started.wait()
        self._said.close()
        self._folder.cleanup()

    def _seconds(self) -> list[float]:
        if not self._progress.is_file():
            return []
        return [
            float(line)
            for line in self._progress.read_text(encoding="utf-8").splitlines(keepends=True)
            if line.endswith("\n")
        ]


def main() -> None:
    arguments = _arguments()
    cores = len(os.sched_getaffinity(0))
    possible = min(1.0, cores / (cores + arguments.busy))  # threads share the cores evenly
    print(f"{cores} cores, {arguments.busy} busy: at most {possible:.2f} of the speed alone is possible", flush=True)
    with ExitStack() as stack:
        trainers = []
        for running in _trainers(arguments, cores):
            stack.callback(running.end)
            running.wait(0, LOADING)
            running.stop()
            trainers.append(running)
        taken = _take_turns(trainers, arguments)
    lines = {name: _figures(seconds, possible) for name, seconds in taken.items()}
    first = next(iter(lines.values()))["alone"]
    heads = f"{'alone':>7} {'beside':>7} {'kept':>6} {'of possible':>12} {'alone, to the first':>20}"
    print(f"\n{'seconds a step (median)':40} {heads}")
    for name, line in lines.items():
        print(
            f"{name:40} {line['alone']:7.2f} {line['beside']:7.2f} {line['kept']:6.2f} {line['of_possible']:12.2f} "
            f"{line['alone'] / first:20.2f}"
        )
    if arguments.out:
        about = {"cores": cores, "busy": arguments.busy, "workload": arguments.workload, "date": time.strftime("%F")}
        arguments.out.write_text(json.dumps({**about, "possible": possible, "lines": lines}, indent=1) + "\n")


def _take_turns(trainers: list[Running], arguments: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Seconds of steps by trainer, "alone" and "beside". The order turns round after each round."""
    taken: dict[str, dict[str, list[float]]] = {trainer.name: defaultdict(list) for trainer in trainers}
    for number in range(arguments.rounds):
        for trainer in trainers if number % 2 == 0 else trainers[::-1]:
            for beside in (False, True) if number % 2 == 0 else (True, False):
                busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(arguments.busy if beside else 0)]
                try:
                    trainer.go_on()
                    seconds = trainer.wait(arguments.steps, arguments.limit)
                    trainer.stop()
                finally:
                    for started in busy:
                        started.kill()
                        started.wait()
                where = "beside" if beside else "alone"
                taken[trainer.name][where] += seconds
                print(
                    f"  round {number + 1}, {trainer.name}, {where}: {statistics.mean(seconds):.2f} s a step",
                    flush=True,
                )
    return taken


def _figures(seconds: dict[str, list[float]], possible: float) -> dict[str, float]:
    alone, beside = (statistics.median(seconds[where]) for where in ("alone", "beside"))
    return {"alone": alone, "beside": beside, "kept": alone / beside, "of_possible": alone / beside / possible}


def _trainers(arguments: argparse.Namespace, cores: int) -> Any:
    model = str(resolve("smollm2-135m-instruct"))
    load = workloads.make(arguments.workload, AutoTokenizer.from_pretrained(model), data=arguments.data, steps=20)
    enough = load.rows * (1 + arguments.rounds * (arguments.steps + 2) * 2 * ROWS // len(load.rows))
    job = {
        "model": model, "rows": enough, "batch": ROWS, "peer_rows": ROWS, "method": "lora", "r": 16, "rate": 2e-4,
        "threads": cores, "device": "cpu", "budget": 0, "epoch_rows": load.epoch_rows,
    }  # fmt: skip
    for text in ["", *arguments.settings]:
        settings = dict(part.split("=", 1) for part in text.split(",")) if text else {}
        threads = int(settings.pop("threads", cores))
        command: list[str | Path] = [sys.executable, HERE / "ours.py"]
        yield Running(f"{report.OURS} {text}".strip(), command, {**job, "threads": threads}, settings)
    if not arguments.ours_alone:
        yield Running(report.TUNED, [environments.python("trl"), HERE / "trl_sft.py"], {**job, "tuned": True}, {})


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    data = os.environ.get("TUNESMITH_BENCH_DATA", str(HERE.parent.parent / "shared" / "data"))
    parser.add_argument("--workload", default="a", choices=list("abcd"))
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=3, help="timed steps of each turn")
    parser.add_argument("--busy", type=int, default=1, help="processes beside")
    parser.add_argument(
        "--settings", nargs="*", default=[], metavar="KEY=VALUE,...", help="environment variables, or threads=1"
    )
    parser.add_argument("--ours-alone", action="store_true", help="without TRL")
    parser.add_argument("--limit", type=float, default=300, help="seconds of a turn")
    parser.add_argument("--data", type=Path, default=Path(data), help="folder of the files that a, b and c read")
    parser.add_argument("--out", type=Path, help="a JSON report")
    return parser.parse_args()


if __name__ == "__main__":
    main()
