from pathlib import Path

import pytest
from loratomy.core.errors import LoratomyError
from loratomy.core.files.cache import cache_folder


@pytest.mark.parametrize(
    ("own", "shared", "expected"),
    [
        ("/a/b", "/x", "/a/b"),
        ("~/b", "/x", "/home/me/b"),
        ("", "/x", "/x/loratomy"),
        ("", "x", "/home/me/.cache/loratomy"),
        ("", "", "/home/me/.cache/loratomy"),
    ],
)
def test_the_cache_is_where_its_variables_say(own, shared, expected, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("LORATOMY_CACHE", own)
    monkeypatch.setenv("XDG_CACHE_HOME", shared)
    assert cache_folder() == Path(expected)


def test_without_a_home_folder_the_variable_is_named(monkeypatch):
    def homeless():
        raise RuntimeError("no home")

    monkeypatch.delenv("LORATOMY_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(LoratomyError, match="set LORATOMY_CACHE"):
        cache_folder()
