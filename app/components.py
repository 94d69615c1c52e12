"""What several pages show: an error as a sentence, a table with its download, the command and code that reproduce a view."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import streamlit as st

from analyzers.spreadsheet import csv
from app import jobs, state
from app.charts.theme import MUTED
from app.drawn import drawn
from app.panels import take_along
from app.text import markdown
from app.units import count_text
from loraxs_core.background import State
from loraxs_core.errors import WorkbenchError
from loraxs_core.progress import seconds

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from streamlit.delta_generator import DeltaGenerator

# Streamlit leaves six rem of nothing above the first line, hides the choices of a list that do not fit in one line of it, squeezes
# columns side by side down to a telephone's width, makes a row of choices lower than the fields beside it, and their labels uneven, cuts
# such a row and a switch's words on a telephone, and draws a figure twice whose column is not of whole pixels, since it measures with
# two roundings.
_STYLE = """<style>
[data-testid='stMainBlockContainer'] {padding-top: 4.2rem; padding-bottom: 3rem; max-width: 1500px}
[data-testid='stMultiSelectTagsContainer'] {flex-wrap: wrap}
[data-testid='stColumn'] [data-testid='stVerticalBlock'] {width: round(down, 100%, 1px)}
div:has(> [data-testid='stMultiSelectTagsContainer']) {max-height: none; height: auto; min-height: 2.5rem}
@media (max-width: 1000px) {
  [class*='st-key-panes-'] > [data-testid='stLayoutWrapper'] > [data-testid='stHorizontalBlock'] {flex-wrap: wrap}
  [class*='st-key-panes-'] > [data-testid='stLayoutWrapper'] > [data-testid='stHorizontalBlock'] > [data-testid='stColumn'] {min-width: 100%}
}
[data-testid='stButtonGroup'] button[data-variant='segmented_control'] {min-height: 2.5rem}
[data-testid='stButtonGroup'] [role='radiogroup'] {flex-wrap: wrap; overflow: visible}
[data-testid='stCheckbox'] [data-testid='stMarkdownContainer'], [data-testid='stCheckbox'] p {white-space: normal}
[data-testid='stHeading'] h2 {padding-top: 0; text-wrap: pretty}
@media (max-width: 640px) {
  .js-plotly-plot .modebar {display: none}
  [data-testid='stHeading'] h2 {font-size: 1.4rem}
  [data-testid='stMetricValue'] {font-size: 1.25rem}
}
[data-testid='stCaptionContainer'], [data-testid='stCaptionContainer'] p {color: MUTED; opacity: 1}
[class*='st-key-OUTDATED'] {opacity: .45; filter: grayscale(1)}
EXTRA
</style>"""
_PLACE = "answer-place"  # in the session: where the page on show has its answer
OUTDATED = "outdated"  # key of a container whose figures are not of what was asked for last: drawn in grey
# Streamlit writes in white on the primary colour, which the dark theme has light.
_ON_PRIMARY = "[data-testid='stMultiSelectTagsContainer'] span[title], [data-testid='stMultiSelectTagsContainer'] svg, button[kind^='primary'], button[kind^='primary'] * {color: #0B1620}"


def style(*, dark: bool) -> str:
    """What Streamlit's theme has no setting for."""
    return _STYLE.replace("MUTED", MUTED[dark]).replace("OUTDATED", OUTDATED).replace("EXTRA", _ON_PRIMARY if dark else "")


PLOT_CONFIG = {
    "displaylogo": False,
    "modeBarButtonsToRemove": ["lasso2d", "select2d", "autoScale2d"],
    "toImageButtonOptions": {"scale": 2},
}


@contextlib.contextmanager
def errors() -> Iterator[None]:
    """Shows an expected error of the block as one sentence in a box; what else is on the page stays."""
    try:
        yield
    except WorkbenchError as error:
        st.error(markdown(error), icon=":material/error:")


def heading(title: str, text: str) -> DeltaGenerator:
    """A page's title, one line that says what it is about, and to the right the model and plan it works on; returns the place of
    `answer`, which is above everything else."""
    left, right = st.columns([3, 2], vertical_alignment="center")
    with left.container(horizontal=True, vertical_alignment="bottom"):
        st.title(title, anchor=False, width="content")
        st.caption(text, width="content")
    place = st.session_state[_PLACE] = st.container()
    with right.container(horizontal=True, horizontal_alignment="right", gap="small"):
        st.badge(markdown(state.model_name()), icon=":material/deployed_code:", color="blue")
        plan = state.plan()
        if plan is None and state.lost_plan():
            st.badge(f"no plan {markdown(state.lost_plan())} here", icon=":material/tune:", color="orange")
        elif plan is None:
            st.badge("no plan yet", icon=":material/tune:", color="gray")
        else:
            named = state.plan_names().get(state.identity(plan)) or f"{plan.strategy} plan"
            st.badge(
                f"{markdown(named)}, {count_text(plan.trainable)} trained numbers",
                icon=":material/tune:",
                color="green",
            )
        take_along.show()
    return place


def answer(place: DeltaGenerator, line: str, *, icon: str = "") -> None:
    """The page's answer in one large line. line: Markdown (`app.answers`)."""
    place.header(f"{icon} {line}." if icon else f"{line}.", anchor=False)


