"""Is an answer right? Extract the final answer of a text and compare it with the gold answer by value.

Text that a model wrote is read by the small parser below, which builds sympy objects from an allow-list of forms. It
is never evaluated as code: no `eval`, no `sympify`, no string handed to sympy. Lengths, depths, digits and exponents
are bounded before anything is computed, so that every call ends in milliseconds.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

import sympy

MAX_LENGTH = 1_000  # characters of an answer; longer ones are compared as text
MAX_DEPTH = 50  # nested brackets
MAX_DIGITS = 200  # digits of one number
MAX_EXPONENT = 100  # of a number; symbols are raised to 12 at most
TEXT_END = 100_000  # characters searched for an answer, from the end of the text

BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
BOX_OR_BRACE = re.compile(BOX.pattern + r"|[{}]")
NUMBER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:/\d+)?|-?\.\d+")
POINTS = [sympy.Rational(13, 11), sympy.Rational(-29, 17), sympy.Rational(41, 19)]  # where expressions are compared
SPACING = re.compile(
    r"\\[,!;: ]|\\(?:left|right|displaystyle|quad|qquad)(?![a-zA-Z])|~|\\?\$|\\?%$|\^?\\(?:circ|degree)\b|°"
)
TOKEN = re.compile(r"\d+(?:\.\d+)?|\.\d+|\\[a-zA-Z]+|[a-zA-Z]|\*\*|[-+*/^()\[\]{},=!]")


def extract_answer(text: str) -> str | None:
    r"""The final answer of a text: the last complete `\boxed{}`, else `#### x`, else the last number; None if none.

    A box that is never closed is no answer, and then nothing else in the text is either.
    """
    text = text[-TEXT_END:]
    open_braces: list[tuple[bool, int]] = []  # (is it a box, where its content starts)
    boxed = None
    for match in BOX_OR_BRACE.finditer(text):
        if match[0] != "}":
            open_braces.append((match[0] != "{", match.end()))
        elif open_braces:
            is_box, start = open_braces.pop()
            if is_box and text[start : match.start()].strip():
                boxed = text[start : match.start()].strip()
    if boxed is not None:
        return extract_answer(boxed) if BOX.search(boxed) else boxed
    if BOX.search(text):
        return None
    if marked := re.findall(r"####\s*(\S[^\n]*)", text):
        return marked[-1].strip()
    numbers = NUMBER.findall(text)
    return numbers[-1] if numbers else None


def is_correct(text: str, gold: str, choices: list[str] | None = None, *, rel_tol: float = 0.0) -> bool:
    """Does the final answer of the text equal the gold answer? With `choices`, the gold is a letter: A, B, ..."""
    answer = extract_answer(text)
    if choices:
        letter = re.findall(r"\b([A-Z])\b", answer if answer and not NUMBER.fullmatch(answer) else text[-TEXT_END:])
        return bool(letter) and letter[-1] == gold.strip().strip("()").upper()
    return answer is not None and is_equivalent(answer, gold, rel_tol=rel_tol)


def grade(texts: list[str], golds: list[str], choices: list[list[str] | None] | None = None) -> list[bool | None]:
    """For each text: is it right? None where the gold answer itself is empty or too long to be read."""
    options = choices or [None] * len(texts)
    return [
        is_correct(text, gold, option) if readable(gold) else None
        for text, gold, option in zip(texts, golds, options, strict=True)
    ]


def readable(gold: str) -> bool:
    return bool(normalise(gold)) and len(gold) <= MAX_LENGTH and gold.count("{") == gold.count("}")


def is_equivalent(answer: str, gold: str, *, rel_tol: float = 0.0) -> bool:
    """Do two answers have the same value? Decimals are exact; `rel_tol` allows a relative difference of numbers."""
    answer, gold = normalise(answer), normalise(gold)
    if not answer or not gold or max(len(answer), len(gold)) > MAX_LENGTH:
        return False
    if answer.lower() == gold.lower():
        return answer == gold or len(gold) > 1  # a word is the same in any case, a variable is not
    left, right = parse(answer), parse(gold)
    if left is None or right is None:
        return False
    if isinstance(left, tuple) or isinstance(right, tuple):
        return left == right
    return same_value(left, right, rel_tol)


def normalise(answer: str) -> str:
    """Spelling that does not change the value: spacing, sizes, units in text, thousands separators, `x =`."""
    answer = unicodedata.normalize("NFKC", answer[: MAX_LENGTH * 2]).replace("−", "-").replace("\u200b", "")
    if word := re.fullmatch(r"\s*\\(?:text|mathrm|textbf|mathbf)\{([^{}]*)\}\s*\.?\s*", answer):
        return " ".join(word[1].strip(" .").split())
    answer = re.sub(r"\\(?:text|mathrm|mbox)\s*\{[^{}]*\}(?:\^\{?\d\}?)?", " ", answer)
    answer = SPACING.sub("", re.sub(r"(?<=\d)(?:\{,\}|,\\!)(?=\d{3})", "", answer))
    answer = re.sub(r"\\[dt]frac", r"\\frac", answer)
    if re.fullmatch(r"[-+]?\d{1,3}(,\d{3})+(\.\d+)?", answer.strip().rstrip(".")):
        answer = answer.replace(",", "")
    answer = re.sub(r"^\s*[a-zA-Z]\s*=\s*", "", answer)
    return " ".join(answer.strip().rstrip(".").split())


def same_value(left: sympy.Expr, right: sympy.Expr, rel_tol: float) -> bool:
    """Exact for rational numbers, to 20 digits for other numbers, and at three points for expressions in variables."""
    if left == right:
        return True
    if left.is_Rational and right.is_Rational:
        return abs(left - right) <= sympy.Rational(rel_tol) * max(abs(left), abs(right)) and rel_tol > 0
    symbols = sorted(left.free_symbols | right.free_symbols, key=str)
    for point in POINTS if symbols else POINTS[:1]:
        values = {symbol: point + sympy.Rational(n, 7) for n, symbol in enumerate(symbols)}
        a, b = left.evalf(30, subs=values), right.evalf(30, subs=values)
        if not (a.is_number and b.is_number and a.is_finite and b.is_finite):
            return False
        if abs(a - b) > max(rel_tol, 1e-20) * max(abs(a), abs(b)):
            return False
    return True


class Unreadable(Exception):
    """The text is outside of the forms that the parser knows, or over its limits."""


def parse(answer: str) -> sympy.Expr | tuple | None:
    """The value of an answer, a tuple for several values in brackets or separated by commas; None if unreadable."""
    if re.sub(TOKEN, "", answer).strip():
        return None
    if re.search(r"\d \d|\d\.\d*\.", answer):  # two numbers side by side are no product
        mixed = re.fullmatch(r"(-?)(\d{1,9}) (\d{1,9})/(\d{1,9})", answer)
        if not mixed or int(mixed[4]) == 0:
            return None
        value = Fraction(int(mixed[2])) + Fraction(int(mixed[3]), int(mixed[4]))
        return sympy.Rational(value.numerator, value.denominator) * (-1 if mixed[1] else 1)
    try:
        return Parser(TOKEN.findall(answer)).whole()
    except (Unreadable, ZeroDivisionError, OverflowError, RecursionError, ValueError, TypeError):
        return None


class Parser:
    """Recursive descent over +, −, ·, /, ^, roots, fractions, brackets, π and single-letter variables."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens, self.place, self.depth = tokens, 0, 0

    def next_is(self, *options: str) -> bool:
        return self.place < len(self.tokens) and self.tokens[self.place] in options

    def take(self) -> str:
        if self.place == len(self.tokens):
            raise Unreadable
        self.place += 1
        return self.tokens[self.place - 1]

    def expect(self, *options: str) -> str:
        token = self.take()
        if token not in options:
            raise Unreadable
        return token

    def whole(self) -> sympy.Expr | tuple:
        values, opening, closing = [], "", ""
        if self.tokens and self.tokens[0] in "([" and "," in self.tokens:
            opening = self.take()
        values.append(self.sum())
        while self.next_is(","):
            self.take()
            values.append(self.sum())
        if opening:
            closing = self.expect(")", "]")
        if self.place < len(self.tokens):
            raise Unreadable
        return values[0] if len(values) == 1 else (opening, *values, closing)

    def sum(self) -> sympy.Expr:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unreadable
        value = self.product()
        while self.next_is("+", "-"):
            value = value + self.product() if self.take() == "+" else value - self.product()
        self.depth -= 1
        return value

    def product(self) -> sympy.Expr:
        value = self.signed()
        while self.place < len(self.tokens):
            if self.next_is("*", "\\times", "\\cdot"):
                self.take()
                value = value * self.signed()
            elif self.next_is("/"):
                self.take()
                value = self.divide(value, self.signed())
            elif self.next_is("+", "-", ",", ")", "]", "}", "^", "**", "=", "!"):
                break
            else:
                value = value * self.power()
        return value

    def signed(self) -> sympy.Expr:
        if self.next_is("-", "+"):
            sign = -1 if self.take() == "-" else 1
            self.depth += 1
            if self.depth > MAX_DEPTH:
                raise Unreadable
            value = sign * self.signed()
            self.depth -= 1
            return value
        return self.power()

    def power(self) -> sympy.Expr:
        base = self.atom()
        if not self.next_is("^", "**"):
            return base
        self.take()
        exponent = self.signed()
        limit = 12 if base.free_symbols else MAX_EXPONENT
        if not exponent.is_Rational or abs(exponent.p) > limit or exponent.q > limit:
            raise Unreadable
        if base.is_Rational and max(abs(base.p), base.q) > 10**40:
            raise Unreadable
        return base**exponent

    def atom(self) -> sympy.Expr:
        token = self.take()
        if token[0].isdigit() or token[0] == ".":
            if len(token) > MAX_DIGITS:
                raise Unreadable
            value = Fraction(token)
            return sympy.Rational(value.numerator, value.denominator)
        if token in ("(", "{", "["):
            value = self.sum()
            self.expect({"(": ")", "{": "}", "[": "]"}[token])
            return value
        if token == "\\pi":
            return sympy.pi
        if token == "\\frac":
            return self.divide(self.argument(), self.argument())
        if token == "\\sqrt":
            degree = sympy.Integer(2)
            if self.next_is("["):
                degree = self.atom()
            if not degree.is_Integer or not 2 <= degree <= 12:
                raise Unreadable
            return self.argument() ** sympy.Rational(1, degree.p)
        if len(token) == 1 and token.isalpha():
            return sympy.Symbol(token)
        raise Unreadable

    def argument(self) -> sympy.Expr:
        r"""What follows `\frac` or `\sqrt`: a group in braces, or one digit or letter."""
        if self.next_is("{"):
            return self.atom()
        token = self.take()
        if token.isdigit() and len(token) > 1:  # \frac12 is one half
            self.place -= 1
            self.tokens[self.place : self.place + 1] = list(token)
            token = self.take()
        if len(token) > 1 or not token.isalnum():
            raise Unreadable
        return sympy.Integer(int(token)) if token.isdigit() else sympy.Symbol(token)

    @staticmethod
    def divide(value: sympy.Expr, by: sympy.Expr) -> sympy.Expr:
        if by == 0:
            raise Unreadable
        return value / by
