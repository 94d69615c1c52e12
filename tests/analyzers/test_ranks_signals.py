"""What a task says about ranks: the curves against cases with a known answer, and the strategies that follow them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from analyzers.compare.calibration import activation_curves, gradient_curves, nested, warm_up_curves
from analyzers.ranks import STRATEGIES, Budget, Signals, make_plan
from analyzers.ranks.signals import Curve
from analyzers.spectra import scan
from analyzers.storage import adapter_size
from loraxs_core.errors import PlanError, SettingsError


def linear_loss(slopes, noise=0.0):
    """A loss that is linear in R, whose gradient is `slopes` plus noise of the batch."""
    rng = np.random.default_rng(0)
    found = {}

    def loss(batch):
        if batch not in found:
            found[batch] = {name: torch.tensor(slope + noise * rng.normal(size=slope.shape)) for name, slope in slopes.items()}
        return sum((found[batch][name] * matrices[name]).sum() for name in slopes)

    matrices = {name: nn.Parameter(torch.zeros(slope.shape, dtype=torch.float64)) for name, slope in slopes.items()}
    return loss, matrices


def test_gradient_curves_of_a_known_gradient():
    slope = np.array([[3.0, 1.0], [2.0, 0.5]])
    loss, matrices = linear_loss({"a": slope})
    curves = gradient_curves(loss, matrices, list(range(8)))
    for part in ("whole", "first", "second"):
        assert getattr(curves["gradient"]["a"], part) == pytest.approx(nested(slope**2))
        assert getattr(curves["fisher"]["a"], part) == pytest.approx(nested(slope**2))
        assert getattr(curves["adam"]["a"], part) == pytest.approx(nested(np.abs(slope)))
    assert matrices["a"].grad is None


def test_noise_is_not_counted_as_gain():
    """The mean gradient is zero: the squared mean of 8 batches would be far from it, the product of different batches is not."""
    loss, matrices = linear_loss({"a": np.zeros((30, 30))}, noise=1.0)
    curves = gradient_curves(loss, matrices, list(range(8)))
    assert curves["fisher"]["a"].whole[-1] == pytest.approx(900, rel=0.1)
    assert curves["gradient"]["a"].whole[-1] < 60  # the squared mean would be 900 / 8


def test_a_warm_up_leaves_r_as_it_was_and_sees_where_the_loss_falls():
    slopes = {"steep": np.array([[5.0, 0.0], [0.0, 0.0]]), "flat": np.array([[0.01, 0.0], [0.0, 0.0]])}
    loss, matrices = linear_loss(slopes)
    curves = warm_up_curves(loss, matrices, list(range(6)), rate=0.1)
    assert curves["steep"].whole[0] == pytest.approx(6 * 0.5, rel=1e-5)  # six steps of 0.1 along a slope of 5
    assert curves["steep"].whole[0] > 400 * curves["flat"].whole[0] > 0
    assert all((matrix == 0).all() and matrix.grad is None for matrix in matrices.values())


def test_activation_curves_count_the_directions_of_the_input():
    layer = nn.Linear(6, 2)
    basis = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
    batches = [torch.randn(4, 10, 2, generator=torch.Generator().manual_seed(seed)) @ basis for seed in range(6)]
    curve = activation_curves(layer, {"a": layer}, batches, top=4)["a"]
    assert curve.whole[1] == pytest.approx(1.0)
    assert curve.whole[0] < 0.99
    assert len(curve.whole) == 4
    assert not layer._forward_pre_hooks


def signals_of(checkpoint, worth, noise=None, kind="gradient", top=16):
    """Curves whose layer i is worth worth(name)·r², the second half multiplied by noise(i)."""
    curves = {}
    for index, weight in enumerate(checkpoint.linear):
        base = worth(weight.name) * np.arange(1, top + 1) ** 1.5
        curves[weight.name] = Curve.of(base, base, base * (noise(index) if noise else 1.0))
    return Signals("minilm", "made", 24, {kind: curves})


def steep(name):
    return 9.0 if "layer.5" in name else 1.0


@pytest.mark.parametrize(("name", "kind"), [(n, s.signal) for n, s in STRATEGIES.items() if s.signal and n != "blend"])
def test_a_signal_moves_ranks_within_half_and_twice_the_uniform_rank(minilm, name, kind):
    plan = make_plan(minilm, name, budget=Budget.like_rank(6), signals=signals_of(minilm, steep, kind=kind))
    ranks = np.array(list(plan.ranks.values()))
    assert ranks.min() >= 3
    assert ranks.max() <= 12
    last = np.mean([rank for layer, rank in plan.ranks.items() if "layer.5" in layer])
    assert last > 1.5 * np.mean([rank for layer, rank in plan.ranks.items() if "layer.5" not in layer])
    assert plan.trainable >= 0.99 * plan.budget
    assert "Two halves of the calibration data agree" in plan.notes[-1]


@pytest.mark.parametrize("rank", [3, 8])
def test_a_budget_counted_otherwise_bounds_the_spread_too(minilm, rank):
    """What the budget pays for in every layer is the uniform rank, in LoRA's numbers and in bytes as in squares."""
    sides = sum(sum(shape) for shape in make_plan(minilm, "uniform", budget=Budget.like_rank(1)).shapes.values())
    layers = len(make_plan(minilm, "uniform", budget=Budget.like_rank(1)).ranks)
    signals = signals_of(minilm, steep, top=32)
    for budget in (Budget.lora_parameters(rank * sides), Budget.gpu_bytes(4 * rank * sides + 16 * rank**2 * layers)):
        ranks = make_plan(minilm, "gradient", budget=budget, signals=signals).ranks.values()
        assert rank // 2 <= min(ranks) < max(ranks) <= 2 * rank
        assert set(make_plan(minilm, "uniform", budget=budget).ranks.values()) == {rank}


