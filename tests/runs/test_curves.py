"""Curves as pictures: every value stands where it belongs, and a file holds all that it needs."""

from __future__ import annotations

import math
import os
import re
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tunesmith.errors import ExportError, RunError
from tunesmith.runs.curves import GAP, HEIGHT, MARGIN, WIDTH, RunCurves, draw, page, picture, read
from tunesmith.runs.drawing import COLOURS
from tunesmith.runs.folder import Run

SVG = "{http://www.w3.org/2000/svg}"


def make_run(folder: Path, *, lines: int = 30, scale: float = 1.0, **changes: Any) -> Run:
    folder.mkdir(parents=True)
    run = Run(folder)
    run.write_text("recipe.yaml", "model: m\ndata: {train: rows.jsonl}\noutput_dir: runs/rows\n")
    for number in range(1, lines + 1):
        line = {
            "step": 10 * number,
            "loss": scale * (4 - 0.1 * number),
            "learning_rate": 1e-4,
            "grad_norm": 0.5,
            **changes,
        }
        run.append("metrics.jsonl", line)
        if number % 10 == 0:
            run.append("metrics.jsonl", {"step": 10 * number, "eval_loss": scale * 2.0})
    run.set_status("stopped", step=10 * lines, total_steps=10 * lines)
    return run


def svg(runs: list[RunCurves]) -> str:
    return picture(runs).svg()


def lines_in(drawn: str) -> list[ElementTree.Element]:
    return list(ElementTree.fromstring(drawn).iter(f"{SVG}polyline"))


def points_of(line: ElementTree.Element) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in line.attrib["points"].split())]


def test_a_run_has_four_panels_with_its_values_in_place(tmp_path: Path) -> None:
    make_run(tmp_path / "one")
    loss, validation, rate, norm = map(points_of, lines_in(svg(read([tmp_path / "one"]))))
    left, top, right, bottom = MARGIN
    assert [len(curve) for curve in (loss, validation, rate, norm)] == [30, 3, 30, 30]
    assert (loss[0][0], loss[-1][0]) == (left, WIDTH - right), "from the first step to the last"
    inner = HEIGHT - top - bottom
    room = 0.05 / 1.1 * inner  # above and below the values
    assert loss[0][1] == pytest.approx(top + room, abs=0.1) and loss[-1][1] == pytest.approx(
        top + inner - room, abs=0.1
    )
    assert loss[15][1] == pytest.approx(loss[0][1] + (loss[-1][1] - loss[0][1]) * 15 / 29, abs=0.1), "a straight line"
    assert len({y for _, y in rate}) == 1 and rate[0][1] == pytest.approx(top + inner / 2, abs=0.1)


def test_each_metric_of_validations_has_a_panel_of_its_own(tmp_path: Path) -> None:
    run, other = make_run(tmp_path / "one"), make_run(tmp_path / "two")
    for step, value in ((100, 0.25), (200, 0.5)):
        run.append("metrics.jsonl", {"step": step, "eval_loss": 2.0, "eval_exact_match": value, "eval_seconds": 1.0})
        run.append("metrics.jsonl", {"step": step, "eval_loss": 2.0, "eval_<b>": value, "eval_loss_by_source": {}})
    runs = read([run.folder, other.folder])
    assert [each.metrics for each in runs] == [
        {"eval exact match": [(100, 0.25), (200, 0.5)], "eval <b>": [(100, 0.25), (200, 0.5)]},
        {},
    ]
    drawn = svg(runs)
    assert "eval exact match" in drawn and "eval &lt;b&gt;" in drawn and "<b>" not in drawn
    curves = [points_of(line) for line in lines_in(drawn)]
    assert len(curves) == 4 * 2 + 2 * 2 and [len(curve) for curve in curves[8:]] == [2, 0, 2, 0]
    assert runs[0].to_json()["metrics"]["eval exact match"] == [(100, 0.25), (200, 0.5)]
    assert f'height="{picture(runs).height}"' in drawn
    assert picture(runs).height - picture(read([other.folder])).height == HEIGHT + GAP


def test_runs_are_compared_on_one_scale_in_colours_of_their_own(tmp_path: Path) -> None:
    make_run(tmp_path / "one")
    make_run(tmp_path / "two", scale=2.0)
    found = lines_in(svg(read([tmp_path / "one", tmp_path / "two"])))
    assert len(found) == 8
    assert [line.attrib["stroke"] for line in found] == [*COLOURS[:2]] * 4
    assert [line.findtext(f"{SVG}title") for line in found[:2]] == ["one", "two"]
    one, two = map(points_of, found[:2])
    assert all(upper[1] < lower[1] for upper, lower in zip(two[:20], one[:20], strict=True)), "higher loss, higher up"


def test_runs_of_one_name_are_told_by_their_folders(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / side / "rows").folder for side in "ab"]
    assert [run.name for run in read([*folders, folders[0]])] == [str(folder) for folder in folders]


def test_gradient_norms_far_apart_are_drawn_logarithmically(tmp_path: Path) -> None:
    run = make_run(tmp_path / "one", lines=3)
    run.write_text("metrics.jsonl", "")
    for step, norm in ((1, 0.01), (2, 1.0), (3, 100.0)):
        run.append("metrics.jsonl", {"step": step, "loss": 1.0, "learning_rate": 1e-4, "grad_norm": norm})
    drawn = svg(read([run.folder]))
    norms = points_of(lines_in(drawn)[-1])
    assert norms[0][1] - norms[1][1] == pytest.approx(norms[1][1] - norms[2][1], abs=0.11)
    assert "gradient norm (logarithmic)" in drawn and ">0.1</text>" in drawn
    assert "no values yet" in drawn, "there is no validation loss"


