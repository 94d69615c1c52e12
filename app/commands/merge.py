"""`loraxs merge`: an adapter added to its base weights, as a plain checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from app.options.common import Adapter, Base, Json, open_model
from app.outputs import CHECKPOINT, Force, new_folder
from app.terminal import print_json, say


def run(
    adapter: Adapter,
    model: Base,
    out: Annotated[Path, typer.Option(help="Folder for the merged checkpoint.")],
    shard_size: Annotated[str, typer.Option(help="Largest safetensors shard.")] = "5GB",
    force: Force = False,
    json: Json = False,
) -> None:
    """Add the adapter to the base weights: a plain checkpoint (safetensors, config, tokenizer) that needs no PEFT."""
    from loraxs_core.merging import merge

    with new_folder(out, CHECKPOINT, reads=(adapter, model), force=force) as folder:
        result = merge(adapter, open_model(model, weights=True, quiet=json), folder, shard_size=shard_size)
    if json:
        print_json(
            {
                "out": out,
                "rounding": result.rounding,
                "worst_rounding": result.worst,
                "changed": result.changed,
                "unmoved": result.unmoved,
                "left_out": result.left_out,
                "absent": result.absent,
            }
        )
        return
    say(f"Merged checkpoint written to {out}.")
    say(str(result))
