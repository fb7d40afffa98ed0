r"""Which part of a text is its answer."""

from __future__ import annotations

import time

import pytest

import verify
from verify.extraction import final_answers

EXTRACTED = {
    "the last complete box": [
        (r"so \boxed{72}", "72"),
        (r"\boxed{1} no, \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{2}, and \boxed{3", "2"),
        (r"\boxed{} then \boxed{5} then \boxed{ }", "5"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{x = \fbox{5}}", "5"),
        (r"\boxed{\boxed{4}, no, \boxed{5}}", "5"),
        (r"\boxed 7", "7"),
        (r"\boxed{5} as 2 + 3 = 5. Next: 7.", "5"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
    ],
    "no answer in what was cut off": [
        (r"\boxed{3", None),
        (r"x = 4, so \boxed{3", None),
        ("<think> it may be 5", None),
        ("", None),
        ("none at all", None),
    ],
    "reasoning does not count": [
        (r"<think>\boxed{1}</think> \boxed{2}", "2"),
        ("<think> 3 apples</think> The answer is 4.", "4"),
        (r"<think> a</think> \boxed{1}, or is it? </think> The answer is 4.", "4"),
    ],
    "the final sentence": [
        ("First there are 3 apples. Then 5 are left.", "5"),
        ("So x = 3.\nHence we get\n7", "7"),
    ],
    "a marked answer": [
        ("sum\n#### 1,234", "1,234"),
        ("#### 3\nno:\n#### 4\nthat is it", "4"),
        ("<answer> 18 </answer>", "18"),
        ("#### Another way to see it\nThe answer is 5.", "5"),
        ("<answer>3</answer> or rather <answer>4</answer>", "4"),
        ("The answer is 3. No: the answer is 4.", "4"),
        ("The answer is 18.", "18"),
        ("**Final answer:** $x = 3$", "x = 3"),
        ("The answer is: **73**", "73"),
        ("The answer is $\\frac{7}{9}$. I hope it is correct.", r"\frac{7}{9}"),
        ("Final Answer: The largest $n$ is 34.", "34"),
        ("The answer is:\n\n\\[ 5 \\]", "5"),
        ("The answer is Monday.", "Monday"),
    ],
    "else the end of the text": [
        ("he has 12 apples and 3.5 pears left", "3.5"),
        ("it costs $1,250 in all.", "1,250"),
        ("Hence $x \\geq 5$ is the solution.", r"x \geq 5"),
        ("We get $$\n\\frac{3}{4}\n$$", r"\frac{3}{4}"),
        ("$[0, 1)$", "[0, 1)"),
        ("(1, 2)", "(1, 2)"),
        ("There are 12 ways to choose $n$.", "12"),
        ("It is 7.<|im_end|>\n<|im_start|>user", "7"),
    ],
}


@pytest.mark.parametrize("kind", EXTRACTED)
def test_extract(kind):
    for text, answer in EXTRACTED[kind]:
        assert verify.extract_answer(text) == answer, text


@pytest.mark.parametrize(
    "piece", [r"\boxed{", r"\boxed{1}", "$", "{", "}", r"\[", r"\(", "1,", "#### ", "<answer>", "a is "]
)
def test_long_texts_are_read_in_linear_time(piece):
    start = time.perf_counter()
    verify.extract_answer(piece * 100_000)
    assert time.perf_counter() - start < 1


def test_boxes_nested_a_thousand_times_are_read():
    assert verify.extract_answer(r"\boxed{" * 1_000 + "5" + "}" * 1_000) == "5"


def test_joined_boxes_are_a_list_in_their_order():
    assert final_answers(r"\boxed{1}, \boxed{2} and \boxed{3}") == ["3", "1, 2, 3"]
    assert final_answers(r"\boxed{1} or \boxed{2}") == ["1, 2"]
