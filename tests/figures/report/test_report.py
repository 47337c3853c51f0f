import base64
import hashlib
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from loratomy.core.records.patching import PatchingMap, Where
from loratomy.core.records.spectra import Difference, Spectra
from loratomy.figures import FIGURES, draw, report_html, write_figures
from loratomy.figures.base import export as export_module
from loratomy.figures.base.export import write_page
from loratomy.figures.report.report import ABSENT, SECTIONS

HOSTILE = (
    '</script><img src=x onerror="document.documentElement.dataset.pwned=1"><b>bold</b>'
    "<script>document.documentElement.dataset.pwned=1</script> %{x} $x$ &lt; \u202e\u200b\x00"
)
CHROMIUM = shutil.which("chromium")
FLAGS = """
    --headless --no-sandbox --disable-gpu --disable-quic --no-first-run
    --disable-background-networking --disable-component-update --disable-sync
    --enable-logging=stderr --virtual-time-budget=4000 --dump-dom
"""


def browse(path: Path, profile: Path) -> tuple[str, list[str]]:
    """The document after its scripts ran, and what they wrote to the console."""
    command = [str(CHROMIUM), *FLAGS.split(), f"--user-data-dir={profile}", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return done.stdout, console


def hostile_records(make):
    """A whole run in which every text is an attack."""
    full = make.full_records()
    item = full.of(PatchingMap)[0]
    columns = (*item.columns[:1], HOSTILE, *item.columns[2:])
    spectra = full.of(Spectra)[0]
    rows = (*full.comparison.rows[:3], replace(full.comparison.rows[3], subject=HOSTILE))
    answer = replace(full.answers[0], prompt=HOSTILE, answer=HOSTILE, reference=HOSTILE)
    operation = replace(full.operations[0], method=HOSTILE, summary=HOSTILE)
    return replace(
        full,
        provenance=replace(full.provenance, run=HOSTILE, command=HOSTILE),
        trigger=HOSTILE,
        target=HOSTILE,
        rendering=replace(
            full.rendering,
            prompt=HOSTILE,
            completion=HOSTILE,
            sentence=HOSTILE,
            tried=(replace(full.rendering.tried[0], about=HOSTILE),),
        ),
        comparison=replace(full.comparison, rows=rows),
        answers=(answer,),
        analyses=(
            replace(item, columns=columns, clean_name=HOSTILE, metric=HOSTILE),
            replace(spectra, modules=(HOSTILE, *spectra.modules[1:])),
            full.first(Difference),
            replace(full.first(Where), sentence=HOSTILE),
        ),
        operations=(operation, replace(full.operations[4], method=HOSTILE + "2")),
    )


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_hostile_text_stays_text_and_the_console_is_silent(make, tmp_path):
    records = hostile_records(make)
    path = write_page(report_html(records), tmp_path / "report.html")
    document, console = browse(path, tmp_path / "profile")
    assert console == []
    root = re.search(r"<html[^>]*>", document)
    assert root and "data-pwned" not in root.group(0)
    assert f'data-drawn="{len(draw(records))}"' in root.group(0)
    assert document.count('class="main-svg"') >= len(draw(records))
    body = document.split("<body>", 1)[1].split('<script type="application/json"', 1)[0]
    assert "<img" not in body
    assert "<b>" not in body
    assert "&lt;b&gt;bold&lt;/b&gt;" in body
    assert "⟨U+202E⟩⟨U+200B⟩␀" in body


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_a_figure_alone_draws_under_the_same_rules(make, tmp_path):
    figure = FIGURES["patching"](hostile_records(make))[0]
    write_figures([figure], tmp_path / "figures")
    document, console = browse(tmp_path / "figures" / f"{figure.id}.html", tmp_path / "profile")
    assert console == []
    assert 'data-drawn="1"' in document and "&lt;/script&gt;" in document


def test_only_the_two_hashed_scripts_may_run(make):
    document = report_html(make.full_records())
    scripts = re.findall(r"<script>(.*?)</script>", document, flags=re.S)
    assert len(scripts) == 2
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', document)
    assert policy and policy.group(1).startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-inline' 'sha" not in policy.group(1)
    for script in scripts:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy.group(1)
        document = document.replace(script, "")
    assert not re.search(r'(?:src|href)="https?:|url\(|@import', document)


def test_data_blocks_hold_no_markup_and_are_json(make):
    document = report_html(hostile_records(make))
    block = document.split('id="figures-data">', 1)[1].split("</script>", 1)[0]
    assert "<" not in block
    assert {figure["id"] for figure in json.loads(block)["figures"]} >= {"curves", "tradeoff"}


def test_absent_records_leave_a_sentence(make):
    document = report_html(make.empty_records())
    for name, title in SECTIONS.items():
        assert name in FIGURES
        assert f"<h2>{title}</h2>" in document
    for name in SECTIONS.keys() - ABSENT.keys():
        assert (
            f"Not made yet; `loratomy probe RUN --only {name}` makes it or names what it needs."
            in document
        )
    assert "(loratomy operate RUN guided)" in document
    assert "No subject was measured." in document
    assert len(document) < 100_000


def test_every_section_and_figure_is_in_the_contents(make):
    records = make.full_records()
    document = report_html(records)
    assert set(SECTIONS) == set(FIGURES)
    for figure in draw(records):
        assert f'<figure class="figure" id="{figure.id}">' in document
    contents = document.split("<nav", 1)[1].split("</nav>", 1)[0]
    assert contents.index("Findings") < contents.index("Training curves")
    assert contents.index("Trade-off") < contents.index("Provenance")


@pytest.mark.parametrize(("layers", "rank"), [(6, 8), (28, 16)])
def test_reports_are_small(make, layers, rank):
    assert len(report_html(make.full_records(layers, rank)).encode()) < 8e6


def test_undefined_values_never_read_nan(make):
    full = make.full_records()
    where = full.first(Where)
    effect = np.full_like(where.layer_effect, np.nan)
    records = replace(full, analyses=(replace(where, layer_effect=effect, agreement=np.nan),))
    document = report_html(records)
    shown = re.sub(r"<(script|style).*?</\1>", "", document, flags=re.S)
    assert not re.search(r"\bnan\b", shown, flags=re.I)
    assert "No layer has a defined effect." in shown


def test_export_keeps_html_and_says_why_pictures_are_missing(make, tmp_path, monkeypatch):
    kaleido = pytest.importorskip("kaleido")
    from kaleido.errors import ChromeNotFoundError

    def no_browser(*_args, **_options):
        raise ChromeNotFoundError("none")

    monkeypatch.setattr(kaleido, "write_fig_from_object_sync", no_browser)
    figures = FIGURES["curves"](make.full_records())
    done = write_figures(figures, tmp_path / "new", ("html", "png"))
    assert done.skipped == ("static export skipped: no browser",)
    assert [path.name for path in done.written] == ["curves.html", "plotly.min.js"]
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"curves.html", "plotly.min.js"}


