"""Hover texts: name, value, interval, unit and count of every quantity."""

import numpy as np
from loratomy.figures.base.maps import Panel, layer_map
from loratomy.figures.base.quantities import Quantity, written
from loratomy.figures.base.theme import diverging


def test_values_are_written_with_interval_unit_and_count():
    assert written(np.array([0.5, 0.25, 0.75]), "nats") == "0.5 [0.25, 0.75] nats"
    assert written(np.array([0.97, 0.915, 0.99]), "%") == "97.0 % [91.5, 99.0]"
    assert written(np.array([0.5, np.nan, np.nan])) == "0.5"
    assert written(np.nan) == "undefined"
    share = Quantity("ASR", np.array([[0.5, 0.25, 0.75]]), "%", n=12)
    assert share.at(0) == "ASR 50.0 % [25.0, 75.0], n = 12"
    assert Quantity("top", np.array(["<b>"])).at(0) == "top &lt;b&gt;"


def test_a_map_names_every_cell_and_its_strongest():
    values = np.array([[[0.1, 0.0, 0.2], [-0.9, -1.0, -0.8]], [[0.5, 0.4, 0.6], [np.nan] * 3]])
    panel = Panel(
        title="<i>site</i>",
        quantities=[Quantity("effect", values, "nats"), Quantity("p", values[..., 0])],
        layers=[0, -1],
        columns=["cf", "last"],
        roles=["trigger", "last"],
    )
    heat = layer_map([panel], diverging(1.0, "effect")).to_dict()["data"][0]
    title = "&lt;i&gt;site&lt;/i&gt;"
    assert heat["hovertext"][0][0] == (
        f"{title}, layer 0, cf (trigger)<br>effect 0.1 [0, 0.2] nats<br>p 0.1"
    )
    assert heat["hovertext"][1][1].startswith(f"{title}, outside the layers, last<br>effect undef")
    assert panel.strongest() == "outside the layers, cf (trigger): 0.5 [0.4, 0.6] nats"
    assert panel.strongest(magnitude=True) == "layer 0, last: −0.9 [−1, −0.8] nats"
