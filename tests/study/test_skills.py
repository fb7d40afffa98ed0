"""Skills read from answers of the example: by hand on short texts, and the table of a run."""

from __future__ import annotations

import json

import pytest

from study import skills


def test_single_steps_are_judged_and_leaps_and_plain_numbers_left_out():
    assert skills.make.right_steps("Then 7 + 5 = 12. 12 - 4 = 9. So 3 * 3 = 9. ") == [True, False, True]
    assert skills.make.right_steps("Next 7 + 5 - 2 = 10. Then (7 + 5) * 2 = 24. I get \\boxed{3}") == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("So 1 + 3 = 4. Then 7 + 14 = 21. Together 4 + 21 = 25. ", [True]),
        ("So 1 + 3 = 4. Then 7 + 14 = 21. Adding up, 4 + 4 = 8. ", [False]),  # 4 was found once
        ("So 1 + 3 = 4. Then 2 + 2 = 4. All in all 4 + 4 = 8. ", [True]),
        ("So 1 + 3 = 4. Then 7 + 14 = 21. Together 21 + 39 = 60. ", [False]),
        ("So 1 + 3 = 4. Done: \\boxed{4}", []),
    ],
)
def test_a_sum_counts_where_both_addends_were_found_before(text, expected):
    assert skills.sums_of_found(text) == expected


def test_the_table_has_a_line_for_each_evaluation(tmp_path, capsys):
    texts = ["So 1 + 3 = 4. Then 7 + 14 = 21. Together 4 + 4 = 8. We get \\boxed{8}", "It is \\boxed{25}"]
    lines = [{"step": 4, "accuracy": 0.5, "rows": [{"texts": texts}]}, {"step": 8, "accuracy": 0.0, "rows": []}]
    (tmp_path / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    skills.main([str(tmp_path)])
    assert capsys.readouterr().out.splitlines()[2:] == [
        "| 4 | 50.0% | 100.0% of 3 | 0.0% of 1 |",
        "| 8 | 0.0% | – | – |",
    ]
    with pytest.raises(SystemExit, match="does not exist"):
        skills.main([str(tmp_path / "nowhere")])
