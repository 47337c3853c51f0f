import pytest
from loratomy.core.progress import report, reporting, tracked


def test_work_is_silent_until_somebody_listens():
    heard = []
    report("alone", 1, 2)
    with reporting(lambda *said: heard.append(said)):
        assert list(tracked("ab", "letters")) == ["a", "b"]
    report("alone", 2, 2)
    assert heard == [("letters", 0, 2), ("letters", 1, 2), ("letters", 2, 2)]


def test_listeners_nest_and_leave_after_an_exception():
    outer, inner = [], []
    with reporting(lambda *said: outer.append(said)):
        with pytest.raises(RuntimeError), reporting(lambda *said: inner.append(said)):
            report("in", 1, 1)
            raise RuntimeError
        report("out", 1, 1)
    assert (outer, inner) == ([("out", 1, 1)], [("in", 1, 1)])
