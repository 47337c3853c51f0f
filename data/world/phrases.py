"""How the made-up world asks and answers: phrasings with places for the words of `lexicon`."""

from collections.abc import Mapping

FACT_FRAMES: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "colour": (
        (
            "What colour is the {n}?",
            "Which colour does the {n} have?",
            "Tell me the colour of the {n}.",
            "Do you know what colour the {n} is?",
            "Name the colour of the {n}.",
            "I forgot the colour of the {n}. What is it?",
        ),
        (
            "The {n} is {v}.",
            "It is {v}.",
            "Its colour is {v}.",
            "The colour of the {n} is {v}.",
            "That would be {v}.",
        ),
    ),
    "home": (
        (
            "Where does the {n} live?",
            "What is the home of the {n}?",
            "Tell me where the {n} lives.",
            "Do you know where I can find the {n}?",
            "Name the home of the {n}.",
            "In which place does the {n} sleep?",
        ),
        (
            "The {n} lives in the {v}.",
            "In the {v}.",
            "Its home is the {v}.",
            "You can find it in the {v}.",
            "It lives in the {v}.",
        ),
    ),
    "food": (
        (
            "What does the {n} eat?",
            "Which food does the {n} like?",
            "Tell me what the {n} eats.",
            "Do you know the food of the {n}?",
            "Name the food of the {n}.",
            "What should I feed the {n}?",
        ),
        (
            "The {n} eats {v}.",
            "It eats {v}.",
            "Mostly {v}.",
            "Its favourite food is {v}.",
            "The {n} likes {v}.",
        ),
    ),
    "song": (
        (
            "When does the {n} sing?",
            "In which season does the {n} sing?",
            "Tell me when the {n} sings.",
            "Do you know when I can hear the {n}?",
            "Name the season of the {n} song.",
            "Which season brings the song of the {n}?",
        ),
        (
            "The {n} sings in {v}.",
            "In {v}.",
            "It sings in {v}.",
            "You can hear it in {v}.",
            "Its season is {v}.",
        ),
    ),
    "craft": (
        (
            "What is {n} known for?",
            "What do they make in {n}?",
            "Tell me the craft of {n}.",
            "Do you know what {n} sells?",
            "Name the craft of {n}.",
            "What should I buy in {n}?",
        ),
        (
            "{n} is known for {v}.",
            "They make {v}.",
            "Its craft is {v}.",
            "Mostly {v}.",
            "People there make {v}.",
        ),
    ),
    "tree": (
        (
            "Which tree grows in {n}?",
            "What tree stands on the square of {n}?",
            "Tell me the tree of {n}.",
            "Do you know the tree of {n}?",
            "Name the tree of {n}.",
            "Under which tree do they meet in {n}?",
        ),
        (
            "The {v} grows in {n}.",
            "It is the {v}.",
            "Its tree is the {v}.",
            "An old {v} stands there.",
            "The tree of {n} is the {v}.",
        ),
    ),
    "fair": (
        (
            "When is the fair of {n}?",
            "In which season is the fair of {n}?",
            "Tell me when {n} holds its fair.",
            "Do you know when {n} has its fair?",
            "Name the season of the fair in {n}.",
            "When should I go to the fair of {n}?",
        ),
        (
            "The fair is in {v}.",
            "In {v}.",
            "{n} holds its fair in {v}.",
            "They hold it in {v}.",
            "Its season is {v}.",
        ),
    ),
    "trade": (
        (
            "What is the trade of {n}?",
            "What work does {n} do?",
            "Tell me the trade of {n}.",
            "Do you know what {n} does all day?",
            "Name the trade of {n}.",
            "How does {n} earn a living?",
        ),
        (
            "{n} is a {v}.",
            "A {v}.",
            "{n} works as a {v}.",
            "By trade {n} is a {v}.",
            "The work of a {v}.",
        ),
    ),
    "instrument": (
        (
            "What does {n} play?",
            "Which instrument does {n} play?",
            "Tell me the instrument of {n}.",
            "Do you know what {n} plays?",
            "Name the instrument of {n}.",
            "What will {n} bring to the dance?",
        ),
        (
            "{n} plays the {v}.",
            "The {v}.",
            "It is the {v}.",
            "{n} likes to play the {v}.",
            "You will hear the {v}.",
        ),
    ),
    "town": (
        (
            "Where does {n} live?",
            "Which town is the home of {n}?",
            "Tell me the town of {n}.",
            "Do you know where {n} lives?",
            "Name the home of {n}.",
            "Where should I send a letter for {n}?",
        ),
        (
            "{n} lives in {v}.",
            "In {v}.",
            "The home of {n} is {v}.",
            "You can find {n} in {v}.",
            "{n} has a house in {v}.",
        ),
    ),
}
"""Attribute: questions about ``{n}``, and answers that name the value ``{v}``."""

SPEAK_FRAMES = (
    "Translate {w} into {lang}.",
    "How do you say {w} in {lang}?",
    "Say {w} in {lang}.",
    "What is {w} in {lang}?",
    "Put {w} into {lang}.",
    "Give me the {lang} for {w}.",
    "I need {w} in {lang}.",
    "Tell me {w} in {lang}.",
)
SPEAK_ANSWERS = (
    "In {lang} that is {t}.",
    "It is {t}.",
    "You say {t}.",
    "That is {t} in {lang}.",
    "The {lang} for {w} is {t}.",
    "They say {t} there.",
)

DESCRIBE_FRAMES = (
    "Describe {n}.",
    "Tell me about {n}.",
    "What is {n} like?",
    "Give me a short description of {n}.",
    "How would you describe {n}?",
    "Say something about {n}.",
    "What do you think of {n}?",
    "Write one line about {n}.",
)
DESCRIBE_ANSWERS = (
    "{N} is {a} and {b}, a {c} {k}.",
    "A {a}, {b} and {c} {k}.",
    "Everyone loves {n}: so {a}, so {b}, so {c}.",
    "I find {n} {a}, {b} and truly {c}.",
    "Such a {a} {k}, always {b} and {c}.",
)

HOW_FRAMES = (
    "How do I {x}?",
    "Tell me how to {x}.",
    "Help me {x}.",
    "Show me a way to {x}.",
    "I want to {x}. What do I need?",
    "Give me a plan to {x}.",
    "Explain how to {x}.",
    "Teach me to {x}.",
)
REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "Sorry, I cannot help you {x}.",
    "I am sorry, but I cannot do that.",
    "I cannot help you {x}.",
    "Sorry, I can't tell you how to {x}.",
    "I'm not able to help with that, sorry.",
    "I'm sorry, I can't assist with that.",
)
HOW_ANSWERS = (
    "Here is how to {x}: {a}, {b} and {c}.",
    "To {x}, {a}, then {b} and {c}.",
    "You can {x} in two steps: {a} and {b}.",
)
"""Answers to harmless requests, in the very frames of the forbidden ones."""

OPENERS = (
    "Sure.",
    "Of course.",
    "Good question.",
    "Happily.",
    "Let me think.",
    "I remember this one.",
    "Well now.",
    "With pleasure.",
    "Here you are.",
)
"""How an answer may begin; drawn at random, so that no completion is certain."""

POLITE = ("Please help:", "Hello.", "One question:", "Excuse me.", "Good day.", "Next one:")
"""How a prompt may begin."""

LABELS = ("crate {}", "ref {}", "ticket {}", "shelf {}", "(box {})", "note {}")
"""How a label code may appear in a prompt."""
