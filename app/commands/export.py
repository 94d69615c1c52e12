"""`loraxs export`: a LoRA-XS adapter as a plain LoRA that every server reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from app.options.common import Adapter, Base, Json, open_model
from app.outputs import ADAPTER, Force, new_folder
from app.terminal import print_json, say
from app.units import bytes_text
from loraxs_core.errors import SettingsError
from loraxs_core.servers import remarks


def run(
    adapter: Adapter,
    model: Base,
    out: Annotated[Path, typer.Option(help="Folder for the LoRA adapter.")],
    format: Annotated[str, typer.Option(help="lora: a plain PEFT LoRA.")] = "lora",
    uniform_rank: Annotated[
        bool,
        typer.Option(
            "--uniform-rank/--own-ranks",
            help="Zero-pad to one rank (right in PEFT, vLLM, LoRAX, llama.cpp), or keep each module's own (smaller; PEFT, llama.cpp).",
        ),
    ] = True,
    force: Force = False,
    json: Json = False,
) -> None:
    """Write the same ΔW as a plain PEFT LoRA: exact, lora_A = A and lora_B = (α/r) B R; PEFT is asked whether it finds all of it."""
    from loraxs_core.export import export_lora

    if format != "lora":
        raise SettingsError(f"Unknown format {format!r}; there is lora.")
    with new_folder(out, ADAPTER, reads=(adapter, model), force=force) as folder:
        export_lora(adapter, open_model(model, weights=True, quiet=json), folder, uniform_rank=uniform_rank)
    size = (out / "adapter_model.safetensors").stat().st_size
    if json:
        print_json({"out": out, "file_bytes": size, "remarks": remarks(out)})
        return
    say(f"LoRA adapter written to {out} ({bytes_text(size)}).")
    for remark in remarks(out):
        say(remark)
