"""`loraxs verify`: whether an adapter's frozen bases are rebuilt rightly from this base model."""

from __future__ import annotations

import typer

from app.options.common import Adapter, Base, Json, open_model
from app.terminal import print_json, print_table

MEANING = {
    "same": "same weight, same bases",
    "copy": "rounded copy of the weight, bases re-aligned",
    "quantised": "quantised weight: bases are off by the error shown",
    "moved": "another weight; A and B are in the file, so that ΔW is what was trained, and W0 + ΔW is not",
    "other": "another weight",
    "missing": "not in this model",
}


def run(adapter: Adapter, model: Base, json: Json = False) -> None:
    """Check, module by module, that the bases rebuilt from MODEL are those the adapter was trained with. Exit code 1 if not."""
    from loraxs_core.tuner.folder import verify_adapter

    checks = verify_adapter(adapter, open_model(model, weights=True, quiet=json))
    passed = all(check.ok for check in checks)
    if json:
        print_json({"adapter": adapter, "model": model, "ok": passed, "modules": checks})
    else:
        print_table(
            f"{adapter} on {model}: {sum(check.ok for check in checks)} of {len(checks)} modules can be used",
            ("module", "rank", "verdict", "relative error of ΔW", "usable"),
            [
                (
                    check.name,
                    str(check.rank),
                    MEANING.get(check.status, check.status),
                    f"{check.error:.1e}",
                    "yes" if check.ok else "NO",
                )
                for check in checks
            ],
        )
    if not passed:
        raise typer.Exit(1)
