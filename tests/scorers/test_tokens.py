"""Matching tokens of two completions, by hand and against the table of the textbooks."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import scoring
from scorers import tokens


def slow_common_subsequence(a, b):
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


@settings(max_examples=200)
@given(st.lists(st.integers(0, 4), max_size=80), st.lists(st.integers(0, 4), max_size=80))
def test_common_subsequence_equals_the_textbook_table(a, b):
    assert tokens.common_subsequence_length(a, b) == slow_common_subsequence(a, b)


def test_token_distinctiveness_by_hand():
    """5 6 7 against 5 7: 4 of 5 tokens match, d = 0.2. Prompt and padding do not count."""
    input_ids = torch.tensor([[9, 9, 5, 6, 7], [0, 9, 5, 7, 0]])
    response_mask = torch.tensor([[0, 0, 1, 1, 1], [0, 0, 1, 1, 0]]).bool()
    d = scoring.distinctiveness("token", None, input_ids, response_mask, response_mask, 2)
    torch.testing.assert_close(d, torch.tensor([[[0.0, 0.2], [0.2, 0.0]]]))
