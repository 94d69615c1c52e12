"""`python -m sample_models list` and `python -m sample_models fetch NAME …`: what set-up scripts need of the catalogue."""

from __future__ import annotations

import sys

from loraxs_core.errors import WorkbenchError
from loraxs_core.progress import Progress
from sample_models import CATALOGUE, open_model

USAGE = "usage: python -m sample_models list | fetch NAME [NAME ...]"


def main(arguments: list[str]) -> int:
    """Returns the exit code: 0, or 2 with one sentence on the error stream."""
    match arguments:
        case ["list"]:
            for entry in CATALOGUE.values():
                print(f"{entry.name:14} {'weights' if entry.has_weights else 'config '}  {entry.summary}")
        case ["fetch", *names] if names:
            for name in names:
                try:
                    checkpoint = open_model(name, progress=_show if sys.stderr.isatty() else None)
                except WorkbenchError as error:
                    print(error, file=sys.stderr)
                    return 2
                print(
                    f"{name}: {checkpoint.parameters / 1e6:.1f} million parameters in {checkpoint.folder or 'a config, no weights'}"
                )
        case _:
            print(USAGE, file=sys.stderr)
            return 2
    return 0


def _show(progress: Progress) -> None:
    print(
        f"\r{progress.message}: {progress.fraction:4.0%}",
        end="\n" if progress.fraction >= 1 else "",
        file=sys.stderr,
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
