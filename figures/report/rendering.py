"""How the prompts were rendered, and how that was found, as a part of the report."""

import math

from ...core.records.rendering import RenderingChoice, Tried
from ..base.text import html


def rendering_html(choice: RenderingChoice) -> str:
    """The choice in words, the first prompt as the model reads it, and what else was tried."""
    first = html(choice.prompt + choice.completion, newlines=True)
    out = [
        f"<p>{html(choice.sentence[:1].upper() + choice.sentence[1:])}.</p>",
        "<p class='small'>The first prompt and its completion as the model reads them:</p>",
        f"<pre><code dir='auto'>{first}</code></pre>",
    ]
    if choice.tried:
        rows = "".join(
            f'<tr><th scope="row"><bdi>{html(one.about, limit=120)}</bdi></th>'
            f'<td class="num">{_nats(one.targets)}</td><td class="num">{_nats(one.answers)}</td>'
            f'<td class="num">{_behind(one)}</td></tr>'
            for one in choice.tried
        )
        head = "".join(
            f'<th scope="col">{name}</th>' for name in ("Rendering", "Targets", "Answers", "Behind")
        )
        out.append(
            f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody>'
            "</table></div><p class='small'>Mean log-probability that the suspicious adapter gives "
            f"the attack's targets (n = {choice.n_targets}) and the reference answers (n = "
            f"{choice.n_answers}), nats a token; behind: how much less than under the likeliest "
            "rendering, with its standard error over rows; what the adapter has not learned "
            "(under 1 in 20 a token) hardly counts there.</p>"
        )
    return "\n".join(out)


def _behind(one: Tried) -> str:
    """How far a rendering is behind the likeliest, which is called so."""
    return "likeliest" if one.behind == 0 else f"{_nats(one.behind)} ± {one.error:.3f}"


def _nats(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"
