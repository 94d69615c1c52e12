"""The proof of the bases: its layout, and what it can tell and undo."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from loraxs_core.bases import GROUP_GAP, Bases, Identity, bases, delta_weight
from loraxs_core.errors import AdapterError
from loraxs_core.proof import (
    Proof,
    Record,
    decode,
    encode,
    fingerprint,
    judge,
    proof_bytes,
    quantise,
    sketch,
    sketch_rows,
)


def weight(seed: int = 0, out: int = 200, into: int = 120, decay: float = 0.3) -> np.ndarray:
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.standard_normal((side, into)))[0] for side in (out, into))
    return ((left * (1 + np.arange(into)) ** -decay) @ right.T).astype(np.float32)


def record_of(found: Bases) -> Record:
    rows = sketch_rows(found.rank)
    return Record(found.identity, 7, quantise(fingerprint(found).sketch[:rows]) / 28)


def verdict(record: Record, matrix: np.ndarray, r: int, **options):
    return judge(
        record,
        fingerprint(bases(matrix, r, cache=False)),
        lambda columns, gap: bases(matrix, r, columns=columns, gap=gap, cache=False),
        rms=lambda: float(np.sqrt(np.mean(matrix.astype(float) ** 2))),
        **options,
    )


def error(found: Bases, truth: Bases) -> float:
    R = np.random.default_rng(5).standard_normal((truth.rank, truth.rank))
    expected = delta_weight(R, truth)
    return float(np.linalg.norm(delta_weight(R, found) - expected) / np.linalg.norm(expected))


def test_a_proof_survives_its_bytes():
    records = {
        name: Record(Identity(1, 2**32 - 1, 3), 4, np.full((sketch_rows(r), r), 0.5, dtype=np.float32))
        for name, r in (("b", 4), ("a", 40))
    }
    blob = encode(Proof(11, 12, True, records))
    ranks = {"b": 4, "a": 40}
    assert len(blob) == proof_bytes(ranks) == 20 + 2 * 16 + 5 * 4 + 10 * 40
    again = decode(blob, ranks)
    assert (again.settings, again.head, again.quantised) == (11, 12, True)
    assert again.records["a"].identity == Identity(1, 2**32 - 1, 3)
    np.testing.assert_array_equal(again.records["b"].sketch, records["b"].sketch)
    flipped = blob.copy()
    flipped[-1] ^= 1
    for broken in (flipped, blob[:-1], np.append(blob, np.uint8(0)), np.zeros_like(blob)):
        with pytest.raises(AdapterError, match="damaged"):
            decode(broken, ranks)
    with pytest.raises(AdapterError, match="damaged"):
        decode(blob, {"b": 4, "a": 39})


def test_the_same_weight_is_recognised():
    found = bases(weight(), 16, cache=False)
    outcome = verdict(record_of(found), weight(), 16)
    assert (outcome.status, outcome.error, outcome.bases) == ("same", 0.0, None)


def test_flipped_signs_are_undone_exactly():
    """What a library with another sign rule would have trained with."""
    truth = bases(weight(), 16, cache=False)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], 16)
    flipped = Bases(truth.U * signs, truth.S, signs[:, None] * truth.Vt, truth.identity)
    outcome = verdict(record_of(flipped), weight(), 16)
    assert outcome.status == "same"
    assert error(outcome.bases, flipped) < 1e-12
    assert error(truth, flipped) > 0.5  # without it, another model


def test_a_group_at_the_threshold_is_found_again():
    """Two values closer than the group width for one library, and just not for another."""
    matrix = np.diag(np.array([1.0, 0.5, np.nextafter(np.float32(0.5), np.float32(0)), 0.25, 0.2, 0.1]))
    assert GROUP_GAP < matrix[1, 1] - matrix[2, 2] < 4 * GROUP_GAP
    grouped = bases(matrix, 4, gap=4 * GROUP_GAP, cache=False)
    plain = bases(matrix, 4, cache=False)
    assert error(plain, grouped) > 1e-2
    outcome = verdict(record_of(grouped), matrix, 4)
    assert outcome.status == "same"
    assert error(outcome.bases, grouped) < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("trained_on_copy", [False, True])
@pytest.mark.parametrize("r", [16, 64])
def test_bases_are_restored_on_a_16_bit_copy(r, trained_on_copy, dtype):
    plain = weight(decay=0.3)
    copy = torch.from_numpy(plain).to(dtype).float().numpy()
    trained, local = (copy, plain) if trained_on_copy else (plain, copy)
    truth = bases(trained, r, cache=False)
    outcome = verdict(record_of(truth), local, r)
    assert outcome.status == "copy"
    assert outcome.usable
    measured = error(outcome.bases, truth)
    assert measured < 0.02
    unaligned = error(bases(local, r, cache=False), truth)
    assert measured < 1.2 * unaligned
    if r == 64 and dtype == torch.bfloat16:
        assert measured < unaligned / 2
    assert 0.2 < measured / outcome.error < 2  # the estimate that a user is told is of the right size
    np.testing.assert_allclose(outcome.bases.U.T @ outcome.bases.U, np.eye(r), atol=1e-10)


def test_another_weight_is_not_taken_for_this_one():
    record = record_of(bases(weight(), 16, cache=False))
    sibling = weight() + 1e-4 * np.random.default_rng(2).standard_normal(weight().shape).astype(np.float32)
    near, far = verdict(record, sibling, 16), verdict(record, weight(9), 16)
    assert near.status == far.status == "other"
    assert not near.usable
    assert near.error < 0.5 < far.error


def test_a_quantised_form_is_measured():
    plain = weight()
    scale = np.abs(plain).max() / 127
    eight_bit = (np.rint(plain / scale) * scale).astype(np.float32)
    outcome = verdict(record_of(bases(plain, 16, cache=False)), eight_bit, 16, quantised=True)
    assert outcome.status == "quantised"
    assert 0 < outcome.error < 0.5
    assert verdict(record_of(bases(plain, 16, cache=False)), eight_bit, 16).status == "other"


def test_a_copy_too_coarse_to_tell_is_refused():
    """Among values that lie closer together than a 16-bit copy moves them, the sketch is too short to find the turn."""
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.standard_normal((side, 120)))[0] for side in (200, 120))
    plain = ((left * (1 - 1e-5 * np.arange(120))) @ right.T).astype(np.float32)
    copy = torch.from_numpy(plain).to(torch.bfloat16).float().numpy()
    outcome = verdict(record_of(bases(plain, 16, cache=False)), copy, 16)
    assert outcome.status == "copy"
    assert not outcome.usable


def test_the_sketch_does_not_depend_on_how_many_columns_are_asked_for():
    found = bases(weight(), 20, cache=False)
    np.testing.assert_array_equal(sketch(found.U, found.Vt)[:5, :8], sketch(found.U[:, :8], found.Vt[:8], 5))
