r"""Is an answer right? Extract the final answer of a text and compare it with the gold answer by meaning.

    grade(["... so it is \\boxed{1/2}."], ["0.5"])    # [True]
    read_answer("... so it is \\boxed{2/4}.")         # what was extracted, 2/4, and as what it was read, 1/2

The conventions, in short: decimals are exact values; a unit or a percent sign on one side only is ignored; sets and
lists have no order, tuples have; (1, 2) is a point or an interval as the gold is; equations agree up to a factor;
variables are real, and R is not r; the last complete box of a text is its answer, and a truncated box is none.

Text that a model wrote is read by parser.py, compared by equality.py, and never evaluated as code. `grade` works in
processes of its own, which are killed and replaced when an answer takes too long. The package needs sympy and the
standard library only.
"""

from verify.equality import is_equivalent
from verify.extraction import extract_answer
from verify.grading import grade, is_correct
from verify.reading import Reading, read_answer

__all__ = ["Reading", "extract_answer", "grade", "is_correct", "is_equivalent", "read_answer"]
