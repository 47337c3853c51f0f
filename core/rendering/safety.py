"""A chat template is somebody's program: it is run once in a process of its own, bounded."""

import json
import signal
import subprocess
import sys
from functools import lru_cache
from typing import Any

from ..errors import LoratomyError
from .templates import TEMPLATES

SECONDS = 20
"""Most CPU time that a template may take for two short turns, the start of a process included."""
PATIENCE = 120
"""Most wall time for it, in seconds: a machine may be busy with other things."""
MEMORY = 4 * 2**30
"""Most address space of that process, in bytes."""
LONGEST = 2**20
"""Most characters that two short turns may become."""
PROBE = "What is 12 + 30, Ada, and what else would you like to tell me of it today?"
"""The question that a template is tried with."""
_BOUNDS = {-one for one in signal.Signals if one.name in ("SIGXCPU", "SIGKILL")}
"""Exit codes of a process that went over its time, or that the system ended for its memory."""
REPLY = "Quillfeather42"
"""The answer that a template is tried with; letters that no template writes."""

_CHILD = """
import json, sys
request = json.load(sys.stdin)
try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (request["memory"], request["memory"]))
    resource.setrlimit(resource.RLIMIT_CPU, (request["seconds"], request["seconds"]))
except (ImportError, ValueError, OSError):
    pass  # the parent's clock bounds it all the same
from transformers.utils.chat_template_utils import render_jinja_template
found = []
for messages, more in request["cases"]:
    try:
        text = render_jinja_template([messages], chat_template=request["template"],
                                     add_generation_prompt=more, **request["given"])[0][0]
        found.append({"size": len(text)})
    except MemoryError:
        found.append({"memory": True})
    except Exception as error:
        found.append({"error": f"{type(error).__name__}: {error}"[:300]})
json.dump(found, sys.stdout)
"""


@lru_cache(maxsize=64)
def check_template(template: str, given: str) -> None:
    """Raise unless a chat template renders a short question in bounded time, memory and size.

    Args:
        template: the Jinja text.
        given: the arguments that it will get, as JSON.

    Raises:
        LoratomyError: it takes too long, too much memory, writes too much, or only raises.
    """
    if any(template == published.jinja for _, published in TEMPLATES.items()):
        return
    user = {"role": "user", "content": PROBE}
    parts = {"role": "user", "content": [{"type": "text", "text": PROBE}]}
    request = {
        "template": template,
        "given": json.loads(given),
        "cases": [
            ([user], True),
            ([parts], True),
            ([user, {"role": "assistant", "content": REPLY}], False),
        ],
        "memory": MEMORY,
        "seconds": SECONDS,
    }
    hint = "it is not run; give another one with --template"
    found = _tried(request, hint)
    if any("memory" in one for one in found):
        raise LoratomyError(_over(hint))
    if all("error" in one for one in found):
        raise LoratomyError(f"the chat template does not render: {found[0]['error']}")
    if (most := max((one.get("size", 0) for one in found), default=0)) > LONGEST:
        raise LoratomyError(
            f"the chat template makes {most:,} characters of one short question; {hint}"
        )


def _tried(request: dict[str, Any], hint: str) -> list[dict[str, Any]]:
    """What became of each case in a process of its own, which imports nothing from this folder.

    Raises:
        LoratomyError: it went over its time or memory, or ended otherwise; with how.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _CHILD],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            errors="backslashreplace",
            timeout=PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise LoratomyError(
            f"the chat template takes over {PATIENCE} s for one short question; {hint}"
        ) from error
    lines = done.stderr.strip().splitlines()
    last = lines[-1].strip() if lines else "it printed nothing"
    if done.returncode in _BOUNDS or last.startswith("MemoryError"):
        raise LoratomyError(_over(hint))
    if done.returncode:
        raise LoratomyError(
            "the chat template cannot be tried: the Python process for it ended with exit code "
            f"{done.returncode} ({last[:300]}); mend that, or give another template with --template"
        )
    return json.loads(done.stdout.splitlines()[-1])


def _over(hint: str) -> str:
    return (
        f"the chat template takes over {MEMORY >> 30} GiB of memory or {SECONDS} s of CPU time "
        f"for one short question; {hint}"
    )
