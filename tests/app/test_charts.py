"""The figures: what is drawn, with which values, units and colours, in both themes."""

import numpy as np
import pandas as pd
import pytest

from app import charts
from app.charts import theme
from loraxs_core.roles import ROLES, role_of

MODULES = ["attention.self.query", "attention.output.dense", "output.dense"]


@pytest.fixture
def layers() -> pd.DataFrame:
    names = [f"encoder.layer.{layer}.{module}" for layer in range(4) for module in MODULES]
    frame = pd.DataFrame({"name": [*names, "pooler.dense"], "layer": pd.array([*np.repeat(range(4), 3), None], dtype="Int64")})
    return frame.assign(role=frame["name"].map(role_of), shape="8x8", stable_rank=np.arange(13.0), rank=np.arange(1, 14))


def shares(spectra):
    """Label -> share of the energy in the first i + 1 directions."""
    return {label: np.cumsum(values**2) / np.sum(values**2) for label, values in spectra.items()}


def figures(layers: pd.DataFrame, dark: bool) -> dict:
    sigma = {"a": np.geomspace(10, 0.1, 50), "b": np.geomspace(5, 0.01, 40)}
    memory = pd.DataFrame(
        {"method": ["LoRA", "LoRA", "LoRA-XS"], "part": ["weights", "activations", "weights"], "gib": [15.0, 8.0, 15.0]}
    )
    curves = pd.DataFrame(
        {
            "method": "lora",
            "label": "LoRA",
            "trial": "t",
            "learning_rate": 1e-3,
            "seed": 0,
            "kind": ["train", "train", "eval"],
            "step": [1, 2, 2],
            "value": [2.0, 1.0, 1.5],
        }
    )
    scores = pd.DataFrame(
        {
            "method": ["head-only", "lora"],
            "label": ["Head only", "LoRA"],
            "parameters": [0, 5000],
            "score": [0.7, 0.8],
            "low": [0.69, 0.79],
            "high": [0.71, 0.81],
        }
    )
    sizes = pd.DataFrame({"method": ["lora", "lora-xs"], "label": ["LoRA", "LoRA-XS"], "bytes": [1e6, 1e4], "adapters": [1, 1]})
    return {
        "map": charts.layer_map(layers, "stable_rank", dark=dark),
        "spectrum": charts.spectrum(sigma, {"a": 8}, overlay={"a": sigma["b"]}, dark=dark),
        "cumulative": charts.cumulative_energy(shares(sigma), {"a": 8}, dark=dark),
        "depth": charts.metric_by_layer(layers, "stable_rank", dark=dark),
        "ranks": charts.rank_bars(layers, uniform=4, dark=dark),
        "memory": charts.memory_bars(memory, {"L4": 24.0, "A100": 80.0}, intervals={"LoRA": (22.0, 25.0)}, dark=dark),
        "sizes": charts.storage_bars(sizes, dark=dark),
        "fleet": charts.fleet_curves(sizes, dark=dark),
        "curves": charts.training_curves(curves, dark=dark),
        "pareto": charts.accuracy_against_parameters(scores, metric="Pearson r", dark=dark),
    }


@pytest.mark.parametrize("dark", [False, True])
def test_every_axis_that_is_not_a_list_of_names_has_a_title(layers, dark):
    for name, figure in figures(layers, dark).items():
        titles = [figure.layout.xaxis.title.text, figure.layout.yaxis.title.text]
        assert titles[0], name
        assert titles[1] or name in ("map", "memory", "sizes"), name
        assert figure.layout.template.layout.font.color == theme.INK[dark]


def test_map_has_a_cell_and_a_clickable_point_a_weight_and_frames_the_selected(layers):
    name = "encoder.layer.2.output.dense"
    figure = charts.layer_map(layers, "stable_rank", selected=[name])
    cells, points = figure.data
    assert (cells.type, points.marker.opacity) == ("heatmap", 0)
    assert [datum[0] for datum in points.customdata] == layers["name"].tolist()
    drawn = [cells.z[row][column] for row, column in zip(points.y, points.x, strict=True)]
    assert drawn == layers["stable_rank"].tolist()
    assert np.isfinite(cells.z).sum() == len(layers)
    (frame,) = figure.layout.shapes
    at = layers["name"].tolist().index(name)
    assert ((frame.x0 + frame.x1) / 2, (frame.y0 + frame.y1) / 2) == (points.x[at], points.y[at])
    assert points.x[-1] == 4  # outside the stack, in a column of its own
    assert figure.layout.xaxis.ticktext[-1] == "none"


