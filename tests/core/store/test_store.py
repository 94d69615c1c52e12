"""Put, get, versions, delete, list: what one process sees, and what several do."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import threading

import pytest
import torch
from safetensors.torch import load_file, save_file

from loraxs_core.errors import AdapterError, SettingsError, StoreError
from loraxs_core.store import AdapterStore, collect, export_folder, files, import_folders, verify
from loraxs_core.store.files import MARKER
from loraxs_core.store.pages import HEADER, PIECE, in_pages
from loraxs_core.store.plans import planned
from tests.core.store.stores import saved, shake


def same(found: dict, wanted: dict) -> bool:
    return found.keys() == wanted.keys() and all(
        found[key].dtype == wanted[key].dtype and torch.equal(found[key], wanted[key]) for key in wanted
    )


def test_what_comes_out_is_what_went_in_proof_included(store, folders):
    for name in store.names():
        assert same(store.get(name).tensors, load_file(folders / name / "adapter_model.safetensors"))


def test_versions_are_kept_newest_first_and_numbers_never_come_again(store, folders):
    first = store.versions("user-0")[0]
    second = store.put("user-0", folders / "user-1")
    assert [one.version for one in store.versions("user-0")] == [second.version, first.version]
    assert store.get("user-0").row == store.get("user-1").row
    assert store.get("user-0", first.version).row != store.get("user-1").row
    store.delete("user-0", second.version)
    assert store.get("user-0").version == first
    assert store.put("user-0", folders / "user-2").version > second.version


def test_the_same_numbers_are_not_put_twice(store, folders):
    before = store.space()
    assert store.put("user-3", folders / "user-3") == store.versions("user-3")[0]
    assert store.space() == before


def test_adapters_of_one_base_and_plan_share_one_plan(store):
    assert {one.plan for one in store.entries()} == {1}
    assert store.space().plans == 1


def test_names_are_listed_by_prefix_and_none_is_taken_for_another(store, folders):
    for name in ("team/a", "team/ab", "team", "tea", "ü-ser"):
        store.put(name, folders / "user-0")
    assert store.names("team") == ["team", "team/a", "team/ab"]
    assert store.names("team/a") == ["team/a", "team/ab"]
    assert [one.name for one in store.delete("team")] == ["team"]
    assert store.names("te") == ["tea", "team/a", "team/ab"]


def test_a_model_can_be_put_as_it_is(tiny_llama, tmp_path):
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    from loraxs_core.tuner import LoraXSConfig

    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_llama), LoraXSConfig(r=4, target_modules=["q_proj"]))
    shake(model, 3)
    store = AdapterStore.create(tmp_path / "store")
    store.put("mine", model)
    model.save_pretrained(tmp_path / "saved")
    assert same(store.get("mine").tensors, load_file(tmp_path / "saved" / "adapter_model.safetensors"))


def test_ranks_by_layer_heads_and_precisions_live_side_by_side(tiny_llama, tmp_path):
    store = AdapterStore.create(tmp_path / "store")
    for name, options in {
        "half": {"save_dtype": "float16", "rank_pattern": {"v_proj": 7}},
        "head": {"modules_to_save": ["lm_head"], "save_dtype": "bfloat16", "r": 3},
        "table": {"target_modules": ["embed_tokens", "q_proj"]},
    }.items():
        folder = saved(tiny_llama, tmp_path / name, 1, **options)
        store.put(name, folder)
        assert same(store.get(name).tensors, load_file(folder / "adapter_model.safetensors"))
    assert store.space().plans == 3


def test_a_proof_of_another_make_is_kept_as_it_is(folders, tmp_path):
    tensors = load_file(folders / "user-0" / "adapter_model.safetensors")
    key = next(key for key in tensors if key.endswith("loraxs_proof"))
    changed = tensors[key].clone()
    changed[3] = ord("9")  # LXS9
    tensors[key] = changed
    plan, shared = planned({}, tensors)
    assert plan.proof_key is None
    assert same(plan.tensors(bytearray(plan.row(tensors)), shared), tensors)


@pytest.mark.parametrize("size", [1, 499, 500, 501, 4079, 4080, 4081, 18_432, 114_688, 114_689])
def test_a_row_of_any_length_takes_few_bytes_more_than_it_has(size):
    cut = in_pages(size, 4096)
    assert (cut + HEADER) % 4096 in (0, HEADER)
    assert 0 <= size - cut < 4096 + PIECE


def test_a_thread_sees_the_last_commit_while_another_writes(store, folders):
    stop, wrong = threading.Event(), []

    def look():
        while not stop.is_set():
            for name in ("user-0", "user-1"):
                try:
                    store.get(name)
                except Exception as error:
                    wrong.append(error)

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    for round in range(8):
        store.put("user-0", folders / f"user-{round % 3}")
        if round % 4 == 3:
            collect(store, keep=1)
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_file_that_goes_while_it_is_opened_is_no_fault(store, monkeypatch):
    """Between the look at the file and LMDB's opening of it, another process compacts."""
    first = store.folder / store.files.marker().file
    expected = bytes(store.get("user-0").row)
    second = AdapterStore(store.folder)
    files._close(files._open[first.absolute()])
    real, moved = os.access, []

    def access(path, mode):
        if not moved:
            moved.append(shutil.copy(first, first.with_name("rows-000002.mdb")))
            second.files.switch("rows-000002.mdb")
        return real(path, mode)

    monkeypatch.setattr(files.os, "access", access)
    assert bytes(store.get("user-0").row) == expected
    assert moved
    assert not first.exists()


