"""The program's first page: what it lists, and what it does without."""

import subprocess
import sys

import pytest
from loratomy.cli.app import VERBS


def test_the_first_page_imports_no_library_of_numbers_or_models():
    code = (
        "import sys\n"
        "sys.argv = ['loratomy', '--help']\n"
        "from loratomy.cli.start import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'pandas', 'pydantic', 'transformers', 'plotly'}\n"
        "print('heavy:', sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "heavy: []" in done.stdout and done.stderr == ""


@pytest.mark.parametrize("verb", VERBS)
def test_every_command_is_listed_with_the_first_line_of_its_help(cli, verb):
    listed = [line.split(None, 1) for line in cli("--help").stdout.splitlines() if verb in line]
    page = cli(verb, "--help")
    assert page.exit_code == 0
    lines = [line.strip() for line in page.stdout.splitlines()]
    assert [verb, lines[2]] in listed


@pytest.mark.parametrize("group", [[], ["data"]])
def test_without_a_command_the_page_is_shown_as_it_is(cli, group):
    result = cli(*group)
    page = result.stdout + result.stderr
    assert result.exit_code == 2 and "\\n" not in page and "Commands:\n" in page


def test_an_unknown_command_is_named(cli):
    result = cli("prob")
    assert result.exit_code == 2 and "No such command 'prob'" in result.stderr
