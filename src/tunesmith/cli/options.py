"""Arguments and flags that several commands share."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

FormatName = Literal[
    "auto", "alpaca", "prompt_completion", "messages", "sharegpt", "text", "preference", "unpaired_preference"
]

Target = Annotated[
    str,
    typer.Argument(metavar="TARGET", help="A run, a checkpoint, an adapter folder, or a model.", show_default=False),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Recipe keys, such as training.learning_rate=1e-4."),
]
GenerationKeys = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="max_new_tokens, max_length, do_sample, temperature, top_p, num_return_sequences, seed.",
    ),
]
EvaluationKeys = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Keys of the recipe's evaluation section, such as max_rows=50."),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="End standard output with one JSON object; all else goes to standard error.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
System = Annotated[str | None, typer.Option("--system", metavar="TEXT", help="System message.", show_default=False)]
Format = Annotated[
    FormatName,
    typer.Option(
        "--format",
        metavar="SHAPE",
        help="Shape of the rows: auto, alpaca, prompt_completion, messages, sharegpt, text, preference or "
        "unpaired_preference.",
    ),
]
Columns = Annotated[
    str | None,
    typer.Option(
        "--columns",
        metavar="FIELD=COLUMN,...",
        help="Which column holds which field, such as input=text,output=category.",
        show_default=False,
    ),
]
Instruction = Annotated[
    str | None,
    typer.Option("--instruction", metavar="TEXT", help="One instruction for all rows.", show_default=False),
]


def columns_of(text: str | None) -> dict[str, str]:
    """``input=text,output=category`` as a mapping from field to column. Raises typer.BadParameter if it is not that."""
    found: dict[str, str] = {}
    for pair in (text or "").split(",") if text else []:
        field, equals, column = (part.strip() for part in pair.partition("="))
        if not (field and equals and column):
            raise typer.BadParameter(f"{pair!r} is not FIELD=COLUMN", param_hint="--columns")
        if field in found:
            raise typer.BadParameter(f"{field} is given twice", param_hint="--columns")
        found[field] = column
    return found
