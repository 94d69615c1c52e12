"""What stands side by side: ablations of LoRA-XS, configurations of the user's own, learning rates by kind of task."""

from __future__ import annotations

import json
import os

import pytest

from analyzers.compare import SweepSettings, run_sweep
from analyzers.compare.variants import RANKS, ablation_plans
from analyzers.methods import METHODS
from analyzers.methods.peft_configs import read_config
from loraxs_core.adapter_names import PEFT_TYPE
from loraxs_core.errors import SettingsError
from loraxs_core.safetensors_file import SafetensorsFile
from tests.analyzers.compare_helpers import sentiment_csv, tiny_model

PROMPT = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4}
OWN = {
    "half": {"peft_type": "LORA", "r": 2, "target_modules": ["query"], "modules_to_save": None, "from_the_future": 1},
    "prompt": PROMPT,
    "pissa-own": {"peft_type": "LORA", "r": 4, "init_lora_weights": "pissa", "target_modules": ["query"]},
}


def two_steps(folder, configs) -> SweepSettings:
    """Each of `configs` as a method of one's own, on a small model of `folder`."""
    data = sentiment_csv(folder / "film.csv")
    sizes = {"steps": 2, "batch": 8, "evaluations": 1, "test_examples": 16}
    return SweepSettings(
        str(tiny_model(folder / "bert")), f"csv:{data}", methods=tuple(configs), configs=configs, device="cpu", **sizes
    )


def sweep(**changes) -> SweepSettings:
    return SweepSettings("minilm", **{"methods": ("head-only", "lora-xs"), **changes})


def test_an_ablation_is_the_method_itself_and_what_is_changed_of_it():
    labels = [trial.variant for trial in sweep(ablate="basis").trials()]
    assert labels == [
        "Head only", "LoRA-XS", "LoRA-XS, random vectors", "LoRA-XS, middle vectors", "LoRA-XS, bottom vectors"
    ]  # fmt: skip
    assert [trial.options for trial in sweep(ablate=["sigma"]).trials()][2:] == [
        {"sigma": "output"}, {"sigma": "split"}, {"sigma": "none"}
    ]  # fmt: skip
    ranks = [trial.rank for trial in sweep(ablate="rank", methods="lora-xs", rank=8).trials()]
    assert sorted(ranks) == list(RANKS)
    assert ranks[0] == 8
    everything = sweep(ablate=("basis", "sigma", "rank"), seeds=2)
    assert len({trial.id for trial in everything.trials()}) == len(everything.trials()) == 2 * (2 + 3 + 3 + len(RANKS) - 1)
    assert all(trial.id.isascii() for trial in everything.trials())
    assert SweepSettings.from_dict(json.loads(json.dumps(everything.to_dict()))) == everything


def test_what_cannot_be_taken_apart_is_said():
    with pytest.raises(SettingsError, match="no ablation 'colour'; there are basis, sigma, rank, plan"):
        sweep(ablate="colour")
    with pytest.raises(SettingsError, match="add lora-xs"):
        sweep(ablate="basis", methods=("lora",))
    with pytest.raises(SettingsError, match="cannot be called 'lora'"):
        sweep(configs={"lora": PROMPT}, methods=("lora",))
    with pytest.raises(SettingsError, match="has a peft_type"):
        sweep(configs={"mine": {}}, methods=("mine",))


def test_every_plan_stands_beside_uniform_ranks_of_the_same_budget(minilm):
    from analyzers.ranks import Budget, make_plan

    plans = ablation_plans(minilm, 8)
    labels = [trial.variant for trial in sweep(ablate="plan", plans=plans, rank=8).trials()]
    assert labels == ["Head only", "LoRA-XS", *(f"LoRA-XS, {name}" for name in plans)]
    assert "uniform" not in plans
    budget = make_plan(minilm, "uniform", budget=Budget.like_rank(8)).budget
    assert {plan.budget for plan in plans.values()} == {budget}


