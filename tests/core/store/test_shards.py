"""Backups: in a folder, and in object storage that speaks S3."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open

from loraxs_core.errors import StoreError
from loraxs_core.store import AdapterStore, backup, restore, verify
from tests.core.store.stores import synthetic


def test_a_shard_is_readable_without_this_package(store, tmp_path):
    backup(store, str(tmp_path / "backup"))
    shard = next((tmp_path / "backup").glob("rows-*.safetensors"))
    with safe_open(shard, framework="pt") as file:
        numbers = file.get_tensor("user-3@4")
    assert numbers.dtype == torch.bfloat16
    assert bytes(numbers.view(torch.uint8).numpy()) == bytes(store.get("user-3").row)


def test_only_what_is_new_travels_and_what_is_gone_goes(store, folders, tmp_path):
    place = str(tmp_path / "backup")
    assert backup(store, place).written == 1
    assert (backup(store, place).written, backup(store, place).bytes) == (0, 0)
    store.put("user-0", folders / "user-5")
    done = backup(store, place)
    assert (done.versions, done.shards, done.written) == (7, 2, 1)
    store.delete("user-1")
    done = backup(store, place)
    assert (done.versions, done.written) == (6, 1)
    assert len(list((tmp_path / "backup").glob("rows-*"))) == done.shards
    again, _ = restore(place, tmp_path / "again")
    assert list(again.entries()) == list(store.entries())
    assert again.id != store.id


def test_numbers_go_on_after_a_restore(store, folders, tmp_path):
    backup(store, str(tmp_path / "backup"))
    again, _ = restore(str(tmp_path / "backup"), tmp_path / "again")
    assert again.put("later", folders / "user-0").version == 7


def test_plans_and_rows_of_every_kind_come_back(tmp_path):
    store = AdapterStore.create(tmp_path / "store")
    for index, (modules, r) in enumerate([(7, 4), (14, 16), (3, 33)]):
        plan, shared, rows = synthetic(5, modules=modules, r=r)
        store.put_rows((f"kind-{index}/{at}", plan, shared, row) for at, row in enumerate(rows))
    done = backup(store, str(tmp_path / "backup"), shard_bytes=20_000)
    assert done.shards > 3
    again, _ = restore(str(tmp_path / "backup"), tmp_path / "again")
    assert {name: again.get(name).row for name in again.names()} == {name: store.get(name).row for name in store.names()}
    assert [again.plan(one) for one in again.entries()] == [store.plan(one) for one in store.entries()]


def test_two_stores_do_not_share_a_place(store, tmp_path):
    backup(store, str(tmp_path / "backup"))
    other = AdapterStore.create(tmp_path / "other")
    with pytest.raises(StoreError, match="holds the backup of another store"):
        backup(other, str(tmp_path / "backup"))
    with pytest.raises(StoreError, match="holds a store already"):
        restore(str(tmp_path / "backup"), store.folder)


@pytest.fixture
def s3(monkeypatch):
    """A real S3 server on this machine, with an empty bucket."""
    pytest.importorskip("s3fs")
    server_module = pytest.importorskip("moto.server")
    import boto3

    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    boto3.client("s3").create_bucket(Bucket="fleet")
    yield "s3://fleet/of/mine"
    server.stop()


@pytest.mark.slow
def test_object_storage(store, folders, tmp_path, s3):
    """Over HTTP, with a shard larger than one part of an upload: made, brought up to date, damaged, restored."""
    import boto3

    plan, shared, rows = synthetic(60, modules=224, r=16)
    store.put_rows((f"many-{index}", plan, shared, row) for index, row in enumerate(rows))
    assert backup(store, s3).written == 1
    store.put("user-0", folders / "user-3")
    assert backup(store, s3).written == 1
    again, done = restore(s3, tmp_path / "again")
    assert done.versions == 67
    assert list(again.entries()) == list(store.entries())
    assert verify(again).sound
    client = boto3.client("s3")
    held = client.list_objects_v2(Bucket="fleet")["Contents"]
    assert len(held) == 4
    shard = max(held, key=lambda one: one["Size"])["Key"]
    client.put_object(Bucket="fleet", Key=shard, Body=b"not what was written")
    with pytest.raises(StoreError, match="is damaged"):
        restore(s3, tmp_path / "third")
    store.put("user-0", folders / "user-4")
    assert backup(store, s3).bytes > plan.row_bytes * 60  # the shard that is no more what it was is written anew
    restore(s3, tmp_path / "fourth")
    with pytest.raises(StoreError, match=r"Cannot (look into|write|read)"):
        backup(store, "s3://no-such-bucket/x")
