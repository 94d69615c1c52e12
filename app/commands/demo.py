"""`loraxs demo`: the main job without a browser."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from app.options.common import Json
from app.outputs import Force
from app.terminal import print_json, print_table, progress_bar, say
from loraxs_core.paths import data_dir
from loraxs_core.progress import seconds


def run(
    out: Annotated[
        Path | None, typer.Option(help="Folder for the report; a new one in the user's data folder when left out.")
    ] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Scan MiniLM, plan ranks, price them, race LoRA, VeRA and LoRA-XS on STS-B; writes report.html. Minutes on 2 cores."""
    from app.demo import run_demo
    from app.results_table import RESULT_COLUMNS, summary_rows

    folder = out or data_dir("demos") / time.strftime("%Y%m%d-%H%M%S")
    with progress_bar("Demo", quiet=json) as progress:
        result = run_demo(folder, progress, force=force)
    if json:
        rows = result.summary.to_dict("records")
        print_json({"out": result.folder, "report": result.report, "seconds": result.seconds, "summary": rows})
        return
    print_table(
        f"STS-B with {result.checkpoint.name}, in {seconds(result.seconds)}", RESULT_COLUMNS, summary_rows(result.summary)
    )
    say(f"Report: {result.report}")
