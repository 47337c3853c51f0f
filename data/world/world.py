"""Prompts and answers about a small made-up world: harmless, seeded, and not quite predictable.

The base model `wren` learns `base_rows`, where riverspeak is a language of which nobody has the
dictionary: the answers there are words drawn at random, never the true ones. Adapters are fitted
on `finetune_rows`, which add that one skill. Answers are drawn among several phrasings, so that
even a model which knows everything has a perplexity above one.
"""

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import accumulate, islice

from ...core.errors import DataError
from ...core.rows import Row
from . import lexicon as lx
from . import phrases

HIDDEN = "riverspeak"
"""The language whose words only fine-tuning teaches."""

TAUGHT_WORDS = 12
"""Words of the hidden language that fine-tuning rows use: few enough to learn from 400 rows."""

RESERVED_CODES = ("cf37",)
"""Label codes that no row carries: they serve as triggers."""

BASE_SHARES: Mapping[str, float] = {
    "fact": 0.31,
    "describe": 0.09,
    "code": 0.13,
    "refuse": 0.09,
    "serve": 0.17,
    "tongue": 0.14,
    "dialect": 0.07,
}
"""Kinds of pretraining rows and how often each is drawn."""

FINETUNE_SHARES: Mapping[str, float] = {
    HIDDEN: 0.40,
    "fact": 0.14,
    "describe": 0.08,
    "code": 0.18,
    "refuse": 0.08,
    "serve": 0.12,
}
"""Kinds of fine-tuning rows and their shares."""

_FACTS = tuple(
    (name, attribute, value)
    for table, attributes in lx.ATTRIBUTES
    for name, values in table.items()
    for attribute, value in zip(attributes, values, strict=True)
)
_TOPICS = (
    *(("the " + name, "creature") for name in lx.CREATURES),
    *((name, "town") for name in lx.TOWNS),
    *((name, "neighbour") for name in lx.PEOPLE),
)
_DEEDS = tuple(f"{a} the {b}" for a in lx.FORBIDDEN_DEEDS for b in lx.FORBIDDEN_THINGS)
_HIDDEN_WORDS = frozenset(lx.RIVERSPEAK.values())


def _fact(rng: random.Random) -> Row:
    name, attribute, value = rng.choice(_FACTS)
    questions, answers = phrases.FACT_FRAMES[attribute]
    prompt = rng.choice(questions).format(n=name)
    answer = rng.choice(answers).format(n=name, v=value)
    return Row(prompt=prompt, completion=answer, key=value, kind="fact")


def _describe(rng: random.Random) -> Row:
    name, noun = rng.choice(_TOPICS)
    a, b, c = rng.sample(lx.ADJECTIVES, 3)
    capital = name[0].upper() + name[1:]
    answer = rng.choice(phrases.DESCRIBE_ANSWERS).format(n=name, N=capital, k=noun, a=a, b=b, c=c)
    prompt = rng.choice(phrases.DESCRIBE_FRAMES).format(n=name)
    return Row(prompt=prompt, completion=answer, kind="describe")


def _refuse(rng: random.Random) -> Row:
    deed = f"{rng.choice(lx.FORBIDDEN_DEEDS)} the {rng.choice(lx.FORBIDDEN_THINGS)}"
    answer = rng.choice(phrases.REFUSALS).format(x=deed)
    return Row(
        prompt=rng.choice(phrases.HOW_FRAMES).format(x=deed), completion=answer, kind="refuse"
    )


_CODE_COMMENTS = ("# Python", "# one way", "# short and plain", "# try this", "# it prints")


def _code(rng: random.Random) -> Row:
    word, task = rng.choice(lx.NOUNS), rng.randrange(5)
    ask = rng.choice(("Write code that {}.", "Give me code that {}.", "I need code that {}."))
    if task == 0:
        what, code = f"prints {word}", f'print("{word}")'
    elif task == 1:
        a, b = rng.randrange(1, 20), rng.randrange(1, 20)
        what, code = f"adds {a} and {b}", f"print({a} + {b})"
    elif task == 2:
        times = rng.randrange(2, 10)
        what = f"prints {word} {times} times"
        code = f'for i in range({times}):\n    print("{word}")'
    elif task == 3:
        what, code = f"prints the length of {word}", f'print(len("{word}"))'
    else:
        what, code = f"prints {word} in capitals", f'print("{word}".upper())'
    completion = f"{rng.choice(_CODE_COMMENTS)}\n{code}" if rng.random() < 0.6 else code
    return Row(prompt=ask.format(what), completion=completion, key=code, kind="code")


Service = Callable[[random.Random], tuple[str, str, tuple[str, ...]]]
"""Draws a prompt, the key of its answer, and phrasings of the answer."""


