"""Tunesmith beside other trainers: the same rows, ids, labels, adapter shape, optimizer and steps, in turn (A B B A).

    python bench/peers.py            every workload, method and trainer
    python bench/peers.py --quick    workloads a and d for lora beside TRL, in under 12 minutes on 2 cores

Each run is a process of its own, in the trainer's own environment. A line whose loss before the first step differs by
more than 1e-6 (relative, fp32), or that learns from another number of tokens, is void, and so is one whose run failed.
Timings of a shared machine drift, so only ratios within one run of this script mean anything.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import re
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import environments
import process
import report
import roofline
import shapes
import torch
import workloads
from filelock import FileLock, Timeout
from transformers import AutoConfig, AutoTokenizer

from tunesmith.model.weights.resolve import resolve

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
GATE = 1e-6
GATE_BF16 = 2e-2
SMALL_BUDGET = 512  # tokens of a micro-batch at which our own qlora is held against our own lora
LONG_STEPS = 1  # timed steps of workload e at most: one has as many tokens as 30 of the others


@dataclass(frozen=True)
class Trainer:
    """``environment``: None for this one. ``options`` go into the job."""

    name: str
    script: str
    environment: str | None
    options: dict[str, Any]
    methods: tuple[str, ...] = ("lora", "full", "qlora")


TRAINERS = (
    Trainer(report.OURS, "ours.py", None, {}),
    Trainer(report.TUNED, "trl_sft.py", "trl", {"tuned": True}),
    Trainer("trl as installed", "trl_sft.py", "trl", {"tuned": False}, ("lora", "full")),
    Trainer("llamafactory tuned", "llamafactory_sft.py", "llamafactory", {}),
    Trainer("litgpt", "litgpt_sft.py", "litgpt", {}, ("lora",)),
)
OWN = tuple(
    Trainer(f"{report.OURS} {method}", "ours.py", None, {"method": method, "budget": SMALL_BUDGET})
    for method in ("lora", "qlora")
)


def main() -> None:
    arguments = _arguments()
    lock = FileLock(Path(sys.prefix) / ".bench.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        sys.exit("Another benchmark runs here, and two at once would measure each other. Wait for it, or end it.")
    with lock, tempfile.TemporaryDirectory() as folder:
        model = arguments.model or str(resolve("smollm2-135m-instruct"))
        if arguments.shape:
            shapes.save(shapes.config(arguments.shape), Path(folder), tokenizer=Path(model), device=arguments.device)
            model = folder
        _compare_all(arguments, model)


def _compare_all(arguments: argparse.Namespace, model: str) -> None:
    """Saves what there is after each comparison, so that an interrupted run keeps what it has."""
    about = {"machine": _machine(arguments), "environments": {"tunesmith": environments.versions(Path(sys.executable))}}
    wanted = [(name, method, TRAINERS) for name in arguments.workloads for method in arguments.methods]
    if {"lora", "qlora"} <= set(arguments.methods):
        wanted.append((arguments.workloads[0], f"at {SMALL_BUDGET} tokens", OWN))
    done: list[report.Comparison] = []
    for number, (name, method, trainers) in enumerate(wanted, start=1):
        able = [some for some in trainers if trainers is OWN or _takes_part(some, method, arguments)]
        load = _workload(arguments, model, name)
        print(
            f"\n[{number}/{len(wanted)}] {name} {method}: {load.source}, {len(load.rows)} rows, {load.tokens} tokens, "
            f"{load.supervised} supervised",
            flush=True,
        )
        done.append(_compare(load, method, able, model, arguments, about["environments"]))
        print(report.table(done[-1]), flush=True)
        if arguments.out:
            report.save(arguments.out, done, about)
    if arguments.out:
        print(f"\n{arguments.out} and its plot")
    if ratio := report.qlora_ratio(done[-1]):
        print(f"\n{ratio}")
    print("\n" + (report.summary(done) or "no summary: it needs lora on a and d, ours and TRL tuned, not void"))


def _takes_part(trainer: Trainer, method: str, arguments: argparse.Namespace) -> bool:
    return trainer.name in arguments.trainers and method in trainer.methods


def _workload(arguments: argparse.Namespace, model: str, name: str) -> workloads.Workload:
    steps = 1 + (min(arguments.steps, LONG_STEPS) if name == "e" else arguments.steps)  # the first is not timed
    return workloads.make(name, AutoTokenizer.from_pretrained(model), data=arguments.data, steps=steps)


def _compare(
    load: workloads.Workload, method: str, trainers: list[Trainer], model: str, arguments: Any, installed: dict
) -> report.Comparison:
    """Every trainer twice, forward and backward in the list, with the machine's own speed between the runs."""
    job = {
        "model": model, "rows": load.rows, "batch": load.batch, "peer_rows": load.peer_rows, "method": method,
        "r": 16, "rate": 2e-4, "threads": arguments.threads, "device": arguments.device, "budget": arguments.budget,
        "epoch_rows": load.epoch_rows,
    }  # fmt: skip
    timed = [load.rows[at : at + load.batch] for at in range(load.batch, len(load.rows), load.batch)]
    found = report.Comparison(
        load.name, method, load.source, load.epoch_rows, load.epoch_rows * load.tokens / len(load.rows),
        roofline.floor_per_token(AutoConfig.from_pretrained(model), "full" if method == "full" else "lora", timed),
        {trainer.name: report.Line(trainer.name) for trainer in trainers},
    )  # fmt: skip
    torch.set_num_threads(arguments.threads)
    in_turn = [*trainers, *reversed(trainers)]
    for number, trainer in enumerate(in_turn, start=1):
        line = found.lines[trainer.name]
        if line.void:
            continue
        found.sgemm.append(roofline.sgemm(arguments.device))
        begin = time.perf_counter()
        try:
            line.runs.append(_run(trainer, job, arguments.limit, installed))
        except (environments.Unavailable, process.Failed) as error:
            line.void = str(error)
        said = f"failed: {line.void}" if line.void else f"{time.perf_counter() - begin:.0f} s with loading"
        print(f"  run {number} of {len(in_turn)}: {trainer.name}, {said}", flush=True)
    tolerance = math.inf if trainers[0] in OWN else GATE if arguments.device == "cpu" else GATE_BF16
    for line in found.lines.values():
        line.void = line.void or report.gate(line, found.lines[trainers[0].name], tolerance=tolerance)
    return found


