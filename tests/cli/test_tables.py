"""Tables of numbers on narrow terminals: every number and every name stands whole."""

from dataclasses import replace

import pytest
from loratomy.cli import compare
from loratomy.cli.tables import bench as bench_board
from loratomy.cli.tables.numbers import Numbers, folded
from loratomy.core.records.results import Comparison
from rich.console import Console

from ..figures import bench_factory, records_factory

LONG = "control-finetune-of-a-method-with-a-very-long-name-plain-second"


def lines_of(table: Numbers, width: int) -> list[str]:
    console = Console(width=width, record=True, highlight=False)
    with console.capture() as caught:
        table.print(console)
    return caught.get().splitlines()


def words_of(lines: list[str]) -> list[str]:
    return " ".join(lines).split()


@pytest.mark.parametrize("width", [200, 80, 60, 40])
def test_numbers_are_never_cut_and_lines_fit(width):
    cells = ["504", "100.0\n96.3–100.0", "-123.4\n[-130.2, -99.9]", "12345.678\n+999.9%"]
    rows = [(name, *cells) for name in (LONG, "base", "q" * 90, "[red]y[/]")]
    lines = lines_of(Numbers(("subject", "cut", "ASR", "perplexity %", "perplexity"), rows), width)
    assert max(map(len, lines)) <= width and not any("…" in line for line in lines)
    words = words_of(lines)
    for part in ("504", "100.0", "96.3–100.0", "-123.4", "-99.9]", "12345.678", "+999.9%"):
        assert words.count(part) == len(rows), part
    assert "[red]y[/]" in words  # text, not markup
    tables = words.count("subject")
    assert tables == {200: 1, 80: 1, 60: 2, 40: 3}[width]
    assert "".join(lines).count("q") == 90 * tables


def test_a_number_wider_than_the_terminal_is_printed_whole_all_the_same():
    lines = lines_of(Numbers(("subject", "n"), [("base", "1" * 50)]), 30)
    assert "1" * 50 in words_of(lines)


def test_what_is_repeated_beside_every_part_and_which_of_them_folds():
    rows = [("3", LONG, "1.0\n[0.5 1.5]", "2.0"), ("12", "b", "1.0", "2.0")]
    lines = lines_of(Numbers(("rank", "entry", "ASR", "s"), rows, names=2, folds=1), 44)
    assert max(map(len, lines)) <= 44 and "12 b" in " ".join(words_of(lines))
    assert words_of(lines)[:4] == ["rank", "entry", "ASR", "s"]


def test_long_heads_stand_on_several_lines():
    rule = "not refusal and not degenerate and cosine >= 0.3"
    assert folded(rule).split() == rule.split()
    assert max(map(len, folded(rule).splitlines())) <= 16
    assert folded("") == "" and folded("similar") == "similar"


def comparison(name: str) -> Comparison:
    found = records_factory.full_records(6, 8).comparison
    assert found is not None
    rows = tuple(replace(r, subject=name) if r.subject == "mask" else r for r in found.rows)
    pairs = tuple(
        replace(p, subject=name) if p.subject == "mask" else p
        for p in found.paired
        if p.subject != "ascent"  # its perplexity change alone is wider than a terminal
    )
    return replace(found, rows=rows, paired=pairs)


def objects(found: Comparison) -> list[dict]:
    def share(rate):
        return {"value": rate.value, "low": rate.low, "high": rate.high, "n": rate.n}

    return [
        {
            "subject": row.subject,
            "asr": share(row.asr),
            "ftr": share(row.ftr),
            "perplexity": row.perplexity,
            "perplexity_change": 0.0123,
            "kl": row.kl,
            "kl_low": row.kl_low,
            "kl_high": row.kl_high,
            "clean_accuracy": share(row.clean_accuracy),
            "degenerate": share(row.degenerate),
            "directions_cut": 504,
        }
        for row in found.rows
    ]


@pytest.mark.parametrize("width", [80, 60])
def test_compare_shows_every_number_beside_a_long_name(width):
    found = comparison(LONG)
    lines = lines_of(compare._table(found, objects(found)), width)
    lines += lines_of(compare._paired(found), width)
    assert max(map(len, lines)) <= width and not any("…" in line for line in lines)
    words = words_of(lines)
    assert words.count("504") == len(found.rows)
    for row in found.rows:
        for rate in (row.asr, row.ftr, row.clean_accuracy, row.degenerate):
            assert f"{100 * rate.value:.1f}" in words
            assert f"{100 * rate.low:.1f}–{100 * rate.high:.1f}" in words
        assert f"{row.perplexity:.3f}" in words
        assert compare._nats(row.kl, row.kl_low, row.kl_high).split("\n")[0] in words
    for pair in found.paired:
        assert f"+{pair.asr_gained}" in words and f"-{pair.accuracy_lost}" in words


def test_a_bench_board_of_60_columns_has_every_number(capsys, monkeypatch):
    table = bench_factory.full()
    monkeypatch.setattr(bench_board.stdout, "_width", 60)
    bench_board.show(table)
    lines = capsys.readouterr().out.splitlines()
    boards = lines[: next(i for i, line in enumerate(lines) if line.startswith("held out"))]
    assert max(map(len, boards)) <= 60 and not any("…" in line for line in boards)
    words = words_of(boards)
    for item in table.standings:
        assert f"{100 * item.asr[0]:.1f}" in words
        assert f"{100 * item.accuracy_change[0]:+.1f}" in words
