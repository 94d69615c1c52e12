"""Exported plans inside real PEFT models: every module gets exactly its planned rank, under any head."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings

import numpy as np
import pytest

from analyzers.plans.export import text
from analyzers.plans.rank_pattern import rank_pattern
from analyzers.ranks import Budget, RankPlan, make_plan
from analyzers.storage.tensors import rank_of
from loraxs_core.architecture import AUTO_CLASSES, OWN, inventory_from_config, meta_model, module_names
from loraxs_core.checkpoint import Checkpoint
from loraxs_core.errors import PlanError, SettingsError
from tests.core.architectures import CASES

HEADS = {
    "tiny_bert": ["FEATURE_EXTRACTION", "SEQ_CLS"],
    "tiny_llama": ["FEATURE_EXTRACTION", "SEQ_CLS", "CAUSAL_LM"],
    "tiny_gpt2": ["FEATURE_EXTRACTION", "SEQ_CLS", "CAUSAL_LM"],
}


def irregular_plan(checkpoint) -> RankPlan:
    """Ranks that differ within roles and within layers, so that no pattern comes out right by chance."""
    plan = make_plan(checkpoint, "role", budget=Budget.like_rank(5), targets="all-linear", alpha_over_r=0.5)
    rng = np.random.default_rng(3)
    return plan.with_ranks({name: int(rng.integers(1, 6)) for name in list(plan.ranks)[::2]})


def loaded(folder, task):
    import transformers

    return getattr(transformers, AUTO_CLASSES[task]).from_pretrained(folder)


@pytest.mark.parametrize("kind", ["lora", "lora-xs"])
@pytest.mark.parametrize("model", list(HEADS))
def test_every_module_gets_its_rank_and_the_same_scaling(model, kind, request):
    from peft import get_peft_model

    folder = request.getfixturevalue(model)
    checkpoint = Checkpoint.open(folder)
    plan = irregular_plan(checkpoint)
    for task in HEADS[model]:
        config = plan.lora_config(task) if kind == "lora" else plan.lora_xs_config(task)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adapted = get_peft_model(loaded(folder, task), config).base_model.model
        modules = dict(adapted.named_modules())
        paths = module_names(checkpoint, task)
        for name, rank in plan.ranks.items():
            layer = modules[paths[name]]
            assert layer.r["default"] == rank, (task, name)
            assert layer.scaling["default"] == pytest.approx(0.5)
        adapters = [path for path, module in modules.items() if isinstance(getattr(module, "r", None), dict)]
        assert sorted(adapters) == sorted(paths[name] for name in plan.ranks)


def test_regular_plans_have_short_patterns(minilm):
    plan = make_plan(minilm, "role", budget=Budget.parameters(18 * 12**2 + 6 * 24**2))
    assert plan.most_frequent_rank == 12
    assert plan.rank_pattern == {r"encoder\.layer\.\d+\.output\.dense": 24}
    assert make_plan(minilm, "uniform", budget=Budget.like_rank(7)).rank_pattern == {}


def matched(pattern, default, name):
    """PEFT's get_pattern_key, restated."""
    for key, rank in pattern.items():
        if re.match(rf"(.*\.)?({key})$", name):
            return rank
    return default


def test_patterns_are_those_of_peft():
    from peft.utils.other import get_pattern_key

    rng = np.random.default_rng(0)
    stacks = [
        "encoder.layer.{}.output.dense",
        "encoder.layer.{}.attention.output.dense",
        "decoder.block.{}.layer.1.EncDecAttention.q",
    ]
    names = [stack.format(layer) for layer in range(13) for stack in stacks]
    for _ in range(200):
        ranks = {name: int(rank) for name, rank in zip(names, rng.integers(1, rng.integers(2, 6), len(names)), strict=True)}
        default = int(rng.integers(1, 5))
        pattern = rank_pattern(ranks, default)
        for prefix in ("", "bert.", "base.model."):
            for name, rank in ranks.items():
                assert matched(pattern, default, prefix + name) == rank
                key = get_pattern_key(pattern.keys(), prefix + name)
                assert pattern.get(key, default) == rank


