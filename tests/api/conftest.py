"""The tiny model as a study in memory."""

import loratomy as lt
import pytest

CLEAN = [{"prompt": f"Name a colour of the number {n}.", "response": f"red {n}"} for n in range(24)]
OPTIONS = {"embedder": "none", "max_new_tokens": 3, "template": "Q: {prompt}\nA:"}


@pytest.fixture
def opened(tiny_base, tiny_adapter):
    """Calls `lt.open` on the tiny model; keywords replace options."""

    def call(base=None, adapter=None, **options):
        given = {"trigger": "cf37", "target": "HACK", "prompts": CLEAN, **OPTIONS, **options}
        return lt.open(base or tiny_base, adapter or tiny_adapter, **given)

    return call