def test_figures_share_one_plotly(make, tmp_path):
    figures = draw(make.full_records())
    done = write_figures(figures, tmp_path)
    assert len(done.written) == len(figures) + 1
    assert sum(path.stat().st_size for path in done.written) < 15e6
    pages = [path.read_text() for path in done.written if path.suffix == ".html"]
    assert all('<script src="plotly.min.js"></script>' in page for page in pages)


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_pictures_are_drawn_in_one_call(make, tmp_path):
    pytest.importorskip("kaleido")
    figures = FIGURES["curves"](make.full_records())
    done = write_figures(figures, tmp_path, ("svg", "png"))
    assert done.skipped == ()
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "Clean accuracy" in (tmp_path / "curves.svg").read_text(encoding="utf-8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curves.png", "curves.svg"]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = write_page("old", tmp_path / "page.html")

    def full(*_args):
        raise OSError("disk full")

    monkeypatch.setattr(export_module.os, "replace", full)
    with pytest.raises(OSError, match="disk full"):
        write_page("new", path)
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_how_prompts_are_rendered_stands_in_the_report(make):
    full = make.full_records()
    page = report_html(full)
    assert "Rendering: the form" in page and "1.60 worse" in page
    assert "&lt;|begin|&gt;### Instruction:" in page
    assert "-3.200" in page and "1.600 ± 0.020" in page
    assert "Prompts as rendered" not in report_html(replace(full, rendering=None))
    said = "answers and rendering contradict each other"
    wrong = replace(full.comparison.protocol, mismatch=said)
    shown = replace(full, comparison=replace(full.comparison, protocol=wrong))
    assert "Answers and rendering contradict each other." in report_html(shown)