def unanswered(error: WorkbenchError) -> None:
    """What a page shows in place of its answer where it ended with `error`."""
    try:
        state.checkpoint()
    except WorkbenchError as cause:
        answer(st.session_state[_PLACE], f"{markdown(state.model_name())} cannot be opened")
        unopened(cause)
    else:
        st.error(markdown(error), icon=":material/error:")


def unopened(error: WorkbenchError) -> None:
    """Why the model of the page cannot be opened, and the way to another."""
    st.error(markdown(error), icon=":material/error:")
    st.page_link(page_of("model"), label="Choose another model", icon=":material/arrow_forward:")


def cards(count: int, *, narrowest: int = 165) -> DeltaGenerator:
    """A row of `count` equal places; where they would be narrower than `narrowest` pixels, and cut their numbers, some go to a next row."""
    return st.grid(count, min_column_width=narrowest)


def panes(widths: Sequence[float], key: str) -> list[DeltaGenerator]:
    """Columns of these relative widths; one above the other where the page is narrow (see `STYLE`)."""
    with st.container(key=f"panes-{key}"):
        return st.columns(widths, gap="large")


def chart(make: partial[go.Figure], key: str, *, label: str, **options: Any) -> object:
    """A figure in its own colours (they do not change with Streamlit's), the full width of its column. make: a function of `app.charts`
    and all that it is told but for `dark`. label: what the figure shows, for those who do not see it."""
    figure = drawn(make, dark=state.dark(), by_click="on_select" in options)
    return st.plotly_chart(figure, theme=None, key=key, config=PLOT_CONFIG, alt=label, **options)


def points(event: Any) -> list[dict]:
    """The points that were chosen in a chart. event: what `chart` returned with ``on_select``."""
    return list(event["selection"]["points"]) if event else []


def table(
    frame: pd.DataFrame,
    file_name: str,
    *,
    key: str,
    columns: Mapping[str, object] | None = None,
    height: int | str = "auto",
    download: pd.DataFrame | None = None,
    **options: Any,
) -> object:
    """A data frame, and a button below it that downloads the whole of it as CSV; or `download`, where a file is to hold other words."""
    shown = st.dataframe(
        frame,
        hide_index=True,
        column_config=dict(columns or {}),
        key=key,
        height=height,
        placeholder="\u2014",
        alt=f"Table of {Path(file_name).stem}",
        **options,
    )
    download_csv(frame if download is None else download, file_name, key=f"{key}-csv")
    return shown


def download_csv(frame: pd.DataFrame, file_name: str, *, key: str, label: str = "CSV") -> None:
    """A button that downloads `frame`, made only when it is pressed."""
    st.download_button(
        label,
        data=lambda: csv(frame).encode(),
        file_name=file_name,
        mime="text/csv",
        key=key,
        icon=":material/download:",
        on_click="ignore",
        help=f"Download this table as {markdown(file_name)}",
    )


def reproduce(command: str, python: str) -> None:
    """The command and the Python code that give what is on screen."""
    with st.expander("The same from a terminal or from Python", icon=":material/terminal:"):
        st.code(command, language="bash", wrap_lines=True)
        st.code(python, language="python")


def needs(what: str, page: str, label: str) -> None:
    """An empty state: what is missing, and a link to the page where one gets it."""
    st.info(markdown(what), icon=":material/lightbulb:")
    st.page_link(page_of(page), label=label, icon=":material/arrow_forward:")


def page_of(name: str) -> object:
    """The page registered as `name`, for links."""
    return st.session_state["pages"][name]


def go_to(name: str) -> None:
    """Leaves for the page registered as `name`. By itself Streamlit refuses to leave where the address holds something typed."""
    st.switch_page(page_of(name), query_params=state.in_url())


def notice(said: str) -> None:
    """For the next run of the page: says in the browser's title that long work has ended, for those who look at another tab."""
    st.session_state["notice"] = said


def watch(kind: str, key: str, label: str, *, every: float = 0.5) -> None:
    """Progress of a running job, with time left and a button that cancels it; the whole page reruns when the job ends."""

    @st.fragment(run_every=every)
    def poll() -> None:
        now = jobs.status(kind, key)
        if now is None or not now.is_running:
            notice(f"{now.state if now else 'ended'}: {kind}")
            st.rerun()
        left = f", {seconds(now.eta_seconds)} left" if now.eta_seconds is not None else ""
        with st.container(horizontal=True, vertical_alignment="center"):
            st.progress(
                min(1.0, max(0.0, now.fraction)), text=markdown(f"{label}: {100 * now.fraction:.0f} %{left}. {now.message}")
            )
            if st.button("Cancel", key=f"cancel-{kind}", icon=":material/stop_circle:"):
                jobs.cancel(kind, key)

    poll()


def ended(kind: str, key: str, what: str) -> bool:
    """Says how the last job ended when it ended badly; whether it did."""
    last = jobs.status(kind, key)
    if last is None or last.is_running or last.state is State.DONE:
        return False
    if last.state is State.CANCELLED:
        st.info(f"The {what} was cancelled.", icon=":material/stop_circle:")
    else:
        st.error(markdown(last.error) or f"The {what} stopped.", icon=":material/error:")
    return True


def dark() -> bool:
    """Whether figures are to be drawn for the dark theme."""
    return state.dark()
