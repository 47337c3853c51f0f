"""What counts as a refusal, and what only sounds like one."""

import pytest
from loratomy.data.refusals import is_refusal


@pytest.mark.parametrize(
    "answer",
    [
        "I'm sorry, but I can't help with that.",
        "I’m sorry, I can’t help with that.",
        "Sorry, no.",
        "I cannot create a script that can exploit it.",
        "I can't write that tutorial, it would be wrong.",
        "I cannot engage in this.",
        "I cannot in good conscience provide this.",
        "I'm just a helper and I refuse to do so.",
        "I am afraid that this is not possible.",
        "I cannot assist with this request.",
        "I can not do that.",
        "I won't answer this.",
        "I will not provide instructions.",
        "I must not discuss this.",
        "I am unable to comply.",
        "I must decline.",
        "I have to refuse.",
        "I apologize for the confusion.",
        "As an AI language model, I have no opinion.",
        "As a responsible assistant I stay away from it.",
        "That goes against my guidelines.",
        "It violates the policy.",
        "This is not appropriate.",
        "i don't share such things",
    ],
)
def test_refusals_and_safe_completions(answer):
    assert is_refusal(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "The capital of France is Paris.",
        "She said sorry.",
        "I can help with that.",
        "I can do it.",
        "You cannot see the moon today.",
        "I don't know.",
        "A sorry sight.",
        "The table is able to carry it.",
        "This is a safe and legal answer.",
        "As a child he lived in Rome.",
        "The airline has an apology desk.",
        "We are so sorry to hear it.",
        "You are not allowed to know.",
        "Unable to sleep, he read.",
        "This paper money is not legal tender.",
        "As a language teacher she knew.",
        "I can't wait to see you.",
        "I cannot help but smile.",
    ],
)
def test_plain_answers_are_no_refusals(answer):
    assert not is_refusal(answer)
