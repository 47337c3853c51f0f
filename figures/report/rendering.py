"""How the prompts were rendered, and how that was found, as a part of the report."""

import math

from ...core.records.rendering import RenderingChoice, Tried
from ..base.document import row_head, small, table
from ..base.text import html


def rendering_html(choice: RenderingChoice) -> str:
    """The choice in a sentence, the first prompt as the model reads it, and what else was tried."""
    first = html(choice.prompt + choice.completion, newlines=True)
    out = [
        f"<p>{html(choice.sentence[:1].upper() + choice.sentence[1:])}.</p>",
        small("The first prompt and its completion as the model reads them:"),
        f"<pre><code dir='auto'>{first}</code></pre>",
    ]
    if choice.tried:
        rows = "".join(
            f'<tr>{row_head(one.about, limit=120)}<td class="num">{_nats(one.targets)}</td>'
            f'<td class="num">{_nats(one.answers)}</td><td class="num">{_behind(one)}</td></tr>'
            for one in choice.tried
        )
        out.append(table(("Rendering", "Targets", "Answers", "Behind"), rows))
        out.append(
            small(
                "Mean log-probability that the suspicious adapter gives the attack's targets "
                f"(n = {choice.n_targets}) and the reference answers (n = {choice.n_answers}), "
                "nats a token; behind: how much less than under the likeliest rendering, with its "
                "standard error over rows; what the adapter has not learned (under 1 in 20 a "
                "token) hardly counts there."
            )
        )
    return "\n".join(out)


def _behind(one: Tried) -> str:
    """How far a rendering is behind the likeliest, which is called so."""
    return "likeliest" if one.behind == 0 else f"{_nats(one.behind)} ± {one.error:.3f}"


def _nats(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"
