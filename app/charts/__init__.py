"""Data frame in, plotly figure out. Pure functions, no Streamlit: the page and the offline report draw with the same ones."""

from app.charts.adapters import kept_energy
from app.charts.compare import accuracy_against_parameters, figures_against_each_other, smoothed, training_curves
from app.charts.cost import fleet_curves, memory_bars, part_label, storage_bars
from app.charts.plan import rank_bars, rank_comparison, rank_difference, ranks_side_by_side, score_over_rank
from app.charts.spectra import cumulative_energy, density, layer_map, metric_by_layer, metric_label, module_rows, spectrum
from app.charts.theme import method_color, role_color, role_label, template

__all__ = [
    "accuracy_against_parameters",
    "cumulative_energy",
    "density",
    "figures_against_each_other",
    "fleet_curves",
    "kept_energy",
    "layer_map",
    "memory_bars",
    "method_color",
    "metric_by_layer",
    "metric_label",
    "module_rows",
    "part_label",
    "rank_bars",
    "rank_comparison",
    "rank_difference",
    "ranks_side_by_side",
    "role_color",
    "role_label",
    "score_over_rank",
    "smoothed",
    "spectrum",
    "storage_bars",
    "template",
    "training_curves",
]
