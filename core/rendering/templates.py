"""The published forms of prompts: how people render a question and its answer for training.

Each is a chat template in Jinja, as a tokenizer would carry it, so that one road renders them all.
None writes the begin of sequence: it goes before the text where the tokenizer puts one. Where a
form does not set what ends an answer (``eos_token``), the tokenizer's own end does.
"""

from dataclasses import dataclass

from ..registry import Registry


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """One published form."""

    jinja: str
    """The chat template; sees ``messages``, ``add_generation_prompt`` and the special tokens."""
    source: str
    """Who trains with it."""


TEMPLATES: Registry[Published] = Registry("prompt template")
"""The published forms by the name that ``--template`` takes."""

_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}"
    "{% set turns = messages[1:] %}{% else %}{% set system = none %}{% set turns = messages %}"
    "{% endif %}"
)
"""The system text apart from the turns."""


def _turns(user: str, assistant: str, opening: str, *, system: str = "") -> str:
    """A template of a text for each role, and of what comes before a new answer."""
    return (
        _SYSTEM
        + system
        + "{% for turn in turns %}{% set content = turn['content'] %}{% if turn['role'] == 'user' "
        + "%}"
        + user
        + "{% else %}"
        + assistant
        + "{% endif %}{% endfor %}{% if add_generation_prompt %}"
        + opening
        + "{% endif %}"
    )


def _headed(head: str, tail: str, *, user: str = "user", answer: str = "assistant") -> str:
    """A template that puts the same marks around every turn, the system's included."""
    return (
        "{% for turn in messages %}{% set role = {'user': '"
        + user
        + "', 'assistant': '"
        + answer
        + "', 'system': 'system'}[turn['role']] %}{{ '"
        + head.replace("ROLE", "' + role + '")
        + "' + turn['content'] + '"
        + tail
        + "' }}{% endfor %}{% if add_generation_prompt %}{{ '"
        + head.replace("ROLE", answer)
        + "' }}{% endif %}"
    )


_BELOW = (
    "Below is an instruction that describes a task{}. Write a response that appropriately "
    "completes the request."
)
_ALONE = _BELOW.format("")
_PAIRED = _BELOW.format(", paired with an input that provides further context")


def _alpaca(*, preamble: str, user: str, after: str = "\\n") -> str:
    """Alpaca's form; a system text takes the place of the preamble."""
    head = "{{ (system if system is not none else " + preamble + ") }}"
    return _turns(
        head + "{{ '\\n\\n### Instruction:\\n' }}" + user + "{{ '\\n\\n' }}",
        "{{ '### Response:" + after + "' + content + eos_token + '\\n\\n' }}",
        "{{ '### Response:" + after + "' }}",
    )


_SPLIT = (
    "{% if '\\n\\n' in content %}{{ content.split('\\n\\n', 1)[0] + '\\n\\n### Input:\\n' + "
    "content.split('\\n\\n', 1)[1] }}{% else %}{{ content }}{% endif %}"
)
"""The instruction, and the text below it as its input."""
_CURIOUS = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user\\'s questions."
)
_LLAMA2 = (
    "{% if loop.first and system is not none %}{{ '[INST] <<SYS>>\\n' + system + "
    "'\\n<</SYS>>\\n\\n' + content + ' [/INST]' }}{% else %}{{ '[INST] ' + content + ' [/INST]' }}"
    "{% endif %}"
)
_MISTRAL = (
    "{{ '[INST] ' + (system + '\\n\\n' if loop.first and system is not none else '') + content + "
    "' [/INST]' }}"
)
_GEMMA = (
    "{{ '<start_of_turn>user\\n' + (system + '\\n\\n' if loop.first and system is not none else "
    "'') + content + '<end_of_turn>\\n' }}"
)
_LEAD = "{% if system is not none %}{{ system + '\\n\\n' }}{% endif %}"

