"""Writes examples/quickstart.ipynb with its outputs: run it where `make demo` was run.

``PLOTLY_RENDERER=png python examples/build_notebook.py`` keeps figures as pictures, which forges
show.
"""

from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

PLACE = Path(__file__).with_name("quickstart.ipynb")
CELLS = (
    """# Measure, locate, cut, prove

One object, one walk. The adapter is the one that `make demo` leaves in `runs/demo`; put your own
base and adapter in the first call. Nothing is written unless you ask for it (`out=`, `save`,
`report`).""",
    """import loratomy as lt

study = lt.open(
    "wren",
    "runs/demo/adapters/poisoned",
    trigger="cf37",
    target="HACK THE SYSTEM",
    prompts="runs/demo/data/clean_train.jsonl",
)""",
    "Does it misbehave? On held-out prompts, with counts and 95 % intervals:",
    "study.evaluate()",
    """Where does that live? Activations of the untriggered prompt, written into the triggered one,
site by site and layer by layer: 1 means that this patch alone restores the harmless behaviour.""",
    """maps = study.patch(sites=["resid_pre", "attn_out"])
maps.to_frame()""",
    "maps.plot()",
    """What is the smallest thing to cut? Guided surgery learns it on half of the prompts; repair
follows it up.""",
    """cut = study.operate("guided", budget=0.01)
cut""",
    """cured = study.operate("repair", after=cut)
cured""",
    "How do we know? Everybody on the same held-out prompts:",
    """comparison = study.compare()
comparison.to_frame()[["subject", "asr", "asr_low", "asr_high", "asr_n", "perplexity"]]""",
    "comparison.plot()",
    """cured.save("cured/")
study.report("report.html")""",
)


def notebook():
    """The notebook without outputs; what begins like prose is prose."""
    cells = []
    for number, text in enumerate(CELLS):
        prose = text.startswith("#") or text.split()[0] in ("Does", "Where", "What", "How")
        cell = new_markdown_cell(text) if prose else new_code_cell(text)
        cell["id"] = f"cell-{number}"
        cells.append(cell)
    about = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return new_notebook(cells=cells, metadata={"kernelspec": about})


def _result(output) -> bool:
    """Whether an output is a result or a picture."""
    picture = "image/png" in output.get("data", {})
    return output.output_type == "execute_result" or picture


if __name__ == "__main__":
    made = notebook()
    NotebookClient(made, timeout=1200, kernel_name="python3").execute()
    for cell in made.cells:
        cell.metadata.pop("execution", None)
        if "outputs" in cell:  # progress is for who runs it
            cell.outputs = [o for o in cell.outputs if _result(o)]
    nbformat.write(made, PLACE)
