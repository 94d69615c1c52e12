"""A plan as files, and as what makes it."""

from __future__ import annotations

import shlex

import streamlit as st

from analyzers.plans import RankPlan, export
from app import components, state
from app.forms import bound
from app.options.plan import Asked
from app.reproduce import plans
from loraxs_core.checkpoint import Checkpoint

EXPORTS = {
    "python": ("Python", "plan.py", "python"),
    "lora-xs": ("LoRA-XS config", "adapter_config.json", "json"),
    "lora": ("PEFT LoRA rank_pattern", "adapter_config.json", "json"),
    "peft-yaml": ("PEFT YAML", "peft.yaml", "yaml"),
    "axolotl": ("axolotl", "axolotl.yaml", "yaml"),
    "json": ("Plan (JSON)", "plan.json", "json"),
    "csv": ("Plan (CSV)", "plan.csv", None),
}


def show(checkpoint: Checkpoint, plan: RankPlan, asked: Asked, edits: dict[str, int]) -> None:
    """The plan as files, and as what makes it. edits: the ranks typed into the table."""
    st.subheader("Take it with you", anchor=False)
    kind = st.segmented_control(
        "Format",
        list(EXPORTS),
        default="python",
        required=True,
        **bound("export", lambda name: EXPORTS[name][0]),
    )
    _, file_name, language = EXPORTS[kind]
    with components.errors():
        text = export.text(plan, kind)
        st.download_button(
            f"Download {file_name}", text, file_name, key="download-export", icon=":material/download:", on_click="ignore"
        )
        with st.container(height=320):
            st.code(text, language=language)
    if asked.settings is None:
        command, python = (make(checkpoint.name, state.plan_file()) for make in (plans.command_of_file, plans.python_of_file))
    else:
        command, python = plans.command(checkpoint.name, asked), plans.python(checkpoint.name, asked)
    if edits:
        model = shlex.quote(checkpoint.name)
        command = (
            "# The command has no option for ranks typed by hand; download the plan as JSON above, then\n"
            f"loraxs size {model} --method lora-xs --plan plan.json"
        )
        python += f"\nplan = plan.with_ranks({edits!r})"
    components.reproduce(command, f'{python}\nprint(plan.frame(model))\nplan.save("plan.json")')
