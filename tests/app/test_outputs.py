"""Nothing that is there is overwritten unless the person says so; names that are none elsewhere are refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from app.outputs import new_folder, refuse_file
from loraxs_core.errors import RunError, SettingsError
from loraxs_core.names import refuse_name
from loraxs_core.paths import atomic_folder
from tests.app.test_cli import call


def kept(path: Path) -> Path:
    path.write_text("mine")
    return path


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("layers.csv", ("scan", "{model}", "--out")),
        ("values.safetensors", ("scan", "{model}", "--out")),
        ("plan.json", ("plan", "{model}", "--out")),
        ("plan.csv", ("plan", "{model}", "--out")),
        ("fleet.json", ("fleet", "{model}", "--save")),
    ],
)
def test_a_file_stays_until_force(capsys, own_folders, tiny_bert, name, arguments):
    file = kept(own_folders / name)
    command = [part.format(model=tiny_bert) for part in arguments]
    code, _, err = call(capsys, *command, str(file))
    assert (code, file.read_text()) == (2, "mine")
    assert f"{file} exists already; choose another name, or overwrite it with --force." in err.replace("\n", "")
    assert call(capsys, *command, str(file), "--force")[0] == 0
    assert file.read_bytes() != b"mine"
    other = own_folders / f"CON.{name}"
    assert "is the name of a device on some systems" in call(capsys, *command, str(other))[2]
    assert not other.exists()


@pytest.fixture(scope="module")
def lora(tmp_path_factory, tiny_bert):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModel

    folder = tmp_path_factory.mktemp("lora")
    config = LoraConfig(r=4, target_modules=["query"], init_lora_weights=False)
    get_peft_model(AutoModel.from_pretrained(tiny_bert), config).save_pretrained(folder)
    return folder


def test_a_folder_stays_until_force(capsys, own_folders, tiny_bert, lora):
    base = ("--model", str(tiny_bert))
    xs, merged, plain = own_folders / "xs", own_folders / "merged", own_folders / "plain"
    for command, out, marker in (
        (("convert", str(lora), *base, "--rank", "2"), xs, "adapter_config.json"),
        (("merge", str(xs), *base), merged, "config.json"),
        (("export", str(xs), *base), plain, "adapter_config.json"),
    ):
        assert call(capsys, *command, "--out", str(out))[0] == 0
        before = (out / marker).stat().st_ino
        code, _, err = call(capsys, *command, "--out", str(out))
        assert code == 2
        assert "already; choose another folder, or overwrite it with --force." in err.replace("\n", "")
        assert (out / marker).stat().st_ino == before
        assert call(capsys, *command, "--out", str(out), "--force")[0] == 0
        assert (out / marker).stat().st_ino != before
        letters = own_folders / f"letters-{out.name}"
        letters.mkdir()
        kept(letters / "letter.txt")
        assert "is not empty and holds no" in call(capsys, *command, "--out", str(letters), "--force")[2]
        assert [path.name for path in letters.iterdir()] == ["letter.txt"]
        assert "is what is read here" in call(capsys, *command, "--out", command[1], "--force")[2] or marker == "config.json"
    assert sorted(path.name for path in own_folders.iterdir() if path.name.startswith(".")) == []


def test_a_folder_that_is_replaced_is_whole_until_the_new_one_is(tmp_path):
    old = tmp_path / "adapter"
    old.mkdir()
    kept(old / "adapter_config.json")

    def fail():
        with new_folder(old, "adapter_config.json", force=True) as new:
            new.mkdir()
            assert (old / "adapter_config.json").read_text() == "mine"
            raise RunError("the disk is full")

    with pytest.raises(RunError, match="the disk is full"):
        fail()
    assert (old / "adapter_config.json").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_a_link_to_an_empty_folder_is_that_folder(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with atomic_folder(tmp_path / "link") as made:
        kept(made / "adapter_config.json")
    assert (tmp_path / "elsewhere" / "adapter_config.json").read_text() == "mine"
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize(
    "name", ["CON", "nul", "Aux.json", "com1.csv", "LPT9", "COM¹", "nul .txt", "a\u202eb.json", "a\x1bb", "end.", "end "]
)
def test_names_that_are_none_elsewhere(tmp_path, name):
    with pytest.raises(SettingsError):
        refuse_name(tmp_path / name)


@pytest.mark.parametrize("name", ["console.json", "nullable", "common", "lpt", "..", "ein Modell (2).json", "模型"])
def test_names_that_are(tmp_path, name):
    refuse_name(tmp_path / name)


def test_a_scenario_has_no_reserved_name(own_folders):
    from analyzers.storage import Scenario, keep_scenario, own_names

    with pytest.raises(SettingsError, match="name of a device"):
        keep_scenario("nul", Scenario("minilm"))
    keep_scenario("Mine", Scenario("minilm", adapters=5))
    with pytest.raises(SettingsError, match="already"):
        keep_scenario("mine", Scenario("minilm", adapters=6))
    keep_scenario("mine", Scenario("minilm", adapters=6), force=True)
    assert own_names() == ["Mine"]
    with pytest.raises(SettingsError, match="already"):
        keep_scenario("gpt-3-one-million-users", Scenario("minilm"), force=True)


def test_what_is_no_file_is_never_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    for path in (tmp_path / "pipe.json", Path("/dev/null")):
        with pytest.raises(RunError, match="is no file to write to"):
            refuse_file(path, force=True)
    (tmp_path / "gone.json").symlink_to(tmp_path / "nowhere")
    with pytest.raises(RunError, match="exists already"):
        refuse_file(tmp_path / "gone.json")