def test_any_configuration_of_pefts_runs_as_a_method(tmp_path):
    settings = two_steps(tmp_path, OWN)
    run = run_sweep(settings, tmp_path / "run")
    assert not run.failures()
    results = run.results().set_index("label")
    assert results.loc["half", "adapter_parameters"] == 2 * 2 * (2 * 32)  # two layers' query, 32 x 32, r = 2
    assert results.loc["prompt", "adapter_parameters"] == 4 * 32
    for trial in settings.trials():
        folder = run.trial_folder(trial.id) / "adapter"
        assert read_config(folder)["peft_type"] == OWN[trial.method]["peft_type"]
        file = SafetensorsFile(folder / "adapter_model.safetensors")
        head = sum(entry.nbytes for name, entry in file.entries.items() if "classifier" in name or "pooler" in name)
        assert results.loc[trial.variant, "adapter_bytes"] == sum(entry.nbytes for entry in file.entries.values()) - head
    assert results.loc["pissa-own", "adapter_bytes"] == 2 * 4 * 4 * 2 * (2 * 32)  # as a plain LoRA of twice its rank
    assert results.loc["pissa-own", "svd_seconds"] > 0


def test_an_entry_that_peft_does_not_know_is_told_of(tmp_path):
    """`rank` for `r` would else train at PEFT's default without a word."""
    own = {"mine": {"peft_type": "LORA", "rank": 32, "target_modules": ["query"], "peft_version": "9", "eva_config": None}}
    run = run_sweep(two_steps(tmp_path, own), tmp_path / "run")
    assert run.remarks() == [
        "PEFT's LORA configuration knows no rank: what mine says there had no effect; look at the spelling. (seed 0)"
    ]


def test_an_adalora_that_never_deals_its_ranks_says_so(tmp_path):
    own = {"mine": {"peft_type": "ADALORA", "init_r": 2, "target_r": 1, "total_step": 2, "target_modules": ["query"]}}
    run = run_sweep(two_steps(tmp_path, own), tmp_path / "run")
    assert not run.failures()
    assert "mine kept its first ranks" in run.remarks()[0]


@pytest.mark.parametrize(
    ("values", "like"),
    [({"peft_type": PEFT_TYPE, "r": 4}, "lora-xs"), ({"peft_type": "LORA", "init_lora_weights": "pissa_niter_4"}, "pissa")],
)
def test_a_configuration_of_a_kind_that_is_here_takes_its_rate(values, like):
    """PEFT_TYPE: what the adapter_config.json of a LoRA-XS adapter calls its kind."""
    own = sweep(configs={"mine": values}, methods=("mine",)).trials()[0]
    assert own.learning_rate == METHODS[like].learning_rate
    assert own.kind.starts_from_svd


def test_a_learning_rate_of_ones_own_kind():
    own = sweep(configs={"mine": {"peft_type": "LORA", "use_dora": True}, "odd": PROMPT}, methods=("mine", "odd"))
    assert [trial.learning_rate for trial in own.trials()] == [METHODS["dora"].learning_rate, 1e-3]


@pytest.mark.parametrize("name", METHODS)
def test_every_rate_has_a_source_for_heads_and_for_language_modelling(name):
    for causal in (False, True):
        rate = METHODS[name].rate(causal)
        assert 1e-6 < rate.value < 1
        assert rate.source


def test_eva_starts_from_the_training_data(tmp_path):
    """A's rows are then orthonormal singular vectors of the layer's inputs, which LoRA's uniform start is not."""
    import torch

    from analyzers.compare import adapter, base_and_head, examples, open_task
    from analyzers.compare.trial_settings import Listener
    from loraxs_core.checkpoint import Checkpoint

    checkpoint = Checkpoint.open(tiny_model(tmp_path / "bert"))
    task = open_task(f"csv:{sentiment_csv(tmp_path / 'film.csv')}")
    settings = SweepSettings(
        str(checkpoint.folder), task.name, methods=("eva",), ranks={"eva": 4}, batch=16, steps=4, sequence=32
    )
    trial = settings.trials()[0]
    prepared = base_and_head.prepare(checkpoint, task, 0)
    model = adapter.adapted(prepared, trial, checkpoint)
    given = examples.TrialExamples.of(task.read(None, None), task, trial, prepared)
    adapter.start_from_data(model, prepared, trial, given, Listener())
    starts = [value for name, value in model.named_parameters() if "lora_A" in name]
    assert starts
    for start in starts:
        assert torch.allclose(start @ start.T, torch.eye(4), atol=1e-4)


