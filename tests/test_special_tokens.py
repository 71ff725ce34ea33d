"""Special tokens of known models, as text may spell them."""

import pytest

from gavel.special_tokens import FAMILIES, OTHER, defused, special_tokens


def test_every_named_token_is_found_and_is_one_that_gavel_defuses() -> None:
    for family, tokens in FAMILIES.items():
        for token in tokens:
            assert special_tokens(f"a {token}{token} b") == {(family, token): 2}, token
            assert token not in defused(token), token


@pytest.mark.parametrize(
    "text", ["", "a < b | c > d", "[INST", "x <b>bold</b> |> y", "<| not one |>", "a[0] <= b[1]"]
)
def test_plain_text_holds_no_special_tokens(text: str) -> None:
    assert not special_tokens(text)


def test_tokens_of_unknown_families_are_found_by_their_shape() -> None:
    assert special_tokens("<|new_token|> <｜新｜>") == {(OTHER, "<|new_token|>"): 1, (OTHER, "<｜新｜>"): 1}
