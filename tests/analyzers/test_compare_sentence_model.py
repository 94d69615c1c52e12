"""A sentence encoder's batches are read as one row or in groups of like length, and come out as they were read whole."""

import itertools

import pytest
import torch
from transformers import AutoModel, BertConfig, DebertaV2Config, DistilBertConfig, MPNetConfig, RobertaConfig

from analyzers.compare import base_and_head, sentence_model
from analyzers.compare.packed_texts import PACKED, can_pack, groups, read_packed
from analyzers.compare.tasks import open_task
from loraxs_core.checkpoint import Checkpoint
from tests.analyzers.compare_helpers import sentiment_csv, tiny_model

LENGTHS = [[9, 2, 14, 3, 3, 21, 2, 9], [4, 4, 30, 2, 5, 17, 2, 3]]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    task = open_task(f"csv:{sentiment_csv(folder / 'film.csv')}")
    found = base_and_head.prepare(Checkpoint.open(tiny_model(folder / "model", sentence_encoder=True)), task, seed=0).model
    return found.eval()


def _side(lengths):
    ids = torch.nn.utils.rnn.pad_sequence([torch.randint(4, 20, (length,)) for length in lengths], batch_first=True)
    mask = (ids > 0).long()
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}


def _read_as_if_whole(model, sides, monkeypatch):
    """The texts of `sides` sides, whose vectors come out as those of each side read whole, and the shapes that the encoder was given."""
    torch.manual_seed(0)
    texts = [_side(lengths) for lengths in LENGTHS[:sides]]
    whole = torch.cat([model.embed(**side) for side in texts])
    seen = []
    real = model.encoder.forward
    monkeypatch.setattr(model.encoder, "forward", lambda **inputs: seen.append(inputs["input_ids"].shape) or real(**inputs))
    torch.testing.assert_close(model._vectors(texts), whole, rtol=1e-4, atol=1e-4)
    return texts, seen


@pytest.mark.parametrize("sides", [1, 2])
def test_groups_of_like_length_change_nothing_but_the_work(model, sides, monkeypatch):
    monkeypatch.setattr(sentence_model, "groups", lambda lengths: groups(lengths, each=4))
    monkeypatch.setattr(model, "first_position", None)
    texts, seen = _read_as_if_whole(model, sides, monkeypatch)
    assert len(seen) > 1
    assert sum(rows for rows, _ in seen) == 8 * sides
    assert sum(rows * width for rows, width in seen) < sum(side["input_ids"].numel() for side in texts)


@pytest.mark.parametrize("sides", [1, 2])
def test_a_batch_in_one_row_changes_nothing_and_has_next_to_no_padding(model, sides, monkeypatch):
    _, seen = _read_as_if_whole(model, sides, monkeypatch)
    assert seen == [(1, 64 if sides == 1 else 192)]  # 63 and 130 tokens, filled up


@pytest.mark.parametrize("in_one_row", [True, False])
def test_gradients_are_those_of_the_batch_read_whole(model, in_one_row, monkeypatch):
    texts = [_side(lengths) for lengths in LENGTHS]
    weights = [model.encoder.encoder.layer[0].attention.self.get_submodule(name).weight for name in ("query", "key", "value")]
    for weight in weights:
        weight.requires_grad_()
    try:
        towards = torch.randn(16, 32)
        whole = torch.autograd.grad((torch.cat([model.embed(**side) for side in texts]) * towards).sum(), weights)
        monkeypatch.setattr(sentence_model, "groups", lambda lengths: groups(lengths, each=4))
        if not in_one_row:
            monkeypatch.setattr(model, "first_position", None)
        found = torch.autograd.grad((model._vectors(texts) * towards).sum(), weights)
    finally:
        for weight in weights:
            weight.requires_grad_(False)
    for one, other in zip(found, whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


SMALL = {"vocab_size": 60, "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32, "intermediate_size": 48}


@pytest.mark.parametrize(
    ("config", "first"),
    [
        (BertConfig(**SMALL), 0),
        (RobertaConfig(**SMALL), 2),  # its first token stands behind the padding id 1
        (DistilBertConfig(vocab_size=60, n_layers=2, n_heads=2, dim=32, hidden_dim=48), 0),
        (MPNetConfig(**SMALL), None),  # reads positions off the row itself
        (DebertaV2Config(**SMALL, relative_attention=True, pos_att_type=["p2c", "c2p"]), None),
    ],
    ids=lambda value: getattr(value, "model_type", str(value)),
)
def test_which_encoders_are_read_in_one_row_is_found_out_by_doing_it(config, first):
    torch.manual_seed(0)
    encoder = AutoModel.from_config(config).eval()
    before = encoder.config._attn_implementation
    found = can_pack(encoder)
    assert encoder.config._attn_implementation == (before if found is None else PACKED)
    assert found == first
    if found is not None:
        side = _side(sorted(LENGTHS[0]))
        alone = encoder(input_ids=side["input_ids"], attention_mask=side["attention_mask"]).last_hidden_state
        packed = read_packed(encoder, side, sorted(LENGTHS[0]), found)
        torch.testing.assert_close(packed, alone[side["attention_mask"].bool()], rtol=1e-4, atol=1e-4)


def test_padding_before_a_text_or_within_it_is_left_as_it_is(model):
    """BERT counts positions from the left, padding included: with less of it the text would be another one."""
    before, within = ({name: value.clone() for name, value in _side([5, 9, 3]).items()} for _ in range(2))
    before = {name: value.flip(1) for name, value in before.items()}
    within["attention_mask"][1, 4] = 0
    for side in (before, within):
        torch.testing.assert_close(model._vectors([side, side]), model.embed(**side).repeat(2, 1))


def test_groups_are_the_cheapest_there_are():
    generator = torch.Generator().manual_seed(0)
    for each in (0, 3, 10, 1000):
        for size in (1, 2, 5, 8):
            lengths = sorted(torch.randint(1, 12, (size,), generator=generator).tolist())
            best = min(
                sum((end - begin) * lengths[end - 1] + each for begin, end in itertools.pairwise((0, *cuts, size)))
                for count in range(size)
                for cuts in itertools.combinations(range(1, size), count)
            )
            found, cost, begin = groups(lengths, each), 0, 0
            for end, longest in found:
                assert longest == lengths[end - 1]
                cost, begin = cost + (end - begin) * longest + each, end
            assert begin == size
            assert cost == best


def test_only_a_frozen_encoder_without_dropout_is_remembered(model, monkeypatch):
    read = []
    real = model._read
    monkeypatch.setattr(model, "_read", lambda sides: read.append(1) or real(sides))
    side = _side(LENGTHS[0])
    first = model._vectors([side])
    model._vectors([side])
    assert len(read) == 2  # nothing said that it never changes
    monkeypatch.setattr(model, "remembers", True)
    model._vectors([side])
    assert torch.equal(model._vectors([side]), first)
    assert len(read) == 3
    other = {**side, "input_ids": side["input_ids"].clone()}
    other["input_ids"][0, 0] = 1
    assert not torch.equal(model._vectors([other]), first)
    model.train()
    try:
        assert not torch.equal(model._vectors([side]), model._vectors([side]))
    finally:
        model.eval()