def test_the_energy_within_reach_is_that_of_the_spectrum(tmp_path):
    """Of the top vectors the squared singular values' share, wherever they sit; of random ones about r^2 / (out x in)."""
    import torch
    from peft import get_peft_model
    from transformers import AutoModel

    from analyzers.compare.adapter import energy_kept
    from loraxs_core.tuner import LoraXSConfig

    folder = tiny_model(tmp_path / "bert")
    base = AutoModel.from_pretrained(folder)
    assert energy_kept(base) is None
    weights = [layer.attention.self.query.weight.detach() for layer in base.encoder.layer]
    squares = [torch.linalg.svdvals(weight.double()).square() for weight in weights]
    expected = float(sum(values[:4].sum() / values.sum() for values in squares) / len(squares))
    for sigma in ("input", "output", "split", "none"):
        config = LoraXSConfig(r=4, target_modules=["query"], sigma=sigma)
        assert energy_kept(get_peft_model(AutoModel.from_pretrained(folder), config)) == pytest.approx(expected, abs=1e-6)
    random = LoraXSConfig(r=4, target_modules=["query"], vectors="random")
    assert energy_kept(get_peft_model(AutoModel.from_pretrained(folder), random)) == pytest.approx(16 / 1024, abs=0.02)


def test_each_trial_has_a_run_of_its_own_with_a_tracker(tmp_path, monkeypatch):
    """W&B's callback goes on with a run that is open: every trial of a sweep was drawn into the first one's."""
    import sys
    from types import SimpleNamespace

    from analyzers.compare.trackers import a_run_each

    wandb = SimpleNamespace(run=None, ended=0, teardown=lambda: None)
    wandb.finish = lambda: vars(wandb).update(run=None, ended=wandb.ended + 1)
    mlflow = SimpleNamespace(active_run=lambda: object(), end_run=lambda: pytest.fail("it was open before: its user's"))
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    monkeypatch.setitem(sys.modules, "trackio", SimpleNamespace())
    monkeypatch.delenv("WANDB_DIR", raising=False)
    names = ("tensorboard", "wandb", "mlflow", "trackio")

    def trial(folder):
        with a_run_each(names, folder):
            assert os.environ["WANDB_DIR"] == str(folder)
            assert wandb.run is None
            wandb.run = object()
            raise ZeroDivisionError

    for number in range(2):
        with pytest.raises(ZeroDivisionError):
            trial(tmp_path / f"t{number}")
        assert wandb.ended == number + 1
    assert "WANDB_DIR" not in os.environ


def test_trainer_reports_where_it_is_asked_to_and_nowhere_else(tmp_path, monkeypatch):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    common = {"methods": ("head-only",), "steps": 2, "batch": 8, "evaluations": 1, "test_examples": 16, "device": "cpu"}
    arguments = str(tiny_model(tmp_path / "bert")), f"csv:{sentiment_csv(tmp_path / 'film.csv')}"
    told = run_sweep(SweepSettings(*arguments, report_to="tensorboard", **common), tmp_path / "told")
    (file,) = told.path.glob("trials/*/logs/**/events.*")
    read = events.EventAccumulator(str(file)).Reload()
    assert [one.step for one in read.Scalars("train/loss")] == [1, 2]
    quiet = run_sweep(SweepSettings(*arguments, **common), tmp_path / "quiet")
    assert not list(quiet.path.glob("trials/*/logs"))
    with pytest.raises(SettingsError, match="choose among tensorboard"):
        sweep(report_to=("carrier pigeon",))
    monkeypatch.setattr("analyzers.compare.settings.find_spec", lambda name: None)
    with pytest.raises(SettingsError, match="pip install wandb"):
        sweep(report_to="wandb").check()
