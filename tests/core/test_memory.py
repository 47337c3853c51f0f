"""Peak memory: what a block takes at most, without what came before it."""

from types import SimpleNamespace

import numpy as np
from loratomy.core.memory import peak_memory

CPU = SimpleNamespace(type="cpu")
MB = 2**20


def taken(megabytes: int) -> None:
    np.ones(megabytes * MB, np.uint8)


def test_a_peak_is_of_its_own_block():
    with peak_memory(CPU) as nothing:
        pass
    with peak_memory(CPU) as much:
        taken(300)
    with peak_memory(CPU) as little:
        taken(100)
    # 300 MB above what the process holds, then 100: an earlier peak does not count.
    assert 280 <= (much.bytes - nothing.bytes) / MB <= 330
    assert 80 <= (little.bytes - nothing.bytes) / MB <= 130


def test_without_a_way_to_reset_the_peak_is_that_of_the_process(monkeypatch, tmp_path):
    monkeypatch.setattr("loratomy.core.memory._STATUS", tmp_path / "none")
    monkeypatch.setattr("loratomy.core.memory._RESET", tmp_path / "none" / "none")
    with peak_memory(CPU) as peak:
        pass
    assert peak.bytes > 10 * MB
