from __future__ import annotations

from tunesmith.cli.terminal.tables import curve, metrics_table, settings_table, table
from tunesmith.cli.terminal.text import cells, folded


def test_columns_are_aligned_and_figures_stand_to_the_right() -> None:
    assert table(("run", "step"), [("a", 7), ("long", 1200)], right=(1,)) == [
        "run   step",
        "a        7",
        "long  1200",
    ]


def test_wide_characters_take_two_places() -> None:
    assert table(("run", "x"), [("発票", 1)]) == ["run   x", "発票  1"]


def test_a_cell_is_one_line_without_control_characters() -> None:
    assert table(("a",), [("x\ny\x1b[31m",), (None,), (True,), (0.123456,)])[1:] == [
        "x y\\x1b[31m",
        "–",
        "true",
        "0.1235",
    ]


def test_metrics_of_a_verdict_have_base_tuned_and_interval() -> None:
    found = {"loss": {"base": 2.5, "tuned": 1.25, "difference": -1.25, "interval": [-1.5, -1.0], "verdict": "better"}}
    assert metrics_table(found) == [
        "metric  base  tuned  difference  interval    verdict",
        "loss     2.5   1.25       -1.25  -1.5 to -1  better",
    ]


def test_metrics_of_a_model_alone_have_a_value() -> None:
    assert metrics_table({"loss": {"value": 2.5}}) == ["metric  value", "loss      2.5"]


def test_settings_show_value_and_source() -> None:
    assert settings_table([("data.train[0].path", "a b", "r.yaml:2"), ("training.seed", 0, "default")]) == [
        "key                 value  source",
        'data.train[0].path  "a b"  r.yaml:2',
        "training.seed       0      default",
    ]


def test_a_curve_goes_from_its_highest_to_its_lowest_loss() -> None:
    lines = curve([(1, 4.0), (2, 3.0), (2, 3.0), (3, 2.0)], [(3, 1.0)], width=17, height=4)
    assert lines == [
        "4 |·",
        "  |      ·",
        "  |             ·",
        "1 |             o",
        "  +--------------",
        "   step 1       3",
        "   loss: · training  o validation",
    ]


def test_losses_that_fall_into_one_column_are_averaged() -> None:
    lines = curve(
        [(step, 2.0 if step % 2 else 4.0) for step in range(1, 1001)], [(1, 0.0), (1000, 6.0)], width=20, height=7
    )
    assert [line.count("·") for line in lines[:7]] == [0, 0, 0, 17, 0, 0, 0]


def test_a_curve_needs_five_points_two_steps_and_finite_losses() -> None:
    assert curve([], []) == []
    assert curve([(5, 1.0)], [(5, 2.0)]) == ["training loss: 1 at step 5", "validation loss: 2 at step 5"]
    assert curve([(1, 4.25), (2, 3.0)], [(2, 3.123456)]) == [
        "training loss: 4.25 at step 1, 3 at step 2",
        "validation loss: 3.123 at step 2",
    ]
    assert curve([], [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0), (5, float("nan"))])[0].endswith("4 at step 4")
    assert len(curve([], [(step, 1.0) for step in range(5)])) > 5
    assert curve([(1, float("nan")), (2, float("inf"))], []) == []


def test_a_flat_curve_is_one_line() -> None:
    lines = [
        line for line in curve([(step, 2.0) for step in (1, 1, 1, 2, 2)], [], width=14, height=3) if line.endswith("·")
    ]
    assert lines == ["2 |·         ·"]


def test_a_line_is_broken_between_words_and_goes_on_below_its_indentation() -> None:
    assert folded("  one two three four", 11) == ["  one two", "  three", "  four"]
    assert folded("one\n\ntwo three", 5) == ["one", "", "two", "three"]
    assert folded("a-word-that-is-longer than", 10) == ["a-word-that-is-longer", "than"]


def test_a_command_in_backticks_stays_on_one_line_so_that_it_can_be_copied() -> None:
    assert folded("then run `tunesmith init a b` (or `tunesmith runs list`).", 22) == [
        "then run",
        "`tunesmith init a b`",
        "(or",
        "`tunesmith runs list`).",
    ]


def test_styles_take_no_columns() -> None:
    assert folded("\x1b[1mbold\x1b[0m text", 9) == ["\x1b[1mbold\x1b[0m text"]


def test_a_table_that_is_too_wide_has_cells_of_several_lines() -> None:
    rows = [("a.key", "one two three four", "file"), ("b", "x", "default")]
    assert table(("key", "value", "source"), rows, width=26) == [
        "key    value       source",
        "a.key  one two     file",
        "       three four",
        "b      x           default",
    ]


def test_a_table_of_few_rows_with_long_words_is_turned() -> None:
    header = ("method", "activations", "checkpointing")
    assert table(header, [("full", 1, True), ("lora", 2, False)], right=(1,), width=27) == [
        "method         full   lora",
        "activations       1      2",
        "checkpointing  true  false",
    ]


def test_a_table_of_many_rows_with_long_words_is_a_block_for_each_row() -> None:
    rows = [(f"runs/number-{n}", "finished", "better") for n in range(5)]
    lines = table(("run", "status", "verdict"), rows, width=22)
    assert lines[:3] == ["runs/number-0", "  status finished", "  verdict better"]
    assert len(lines) == 15


def test_wide_characters_are_broken_between_any_two_and_other_words_are_not() -> None:
    found = folded("  答案 これはとても長い文章です " + "a" * 14, 12)
    assert found == ["  答案 これ", "  はとても長", "  い文章です", "  " + "a" * 14]
    assert max(map(cells, found[:3])) <= 12
