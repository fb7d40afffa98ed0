r"""Read one expression, a number or a formula in variables, into sympy objects.

A recursive-descent parser over an allow-list of forms. It builds sympy objects itself: nothing is evaluated as code,
and no string is handed to sympy. Digits, powers, factorials, sums and depth are bounded before sympy computes
anything, so that every expression is read, or refused, in milliseconds.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from fractions import Fraction

import sympy
from sympy.matrices.matrixbase import MatrixBase

from verify.text import GREEK, Unreadable, matching, split

MAX_DEPTH = 60  # nested brackets
MAX_DIGITS = 4_000  # of a number; Python refuses to read more than 4,300
MAX_POWER_BITS = 20_000  # bits of a number that a power may have
MAX_BITS = 50_000  # of a sum or product
MAX_ROOT_BITS = 100  # of a number whose root is no whole number: sympy looks for its factors
MAX_FACTORIAL = 3_000
MAX_FUNCTIONS = 4  # inside of each other: ln(ln(sin(x)))
MAX_TERMS = 200  # of a sum or product
MAX_CELLS = 400  # of a matrix

DEGREE = sympy.Symbol("degree")  # π/180 inside of trigonometry, else a unit
ANY_INTEGER = sympy.Symbol("integer", integer=True)  # n in π/4 + nπ
UNIT_VECTORS = tuple(sympy.Symbol(f"vector {name}") for name in "ijk")

FUNCTIONS: dict[str, Callable[[sympy.Expr], sympy.Expr]] = {
    r"\sin": sympy.sin, r"\cos": sympy.cos, r"\tan": sympy.tan, r"\cot": sympy.cot, r"\sec": sympy.sec,
    r"\csc": sympy.csc, r"\arcsin": sympy.asin, r"\arccos": sympy.acos, r"\arctan": sympy.atan,
    r"\arccot": sympy.acot, r"\sinh": sympy.sinh, r"\cosh": sympy.cosh, r"\tanh": sympy.tanh, r"\ln": sympy.log,
    r"\exp": sympy.exp, r"\log": sympy.log, r"\lg": sympy.log, r"\abs": sympy.Abs, r"\floor": sympy.floor,
    r"\ceil": sympy.ceiling, r"\cis": lambda angle: sympy.cos(angle) + sympy.I * sympy.sin(angle),
}  # fmt: skip
OF_ANY_SIZE = {r"\ln", r"\log", r"\lg", r"\exp", r"\abs"}  # the others need as many digits of π as their argument has
INVERSE = {
    r"\sin": sympy.asin, r"\cos": sympy.acos, r"\tan": sympy.atan, r"\cot": sympy.acot, r"\sec": sympy.asec,
    r"\csc": sympy.acsc, r"\sinh": sympy.asinh, r"\cosh": sympy.acosh, r"\tanh": sympy.atanh,
}  # fmt: skip
APPLIED = {"f", "F", r"\phi", r"\varphi", r"\psi"}  # f(2x) is no product
APPLIED_TO_ONE = {"g", "G", "h", "H", "p", "P"}  # of a single letter or number; g(1 + x) may be a product
OF_SEVERAL = {r"\gcd": sympy.gcd, r"\lcm": sympy.lcm, r"\max": sympy.Max, r"\min": sympy.Min}
ENDS = {
    "+", "-", "*", "/", ",", ")", "]", "}", "\\}", "^", "=", "!", "!!", "|", r"\rangle", r"\rfloor", r"\rceil", "&",
    "%", ":", r"\over", r"\choose", r"\mod",
}  # fmt: skip


def rational(value: Fraction) -> sympy.Expr:
    return sympy.Rational(value.numerator, value.denominator)


def expression(tokens: list[str]) -> sympy.Expr:
    """A number, an expression in variables, or a sympy matrix. Raises Unreadable."""
    parser = Parser(tokens)
    value = parser.fraction()
    if parser.place != len(parser.tokens) or value.has(sympy.nan, sympy.zoo):
        raise Unreadable
    return value.subs(DEGREE, 1)


def power_of(base: sympy.Expr, exponent: sympy.Expr) -> sympy.Expr:
    """base^exponent where its value, also at any point where expressions are compared, is small enough to compute."""
    if isinstance(base, MatrixBase):
        return matrix_power(base, exponent)
    if base.is_Rational and exponent.is_Rational and exponent.q > 1:
        return power_of(root_of(base, int(exponent.q)), sympy.Integer(exponent.p))
    if base.is_Rational and exponent.is_Rational:
        bits = max(abs(base.p).bit_length(), base.q.bit_length())
        if abs(exponent.p) * bits > MAX_POWER_BITS or (base == 0 and exponent <= 0):
            raise Unreadable
    elif base.is_number and exponent.is_number:
        size = max(abs(complex(base.evalf(15))), 1 / abs(complex(base.evalf(15))))
        if abs(complex(exponent.evalf(15))) * math.log2(size + 1) > MAX_POWER_BITS:
            raise Unreadable
    elif exponent.is_Rational:
        if abs(exponent.p) > 200 or exponent.q > 100:
            raise Unreadable
    elif tower_height(exponent) > 0 or exponent.has(sympy.factorial, sympy.binomial):
        raise Unreadable
    return base**exponent


def matrix_power(base: MatrixBase, exponent: sympy.Expr) -> MatrixBase:
    r"""A transpose (`^T`, `^\top`), an inverse, or a small power of a matrix of numbers."""
    if exponent in (sympy.Symbol("T", real=True), sympy.Symbol("t", real=True)):
        return base.T
    square = base.shape[0] == base.shape[1] and base.shape[0] <= 4
    if not square or exponent not in (-1, 2, 3, 4) or not all(cell.is_Rational for cell in base):
        raise Unreadable
    return base ** int(exponent)


def determinant(matrix: sympy.Expr) -> sympy.Expr:
    """Of up to 3 rows, or of up to 6 rows of numbers."""
    if not isinstance(matrix, MatrixBase) or matrix.shape[0] != matrix.shape[1]:
        raise Unreadable
    if matrix.shape[0] > (6 if all(cell.is_Rational for cell in matrix) else 3) or sympy.count_ops(matrix) > 100:
        raise Unreadable
    return matrix.det(method="berkowitz")


def bounded(value: sympy.Expr) -> sympy.Expr:
    """The value, where it is no number of too many digits."""
    if value.is_Rational and value.p.bit_length() + value.q.bit_length() > MAX_BITS:
        raise Unreadable
    return value


def tower_height(value: sympy.Expr) -> int:
    """How many powers with a variable in the exponent stand on top of each other: 2 in 2^(3^x)."""
    exponents = [power.as_base_exp()[1] for power in value.atoms(sympy.Pow, sympy.exp)]
    exponents += [function.args[0] for function in value.atoms(sympy.sinh, sympy.cosh, sympy.tanh)]
    return max((1 + tower_height(exponent) for exponent in exponents if exponent.free_symbols), default=0)


def root_of(value: sympy.Expr, degree: int) -> sympy.Expr:
    """The real root: ∛(−8) = −2."""
    if value.is_Rational:
        exact = [sympy.integer_nthroot(abs(int(part)), degree) for part in (value.p, value.q)]
        if all(is_exact for _, is_exact in exact) and (value >= 0 or degree % 2):
            root = sympy.Rational(int(exact[0][0]), int(exact[1][0]))
            return root if value >= 0 else -root
        if value.p.bit_length() + value.q.bit_length() > MAX_ROOT_BITS:
            raise Unreadable
    if degree % 2 and value.is_extended_negative:
        return -((-value) ** sympy.Rational(1, degree))
    return value ** sympy.Rational(1, degree)


class Parser:
    """Recursive descent over the tokens of one expression."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = list(tokens)  # a copy: \frac12 cuts its number in two
        self.place = 0
        self.depth = 0  # of brackets, roots, powers and functions
        self.inside = 0  # functions
        self.open_bars = 0  # since the last bracket: the next bar closes an absolute value, or opens one
        self.index_names: dict[str, sympy.Symbol] = {}  # what a sum or product runs over; there, i is no √−1

    def peek(self) -> str:
        return self.tokens[self.place] if self.place < len(self.tokens) else ""

    def take(self) -> str:
        token = self.peek()
        if not token:
            raise Unreadable
        self.place += 1
        return token

    def expect(self, token: str) -> None:
        if self.take() != token:
            raise Unreadable

    def deeper(self) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unreadable

    # Sums, products and powers, loosest first

    def fraction(self) -> sympy.Expr:
        r"""A sum, or two of them in the old notation: a \over b, n \choose k."""
        value = self.sum()
        if self.peek() == r"\over":
            self.take()
            return self.divide(value, self.sum())
        if self.peek() == r"\choose":
            self.take()
            return self.binomial(value, self.sum())
        return value

    def sum(self) -> sympy.Expr:
        self.deeper()
        value = self.product()
        while self.peek() in ("+", "-"):
            value = bounded(value + self.product() if self.take() == "+" else value - self.product())
        self.depth -= 1
        return value

    def product(self, *, argument: bool = False) -> sympy.Expr:
        """Factors; as the argument of a function without parentheses it ends before the next function."""
        value = self.signed()
        while token := self.peek():
            if token == "*" and not argument:
                self.take()
                value = self.times(value, self.signed())
            elif token == "/" and not argument:
                self.take()
                value = self.divide(value, self.signed())
            elif token == r"\mod" and not argument:
                self.take()
                value = self.remainder(value, self.signed())
            elif token == "%":
                self.take()
                value = value / 100
            elif token == "|" and self.open_bars == 0 and not argument:
                value = self.beside(value)
            elif token in ENDS or (argument and token in FUNCTIONS):
                break
            else:
                value = self.beside(value)
        return value

    def beside(self, left: sympy.Expr) -> sympy.Expr:
        """Two factors side by side; a whole number before a fraction of whole numbers is a mixed number."""
        before, start = self.tokens[self.place - 1], self.place
        if re.match(r"\.?\d", self.peek()) and re.match(r"\.?\d", before):
            raise Unreadable  # two numbers side by side are no product
        right = self.power()
        piece = [token for token in self.tokens[start : self.place] if token not in ("{", "}")]
        unit = DEGREE if piece[-1] == r"\circ" else 1
        if piece[-1] == r"\circ":
            piece = [token for token in piece if token not in ("^", r"\circ")]
        whole = before.isdigit() and (start < 2 or self.tokens[start - 2] not in ("^", "_", "/", "*"))
        if whole and piece[0] == r"\frac" and all(token.isdigit() for token in piece[1:]):
            return left * unit - right if left.is_extended_negative else left * unit + right
        return self.times(left, right)

    def signed(self) -> sympy.Expr:
        if self.peek() in ("-", "+"):
            self.deeper()
            value = -self.signed() if self.take() == "-" else self.signed()
            self.depth -= 1
            return value
        return self.power()

    def power(self) -> sympy.Expr:
        value = self.postfix(self.atom())
        if self.peek() == r"\circ":
            self.take()
            return value * DEGREE
        if self.peek() != "^":
            return value
        self.take()
        if self.peek() == r"\circ" or self.tokens[self.place : self.place + 3] == ["{", r"\circ", "}"]:
            self.place += 1 if self.peek() == r"\circ" else 3
            return value * DEGREE
        return self.postfix(power_of(value, self.exponent()))

    def exponent(self) -> sympy.Expr:
        """A group in braces, or one sign, number, letter or command; x^12 has both digits as its exponent."""
        self.deeper()
        if self.peek() in ("-", "+"):
            value = -self.exponent() if self.take() == "-" else self.exponent()
        elif self.peek() == r"\top":
            self.take()
            value = sympy.Symbol("T", real=True)
        else:
            value = self.atom()
            if self.peek() == "^":
                self.take()
                value = power_of(value, self.exponent())
        self.depth -= 1
        return value

    def postfix(self, value: sympy.Expr) -> sympy.Expr:
        while self.peek() in ("!", "!!"):
            value = self.factorial(value) if self.take() == "!" else self.double_factorial(value)
        return value

    # Atoms

    def atom(self) -> sympy.Expr:
        token = self.take()
        if token[0].isdigit() or (token[0] == "." and (len(token) > 1 or self.peek() in (r"\overline", r"\dot"))):
            return self.number(token)
        if token in ("(", "[", "{"):
            outer, self.open_bars = self.open_bars, 0
            value = self.fraction()
            self.open_bars = outer
            self.expect({"(": ")", "[": "]", "{": "}"}[token])
            return value
        if token == "|":
            self.deeper()
            self.open_bars += 1
            value = self.sum()
            self.open_bars -= 1
            self.expect("|")
            self.depth -= 1
            return determinant(value) if isinstance(value, MatrixBase) else sympy.Abs(value)
        if token in (r"\lfloor", r"\lceil"):
            value = self.sum()
            self.expect(r"\rfloor" if token == r"\lfloor" else r"\rceil")
            return self.rounded(value, sympy.floor if token == r"\lfloor" else sympy.ceiling)
        if token == r"\frac":
            above = self.argument()
            return self.divide(above, self.argument())
        if token == r"\binom":
            n = self.argument()
            return self.binomial(n, self.argument())
        if token == r"\sqrt":
            return self.root()
        if token in FUNCTIONS:
            return self.function(token)
        if token in OF_SEVERAL:
            return self.function_of_several(token)
        if token in (r"\sum", r"\prod"):
            return self.sum_or_product(token)
        if token == r"\Gamma" and self.peek() == "(":
            return self.gamma(self.atom())
        if token == r"\det":
            return determinant(self.atom())
        if token in (r"\overline", r"\hat", r"\tilde", r"\widehat", r"\dot", r"\ddot"):
            return self.decorated(token)
        if token.startswith(r"\begin"):
            return self.matrix(token)
        if token in (r"\angle", r"\triangle"):
            name = token
            while self.peek().isalpha() and self.peek().isupper():
                name += self.take()
            return sympy.Symbol(name, real=True)
        if token in (r"\vectori", r"\vectorj", r"\vectork"):
            return UNIT_VECTORS["ijk".index(token[-1])]
        if token == r"\pi":
            return sympy.pi
        if token == r"\infty":
            return sympy.oo
        if token in (r"\mathrm", r"\text", r"\operatorname"):
            return self.named()
        if (len(token) == 1 and token.isalpha() and token.isascii()) or token in {*GREEK, r"\integer", r"\natural"}:
            return self.variable(token)
        return self.refuse()

    def refuse(self) -> sympy.Expr:
        raise Unreadable

    def number(self, token: str) -> sympy.Expr:
        if len(token) > MAX_DIGITS:
            raise Unreadable
        mantissa, _, exponent = token.lower().partition("e")
        if exponent and abs(int(exponent)) > 3_000:
            raise Unreadable
        value = Fraction(mantissa.rstrip(".") or "0") * Fraction(10) ** int(exponent or 0)
        places = len(mantissa.partition(".")[2])
        if "." in token and (repeated := self.repeated_digits()):
            value += Fraction(int(repeated), (10 ** len(repeated) - 1) * 10**places)
        elif "." in token and self.peek() == r"\ldots":  # 0.1666...: the shortest group of digits that repeats
            self.take()
            digits = token.partition(".")[2]
            lengths = [n for n in range(1, len(digits) // 2 + 1) if digits.endswith(digits[-n:] * 2)]
            if not lengths:
                raise Unreadable
            group = digits[-lengths[0] :]
            value += Fraction(int(group), (10 ** len(group) - 1) * 10**places)
        return rational(value)

    def repeated_digits(self) -> str:
        r"""The digits under a bar or dots, or in parentheses, right after a decimal: 0.1\overline{36}, 0.\dot{3}."""
        digits = ""
        if self.peek() == r"\overline" or (self.peek() == "(" and self.tokens[self.place - 1].endswith(".")):
            bar = self.take() == r"\overline"
            if bar and self.peek() != "{":
                digits = self.take()
            else:
                digits = self.tokens[self.place + bar] if self.place + bar < len(self.tokens) else ""
                self.place += 1 + bar
                self.expect("}" if bar else ")")
            if not digits.isdigit():
                raise Unreadable
        elif self.peek() == r"\dot":  # dots stand over the first and the last digit of the group
            dots = 0
            while self.peek() == r"\dot" or (dots == 1 and self.peek().isdigit()):
                if self.peek() == r"\dot":
                    self.take()
                    dots += 1
                digits += "".join(t for t in self.bare_argument() if t.isdigit())
        if len(digits) > 50:
            raise Unreadable
        return digits

    def bare_argument(self) -> list[str]:
        """The tokens of a group in braces or of one command, or one token, without \\text and braces around them."""
        if self.peek() in (r"\text", r"\mathrm", r"\operatorname"):
            self.take()
        if self.peek() != "{":
            return [self.take()]
        end = matching(self.tokens, self.place)
        inner = self.tokens[self.place + 1 : end]
        self.place = end + 1
        return inner

    def decorated(self, token: str) -> sympy.Expr:
        r"""\hat{x} is another name than x; \overline{3+4i} is the conjugate, and \overline{AB} the segment AB."""
        place = self.place
        letters = "".join(self.bare_argument())
        name = letters.removeprefix("\\").isalpha() and not (token == r"\overline" and letters.isupper())
        if name and letters not in ("e", "i"):
            return self.variable(token + letters)
        self.place = place
        return sympy.conjugate(self.argument()) if token == r"\overline" else self.refuse()

    def variable(self, token: str) -> sympy.Expr:
        if token in self.index_names:
            return self.index_names[token]
        name = token
        while self.peek() in ("_", "'"):
            if self.take() == "'":
                name += "'"
            else:
                name += "_" + re.sub(r"\\text|\\mathrm|[\\{}]", "", "".join(self.bare_argument()))
        if self.peek() == "(" and name not in ("e", "i") and (applied := self.application(name)) is not None:
            return applied
        if name == r"\integer":
            return ANY_INTEGER
        if name == r"\natural":
            return sympy.Symbol("natural", real=True)
        if name == "e":
            return sympy.E
        if name == "i":
            return sympy.I
        return sympy.Symbol(name, real=True)

    def application(self, name: str) -> sympy.Expr | None:
        """f(2x), and f(0) of any letter; None where the parenthesis is a factor, as in x(x + 1)."""
        end = matching(self.tokens, self.place)
        inner = self.tokens[self.place + 1 : end]
        letter = name.rstrip("'").partition("_")[0]
        simple = re.fullmatch(r"-?(?:[a-zA-Z]|\d+)", "".join(inner)) is not None
        nested = len(inner) > 3 and inner[0] in APPLIED | APPLIED_TO_ONE and inner[1] == "("  # f(g(x))
        is_function = letter in APPLIED or (letter in APPLIED_TO_ONE and (simple or nested))
        if not is_function and not (simple and inner[-1].isdigit()):
            return None
        arguments = [expression(piece) for piece in split(inner, {","})[0]]
        self.place = end + 1
        return sympy.Function(name)(*arguments)

    def named(self) -> sympy.Expr:
        name = "".join(self.bare_argument())
        if name in ("e", "i"):
            return self.variable(name)
        if name.isalpha():
            return sympy.Symbol(name, real=True)
        raise Unreadable

    def argument(self) -> sympy.Expr:
        r"""What follows \frac or \sqrt: a group in braces, a command, or one digit or letter."""
        if self.peek() == "{" or self.peek().startswith("\\"):
            return self.atom()
        token = self.take()
        if token.isdigit() and len(token) > 1:  # \frac12 is one half
            self.place -= 1
            self.tokens[self.place : self.place + 1] = list(token)
            token = self.take()
        if not (token.isdigit() or (len(token) == 1 and token.isalpha())):
            raise Unreadable
        return rational(Fraction(token)) if token.isdigit() else self.variable(token)

    # Functions

    def root(self) -> sympy.Expr:
        degree = sympy.Integer(2)
        if self.peek() == "[":
            self.take()
            degree = self.sum()
            self.expect("]")
        if not degree.is_Integer or not 2 <= degree <= 100:
            raise Unreadable
        return root_of(self.atom() if self.peek() == "(" else self.argument(), int(degree))

    def function(self, token: str) -> sympy.Expr:
        exponent, base = None, None
        for _ in range(2):
            if self.peek() == "^":
                self.take()
                exponent = self.exponent()
            elif self.peek() == "_" and token == r"\log":
                self.take()
                base = self.argument()
        self.deeper()
        self.inside += 1  # sympy takes seconds to look through many functions of functions
        if self.inside > MAX_FUNCTIONS:
            raise Unreadable
        if self.peek() in ("(", "{", "["):
            value = self.atom()
            if self.peek() == "^" and exponent is None and token != r"\ln":
                self.place += 1
                exponent = self.exponent()
        else:
            value = self.product(argument=True)
        self.depth -= 1
        self.inside -= 1
        value = value.subs(DEGREE, sympy.pi / 180)
        if token not in OF_ANY_SIZE and tower_height(value) > 0:
            raise Unreadable
        if exponent == -1 and token in INVERSE:
            return INVERSE[token](value)
        if token == r"\exp":
            result = power_of(sympy.E, value)
        elif base is not None or token == r"\lg":
            base = sympy.Integer(10) if base is None else base
            if base.is_number and (base <= 0 or base == 1):
                raise Unreadable
            result = sympy.log(value) / sympy.log(base)
        else:
            result = FUNCTIONS[token](value)
        return result if exponent is None else power_of(result, exponent)

    def function_of_several(self, token: str) -> sympy.Expr:
        r"""\gcd(12, 18), \max\{3, 7\}: of numbers; of whole ones for the divisor and the multiple."""
        if self.peek() not in ("(", "\\{", "{"):
            raise Unreadable
        end = matching(self.tokens, self.place)
        pieces, _ = split(self.tokens[self.place + 1 : end], {","})
        self.place = end + 1
        values = [expression(piece) for piece in pieces]
        kind = "is_extended_real" if token in (r"\max", r"\min") else "is_Integer"
        if len(values) > 20 or not all(value.is_number and getattr(value, kind) for value in values):
            raise Unreadable
        result = values[0]
        for value in values[1:]:
            result = OF_SEVERAL[token](result, value)
        return result

    def sum_or_product(self, token: str) -> sympy.Expr:
        r"""\sum_{k=1}^{10} k^2, with whole bounds and few terms."""
        self.expect("_")
        lower = self.bare_argument()
        self.expect("^")
        upper = expression(self.bare_argument())
        if len(lower) < 3 or lower[1] != "=" or not (lower[0].isalpha() and len(lower[0]) == 1):
            raise Unreadable
        first = expression(lower[2:])
        if not (first.is_Integer and upper.is_Integer and 0 <= upper - first < MAX_TERMS):
            raise Unreadable
        index = sympy.Symbol(f"index {lower[0]}", integer=True)
        outer, self.index_names = self.index_names, {**self.index_names, lower[0]: index}
        self.deeper()
        body = self.product()
        self.depth -= 1
        self.index_names = outer
        exponents = [power.as_base_exp()[1] for power in body.atoms(sympy.Pow, sympy.exp)]
        if any(exponent.has(index) and exponent.diff(index) not in (1, -1, 2, -2) for exponent in exponents):
            raise Unreadable  # so that no term is larger than the square of the largest power
        if body.free_symbols - {index} or sympy.count_ops(body) > 30:
            raise Unreadable
        if not body.has(index):
            count = upper - first + 1
            return body * count if token == r"\sum" else power_of(body, count)
        if any(max(abs(number.p), number.q) > 10**6 for number in body.atoms(sympy.Rational)):
            raise Unreadable
        terms = [body.subs(index, k) for k in range(int(first), int(upper) + 1)]
        return sympy.Add(*terms) if token == r"\sum" else sympy.Mul(*terms)

    def matrix(self, begin: str) -> sympy.Expr:
        """An environment of rows and cells, as a sympy matrix; of vertical bars, its determinant."""
        self.place -= 1
        end = matching(self.tokens, self.place)
        name, inner = begin[7:-1], self.tokens[self.place + 1 : end]
        self.place = end + 1
        if name not in ("pmatrix", "bmatrix", "matrix", "vmatrix", "array", "smallmatrix", "Bmatrix"):
            raise Unreadable
        if name == "array" and inner and inner[0] == "{":
            inner = inner[matching(inner, 0) + 1 :]
        lines = [line for line in split(inner, {r"\\"})[0] if line]
        cells = [[expression(cell) for cell in split(line, {"&"})[0]] for line in lines]
        if not cells or len({len(line) for line in cells}) != 1 or len(cells) * len(cells[0]) > MAX_CELLS:
            raise Unreadable
        found = sympy.ImmutableMatrix(cells)
        return determinant(found) if name == "vmatrix" else found

    # Operations whose cost has to be bounded first

    def times(self, left: sympy.Expr, right: sympy.Expr) -> sympy.Expr:
        if isinstance(left, MatrixBase) and isinstance(right, MatrixBase):
            numbers = all(cell.is_Rational for cell in (*left, *right))
            small = max(*left.shape, *right.shape) <= 3 and sympy.count_ops(left) + sympy.count_ops(right) <= 60
            if not (numbers or small):
                raise Unreadable
        return bounded(left * right)

    def divide(self, value: sympy.Expr, by: sympy.Expr) -> sympy.Expr:
        if by == 0 or isinstance(by, MatrixBase):
            raise Unreadable
        return value / by

    def remainder(self, value: sympy.Expr, by: sympy.Expr) -> sympy.Expr:
        if not (value.is_Integer and by.is_Integer and by != 0):
            raise Unreadable
        return value % by

    def factorial(self, value: sympy.Expr) -> sympy.Expr:
        if value.is_number and not (value.is_Integer and 0 <= value <= MAX_FACTORIAL):
            raise Unreadable
        large = any(abs(n) > 100 for n in value.atoms(sympy.Rational))
        if value.free_symbols and (large or value.has(sympy.factorial, sympy.Pow)):
            raise Unreadable  # with a variable inside, the value could be beyond all bounds
        return sympy.factorial(value)

    def double_factorial(self, value: sympy.Expr) -> sympy.Expr:
        if not (value.is_Integer and 0 <= value <= MAX_FACTORIAL):
            raise Unreadable
        return sympy.factorial2(value)

    def gamma(self, value: sympy.Expr) -> sympy.Expr:
        if not value.is_Rational or not 0 < value <= 100 or value.q > 1_000:
            raise Unreadable
        return sympy.gamma(value)

    def binomial(self, n: sympy.Expr, k: sympy.Expr) -> sympy.Expr:
        numbers = n.is_Integer and k.is_Integer and k >= 0 and 0 <= n <= MAX_FACTORIAL
        if not numbers and (n.is_number or n.has(sympy.factorial, sympy.Pow) or k.has(sympy.factorial, sympy.Pow)):
            raise Unreadable
        return sympy.Integer(0) if numbers and k > n else sympy.binomial(n, k)

    def rounded(self, value: sympy.Expr, to: Callable[[sympy.Expr], sympy.Expr]) -> sympy.Expr:
        if tower_height(value) > 0:
            raise Unreadable
        return to(value)
