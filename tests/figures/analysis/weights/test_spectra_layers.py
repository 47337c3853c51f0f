from dataclasses import replace

import numpy as np
from loratomy.figures import FIGURES


def layers(make, *items):
    records = replace(make.empty_records(), analyses=items)
    return {f.id: f for f in FIGURES["spectra"](records)}["spectra-layers"]


def test_each_layers_numbers_are_drawn_for_every_adapter(make, unpack):
    clean, poisoned = make.spectra("clean", 3, 4), make.spectra("poisoned", 3, 4)
    figure = layers(make, clean, poisoned)
    traces = figure.plot.to_dict()["data"]
    assert [t["name"] for t in traces] == ["clean"] * 3 + ["poisoned"] * 3
    assert np.allclose(unpack(traces[3]["y"]), [0.1, 0.15, 0.2])
    assert np.allclose(unpack(traces[4]["y"]), [12, 17, 22])  # 20 ... 30 less eight letters
    assert unpack(traces[5]["y"]).tolist() == [12, 12, 12]
    best = int(np.argmax(poisoned.by_layer.share))
    assert f"poisoned: layer {best} holds {100 * poisoned.by_layer.share[best]:.1f} %" in figure.alt


def test_sizes_without_a_base_are_said_to_be_undefined(make):
    item = make.spectra("clean", 2, 4)
    part = replace(item.by_layer, relative_norm=np.full(2, np.nan), layers=np.array([0, -1]))
    figure = layers(make, replace(item, by_layer=part))
    hover = figure.plot.data[0].hovertext
    assert "‖dW‖ / ‖W‖: undefined" in hover[0] and "outside the layers" in hover[1]