def test_limits_that_are_asked_for_go_before_the_spread(minilm):
    """Uniform's rank is 1, twice that is 2: of layers that may be left out, those that stay have rank 3 at least."""
    signals = signals_of(minilm, steep)
    plan = make_plan(minilm, "gradient", budget=Budget.like_rank(1), signals=signals, min_rank=3, may_leave_out=True)
    assert min(plan.ranks.values()) >= 3
    largest = make_plan(minilm, "gradient", budget=Budget.like_rank(14), signals=signals, max_rank=6, multiple_of=4)
    assert set(largest.ranks.values()) == {4}


def test_the_whole_gain_is_that_of_the_ranks_that_were_measured(minilm):
    signals = signals_of(minilm, steep, top=12)
    plan = make_plan(minilm, "gradient", budget=Budget.gain_kept(100), signals=signals)
    assert max(plan.ranks.values()) <= 12
    fewer = make_plan(minilm, "gradient", budget=Budget.gain_kept(60), signals=signals)
    assert fewer.trainable < plan.trainable
    with pytest.raises(PlanError, match="measured up to rank 12 in"):
        make_plan(minilm, "gradient", budget=Budget.like_rank(60), signals=signals)


def test_a_file_that_a_measured_plan_fills_needs_no_larger_measurement(minilm):
    """The search for the largest file meets budgets whose ranks were not measured; the answer lies below them."""
    plan = make_plan(minilm, "gradient", budget=Budget.like_rank(4), signals=signals_of(minilm, steep, top=9))
    size = adapter_size(minilm, "lora-xs", plan=plan).file_bytes
    again = make_plan(minilm, "gradient", budget=Budget.adapter_bytes(size), signals=signals_of(minilm, steep, top=9))
    assert again.trainable >= 0.99 * plan.trainable


def test_the_blend_is_uniform_where_the_halves_disagree(minilm):
    def reverse(index):
        return 10.0 ** (-index)

    rising = signals_of(minilm, lambda name: 1.0 + minilm_index(minilm, name), reverse)
    plan = make_plan(minilm, "blend", budget=Budget.like_rank(6), signals=rising)
    assert set(plan.ranks.values()) == {6}
    assert "much of this plan is chance" in plan.notes[-1]
    agreed = make_plan(minilm, "blend", budget=Budget.like_rank(6), signals=signals_of(minilm, steep))
    assert agreed.ranks["encoder.layer.5.output.dense"] > 1.5 * agreed.ranks["encoder.layer.2.attention.self.query"]


def minilm_index(checkpoint, name):
    return [weight.name for weight in checkpoint.linear].index(name)


@pytest.mark.parametrize(
    ("name", "metric"),
    [
        ("stable-rank", "stable_rank"),
        ("effective-rank", "effective_rank"),
        ("marchenko-pastur", "mp_spikes"),
        ("gavish-donoho", "gavish_donoho_rank"),
    ],
)
def test_ranks_in_proportion_to_a_metric(minilm, name, metric):
    spectra = scan(minilm)
    plan = make_plan(minilm, name, budget=Budget.like_rank(20), spectra=spectra)
    measured = np.array([max(1.0, spectra.layers[layer].metrics[metric]) for layer in plan.ranks])
    ranks = np.array(list(plan.ranks.values()))
    assert np.corrcoef(measured, ranks)[0, 1] > 0.97
    assert plan.trainable >= 0.99 * plan.budget


