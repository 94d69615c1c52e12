"""The spectra of some layers closely: singular values, cumulative energy, density; beside those of a second model."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pandas as pd
import streamlit as st

from analyzers.spectra.metrics.noise import marchenko_pastur_density
from app import charts, components, state
from app.forms import bound
from loraxs_core.errors import WeightsMissing
from loraxs_core.roles import layer_of, short_name

if TYPE_CHECKING:
    from streamlit.delta_generator import DeltaGenerator

    from analyzers.spectra import Spectra

AT_MOST = 8  # spectra in one figure: as many as there are colours that can be told apart


def show(spectra: Spectra, frame: pd.DataFrame, ranks: dict[str, int]) -> None:
    """The layers chosen in the session's ``layers``, a list below which the person can change. ranks: name -> planned rank."""
    st.subheader("Spectrum", anchor=False)
    names = frame["name"].tolist()
    left, right = st.columns([3, 1])
    chosen = left.multiselect("Layers", names, max_selections=AT_MOST, **bound("layers"), placeholder="Choose layers")
    other = second_model(right, "Overlay a second model", "overlay", help="Layers of the same name are drawn dashed.")
    if not chosen:
        st.info("Choose at least one layer, or click a square of the map.", icon=":material/touch_app:")
        return
    short = {name: short_label(name) for name in chosen}
    values = {short[name]: spectra.layers[name].singular_values for name in chosen}
    planned = {short[name]: ranks[name] for name in chosen if name in ranks}
    # Only the figure one looks at is made and sent.
    singular, cumulative, density = st.tabs(
        ["Singular values", "Cumulative energy", "Density and noise"], **bound("spectrum-tab"), on_change="rerun"
    )
    if singular.open:
        with singular:
            _singular_values(values, planned, _overlay(other, short), other or "")
    if cumulative.open:
        with cumulative:
            layers = {label: spectra.layers[name] for name, label in short.items()}
            shares = {label: layer.cumulative_energy for label, layer in layers.items() if layer.energy}
            components.chart(
                partial(charts.cumulative_energy, shares, planned),
                "cumulative",
                label="Share of the energy in the first directions",
            )
    if density.open:
        with density:
            _density(spectra, chosen, ranks)
    longest = max(map(len, values.values()))
    wide = pd.DataFrame({"index": range(1, longest + 1)} | {label: pd.Series(sigma) for label, sigma in values.items()})
    components.download_csv(wide, "singular-values.csv", key="sigma-csv", label="These singular values (CSV)")


def _singular_values(values: dict, planned: dict, overlay: dict | None, overlay_label: str) -> None:
    relative, linear = st.columns(2)
    figure = partial(
        charts.spectrum,
        values,
        planned,
        overlay=overlay,
        overlay_label=overlay_label,
        relative=relative.toggle("Divide by σ₁", **bound("relative")),
        log_index=not linear.toggle("Linear index axis", **bound("linear")),
    )
    components.chart(figure, "spectrum", label="Singular values of the chosen layers")


def _density(spectra: Spectra, chosen: list[str], ranks: dict[str, int]) -> None:
    name = st.selectbox("Layer", chosen, key="density-layer")
    layer = spectra.layers[name]
    noise = marchenko_pastur_density(layer)
    components.chart(
        partial(charts.density, layer.singular_values, noise, label=short_label(name), rank=ranks.get(name)),
        "density",
        label="Histogram of the singular values with the law of noise",
    )
    st.caption(
        f"{layer.metrics['mp_spikes']:.0f} directions lie above the edge of the noise, where a matrix of independent random "
        "numbers of the same median strength has none."
    )


def _overlay(other: str | None, short: dict[str, str]) -> dict | None:
    """Label -> singular values in the second model, for the layers it has; says in a box why there are none."""
    if not other:
        return None
    with components.errors():
        spectra = scanned(other, "overlay it here")
        found = {label: spectra.layers[name].singular_values for name, label in short.items() if name in spectra.layers}
        if not found:
            raise WeightsMissing(f"{other} has no layers of these names, so there is nothing to overlay.")
        return found
    return None


def second_model(place: DeltaGenerator, label: str, key: str, *, help: str) -> str | None:
    """The choice of a model beside the one of the page; None: there is none."""
    return place.selectbox(
        label,
        state.other_models(),
        index=None,
        placeholder="none",
        accept_new_options=True,
        **bound(key),
        help=f"A catalogue name, folder or hub id that was scanned on this machine. {help}",
    )


def scanned(other: str, to: str) -> Spectra:
    """The spectra of a second model. Raises WeightsMissing where it was not scanned. to: what one wants of it."""
    spectra = state.spectra(state.open_local(other))
    if spectra is None:
        raise WeightsMissing(f"{other} has no spectra yet; choose it on the Model page and scan it, then {to}.")
    return spectra


def short_label(name: str) -> str:
    """``layer 3 output.dense``: what fits a legend."""
    layer = layer_of(name)
    return short_name(name) if layer is None else f"layer {layer} {short_name(name)}"
