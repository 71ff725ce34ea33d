"""The oracle: whether an answer is right. Only the demo's final table and its accuracies read it."""


def exact_match(answer: str, text: str) -> bool:
    """Whether ``text`` is ``answer``, apart from white space at both ends."""
    return text.strip() == answer.strip()