def test_saved_and_loaded_unchanged_and_damage_is_said(minilm, tmp_path):
    signals = signals_of(minilm, steep)
    again = Signals.load(signals.save(tmp_path / "signals.json"))
    assert again.task == "made"
    name = minilm.linear[0].name
    assert (again.curve("gradient", name).whole == signals.curve("gradient", name).whole).all()
    good = json.loads((tmp_path / "signals.json").read_text())
    path = tmp_path / "damaged.json"
    for damage in (
        {"format": "other"},
        {"version": 9},
        {"curves": 3},
        {"curves": {"gradient": {name: {"whole": [1]}}}},
        {"batches": "x"},
    ):
        path.write_text(json.dumps(good | damage))
        with pytest.raises(PlanError) as caught:
            Signals.load(path)
        assert "\n" not in str(caught.value)
    good["curves"]["gradient"][name]["whole"][0] = float("nan")
    path.write_text(json.dumps(good))
    with pytest.raises(PlanError, match="no list of finite numbers"):
        Signals.load(path)
    path.write_text("{")
    with pytest.raises(PlanError, match="not valid JSON"):
        Signals.load(path)
    with pytest.raises(PlanError, match="Cannot read"):
        Signals.load(tmp_path / "none.json")


def test_what_a_signal_lacks_is_said_in_one_sentence(minilm):
    with pytest.raises(PlanError, match="needs what a task says"):
        make_plan(minilm, "gradient", budget=Budget.like_rank(4))
    with pytest.raises(PlanError, match="hold no 'fisher' of"):
        make_plan(minilm, "fisher", budget=Budget.like_rank(4), signals=signals_of(minilm, steep))
    with pytest.raises(PlanError, match="was measured up to rank 4"):
        make_plan(minilm, "gradient", budget=Budget.like_rank(6), signals=signals_of(minilm, steep, top=4))


def test_halves_of_the_calibration_data_share_no_example(minilm, tmp_path):
    """Read twice, examples would make two halves agree on noise; and no curve is longer than the matrices are."""
    from analyzers.compare.measuring import MeasureSettings, measure_signals

    rows = [f"{'good fine' if index % 2 else 'bad poor'} word {index},{index % 2}" for index in range(80)]
    (tmp_path / "task.csv").write_text("text,label\n" + "\n".join(rows) + "\n", encoding="utf-8")
    task = {"task": f"csv:{tmp_path / 'task.csv'}", "head_steps": 2, "sequence": 8, "targets": "attention.query"}
    found = measure_signals(minilm, MeasureSettings(**task, batch=8, batches=24, top=9999))
    assert found.batches == 8
    assert {len(curve.whole) for curves in found.curves.values() for curve in curves.values()} == {384}
    with pytest.raises(SettingsError, match=r"make 2 batches of 32; at least 4 are needed"):
        measure_signals(minilm, MeasureSettings(**task, batch=32))


@pytest.mark.slow
def test_signals_of_a_real_model(minilm, tmp_path):
    from analyzers.compare.measuring import MeasureSettings, measure_signals

    lines = ["text,label"] + [f"{'good fine' if index % 2 else 'bad poor'} word {index},{index % 2}" for index in range(80)]
    (tmp_path / "task.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    settings = MeasureSettings(task=f"csv:{tmp_path / 'task.csv'}", top=8, batches=4, head_steps=8, batch=8, sequence=16)
    signals = measure_signals(minilm, settings)
    assert sorted(signals.curves) == ["activation", "adam", "fisher", "gradient", "warm-up"]
    for name in [name for name, one in STRATEGIES.items() if one.signal]:
        plan = make_plan(minilm, name, budget=Budget.like_rank(4), signals=signals)
        assert 0.99 * plan.budget <= plan.trainable <= plan.budget


def test_what_a_task_says_of_a_decoder(tmp_path):
    from analyzers.compare.measuring import MeasureSettings, measure_signals
    from loraxs_core.checkpoint import Checkpoint
    from tests.analyzers.compare_helpers import tiny_decoder

    lines = [json.dumps({"ask": f"after {word} comes", "say": " two"}) for word in ("one", "two", "three", "four") * 10]
    (tmp_path / "talk.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    decoder = Checkpoint.open(tiny_decoder(tmp_path / "model"))
    seen = []
    settings = MeasureSettings(
        task=f"data:{tmp_path / 'talk.jsonl'}", columns={"prompt": "ask", "completion": "say"}, top=4, batches=8, batch=4, sequence=16
    )  # fmt: skip
    found = measure_signals(decoder, settings, seen.append)
    plan = make_plan(decoder, "gradient", budget=Budget.like_rank(2), signals=found)
    assert set(found.curves["gradient"]) == set(plan.ranks)
    assert [progress.done for progress in seen] == list(range(3 * 8)), "no head to train: three readings of all batches"
    assert {progress.total for progress in seen} == {3 * 8}