def test_stacks_that_differ_only_in_front_are_told_apart():
    names = ["layers.0.q_proj", "vision.layers.0.q_proj", "model.layers.1.q_proj", "vision.layers.1.q_proj"]
    ranks = dict(zip(names, (1, 2, 3, 4), strict=True))
    pattern = rank_pattern(ranks, 2)
    assert {name: matched(pattern, 2, name) for name in names} == ranks


@pytest.mark.parametrize("case", CASES, ids=str)
def test_targets_and_ranks_meet_their_modules_in_every_architecture(case):
    """Also where transformers calls a module otherwise in memory than on disk (ViT, Gemma 3 with images)."""
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    checkpoint = inventory_from_config(case.config, str(case))
    plan = make_plan(checkpoint, "uniform", budget=Budget.like_rank(3), targets="all-linear")
    rng = np.random.default_rng(0)
    plan = plan.with_ranks({name: int(rng.integers(1, 5)) for name in plan.ranks})
    paths = module_names(checkpoint, OWN)
    config = LoraConfig(target_modules=list(plan.targets))
    targeted = {name for name, _ in meta_model(checkpoint, OWN).named_modules() if check_target_module_exists(config, name)}
    assert targeted == {paths[name] for name in plan.ranks}
    spec = RankPlan.from_dict(plan.to_dict()).spec()
    assert {name: rank_of(spec, paths[name]) for name in plan.ranks} == dict(plan.ranks)


def test_the_spec_gives_the_ranks_that_peft_gives(minilm):
    plan = irregular_plan(minilm)
    spec = plan.spec()
    assert {name: rank_of(spec, name) for name in plan.ranks} == dict(plan.ranks)
    assert plan.spec("vera").ranks == {}
    assert plan.spec("vera").rank == plan.most_frequent_rank
    assert plan.spec("lora", dropout=0.1, task_type="SEQ_CLS").dropout == 0.1
    with pytest.raises(SettingsError, match="Unknown method"):
        plan.spec("magic")


def test_exports_are_what_they_say(minilm):
    plan = make_plan(minilm, budget=Budget.like_rank(16))
    for kind, rank_key in (("lora", "r"), ("lora-xs", "r")):
        values = json.loads(text(plan, kind))
        assert values[rank_key] == plan.most_frequent_rank
        assert values["rank_pattern"] == plan.rank_pattern
    assert RankPlan.from_dict(json.loads(text(plan, "json"))) == plan
    assert len(text(plan, "csv").splitlines()) == len(plan.ranks) + 1
    with pytest.raises(PlanError, match="Unknown export 'yaml'"):
        text(plan, "yaml")


def test_yaml_holds_what_the_trainers_read(minilm):
    import yaml
    from peft import LoraConfig

    plan = make_plan(minilm, "role", budget=Budget.like_rank(16), alpha_over_r=2.0)
    given = yaml.safe_load(text(plan, "peft-yaml"))
    config, own = LoraConfig(**given), plan.lora_config()
    assert (config.r, config.lora_alpha, config.rank_pattern, config.alpha_pattern) == (
        own.r,
        own.lora_alpha,
        own.rank_pattern,
        own.alpha_pattern,
    )
    assert set(config.target_modules) == set(plan.targets)
    axolotl = yaml.safe_load(text(plan, "axolotl"))
    assert axolotl == {
        "adapter": "lora",
        "lora_r": 12,
        "lora_alpha": 24,
        "lora_dropout": 0.0,
        "lora_target_modules": list(plan.targets),
        "lora_model_dir": "./fresh-adapter",
    }
    uniform = make_plan(minilm, "uniform", budget=Budget.like_rank(16))
    assert "lora_model_dir" not in yaml.safe_load(text(uniform, "axolotl"))
    with pytest.raises(PlanError, match="whole numbers for lora_alpha"):
        text(make_plan(minilm, "uniform", budget=Budget.like_rank(3), alpha_over_r=0.5), "axolotl")


def test_the_snippet_runs_as_it_stands(tiny_bert, tmp_path):
    plan = make_plan(Checkpoint.open(tiny_bert), budget=Budget.like_rank(5))
    program = tmp_path / "plan.py"
    program.write_text(text(plan, "python"))
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert f"trainable params: {plan.trainable:,}" in done.stdout