def test_map_keeps_encoder_and_decoder_apart():
    names = [f"{stack}.block.0.layer.0.SelfAttention.q" for stack in ("encoder", "decoder")]
    frame = pd.DataFrame({"name": names, "layer": [0, 0], "role": "attention.query", "shape": "8x8", "stable_rank": [1.0, 2.0]})
    figure = charts.layer_map(frame, "stable_rank")
    assert sorted(figure.data[0].z[:, 0]) == [1.0, 2.0]


@pytest.mark.parametrize(("layers", "kind"), [(1500, "scatter"), (4000, "scattergl")])
def test_map_of_thousands_of_layers_needs_no_webgl_before_it_has_to(layers, kind):
    """A browser without WebGL shows a box that says so, and no map."""
    modules = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    names = [f"layers.{layer}.{module}" for layer in range(layers) for module in modules]
    frame = pd.DataFrame(
        {"name": names, "layer": np.repeat(range(layers), 7), "role": "other", "shape": "8x8", "stable_rank": 1.0}
    )
    assert charts.layer_map(frame, "stable_rank").data[1].type == kind


@pytest.mark.parametrize(("length", "ticks"), [(8, "D2"), (500, 1)])
def test_a_short_spectrum_has_more_than_one_tick_on_its_index_axis(length, ticks):
    values = {"layer": np.linspace(2, 1, length)}
    assert charts.spectrum(values).layout.xaxis.dtick == ticks
    assert charts.cumulative_energy(shares(values)).layout.xaxis.dtick == ticks


def test_spectrum_is_logarithmic_marks_the_planned_rank_and_skips_zeros():
    sigma = np.array([4.0, 2.0, 1.0, 0.0])
    figure = charts.spectrum({"layer": sigma}, {"layer": 2})
    assert figure.layout.xaxis.type == figure.layout.yaxis.type == "log"
    line, mark = figure.data
    assert list(line.x) == [1, 2, 3]
    assert list(line.y) == [4.0, 2.0, 1.0]
    assert (mark.x[0], mark.y[0]) == (2, 2.0)
    assert line.name == "layer (rank 2)"
    assert figure.layout.shapes[0].x0 == 2


def test_the_spectrum_of_a_single_row_is_a_point_not_an_unseen_line():
    assert charts.spectrum({"a": np.array([2.0])}).data[0].mode == "markers"
    assert charts.cumulative_energy({"a": np.array([1.0])}).data[0].mode == "markers"


def test_long_spectra_are_decimated_with_both_ends_kept():
    sigma = np.linspace(10, 1, 12_288)
    line = charts.spectrum({"wide": sigma}).data[0]
    assert len(line.x) <= 400
    assert (line.x[0], line.x[-1]) == (1, 12_288)
    assert (line.y[0], line.y[-1]) == (10.0, 1.0)


def test_overlay_is_dashed_in_the_same_colour():
    figure = charts.spectrum({"a": np.array([2.0, 1.0])}, overlay={"a": np.array([3.0, 1.0])}, overlay_label="other")
    assert [trace.line.dash for trace in figure.data] == ["solid", "dash"]
    assert figure.data[0].line.color == figure.data[1].line.color
    assert "other" in figure.data[1].name


def test_relative_spectrum_starts_at_one():
    assert charts.spectrum({"a": np.array([8.0, 2.0])}, relative=True).data[0].y[0] == 1.0


def test_cumulative_energy_ends_at_100_percent_and_reads_the_planned_rank():
    figure = charts.cumulative_energy({"a": np.array([0.9, 1.0])}, {"a": 1})
    np.testing.assert_allclose(figure.data[0].y, [90.0, 100.0])
    assert figure.data[1].y[0] == pytest.approx(90.0)


def test_rank_bars_colour_by_role_and_show_the_uniform_baseline(layers):
    figure = charts.rank_bars(layers, uniform=4)
    for trace in figure.data:
        assert trace.marker.color == theme.ROLE_COLORS[trace.legendgroup]
    assert sum(len(trace.x) for trace in figure.data) == len(layers)
    assert figure.layout.shapes[0].y0 == 4


def test_ranks_of_a_thousand_modules_are_a_map():
    names = [f"model.layers.{layer}.mlp.{part}_proj" for layer in range(250) for part in ("gate", "up", "down")]
    frame = pd.DataFrame({"name": names, "role": "mlp.up", "layer": np.repeat(np.arange(250), 3), "rank": np.arange(750)})
    figure = charts.rank_bars(frame, uniform=4)
    assert figure.data[0].type == "heatmap"
    np.testing.assert_array_equal(np.sort(np.asarray(figure.data[0].z), axis=None), np.arange(750))


