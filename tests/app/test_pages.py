"""Every page as Streamlit runs it, without a browser: what it shows, its empty states, and its errors as sentences."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from analyzers.ranks import Budget, RankPlan, make_plan
from app import state
from loraxs_core.checkpoint import Checkpoint

MAIN = Path(__file__).resolve().parents[2] / "app" / "main.py"


def page(model: str | Path, name: str = "model", plan: str | None = None, **session) -> AppTest:
    """The page called `name` on `model` (and with the plan of that name), run once."""
    test = AppTest.from_file(str(MAIN), default_timeout=60)
    test.query_params["model"] = str(model)
    if plan:
        test.query_params["plan"] = plan
    for key, value in session.items():
        test.session_state[key] = value
    test.run()
    return test if name == "model" else go(test, name)


def go(test: AppTest, name: str) -> AppTest:
    test._page_hash = test.session_state["pages"][name]._script_hash
    return test.run()


def texts(test: AppTest) -> str:
    """Everything the page says."""
    kinds = (test.title, test.subheader, test.markdown, test.caption, test.info, test.warning, test.error)
    return "\n".join(element.value for kind in kinds for element in kind)


def healthy(test: AppTest) -> AppTest:
    assert not test.exception, test.exception[0].message
    assert not test.error, test.error[0].value
    return test


@pytest.fixture(autouse=True)
def _own(own_folders):
    """No test sees another's plans, runs or last model; caches of the process are emptied too."""
    import streamlit as st

    st.cache_data.clear()
    st.cache_resource.clear()


@pytest.fixture
def scanned(tiny_bert) -> Path:
    from analyzers.spectra import scan

    scan(Checkpoint.open(tiny_bert))
    return tiny_bert


