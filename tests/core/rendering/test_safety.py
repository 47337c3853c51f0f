"""Templates that work hard are refused by name, in bounded time, before they are run in earnest."""

import pytest
from loratomy.core.errors import LoratomyError
from loratomy.core.rendering import safety as template_safety
from loratomy.core.rendering.safety import check_template

LOOPS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (LOOPS, "of memory or 4 s of CPU time"),
        ("{{ 10 ** (10 ** 8) }}", "of memory or 4 s of CPU time"),
        ("{{ 'a' * 10 ** 10 }}", "of memory or 4 s of CPU time"),
        ("{{ 'a' * 50000000 }}", "makes 50,000,000 characters of one short question"),
        ("{% include '/etc/passwd' %}", "does not render"),
        ("{{ raise_exception('no') }}", "does not render: TemplateError: no"),
        ("{{ " + "(" * 100_000, "does not render|of memory or"),
    ],
)
def test_refused_by_name(template, said, monkeypatch):
    monkeypatch.setattr(template_safety, "SECONDS", 4)
    check_template.cache_clear()
    with pytest.raises(LoratomyError, match=said):
        check_template(template, "{}")


def test_an_ordinary_template_passes():
    check_template("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{% endfor %}", "{}")
    check_template("{% for m in messages %}{{ m['content'][0]['text'] }}{% endfor %}", "{}")


def test_nothing_in_the_current_folder_is_run(tmp_path, monkeypatch):
    (tmp_path / "json.py").write_text("open('ran', 'w')")
    monkeypatch.chdir(tmp_path)
    check_template("{{ messages[0]['role'] }}: {{ messages[0]['content'] }}", "{}")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("child", "said"),
    [
        ("import os; os.kill(os.getpid(), 9)", "takes over 4 GiB of memory or 20 s of CPU time"),
        ("raise MemoryError", "takes over 4 GiB of memory or 20 s of CPU time"),
        (
            "raise ImportError('no such library')",
            r"cannot be tried: .* ended with exit code 1 \(ImportError: no such library\); mend",
        ),
        ("import os; os.abort()", r"cannot be tried: .* exit code -6 \(it printed nothing\); mend"),
    ],
)
def test_how_the_process_ended_is_told(child, said, monkeypatch):
    monkeypatch.setattr(template_safety, "_CHILD", child)
    check_template.cache_clear()
    with pytest.raises(LoratomyError, match=said):
        check_template("{{ messages }}", "{}")