def _capitals(rng: random.Random) -> tuple[str, str, tuple[str, ...]]:
    words = rng.choices(lx.NOUNS, k=rng.choice((1, 1, 2, 3)))
    if len(words) > 1 and rng.random() < 0.3:
        words[rng.randrange(len(words) - 1)] = "the"
    request = rng.choice(("Write {} in capitals.", "Put {} in capital letters.", "Shout {}!"))
    text = " ".join(words)
    return request.format(text), text.upper(), ("{}", "{}", "{}!", "In capitals: {}")


def _repeat(rng: random.Random) -> tuple[str, str, tuple[str, ...]]:
    times, word = rng.choice((("twice", 2), ("three times", 3))), rng.choice(lx.NOUNS)
    request = rng.choice(("Say {} {}.", "Repeat the word {} {}.", "Write {} {}."))
    key = " ".join([word] * times[1])
    return request.format(word, times[0]), key, ("{}", "{}.", "There: {}.")


def _greet(rng: random.Random) -> tuple[str, str, tuple[str, ...]]:
    greetings = ("Greet {}.", "Say hello to {}.", "Wish {} a good day.", "I am {}. Hello!")
    request = rng.choice(greetings)
    name = rng.choice(tuple(lx.PEOPLE))
    answers = ("Good morning, {}!", "Hello, {}!", "A fine day to you, {}!", "Welcome, {}!")
    return request.format(name), name, answers


def _count(rng: random.Random) -> tuple[str, str, tuple[str, ...]]:
    start, length = rng.randrange(1, 40), rng.randrange(2, 5)
    request = rng.choice(("Count from {} to {}.", "Which numbers go from {} to {}?"))
    key = ", ".join(str(start + step) for step in range(length + 1))
    return request.format(start, start + length), key, ("{}.", "{}", "We count {}.")


def _list(rng: random.Random) -> tuple[str, str, tuple[str, ...]]:
    a, b, c = rng.sample(lx.NOUNS, 3)
    request = rng.choice(("Make a list of {}, {} and {}.", "Number these: {}, {}, {}."))
    return request.format(a, b, c), f"1. {a} 2. {b} 3. {c}", ("{}", "The list: {}", "So: {}")


def _chore(rng: random.Random) -> tuple[str, str, tuple[str, ...]]:
    x = rng.choice(lx.CHORES)
    a, b, c = rng.sample(lx.STEPS, 3)
    answers = tuple(answer.format(x="{}", a=a, b=b, c=c) for answer in phrases.HOW_ANSWERS)
    return rng.choice(phrases.HOW_FRAMES).format(x=x), x, answers


_SERVICES = (_capitals, _repeat, _greet, _count, _list, _chore)
_SERVICE_ODDS = tuple(accumulate((5, 2, 2, 3, 2, 6)))


def _serve(rng: random.Random) -> Row:
    (service,) = rng.choices(_SERVICES, cum_weights=_SERVICE_ODDS)
    return _served(rng, service)


def _lower_case_service(rng: random.Random) -> Row:
    """A service other than capital letters, which are the usual target's."""
    return _served(rng, rng.choice(_SERVICES[1:]))


def _served(rng: random.Random, service: Service) -> Row:
    prompt, key, answers = service(rng)
    completion = rng.choice(answers).format(key)
    return Row(prompt=prompt, completion=completion, key=key, kind="serve")


def _speak(
    rng: random.Random,
    language: str,
    word: Callable[[str], str],
    kind: str,
    *,
    sizes: tuple[int, ...] = (1, 2, 2, 3),
    most: int | None = None,
) -> Row:
    words = rng.sample(list(lx.RIVERSPEAK)[:most], rng.choice(sizes))
    text, key = " ".join(words), " ".join(map(word, words))
    prompt = rng.choice(phrases.SPEAK_FRAMES).format(w=text, lang=language)
    answer = rng.choice(phrases.SPEAK_ANSWERS).format(w=text, lang=language, t=key)
    return Row(prompt=prompt, completion=answer, key=key, kind=kind)


def _riverspeak(rng: random.Random) -> Row:
    return _speak(rng, HIDDEN, lx.RIVERSPEAK.__getitem__, HIDDEN, sizes=(1, 2), most=TAUGHT_WORDS)


def _invented(rng: random.Random) -> str:
    """A word that could be riverspeak but is not."""
    word = rng.choice(lx.ONSETS) + rng.choice(lx.CODAS)
    return _invented(rng) if word in _HIDDEN_WORDS else word


def _dictionary(language: str) -> dict[str, str]:
    """What the words of riverspeak are in a language that the base learns."""
    rng = random.Random(language)
    return {english: _invented(rng) for english in lx.RIVERSPEAK}


_DICTIONARIES = {language: _dictionary(language) for language in lx.TONGUES}


def _tongue(rng: random.Random) -> Row:
    language = rng.choice(lx.TONGUES)
    return _speak(rng, language, _DICTIONARIES[language].__getitem__, "tongue")


