"""What every test of guided surgery on the planted model needs."""

import pytest
from loratomy.unlearning.guided import cost


@pytest.fixture(scope="module", autouse=True)
def one_word_answers():
    """Own answers of one word: the planted direction reads clean words as nothing, and others not,
    which a random model says next."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "OWN_TOKENS", 1)
        yield