def _reader(folder: str, ready, stop, wrong) -> None:
    try:
        store = AdapterStore(folder)
        ready.release()
        while not stop.is_set():
            for name in store.names():
                store.get(name)
    except Exception as error:
        wrong.put(repr(error))
        ready.release()


def test_two_processes_read_while_one_writes_and_compacts(store, folders):
    context = multiprocessing.get_context("fork")  # of a process that has the store open: a child opens it anew
    ready, stop, wrong = context.Semaphore(0), context.Event(), context.Queue()
    readers = [context.Process(target=_reader, args=(str(store.folder), ready, stop, wrong)) for _ in range(2)]
    for reader in readers:
        reader.start()
    for _ in readers:
        assert ready.acquire(timeout=60)
    for round in range(12):
        store.put("user-5", folders / f"user-{round % 5}")
        if round % 3 == 2:
            collect(store, keep=2)
    stop.set()
    for reader in readers:
        reader.join(60)
        assert reader.exitcode == 0
    assert wrong.empty()
    assert verify(store).sound


def test_old_versions_go_and_what_is_needed_stays(store, folders, tiny_llama, tmp_path):
    for index in range(1, 5):
        store.put("user-0", folders / f"user-{index}")
    store.put("odd", saved(tiny_llama, tmp_path / "odd", 1, r=3))
    store.delete("odd")
    done = collect(store, keep=2)
    assert (done.versions, done.plans) == (3, 1)
    assert [len(store.versions(name)) for name in store.names()] == [2, 1, 1, 1, 1, 1]
    assert store.get("user-0").row == store.get("user-4").row
    assert verify(store).sound
    assert sorted(path.name for path in store.folder.glob("*.mdb")) == ["rows-000002.mdb"]


def test_compaction_gives_space_back(store):
    from tests.core.store.stores import synthetic

    plan, shared, rows = synthetic(64, modules=8, r=32)
    store.put_rows((f"many-{index}", plan, shared, row) for index, row in enumerate(rows))
    full = store.space()
    for index in range(60):
        store.delete(f"many-{index}")
    assert store.space().file >= full.file
    assert store.space().free > full.free
    collect(store)
    assert store.space().file < full.file / 3
    assert store.names("many-") == ["many-60", "many-61", "many-62", "many-63"]


