import pytest
from loratomy.core.errors import LoratomyError
from loratomy.core.registry import Registry, nearest


def test_names_keep_their_order_and_their_things():
    registry = Registry("cut")
    assert registry.register("truncate")(1) == 1
    registry.register("mask")(2)
    assert list(registry) == ["truncate", "mask"] and registry.items() == [
        ("truncate", 1),
        ("mask", 2),
    ]
    assert registry["mask"] == 2 and "mask" in registry and "prune" not in registry


def test_unknown_names_answer_with_the_nearest():
    registry = Registry("cut")
    registry.register("truncate")(1)
    registry.register("mask")(2)
    with pytest.raises(LoratomyError, match=r"unknown cut 'trunkate'; did you mean truncate\?"):
        registry["trunkate"]
    assert nearest("zzz", ["truncate", "mask"]) == "known: truncate, mask"


def test_a_second_use_of_a_name_is_an_error():
    registry = Registry("cut")
    registry.register("mask")(1)
    with pytest.raises(LoratomyError, match="'mask' is registered twice"):
        registry.register("mask")(2)
