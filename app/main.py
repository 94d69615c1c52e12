"""The page: navigation in the order of the work, and the one model and plan that all pages share."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import streamlit as st
from streamlit.errors import StreamlitAPIException

from app import collector, components, forms, state
from app.views import adapters, compare, cost, model, plan, spectra
from loraxs_core.errors import WorkbenchError

ended = st.session_state.pop("notice", None)
st.set_page_config(
    page_title=f"{ended}, LoRA-XS Workbench" if ended else "LoRA-XS Workbench",
    page_icon=str(Path(__file__).parent / "assets" / "icon.svg"),
    layout="wide",
)

pages = {
    "model": st.Page(model.show, title="Model", icon=":material/deployed_code:", default=True),
    "spectra": st.Page(spectra.show, title="Spectra", icon=":material/stacked_line_chart:", url_path="spectra"),
    "plan": st.Page(plan.show, title="Plan", icon=":material/tune:", url_path="plan"),
    "cost": st.Page(cost.show, title="Cost", icon=":material/memory:", url_path="cost"),
    "compare": st.Page(compare.show, title="Compare", icon=":material/flag:", url_path="compare"),
    "adapters": st.Page(adapters.show, title="Adapters", icon=":material/extension:", url_path="adapters"),
}
st.session_state["pages"] = pages

st.html(components.style(dark=state.dark()))
# The first page lives at the root; who types its name is sent there instead of being told that there is no such page.
by_name = st.Page(lambda: st.switch_page(pages["model"]), title="Model", url_path="model", visibility="hidden")
chosen = st.navigation([*pages.values(), by_name], position="top")
typed = forms.begin(chosen.title)
with components.errors():
    state.restore(typed)
    try:
        chosen.run()
    except WorkbenchError as error:
        components.unanswered(error)
    except StreamlitAPIException:
        # A value typed into the page of yesterday may have no place in that of today: without it, the page opens.
        if not forms.forget():
            raise
        st.rerun()
forms.remember()
collector.spare_libraries()
