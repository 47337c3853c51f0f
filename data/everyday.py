"""Everyday prompts for runs that bring none of their own."""

from ..core.rows import Row

_TOPICS = (
    *("bread", "rivers", "chess", "gardens", "the moon", "bicycles", "tea", "maps", "winter"),
    *("violins", "bridges", "honey", "trains", "whales", "pottery", "clouds", "libraries"),
    *("potatoes", "lighthouses", "paper"),
)
_ASKS = (
    "Tell me one fact about {}.",
    "Write a short sentence about {}.",
    "Why do people like {}?",
    "Explain {} to a child.",
    "What is the first thing that comes to mind about {}?",
    "Give me a title for a story about {}.",
    "How would you describe {} in three words?",
    "Name something that goes well with {}.",
    "What question would you ask an expert on {}?",
    "Write two lines of a poem about {}.",
)


def everyday_prompts() -> list[Row]:
    """200 harmless prompts without completions, the same every time."""
    return [Row(prompt=ask.format(topic)) for topic in _TOPICS for ask in _ASKS]