class TestModel:
    def test_shows_the_inventory_at_a_glance(self, tiny_bert):
        test = healthy(page(tiny_bert))
        metrics = {metric.label: metric.value for metric in test.metric}
        assert metrics["Layers"] == "2"
        assert metrics["of them take adapters"] == "12"
        assert metrics["Stored as"] == "float32"
        roles = test.dataframe[0].value
        assert roles["parameters"].sum() == Checkpoint.open(tiny_bert).parameters
        assert roles["share (%)"].sum() == pytest.approx(100)

    def test_a_missing_folder_is_one_sentence_and_nothing_is_lost(self, tiny_bert):
        test = page(tiny_bert)
        test.text_input(key="folder").set_value("/nowhere/at/all")
        test.button(key="FormSubmitter:open-folder-Open").click().run()
        assert "/nowhere/at/all" in test.error[0].value
        assert test.metric[1].value == "2"  # the model chosen before is still there
        assert test.session_state["model"] == str(tiny_bert)

    def test_a_folder_opens_and_stays_after_a_refresh(self, tiny_bert, tiny_llama):
        test = page(tiny_bert)
        test.text_input(key="folder").set_value(str(tiny_llama))
        test.button(key="FormSubmitter:open-folder-Open").click().run()
        assert healthy(test).subheader[0].value == str(tiny_llama)
        assert test.query_params["model"] == str(tiny_llama)
        again = AppTest.from_file(str(MAIN), default_timeout=60).run()  # a new session without an address
        assert again.session_state["model"] == str(tiny_llama)

    def test_a_corrupted_shard_is_one_sentence(self, tiny_bert, tmp_path):
        import shutil

        broken = shutil.copytree(tiny_bert, tmp_path / "broken")
        data = (broken / "model.safetensors").read_bytes()
        (broken / "model.safetensors").write_bytes(data[: len(data) // 2])
        test = page(broken)
        assert not test.exception
        assert "model.safetensors" in test.warning[0].value

    def test_an_architecture_without_weights_says_what_it_is_good_for(self):
        test = healthy(page("roberta-large"))
        assert "without weights" in texts(test)
        assert {metric.label: metric.value for metric in test.metric}["Layers"] == "24"

    def test_tied_weights_are_explained(self, tiny_gpt2):
        assert "Tied weights" in texts(healthy(page(tiny_gpt2)))

    def test_the_command_that_reproduces_the_view_is_shown(self, tiny_bert):
        assert f"loraxs inspect {tiny_bert}" in [code.value for code in page(tiny_bert).code]

    def test_choosing_from_the_catalogue_lays_the_old_plan_aside(self, tiny_bert):
        test = page("bert-base")
        test.session_state["plan"] = "abc"
        test.selectbox(key="catalogue-bert-base").set_value("roberta-large").run()
        healthy(test)
        assert test.session_state["model"] == "roberta-large"
        assert test.session_state["plan"] is None


class TestSpectra:
    def test_before_the_scan_there_is_a_button_and_what_it_will_do(self, tiny_bert):
        test = healthy(page(tiny_bert, "spectra"))
        assert "has not been scanned" in test.info[0].value
        assert test.button(key="scan").label == "Scan"

    def test_an_architecture_has_no_spectrum_and_says_so(self):
        test = healthy(page("roberta-large", "spectra"))
        assert "no spectrum" in test.info[0].value

    def test_shows_every_layer_and_words(self, scanned):
        test = healthy(page(scanned, "spectra"))
        table = test.dataframe[0].value
        assert len(table) == len(Checkpoint.open(scanned).linear)
        assert {"stable_rank", "effective_rank", "rank_90", "sigma_max"} <= set(table)
        assert "keeps 90 % of its energy in" in texts(test)
        assert len(test.get("plotly_chart")) >= 3

    def test_a_click_on_the_map_shows_that_layer(self, scanned):
        name = "encoder.layer.1.output.dense"
        selection = {"points": [{"customdata": [name]}], "point_indices": [0], "box": [], "lasso": []}
        test = healthy(page(scanned, "spectra", map={"selection": selection}))
        assert name in test.multiselect(key="layers").value

    def test_an_overlay_that_was_not_scanned_is_one_sentence(self, scanned, tiny_llama):
        test = page(scanned, "spectra", overlay=str(tiny_llama))
        assert not test.exception
        assert "scan it" in test.error[0].value
        assert "All layers" in texts(test)  # the rest of the page is still there

    def test_a_scan_that_failed_says_why(self, tmp_path, tiny_bert):
        import shutil

        from safetensors.numpy import load_file, save_file

        broken = shutil.copytree(tiny_bert, tmp_path / "nan")
        tensors = load_file(broken / "model.safetensors")
        name = "encoder.layer.0.output.dense.weight"
        tensors[name][0, 0] = float("nan")
        save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
        from app import jobs

        key = Checkpoint.open(broken).fingerprint
        jobs.start("scan", str(broken), key)
        while jobs.status("scan", key).is_running:
            pass
        test = page(broken, "spectra")
        assert "encoder.layer.0.output.dense" in test.error[0].value
        assert test.button(key="scan")


class TestPlan:
    def test_a_plan_by_role_with_its_totals_and_evidence(self, tiny_bert):
        test = page(tiny_bert, "plan", **{"like-rank": 4})
        healthy(test)
        metrics = {metric.label: metric.value for metric in test.metric}
        assert int(metrics["Trained numbers, Σ r²"].replace(",", "")) <= 8 * 16
        assert float(metrics["Of the budget"].split()[0]) >= 95
        assert "What this rests on" in texts(test)

    def test_an_edited_rank_changes_the_totals(self, tiny_bert):
        test = page(tiny_bert, "plan", **{"like-rank": 4})
        before = test.metric[0].value
        shown = make_plan(Checkpoint.open(tiny_bert), "role", budget=Budget.like_rank(4))
        key = f"edit-{state.identity(shown)}"
        test.session_state[key] = {"edited_rows": {0: {"rank": 9}}, "added_rows": [], "deleted_rows": []}
        healthy(test.run())
        assert test.metric[0].value != before
        assert "more than the budget" in test.warning[0].value

    def test_a_plan_in_use_is_shared_saved_and_found_again(self, tiny_bert):
        test = page(tiny_bert, "plan", **{"like-rank": 4})
        test.button(key="use").click().run()
        healthy(test)
        chosen = test.session_state["plan"]
        assert test.query_params["plan"] == chosen
        again = page(tiny_bert, "plan", plan=chosen)
        assert again.selectbox(key="strategy").value == "in-use"
        assert again.metric[0].value == test.metric[0].value

    def test_a_budget_too_small_is_one_sentence_and_the_controls_stay(self, tiny_bert):
        test = page(tiny_bert, "plan", budget="parameters", parameters=3)
        assert not test.exception
        assert "below rank 1 in each of the 8 layers" in test.error[0].value
        assert test.selectbox(key="strategy").value == "role"

    def test_energy_without_spectra_leads_to_the_scan(self, tiny_bert):
        test = page(tiny_bert, "plan", strategy="energy")
        assert "has not been scanned" in test.error[0].value

    def test_energy_with_spectra_shows_what_the_ranks_keep(self, scanned):
        test = healthy(page(scanned, "plan", strategy="energy", **{"like-rank": 4}))
        assert any(metric.label == "Mean energy at rank" for metric in test.metric)

    def test_unknown_targets_are_named(self, tiny_bert):
        test = page(tiny_bert, "plan", targets="nothing_proj")
        assert "nothing_proj" in test.error[0].value

    @pytest.mark.parametrize(
        ("kind", "words"),
        [
            ("python", "get_peft_model"),
            ("lora-xs", "rank_pattern"),
            ("lora", "alpha_pattern"),
            ("json", "loraxs-rank-plan"),
            ("csv", "name,role"),
        ],
    )
    def test_exports(self, tiny_bert, kind, words):
        test = healthy(page(tiny_bert, "plan", export=kind, **{"like-rank": 4}))
        assert any(words in code.value for code in test.code)

    def test_a_plan_of_another_model_is_refused(self, tiny_bert, tiny_llama):
        test = page(tiny_bert, "plan", **{"like-rank": 4})
        test.button(key="use").click().run()
        other = page(tiny_llama, "plan", plan=test.session_state["plan"])
        assert "The plan was made for" in other.error[0].value


class TestCost:
    def test_methods_side_by_side_with_the_exact_bytes(self, tiny_bert):
        from analyzers.storage import adapter_size

        test = healthy(page(tiny_bert, "cost"))
        table = test.dataframe[0].value.set_index("method")
        exact = adapter_size(Checkpoint.open(tiny_bert), "lora-xs", rank=16).file_bytes
        assert table.loc["LoRA-XS", "file (B)"] == exact
        assert table.loc["LoRA-XS", "fleet (B)"] == exact * 1_000_000
        assert set(table.index) == {"Full fine-tune", "LoRA", "VeRA", "LoRA-XS"}

    def test_break_even_loading_and_residents(self, tiny_bert):
        from analyzers.storage import Scenario, break_even

        session = {"rank-lora-xs": 4, "link": 2.5, "memory-gib": 1.5}
        test = healthy(page(tiny_bert, "cost", **session))
        checkpoint = Checkpoint.open(tiny_bert)
        for method in ("lora", "vera"):
            assert break_even(checkpoint, method).sentence in texts(test)
        asked = Scenario(str(tiny_bert), ranks={"lora-xs": 4}, adapters=1_000_000, gigabits_per_second=2.5, memory_gib=1.5)
        exact = asked.frame(checkpoint).set_index("label")
        table = test.dataframe[0].value.set_index("method")
        for shown, column in (("load one (s)", "load_seconds"), ("stay in 1.5 GiB", "resident"), ("fleet (B)", "fleet_bytes")):
            assert table[shown].to_dict() == exact[column].to_dict()
        command = test.code[0].value
        assert command.startswith(f"loraxs fleet {tiny_bert} --methods full,lora,vera,lora-xs")
        assert "--rank lora-xs=4" in command
        assert "--link 2.5 --memory 1.5" in command

    def test_the_plan_in_use_is_counted(self, tiny_bert):
        test = page(tiny_bert, "plan", **{"like-rank": 4})
        trained = test.metric[0].value
        test.button(key="use").click().run()
        healthy(go(test, "cost"))
        row = test.dataframe[0].value.set_index("method").loc["LoRA-XS"]
        assert f"{row['trained numbers']:,}" == trained
        command, python = test.code[0].value, test.code[1].value
        assert f"loraxs size {tiny_bert} --method lora-xs --plan {state._plan_file(test.session_state['plan'])}" in command
        assert "'lora-xs': {'plan': RankPlan.load(" in python
        exec(compile(python, "snippet", "exec"), {})

    def test_a_rank_larger_than_a_matrix_is_one_sentence(self, tiny_bert):
        test = page(tiny_bert, "cost", **{"rank-lora-xs": 999})
        assert not test.exception
        assert "larger than the matrix" in test.error[0].value

    def test_memory_is_broken_down_for_every_method(self, tiny_bert):
        test = healthy(page(tiny_bert, "cost"))
        peaks = [metric for metric in test.metric if "peak reserved" in metric.label]
        assert len(peaks) == 3
        assert all("GiB" in metric.value for metric in peaks)

    def test_what_decides_about_memory_is_said_in_the_analyzer_s_words(self, tiny_bert):
        from analyzers.memory import MemorySettings, what_decides

        said = texts(healthy(page(tiny_bert, "cost", **{"rank-lora-xs": 4})))
        settings = MemorySettings(method="lora-xs", rank=4, batch=8, sequence=40)
        for sentence in what_decides(Checkpoint.open(tiny_bert), settings):
            assert sentence in said

    def test_what_fits_a_gpu_is_searched_when_asked(self, tiny_llama):
        from analyzers.memory import MemorySettings, find_gpu, fit

        test = healthy(page(tiny_llama, "cost", **{"rank-lora-xs": 4, "fit-gpu": "T4 16 GB"}))
        assert not [table for table in test.dataframe if "length limited by" in table.value]
        test.button(key="fit").click().run()
        table = healthy(test).dataframe[-1].value.set_index("method")
        assert set(table.index) == {"LoRA", "VeRA", "LoRA-XS", "Full fine-tune"}
        settings = MemorySettings(method="lora-xs", rank=4, batch=8, sequence=64)
        exact = fit(Checkpoint.open(tiny_llama), settings, find_gpu("T4 16 GB"))
        assert table.loc["LoRA-XS", "largest batch of 64 tokens"] == exact.batch > 0
        assert table.loc["LoRA-XS", "longest sequence at batch 8 (tokens)"] == exact.sequence == 64
        assert table.loc["LoRA-XS", "length limited by"] == "the model's positions"
        command = next(code.value for code in test.code if code.value.startswith("loraxs fit"))
        assert f"loraxs fit {tiny_llama} --gpu 'T4 16 GB' --methods lora-xs --rank 4 --batch 8 --sequence 64" in command

    def test_an_unknown_gpu_is_one_sentence(self, tiny_bert):
        test = page(tiny_bert, "cost", **{"fit-gpu": "abacus"})
        assert not test.exception
        assert "No GPU is called 'abacus'" in test.error[0].value

    def test_an_architecture_without_weights_has_costs(self):
        test = healthy(page("roberta-large", "cost", **{"rank-lora-xs": 25}))
        assert test.dataframe[0].value.set_index("method").loc["LoRA-XS", "trained numbers"] == 60_000


def test_the_last_model_file_may_be_broken(own_folders, tiny_bert):
    from loraxs_core.paths import data_dir

    (data_dir() / "page.json").write_text("[1")
    assert healthy(page(tiny_bert)).session_state["model"] == str(tiny_bert)


def test_choosing_writes_the_last_model(tiny_bert):
    from loraxs_core.paths import data_dir

    test = page("bert-base")
    test.selectbox(key="catalogue-bert-base").set_value("roberta-large").run()
    assert json.loads((data_dir() / "page.json").read_text())["model"] == "roberta-large"


class TestCompare:
    def test_before_the_first_run_the_page_says_what_will_happen(self, tiny_bert):
        test = healthy(page(tiny_bert, "compare"))
        assert "No comparison yet" in texts(test)
        assert "4 trials of 200 steps" in texts(test)

    def test_an_architecture_cannot_be_trained_and_says_so(self):
        test = healthy(page("roberta-large", "compare"))
        assert "cannot be trained" in texts(test)

    def test_an_unknown_task_is_one_sentence(self, tiny_bert):
        test = page(tiny_bert, "compare", task="csv:/no/such/file.csv")
        assert not test.exception
        assert "/no/such/file.csv" in test.error[0].value

    def test_learning_rates_that_are_no_numbers_are_one_sentence(self, tiny_bert):
        test = page(tiny_bert, "compare", **{"rates-lora": "fast"})
        assert "LoRA" in test.error[0].value

    def test_the_command_carries_plans_ranks_and_rates(self, tiny_bert):
        test = page(tiny_bert, "plan", **{"like-rank": 4})
        test.button(key="use").click().run()
        file = state._plan_file(test.session_state["plan"])
        for key, value in {"compare-uniform": True, "rates-lora": "5e-4 1e-3", "compare-rank-lora": 4}.items():
            test.session_state[key] = value
        command = healthy(go(test, "compare")).code[0].value
        plan, note, compare = command.splitlines()
        assert plan.startswith(f"loraxs plan {tiny_bert} --strategy uniform --parameters 128 ")
        assert "rank 4 of LoRA;" in note
        assert "--learning-rate lora=0.0005,0.001 --out DIR" in compare
        assert f"--plan {file} --plan uniform.json" in compare
        python = test.code[1].value.partition("run = ")
        settings = "settings = " + python[2].partition("start_sweep(")[2].rpartition(")\nprint")[0]
        names = {}
        exec(compile(python[0] + settings, "snippet", "exec"), names)
        in_use, uniform = names["settings"].plans.values()
        assert in_use["ranks"] == dict(RankPlan.load(file).ranks)
        assert set(uniform["ranks"].values()) == {4}
        assert names["settings"].ranks["lora"] == 4

    def test_without_a_plan_the_command_has_the_rank(self, tiny_bert):
        command = healthy(page(tiny_bert, "compare", **{"compare-rank-lora-xs": 6})).code[0].value
        assert "--rank 6 --out DIR" in command

    @pytest.fixture
    def run(self, tiny_bert):
        """A run folder as a sweep leaves it, written by its own classes; no training."""
        from analyzers.compare import RunFolder, SweepSettings

        run = RunFolder.create(SweepSettings(str(tiny_bert), methods=("head-only", "lora"), seeds=2, steps=4))
        with run.working() as writer:
            for number, trial in enumerate(run.settings.trials()):
                folder = run.trial_folder(trial.id)
                folder.mkdir(parents=True)
                writer.metric({"event": "start", "trial": trial.id})
                about = {
                    "trial": trial.id,
                    "method": trial.method,
                    "label": trial.variant,
                    "seed": trial.seed,
                    "learning_rate": 0.1,
                }
                for step in (1, 2):
                    writer.metric({**about, "kind": "train", "step": step, "epoch": step / 2, "value": 1 / step})
                writer.metric({**about, "kind": "eval", "step": 2, "epoch": 1.0, "value": 0.4, "pearson": 0.5})
                record = {
                    **about, "plan": None, "rank": trial.rank, "metric": "pearson", "score": 0.5 + number / 10, "validation_score": 0.5,
                    "adapter_parameters": 0 if trial.method == "head-only" else 100, "head_parameters": 33, "adapter_bytes": 400,
                    "head_bytes": 132, "file_bytes": 600, "seconds": 1.0, "train_seconds": 0.5, "svd_seconds": 0.1, "svd_share": 0.1,
                    "peak_memory_bytes": 10**8, "state": "done", "error": None,
                }  # fmt: skip
                (folder / "result.json").write_text(json.dumps(record))
            writer.last_word(state="done", fraction=1.0, trials_done=4, trials_total=4)
        return run

    def test_a_finished_run_shows_its_table_curves_and_front(self, tiny_bert, run):
        test = healthy(page(tiny_bert, "compare"))
        table = test.dataframe[0].value
        assert table["method"].tolist() == ["Head only", "LoRA"]
        assert table["test Pearson r"].tolist() == pytest.approx([0.6, 0.7])
        assert "0.7" in texts(test)
        assert len(test.get("plotly_chart")) == 2
        assert "Paired differences, seed by seed" in [expander.label for expander in test.expander]

    def test_a_run_whose_process_died_can_be_resumed(self, tiny_bert, run):
        status = {"state": "running", "pid": 2**22 + 1, "process_started": 1.0, "trials_done": 1, "trials_total": 4}
        (run.path / "status.json").write_text(json.dumps(status))
        test = page(tiny_bert, "compare")
        assert "ended without a word" in test.error[0].value
        assert test.button(key="resume").label == "Resume"

    def test_a_failed_trial_is_named_and_the_others_stay(self, tiny_bert, run):
        trial = run.settings.trials()[1]
        folder = run.trial_folder(trial.id)
        (folder / "result.json").unlink()
        failure = {
            "trial": trial.id,
            "method": "lora",
            "label": "LoRA",
            "seed": 0,
            "state": "failed",
            "error": "LoRA ran out of memory.",
        }
        (folder / "failure.json").write_text(json.dumps(failure))
        test = page(tiny_bert, "compare")
        assert not test.exception
        assert "ran out of memory" in test.error[0].value
        assert len(test.dataframe[0].value) == 2


class TestAdapters:
    @pytest.fixture
    def adapter(self, tiny_bert, tmp_path) -> Path:
        """A LoRA-XS adapter as PEFT saves it."""
        from peft import get_peft_model
        from transformers import AutoModel

        plan = make_plan(Checkpoint.open(tiny_bert), "uniform", budget=Budget.like_rank(4))
        model = get_peft_model(AutoModel.from_pretrained(tiny_bert), plan.lora_xs_config())
        model.save_pretrained(tmp_path / "adapter")
        return tmp_path / "adapter"

    def test_an_adapter_is_described_and_verified(self, tiny_bert, adapter):
        test = healthy(page(tiny_bert, "adapters", adapter=str(adapter)))
        assert {metric.label: metric.value for metric in test.metric}["Method"] == "LoRA-XS"
        assert "All 8 modules can be used" in test.success[0].value

    def test_another_base_is_an_error_that_names_a_module(self, tiny_llama, adapter):
        test = page(tiny_llama, "adapters", adapter=str(adapter))
        assert not test.exception
        assert "8 of 8 modules do not fit" in test.error[0].value
        assert "encoder.layer.0.attention.output.dense: not in this model" in test.error[0].value

    def test_a_folder_without_an_adapter_is_one_sentence(self, tiny_bert):
        test = page(tiny_bert, "adapters", adapter=str(tiny_bert))
        assert not test.exception
        assert "adapter_config.json" in test.error[0].value

    def test_a_fine_tuned_sibling_shows_what_each_rank_keeps(self, tiny_bert, tmp_path):
        import shutil

        import numpy as np
        from safetensors.numpy import load_file, save_file

        sibling = shutil.copytree(tiny_bert, tmp_path / "sibling")
        tensors = load_file(sibling / "model.safetensors")
        random = np.random.default_rng(0)
        changed = {name: value + 0.01 * random.normal(size=value.shape).astype(value.dtype) for name, value in tensors.items()}
        save_file(changed, sibling / "model.safetensors", metadata={"format": "pt"})
        test = page(tiny_bert, "adapters", sibling=str(sibling))
        assert test.button(key="curve-sibling").label == "Compute the curve"
        healthy(test)
