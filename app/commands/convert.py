"""`loraxs convert`: a LoRA adapter or a full fine-tune into a LoRA-XS adapter."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from app.options.common import Base, Json, Targets, open_model
from app.outputs import ADAPTER, Force, new_folder
from app.terminal import print_json, print_table, progress_bar, say
from app.units import percent_text
from loraxs_core.paths import user_path

CURVE = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


def run(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A PEFT LoRA folder, or a fine-tuned sibling (folder, name, hub id).")
    ],
    model: Base,
    rank: Annotated[int | None, typer.Option(help="Rank of every module.")] = None,
    energy: Annotated[
        float | None, typer.Option(help="Instead: the share of ‖ΔW‖² to keep in every module, such as 0.9.")
    ] = None,
    targets: Targets = "all-linear",
    out: Annotated[
        Path | None, typer.Option(help="Folder for the LoRA-XS adapter; without it only the report is made.")
    ] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """The LoRA-XS adapter nearest to SOURCE (closed form), and the share of its ‖ΔW‖² that each rank keeps."""
    from loraxs_core.convert import convert

    folder = user_path(source)
    is_adapter = (folder / "adapter_config.json").is_file()
    into = new_folder(out, ADAPTER, reads=(source, model), force=force) if out else contextlib.nullcontext()
    with into as written:
        base = open_model(model, weights=True, quiet=json)
        update = folder if is_adapter else open_model(source, weights=True, quiet=json)
        with progress_bar("Converting", quiet=json) as progress:
            result = convert(update, base, rank=rank, energy=energy, targets=targets, out=written, progress=progress)
    kept, best = result.curve()
    if json:
        print_json(
            {
                "source": result.source,
                "model": base.name,
                "out": out,
                "kept": result.kept,
                "best": result.best,
                "kept_of_everything": result.kept_of_everything,
                "left_out": result.left_out,
                "whole": result.whole,
                "curve": {"rank": list(range(1, len(kept) + 1)), "kept": kept, "best": best},
                "modules": [
                    {
                        "name": one.name,
                        "rank": one.rank,
                        "norm": one.norm,
                        "kept": one.kept_at_rank,
                        "best": one.best_at_rank,
                        "reachable": one.kept[-1],
                    }
                    for one in result.projections
                ],
            }
        )
        return
    print_table(
        f"{result.source}: {percent_text(result.kept)} of ‖ΔW‖² kept (the best matrices of the same ranks: {percent_text(result.best)})",
        ("module", "rank", "kept", "best possible"),
        [
            (one.name, str(one.rank), percent_text(one.kept_at_rank), percent_text(one.best_at_rank))
            for one in result.projections
        ],
    )
    ranks = [rank for rank in CURVE if rank <= len(kept)]
    print_table(
        "In total, by uniform rank",
        ("rank", *map(str, ranks)),
        [
            ("LoRA-XS", *(percent_text(kept[r - 1]) for r in ranks)),
            ("best possible", *(percent_text(best[r - 1]) for r in ranks)),
        ],
        note="Best possible: the truncated SVD of ΔW. The difference is what freezing A and B to the base's directions costs.",
    )
    for line in result.remarks():
        say(line)
    short = result.out_of_reach(energy) if energy else []
    if short:
        say(f"{len(short)} modules cannot keep {percent_text(energy)} at any rank ({short[0]}, …): they got their full rank.")
    if out:
        say(f"LoRA-XS adapter written to {out}.")