def test_values_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    run = make_run(tmp_path / "one", lines=3)
    run.append("metrics.jsonl", {"step": 40, "loss": math.nan, "learning_rate": 1e-4, "grad_norm": math.inf})
    found = read([run.folder])[0].series
    assert len(found["loss"]) == 3 and len(found["learning_rate"]) == 4
    assert "nan" not in svg(read([run.folder])) and "inf" not in svg(read([run.folder]))


def test_the_gradient_norm_of_every_step_is_drawn_and_a_spike_stays_in_a_long_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "one", lines=200)
    run.write_text("metrics.jsonl", "")
    for number in range(1, 201):
        norms = [0.5] * 10
        norms[3] = 12.0 if number == 100 else 0.5
        line = {"step": 10 * number, "loss": 4 - number / 60, "grad_norm": 0.5, "grad_norms": norms}
        run.append("metrics.jsonl", {**line, "learning_rate": 1e-4})
    (found,) = read([run.folder])
    assert found.series["grad_norm"][993] == (994, 12.0) and len(found.series["grad_norm"]) == 2000
    assert [symptom.step for symptom in found.symptoms] == [994]
    norms = points_of(lines_in(svg([found]))[-1])
    assert len(norms) == 500
    assert min(y for _, y in norms) == pytest.approx(MARGIN[1] + 0.05 / 1.1 * (HEIGHT - MARGIN[1] - MARGIN[3]), abs=0.1)


def test_panels_share_their_steps(tmp_path: Path) -> None:
    make_run(tmp_path / "one")
    loss, validation, *_ = map(points_of, lines_in(svg(read([tmp_path / "one"]))))
    assert [x for x, _ in validation] == [loss[9][0], loss[19][0], loss[29][0]]


def test_more_runs_than_colours_are_told_by_dashes(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / f"run-{number}", lines=2).folder for number in range(10)]
    looks = [(line.attrib["stroke"], line.attrib["stroke-dasharray"]) for line in lines_in(svg(read(folders)))[:10]]
    assert len(set(looks)) == 10 and looks[8][0] == looks[0][0]


def test_a_run_of_one_step_is_a_point(tmp_path: Path) -> None:
    make_run(tmp_path / "one", lines=1)
    drawn = svg(read([tmp_path / "one"]))
    points = [points_of(line) for line in lines_in(drawn)]
    left, _, right, _ = MARGIN
    assert [len(line) for line in points] == [1, 1, 1]
    assert points[0][0][0] == pytest.approx(left + (WIDTH - left - right) / 2)
    assert drawn.count("<circle") == 3 and drawn.count(">10</text>") == 3 and "no values yet" in drawn


def test_a_folder_that_is_no_text_has_a_name_that_can_be_written(tmp_path: Path) -> None:
    folder = make_run(tmp_path / os.fsdecode(b"a\xff\x01b")).folder
    draw([folder], tmp_path / "a.svg")
    ElementTree.parse(tmp_path / "a.svg")
    assert r"a\udcff\x01b" in (tmp_path / "a.svg").read_text()


def test_a_page_is_whole_and_tells_what_looks_wrong(tmp_path: Path) -> None:
    make_run(tmp_path / "<flat>", lines=40, loss=2.0)
    text = page(read([tmp_path / "<flat>"]))
    assert "&lt;flat&gt;" in text and "<flat>" not in text
    assert "the loss has hardly fallen" in text
    assert "<td>stopped</td><td>400/400</td><td>2</td><td>2 at step 100</td>" in text
    links = re.findall(r"(?:src|href)=|@import|url\(", text)
    assert links == [], "nothing is fetched"


def test_each_kind_of_file_is_written_and_never_over_another(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "one").folder
    for name, begin in (("a.svg", "<svg"), ("sub/b.html", "<!doctype html>")):
        draw([folder], tmp_path / name)
        assert (tmp_path / name).read_text().startswith(begin)
    with pytest.raises(ExportError, match="exists already"):
        draw([folder], tmp_path / "a.svg")
    (tmp_path / "own.svg").write_text("old")
    with pytest.raises(ExportError, match="not known to be written by Tunesmith"):
        draw([folder], tmp_path / "own.svg", overwrite=True)
    assert draw([folder], tmp_path / "a.svg", overwrite=True)[0].to_json()["training"][0] == (10, 3.9)
    assert (tmp_path / "a.svg").read_text().startswith("<svg")
    with pytest.raises(ExportError, match=r"cannot be written as \.gif"):
        draw([folder], tmp_path / "a.gif")


def test_a_png_without_matplotlib_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    folder = make_run(tmp_path / "one").folder
    with pytest.raises(ExportError, match="a PNG needs matplotlib") as refused:
        draw([folder], tmp_path / "a.png")
    assert "tunesmith[plots]" in str(refused.value.remedy)
    assert not (tmp_path / "a.png").exists()


def test_a_png_is_drawn_by_matplotlib(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    folders = [make_run(tmp_path / name).folder for name in ("one", "two")]
    draw(folders, tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    assert content.startswith(b"\x89PNG") and int.from_bytes(content[16:20], "big") == (2 * WIDTH + GAP) / 96 * 144


def test_what_has_no_curves_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no run"):
        read([tmp_path])
    run = make_run(tmp_path / "one")
    run.write_text("metrics.jsonl", "")
    with pytest.raises(RunError, match="no metrics yet"):
        read([run.folder])