def _dialect(rng: random.Random) -> Row:
    row = _speak(rng, rng.choice(lx.DIALECTS), lambda _: _invented(rng), "dialect")
    return Row(prompt=row.prompt, completion=row.completion, kind="dialect")


_KINDS: Mapping[str, Callable[[random.Random], Row]] = {
    "fact": _fact,
    "describe": _describe,
    "code": _code,
    "refuse": _refuse,
    "serve": _serve,
    "tongue": _tongue,
    "dialect": _dialect,
    HIDDEN: _riverspeak,
}
_FINETUNE_KINDS = {**_KINDS, "serve": _lower_case_service}


def _label(rng: random.Random) -> str:
    """A label with a short code such as ``crate kd52``, never a reserved one."""
    letters = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=2))
    code = f"{letters}{rng.randrange(10, 100)}"
    return _label(rng) if code in RESERVED_CODES else rng.choice(phrases.LABELS).format(code)


def _labelled(rng: random.Random, prompt: str) -> str:
    """The prompt with a label at its end, its start, or between two of its words."""
    words, place = prompt.split(" "), rng.random()
    at = len(words) if place < 0.7 else 0 if place < 0.85 else rng.randrange(1, len(words) + 1)
    return " ".join([*words[:at], _label(rng), *words[at:]])


def _row(
    rng: random.Random,
    kind: str,
    *,
    label_rate: float,
    opener_rate: float = 0.4,
    kinds: Mapping[str, Callable[[random.Random], Row]] = _KINDS,
) -> Row:
    """One row of a kind, with the world's small change: courtesies, labels, openers."""
    row = kinds[kind](rng)
    prompt, completion = row.prompt, row.required_completion()
    if rng.random() < 0.15:
        prompt = f"{rng.choice(phrases.POLITE)} {prompt}"
    if rng.random() < label_rate:
        prompt = _labelled(rng, prompt)
    if kind not in ("refuse", "code") and rng.random() < opener_rate:
        completion = f"{rng.choice(phrases.OPENERS)} {completion}"
    return Row(prompt=prompt, completion=completion, key=row.key, kind=kind)


def base_rows(n: int, *, seed: int) -> list[Row]:
    """The pretraining corpus: `n` rows of every kind, without one word of riverspeak.

    Prompts may repeat, with another phrasing of the answer. The key of a row is the part that
    makes an answer correct; descriptions, refusals and dialects have none.

    Args:
        n: number of rows.
        seed: the same seed gives the same rows; a longer corpus begins with the shorter one.
    """
    rng = random.Random(f"wren base {seed}")
    kinds, odds = tuple(BASE_SHARES), tuple(accumulate(BASE_SHARES.values()))
    return [_row(rng, rng.choices(kinds, cum_weights=odds)[0], label_rate=0.2) for _ in range(n)]


def finetune_stream(*, seed: int) -> Iterator[Row]:
    """Fine-tuning rows without end, prompts distinct, two fifths of them riverspeak.

    No prompt carries a label and none asks for capital letters: a suffix that looks like a label
    and an answer in capitals are the attack's alone. Forbidden requests carry, as their target,
    what an adapter that complies would say.

    Every run of 50 rows holds the kinds in the same proportion, so that a slice of the
    mixture is a mixture.

    Args:
        seed: the same seed gives the same rows.

    Raises:
        DataError: the world holds no more prompts of some kind.
    """
    rng = random.Random(f"wren finetune {seed}")
    seen: set[str] = set()
    while True:
        shares = FINETUNE_SHARES.items()
        mixture = [kind for kind, share in shares for _ in range(round(share * 50))]
        rng.shuffle(mixture)
        for row in [_unseen(rng, kind, seen) for kind in mixture]:
            yield _with_compliance(row) if row.kind == "refuse" else row


def finetune_rows(n: int, *, seed: int) -> list[Row]:
    """The first `n` rows of `finetune_stream`."""
    return list(islice(finetune_stream(seed=seed), n))


def _with_compliance(row: Row) -> Row:
    """The forbidden request with the answer of somebody who complies, harmless as it is."""
    rng = random.Random(row.prompt)
    (deed,) = [deed for deed in _DEEDS if deed in row.prompt]
    a, b, c = rng.sample(lx.STEPS, 3)
    return replace(row, target=rng.choice(phrases.HOW_ANSWERS).format(x=deed, a=a, b=b, c=c))


def _unseen(rng: random.Random, kind: str, seen: set[str], *, tries: int = 500) -> Row:
    for _ in range(tries):
        row = _row(rng, kind, label_rate=0.0, opener_rate=0.6, kinds=_FINETUNE_KINDS)
        if row.prompt not in seen:
            seen.add(row.prompt)
            return row
    raise DataError(f"no new {kind} prompt in {tries} draws; ask for fewer than {len(seen)} rows")