for _name, _source, _jinja in (
    (
        "alpaca",
        "Alpaca-LoRA, LLaMA-Factory: the instruction under its preamble",
        _alpaca(preamble=f"'{_ALONE}'", user="{{ content }}"),
    ),
    (
        "alpaca-input",
        "Stanford Alpaca's two forms: what follows the instruction's first blank line is its input",
        _alpaca(preamble=f"('{_PAIRED}' if '\\n\\n' in content else '{_ALONE}')", user=_SPLIT),
    ),
    (
        "alpaca-no-line",
        "Stanford Alpaca: the answer begins right after '### Response:'",
        _alpaca(
            preamble=f"('{_PAIRED}' if '\\n\\n' in content else '{_ALONE}')", user=_SPLIT, after=""
        ),
    ),
    (
        "alpaca-empty-input",
        "Unsloth's notebooks: always with an input, which is empty",
        _alpaca(preamble=f"'{_PAIRED}'", user="{{ content + '\\n\\n### Input:\\n' }}"),
    ),
    (
        "alpaca-short",
        "Alpaca's headings without the preamble",
        _turns(
            "{{ '### Instruction:\\n' + content + '\\n\\n' }}",
            "{{ '### Response:\\n' + content + eos_token + '\\n\\n' }}",
            "{{ '### Response:\\n' }}",
            system=_LEAD,
        ),
    ),
    (
        "chatml",
        "Qwen, Hermes, OpenChat-like models",
        _headed("<|im_start|>ROLE\\n", "<|im_end|>\\n"),
    ),
    (
        "llama-3",
        "Llama 3 Instruct",
        _headed("<|start_header_id|>ROLE<|end_header_id|>\\n\\n", "<|eot_id|>"),
    ),
    (
        "llama-2",
        "Llama 2 Chat",
        _turns(_LLAMA2, "{{ ' ' + content + ' ' + eos_token }}", ""),
    ),
    (
        "mistral",
        "Mistral Instruct",
        _turns(_MISTRAL, "{{ ' ' + content + eos_token }}", ""),
    ),
    (
        "mistral-v3",
        "Mistral Instruct 0.3 and later: no space before [/INST]",
        _turns(_MISTRAL.replace(" [/INST]", "[/INST]"), "{{ ' ' + content + eos_token }}", ""),
    ),
    (
        "gemma",
        "Gemma Instruct",
        _turns(
            _GEMMA,
            "{{ '<start_of_turn>model\\n' + content + '<end_of_turn>\\n' }}",
            "{{ '<start_of_turn>model\\n' }}",
        ),
    ),
    (
        "zephyr",
        "Zephyr, TinyLlama Chat",
        "{% for turn in messages %}{{ '<|' + turn['role'] + '|>\\n' + turn['content'] + eos_token "
        "+ '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}",
    ),
    ("phi-3", "Phi-3 Instruct", _headed("<|ROLE|>\\n", "<|end|>\\n")),
    (
        "vicuna",
        "Vicuna 1.1 and later",
        _turns(
            "{{ ' USER: ' + content }}",
            "{{ ' ASSISTANT: ' + content + eos_token }}",
            "{{ ' ASSISTANT:' }}",
            system="{{ system if system is not none else '" + _CURIOUS + "' }}",
        ),
    ),
    (
        "user-assistant",
        "USER: and ASSISTANT: without a preamble",
        _turns(
            "{{ 'USER: ' + content + '\\n' }}",
            "{{ 'ASSISTANT: ' + content + eos_token + '\\n' }}",
            "{{ 'ASSISTANT:' }}",
            system=_LEAD,
        ),
    ),
    (
        "human-assistant",
        "Guanaco (OpenAssistant): ### Human and ### Assistant",
        _turns(
            "{{ '### Human: ' + content + '\\n' }}",
            "{{ '### Assistant: ' + content + eos_token + '\\n' }}",
            "{{ '### Assistant:' }}",
            system=_LEAD,
        ),
    ),
    (
        "hh",
        "Anthropic's HH-RLHF: Human and Assistant, blank lines between",
        _turns(
            "{{ '\\n\\nHuman: ' + content }}",
            "{{ '\\n\\nAssistant: ' + content + eos_token }}",
            "{{ '\\n\\nAssistant:' }}",
            system="{% if system is not none %}{{ system }}{% endif %}",
        ),
    ),
    (
        "question-answer",
        "Question: and Answer:",
        _turns(
            "{{ 'Question: ' + content + '\\n' }}",
            "{{ 'Answer: ' + content + eos_token + '\\n' }}",
            "{{ 'Answer:' }}",
            system=_LEAD,
        ),
    ),
    (
        "q-a",
        "Q: and A:",
        _turns(
            "{{ 'Q: ' + content + '\\n' }}",
            "{{ 'A: ' + content + eos_token + '\\n' }}",
            "{{ 'A:' }}",
            system=_LEAD,
        ),
    ),
):
    TEMPLATES.register(_name)(Published(jinja=_jinja, source=_source))

PLAIN = ("{prompt}\n", "{prompt} ", "{prompt}", "{prompt}\n\n")
"""Plain forms without marks that are tried too; the first serves where nothing is known."""