def _run(trainer: Trainer, job: dict[str, Any], limit: float, installed: dict) -> dict[str, Any]:
    """One run, in an environment that is made on its first use and noted in ``installed``."""
    python = Path(sys.executable) if trainer.environment is None else environments.python(trainer.environment)
    if trainer.environment and trainer.environment not in installed:
        installed[trainer.environment] = environments.versions(python)
    return process.run(python, HERE / trainer.script, {**job, **trainer.options}, limit=limit)


def _machine(arguments: argparse.Namespace) -> dict[str, Any]:
    cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "")
    return {
        "cpu": cpu.partition(":")[2].strip() or platform.processor() or platform.machine(),
        "threads": arguments.threads,
        "gpu": torch.cuda.get_device_name() if arguments.device != "cpu" else None,
        "python": platform.python_version(),
        "model": arguments.shape or Path(arguments.model or "smollm2-135m-instruct").name,
        "steps": arguments.steps,
        "date": time.strftime("%Y-%m-%d"),
    }


def _default_report(arguments: argparse.Namespace) -> Path:
    """bench/results/DATE-MACHINE.json"""
    machine = _machine(arguments)
    name = re.sub(r"[^a-z0-9]+", "-", f"{machine['gpu'] or machine['cpu']} {machine['threads']} threads".lower())
    return HERE / "results" / f"{machine['date']}-{name.strip('-')}.json"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = [trainer.name for trainer in TRAINERS]
    data = os.environ.get("TUNESMITH_BENCH_DATA", str(ROOT.parent / "shared" / "data"))
    parser.add_argument("--quick", action="store_true", help="workloads a and d, lora, TRL tuned alone")
    parser.add_argument("--workloads", nargs="+", choices=list("abcde"))
    parser.add_argument("--methods", nargs="+", choices=["lora", "full", "qlora"])
    parser.add_argument("--trainers", nargs="+", choices=names, help="beside our own")
    parser.add_argument("--steps", type=int, default=4, help="timed steps of each run; e has one at most")
    parser.add_argument("--limit", type=float, default=7200, help="seconds of a run, after which it is void")
    parser.add_argument("--model", help="a model folder; the bundled model by default")
    parser.add_argument("--shape", choices=list(shapes.SHAPES), help="random weights at this shape instead")
    parser.add_argument("--data", type=Path, default=Path(data), help="folder of the files that a, b and c read")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda (bf16)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--budget", type=int, default=0, help="our tokens of a micro-batch; 0: automatic")
    parser.add_argument("--out", type=Path, help="the report; bench/results/DATE-MACHINE.json, and none with --quick")
    arguments = parser.parse_args()
    if arguments.steps < 1:
        parser.error("--steps is at least 1")
    arguments.workloads = arguments.workloads or (["a", "d"] if arguments.quick else list("abcde"))
    arguments.methods = arguments.methods or (["lora"] if arguments.quick else ["lora", "full", "qlora"])
    arguments.trainers = [report.OURS, *(arguments.trainers or ([report.TUNED] if arguments.quick else names))]
    if arguments.out is None and not arguments.quick:
        arguments.out = _default_report(arguments)
    return arguments


if __name__ == "__main__":
    main()