def test_the_legend_of_memory_follows_the_bars_from_left_to_right():
    frame = pd.DataFrame({"method": ["LoRA", "LoRA"], "part": ["weights", "activations"], "gib": [15.0, 4.0]})
    figure = charts.memory_bars(frame)
    assert [trace.name for trace in figure.data] == ["base weights", "activations"]
    assert figure.layout.legend.traceorder == "normal"


def test_memory_bars_stack_to_the_total_and_show_the_card_that_fits():
    frame = pd.DataFrame({"method": ["LoRA", "LoRA"], "part": ["weights", "something new"], "gib": [15.0, 4.0]})
    figure = charts.memory_bars(frame, {"tiny": 8.0, "small": 16.0, "fits": 24.0, "huge": 192.0})
    assert figure.layout.barmode == "stack"
    assert sum(trace.x[0] for trace in figure.data) == 19.0
    lines = {shape.x0 for shape in figure.layout.shapes}
    assert lines == {16.0, 24.0}  # not those far below every bar, nor far above
    assert figure.layout.xaxis.range[1] > 24.0


def test_the_card_that_fits_is_named_even_where_names_crowd():
    frame = pd.DataFrame({"method": ["LoRA"], "part": ["weights"], "gib": [36.0]})
    cards = {"A card of 31": 31.0, "Another of 31": 31.4, "One more, of 37": 37.0, "The one that fits": 39.4}
    figure = charts.memory_bars(frame, cards, intervals={"LoRA": (36.8, 39.2)})
    assert any("The one that fits" in note.text for note in figure.layout.annotations)
    (dot,) = [trace for trace in figure.data if trace.name == "reserved"]
    assert dot.x == (38.0,)  # the middle of the interval is the estimate
    assert dot.error_x.array == pytest.approx((1.2,))


def test_memory_of_a_small_model_is_not_squeezed_by_the_smallest_card():
    frame = pd.DataFrame({"method": ["LoRA"], "part": ["weights"], "gib": [0.2]})
    figure = charts.memory_bars(frame, {"RTX 4060": 7.4})
    assert figure.data[0].x == pytest.approx([0.2 * 1024])
    assert figure.layout.xaxis.title.text == "GPU memory (MiB)"  # as the figures beside it
    assert figure.layout.xaxis.range[1] < 1024
    assert "RTX 4060 (7.4 GiB) holds them all" in figure.layout.annotations[0].text


def test_storage_bars_are_logarithmic_and_the_shortest_is_visible():
    figure = charts.storage_bars(
        pd.DataFrame({"method": ["lora", "lora-xs"], "label": ["LoRA", "LoRA-XS"], "bytes": [1e12, 1e4]})
    )
    assert figure.layout.xaxis.type == "log"
    assert figure.layout.xaxis.range[0] < 4
    assert list(figure.data[0].marker.color) == [theme.METHOD_COLORS["lora"], theme.METHOD_COLORS["lora-xs"]]


def test_training_curves_smooth_training_and_leave_evaluation_raw():
    rows = [
        {
            "trial": "t",
            "learning_rate": 1e-3,
            "method": "lora",
            "label": "LoRA",
            "seed": 0,
            "kind": kind,
            "step": step,
            "value": value,
        }
        for kind, step, value in (("train", 1, 4.0), ("train", 2, 0.0), ("eval", 1, 4.0), ("eval", 2, 0.0))
    ]
    figure = charts.training_curves(pd.DataFrame(rows), smoothing=0.5, log=True)
    train, evaluation = figure.data
    np.testing.assert_allclose(train.y, [4.0, 4.0 / 3])
    assert list(evaluation.y) == [4.0, 0.0]
    assert figure.layout.yaxis.type == "log"
    assert [trace.showlegend for trace in figure.data] == [True, False]


def test_smoothing_leaves_a_constant_alone():
    np.testing.assert_allclose(charts.smoothed(np.full(20, 3.0), 0.95), 3.0)


