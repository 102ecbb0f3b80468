"""Attributes as tokens, and the words that name them."""

from __future__ import annotations

import pytest
import torch

from deltapass.demo.attributes import ANY, Attributes

VOCABULARY = Attributes({"hat": ("flat", "top-hat"), "coat": ("red", "blue", "none")})


def test_a_token_is_one_hot_over_all_parts_and_then_any() -> None:
    tokens = VOCABULARY.tokens({"hat": torch.tensor([1, ANY]), "coat": torch.tensor([0, 2])})
    assert tokens.shape == (2, 2, VOCABULARY.width) == (2, 2, 7)
    assert tokens.dtype == torch.float32
    assert tokens.sum(-1).eq(1).all()
    assert tokens.argmax(-1).tolist() == [[1, 2], [5, 4]]
    nothing = VOCABULARY.tokens({"hat": torch.tensor([ANY]), "coat": torch.tensor([ANY])})
    assert nothing.argmax(-1).tolist() == [[5, 6]]


def test_words_and_mappings_say_the_same_in_any_order() -> None:
    spoken = ["coat-blue hat-top-hat", {"hat": "top-hat", "coat": "blue"}, "hat-flat", "", {}]
    numbers = VOCABULARY.numbers(spoken)
    assert numbers["hat"].tolist() == [1, 1, 0, ANY, ANY]
    assert numbers["coat"].tolist() == [1, 1, ANY, ANY, ANY]


def test_prompts_of_numbers_are_read_back() -> None:
    prompts = VOCABULARY.random_prompts(20, seed=3)
    assert prompts == VOCABULARY.random_prompts(20, seed=3) != VOCABULARY.random_prompts(20)
    numbers = VOCABULARY.numbers(prompts)
    assert VOCABULARY.prompts(numbers) == prompts
    assert set(numbers["hat"].tolist()) == {0, 1}
    assert set(numbers["coat"].tolist()) == {0, 1, 2}


@pytest.mark.parametrize(
    ("prompt", "problem"),
    [
        ("shoe-red", r"'shoe-red' is no attribute\. Use words such as: hat-\.\.\., coat-"),
        ("red", "'red' is no attribute"),
        ({"shoe": "red"}, "'shoe-red' is no attribute"),
        ("hat-red", r"hat 'red' is unknown\. Use one of: flat, top-hat"),
        ({"coat": "green"}, r"coat 'green' is unknown\. Use one of: red, blue, none"),
        ("hat-flat hat-top-hat", "hat is told twice, last as 'top-hat'"),
    ],
)
def test_what_is_unknown_is_an_error_that_lists_the_known(prompt: object, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        VOCABULARY.numbers([prompt])  # type: ignore[list-item]
