"""Which layers stand out: the order by concentration, and layers unlike their peers."""

from __future__ import annotations

import pandas as pd

from analyzers.spectra.outliers import PEERS, by_concentration, unlike_peers


def layers(ranks, role="mlp.down", shape=(64, 128), sigma=1.0) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "name": [f"layers.{index}.{role}" for index in range(len(ranks))],
            "role": role,
            "out": shape[0],
            "in": shape[1],
            "shape": f"{shape[0]}x{shape[1]}",
            "sigma_max": sigma,
            "rank_90": ranks,
        }
    )


def test_concentration_is_a_share_of_the_directions_there_are_and_leaves_zeros_out():
    frame = pd.concat(
        [layers([30, 20]), layers([12], "attention.key", (16, 128)), layers([0], "head", sigma=0.0)], ignore_index=True
    )
    ordered = by_concentration(frame)
    assert ordered["name"].tolist() == ["layers.1.mlp.down", "layers.0.mlp.down", "layers.0.attention.key"]
    assert ordered["directions"].tolist() == [64, 64, 16]


def test_the_farthest_from_its_peers_comes_first():
    usual = [40, 41, 42, 40, 41, 39, 40, 42, 41, 40]
    frame = pd.concat([layers([*usual, 5, 60]), layers([20] * PEERS, "attention.key")], ignore_index=True)
    found = unlike_peers(frame)
    assert [(one.name, one.value) for one in found] == [("layers.10.mlp.down", 5), ("layers.11.mlp.down", 60)]
    assert found[0].usual == 40.5
    assert found[0].role == "mlp.down"


def test_among_six_layers_one_that_stands_apart_is_told():
    frame = layers([205, 163, 150, 139, 160, 144], "attention.query", (384, 384))  # 42 from the next, of a range of 66
    assert [(one.name, one.value, one.usual) for one in unlike_peers(frame)] == [("layers.0.attention.query", 205, 155)]
    assert unlike_peers(layers([90, 163, 150, 139, 160, 144]))[0].value == 90
    assert not unlike_peers(layers([203, 163, 150, 139, 160, 144]))  # 40 of 64: within chance
    assert not unlike_peers(layers([139, 144, 150, 190, 200, 205]))


def test_a_few_layers_are_no_crowd():
    assert not unlike_peers(layers([40, 41, 42, 5]))
    assert not unlike_peers(layers([40]))
    assert not unlike_peers(layers([40, 41] * PEERS))
