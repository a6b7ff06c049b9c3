"""The command `merge`: writes a run as a model folder of plain weights."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from tunesmith.cli.options import AllowChanges, AsJson, BaseModel, Overwrite, TargetArgument, TrustRemoteCode
from tunesmith.cli.terminal.session import session
from tunesmith.model.weights.recipes import refuse_recipe

SIZE = "5GB"  # of one file of weights
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    typer.Option(
        "--dtype",
        metavar="DTYPE",
        help="Type of the weights: float32, bfloat16, float16, or auto, which is that of the base.",
    ),
]


def merge(
    target: TargetArgument,
    out: Annotated[str, typer.Option("--out", metavar="FOLDER", help="A new folder for the model.")],
    dtype: Dtype = "auto",
    data: Annotated[
        str | None,
        typer.Option(
            "--data", metavar="DATA", help="Rows to compare logits on.", show_default="the run's held-out rows"
        ),
    ] = None,
    max_shard_size: Annotated[
        str, typer.Option("--max-shard-size", metavar="SIZE", help="Largest size of one file of weights.")
    ] = SIZE,
    model: BaseModel = None,
    trust_remote_code: TrustRemoteCode = False,
    allow_changes: AllowChanges = None,
    keep_adapter: Annotated[
        bool,
        typer.Option("--keep-adapter", help="Do not merge: write the adapter, and a copy of its base in FOLDER/base."),
    ] = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Write a run as plain weights, with tokenizer and chat template, that every tool can load.

    The folder is read back and its logits are compared with those of the tuned model. If they differ too much, the
    folder is removed. For a quantized base the adapter is added to the dequantized and to the original weights, and the
    closer result is kept.
    """
    if keep_adapter:
        of_merging = {
            "--dtype": dtype != "auto",
            "--data": data is not None,
            "--max-shard-size": max_shard_size != SIZE,
        }
        for flag in (flag for flag, given in of_merging.items() if given):
            raise typer.BadParameter(
                f"{flag} goes with a merge, and --keep-adapter merges nothing: leave one of them out"
            )
    with session(as_json) as terminal:
        refuse_recipe(target)
        from tunesmith.deploy import merge as merging

        if keep_adapter:
            from tunesmith.deploy.adapter_folder import hand_over

            both = hand_over(
                target,
                out,
                model=model,
                overwrite=overwrite,
                trust_remote_code=trust_remote_code,
                allow_changes=allow_changes or (),
                listener=terminal,
            )
            terminal.write(
                f"{both.folder}: the adapter, and its base in {both.base}, {both.bytes / 1e9:.2f} GB. "
                f"Next: `tunesmith generate {both.folder} --prompt TEXT`"
            )
            terminal.result(both.to_json())
            return
        found = merging.merge(
            target,
            out,
            dtype=dtype,
            data=data,
            max_shard_size=max_shard_size,
            overwrite=overwrite,
            listener=terminal,
            model=model,
            trust_remote_code=trust_remote_code,
            allow_changes=allow_changes or (),
        )
        written = found.written
        terminal.write(
            f"logits differ by {written.relative:.2g} of their spread (limit {found.tolerance:g}); "
            f"the likeliest token is the same at {written.agreement:.2%} of {written.positions:,} positions"
        )
        files = f"{found.files} file{'s' * (found.files != 1)}"
        terminal.write(
            f"{found.folder}: {found.bytes / 1e9:.2f} GB in {files}, {found.dtype}. "
            f"Next: `tunesmith generate {found.folder} --prompt TEXT`"
        )
        terminal.result(found.to_json())