def test_pareto_front_joins_the_rows_that_nothing_cheaper_beats():
    frame = pd.DataFrame(
        {"method": list("abcd"), "label": list("abcd"), "parameters": [10, 1000, 100, 1], "score": [0.8, 0.9, 0.7, 0.5]}
    )
    figure = charts.accuracy_against_parameters(frame.assign(low=frame["score"], high=frame["score"]))
    front = next(trace for trace in figure.data if trace.name == "Pareto front")
    assert list(front.y) == [0.5, 0.8, 0.9]
    # Names stand in the legend: beside the points those of two plans of one size would cover each other.
    assert [trace.name for trace in figure.data if trace.showlegend is not False] == ["Pareto front", *"abcd"]
    assert not any(trace.text for trace in figure.data)


def test_two_plans_of_one_method_have_two_colours():
    shades = theme.label_colors(["lora-xs", "lora-xs", "lora"], ["by role", "uniform", "LoRA"])
    assert shades["by role"] == theme.METHOD_COLORS["lora-xs"]
    assert shades["LoRA"] == theme.METHOD_COLORS["lora"]
    assert len(set(shades.values())) == 3


def test_control_without_parameters_is_drawn_at_a_tick_called_0():
    frame = pd.DataFrame(
        {
            "method": ["head-only", "lora"],
            "label": ["Head only", "LoRA"],
            "parameters": [0, 5000],
            "score": [0.5, 0.8],
            "low": [0.4, 0.8],
            "high": [0.6, 0.8],
        }
    )
    figure = charts.accuracy_against_parameters(frame)
    control = next(trace for trace in figure.data if trace.name == "Head only")
    assert control.x[0] == figure.layout.xaxis.tickvals[0] < 1000
    assert figure.layout.xaxis.ticktext[0] == "0"
    assert control.error_y.array[0] == pytest.approx(0.1)


def test_every_role_has_a_colour_and_those_of_one_model_differ():
    assert set(ROLES) == set(theme.ROLE_COLORS)
    together = ["attention.query", "attention.key", "attention.value", "attention.output", "mlp.gate", "mlp.up", "mlp.down"]
    assert len({theme.ROLE_COLORS[role] for role in together}) == len(together)


def _contrast(color: str, back: str, opacity: float = 1.0) -> float:
    """WCAG's contrast ratio of `color`, drawn with `opacity`, to `back`."""

    def luminance(parts: list[float]) -> float:
        red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    above, below = ([int(one[start : start + 2], 16) / 255 for start in (1, 3, 5)] for one in (color, back))
    seen = [opacity * one + (1 - opacity) * other for one, other in zip(above, below, strict=True)]
    low, high = sorted((luminance(seen), luminance(below)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_categorical_colours_stand_out_from_the_background(dark):
    # 1.9 is what Okabe and Ito's sky blue and yellow reach on white, lines and bars being large shapes.
    for color in {*theme.CATEGORICAL, *theme.METHOD_COLORS.values()}:
        assert _contrast(color, theme.BACKGROUND[dark]) >= 1.9, color


def test_thin_lines_are_seen_on_the_dark_background():
    methods = [name for name in theme.METHOD_COLORS for _ in range(2)]
    frame = pd.DataFrame(
        {"trial": methods, "method": methods, "label": methods, "seed": 0, "learning_rate": 0.01, "kind": "train",
         "step": [1, 2] * len(theme.METHOD_COLORS), "value": 1.0}
    )  # fmt: skip
    lines = charts.training_curves(frame, dark=True).data
    assert len({line.line.color for line in lines}) == len(lines) == len(theme.METHOD_COLORS)
    for line in lines:
        assert _contrast(line.line.color, theme.BACKGROUND[True], line.opacity) >= 3, (line.name, line.line.color)


def test_empty_frames_draw_empty_figures():
    columns = ["trial", "method", "label", "seed", "learning_rate", "kind", "step", "value"]
    assert len(charts.training_curves(pd.DataFrame(columns=columns)).data) == 0
    empty = pd.DataFrame(columns=["method", "label", "parameters", "score", "low", "high"]).astype(
        {"parameters": float, "score": float}
    )
    assert charts.accuracy_against_parameters(empty).layout.yaxis.title.text == "score"


def test_two_models_share_a_map_and_its_scale(layers):
    other = layers.assign(stable_rank=layers["stable_rank"] + 100)
    figure = charts.layer_map(pd.concat([layers.assign(model="a"), other.assign(model="b")], ignore_index=True), "stable_rank")
    assert [text.split(" · ")[0] for text in figure.layout.yaxis.ticktext] == ["b"] * 4 + ["a"] * 4
    assert np.nanmin(figure.data[0].z) == 0
    assert np.nanmax(figure.data[0].z) == 112
    assert np.isfinite(figure.data[0].z).sum() == 2 * len(layers)