def test_overhead_is_small_at_the_size_of_a_large_models_adapter(tmp_path):
    from tests.core.store.stores import synthetic

    store = AdapterStore.create(tmp_path / "store")
    plan, shared, rows = synthetic(200, modules=224, r=16)
    store.put_rows((f"user-{index:03}", plan, shared, row) for index, row in enumerate(rows))
    space = store.space()
    assert space.numbers == 200 * 224 * 16 * 16 * 2
    assert space.overhead < 0.01


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "is no name"),
        (" x", "spaces around"),
        ("a\nb", "control character"),
        ("x" * 401, "too long"),
        ("__base__", "PEFT's name for no adapter"),
    ],
)
def test_names_that_are_none_are_refused(store, folders, name, why):
    with pytest.raises(StoreError, match=why):
        store.put(name, folders / "user-0")


def test_what_is_not_there_is_said(store, tmp_path):
    with pytest.raises(StoreError, match="There is no adapter 'nobody'"):
        store.get("nobody")
    with pytest.raises(StoreError, match=r"'user-1' has no version 99 .* there are 2"):
        store.get("user-1", 99)
    with pytest.raises(StoreError, match="There is no adapter"):
        store.delete("user")
    with pytest.raises(StoreError, match="There is no store in"):
        AdapterStore(tmp_path)
    with pytest.raises(StoreError, match="holds a store already"):
        AdapterStore.create(store.folder)
    with pytest.raises(StoreError, match="exists and is no store"):
        AdapterStore.create(tmp_path)
    with pytest.raises(SettingsError, match="At least 1 version"):
        collect(store, keep=0)


def test_a_store_of_a_later_format_is_refused(store):
    path = store.folder / MARKER
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(StoreError, match="format 2; this version reads 1"):
        AdapterStore(store.folder)


def test_other_adapters_are_refused_with_the_way_out(store, tiny_llama, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_llama), LoraConfig(r=2, target_modules=["q_proj"]))
    model.save_pretrained(tmp_path / "lora")
    with pytest.raises(AdapterError, match="LORA adapter; the store holds LoRA-XS adapters"):
        store.put("x", tmp_path / "lora")
    with pytest.raises(AdapterError, match="There is no adapter folder"):
        store.put("x", tmp_path / "nothing")


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_store_that_may_only_be_read_can_be_read(store):
    for path in store.folder.iterdir():
        path.chmod(0o444)
    store.folder.chmod(0o555)
    try:
        assert AdapterStore(store.folder).get("user-0").cores
        with pytest.raises(StoreError):
            store.delete("user-0")
    finally:
        store.folder.chmod(0o755)


@pytest.mark.parametrize(
    ("said", "instead"),
    [
        ("base_model.model.", "base_model.model._orig_mod."),
        ("base_model.model.", "module.base_model.model."),
        (".layers.0.", ".layers.0._fsdp_wrapped_module."),
        (".layers.1.", ".layers.1._checkpoint_wrapped_module."),
    ],
)
def test_names_that_a_wrapper_lengthened_are_imported_as_what_they_stand_for(store, folders, tmp_path, said, instead):
    written = load_file(folders / "user-2" / "adapter_model.safetensors")
    shutil.copytree(folders / "user-2", tmp_path / "trained" / "wrapped")
    renamed = {key.replace(said, instead): one for key, one in written.items()}
    assert renamed.keys() != written.keys()
    save_file(renamed, tmp_path / "trained" / "wrapped" / "adapter_model.safetensors", metadata={"format": "pt"})
    (outcome,) = import_folders(store, tmp_path / "trained")
    assert outcome.why == ""
    assert outcome.new
    assert store.versions("wrapped")[0].plan == store.versions("user-2")[0].plan  # the plan is kept once
    export_folder(store, "wrapped", tmp_path / "out")
    assert same(load_file(tmp_path / "out" / "adapter_model.safetensors"), written)
