r"""The spelling of an answer: one plain form for many ways of typesetting, and its tokens.

`tidy` removes what carries no meaning (dollar signs, sizes, colours, spaces, Unicode variants), `tokens_of` cuts what
is left into numbers, commands, letters and signs, each in one spelling: `\leq`, `<=` and `≤` are all `≤`.
"""

from __future__ import annotations

import re
import unicodedata

MAX_LENGTH = 5_000  # characters; a longer answer is compared as text
MAX_TOKENS = 1_500


class Unreadable(Exception):
    """The text is outside of the forms that the parser knows, or over its limits."""


# ---------------------------------------------------------------------------------------------------------------------
# Spelling
# ---------------------------------------------------------------------------------------------------------------------

SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻ⁿ", "0123456789-n")
CHARACTERS = {
    "−": "-", "–": "-", "—": "-", "‐": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": "/", "⁄": "/",
    "∕": "/", "π": r"\pi ", "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "≈": r"\approx ",
    "≡": r"\equiv ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ", "ø": r"\emptyset ",
    "°": r"^\circ ", "±": r"\pm ", "∓": r"\mp ", "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}",
    "½": r"\frac{1}{2}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}",
    "⅕": r"\frac{1}{5}", "⅖": r"\frac{2}{5}", "⅗": r"\frac{3}{5}", "⅘": r"\frac{4}{5}", "⅙": r"\frac{1}{6}",
    "⅚": r"\frac{5}{6}", "⅛": r"\frac{1}{8}", "⅜": r"\frac{3}{8}", "⅝": r"\frac{5}{8}", "⅞": r"\frac{7}{8}",
    "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "γ": r"\gamma ", "λ": r"\lambda ", "μ": r"\mu ",
    "φ": r"\phi ", "ω": r"\omega ", "Δ": r"\Delta ", "∧": r"\land ", "∨": r"\lor ", "’": "'", "′": "'", "∣": "|",
    "〈": r"\langle ", "〉": r"\rangle ", "⟨": r"\langle ", "⟩": r"\rangle ", "⌊": r"\lfloor ", "⌋": r"\rfloor ",
    "⌈": r"\lceil ", "⌉": r"\rceil ", "∖": r"\setminus ", "∠": r"\angle ", "：": ":", "∶": ":", "…": r"\ldots ",
    "₀": "_0", "₁": "_1", "₂": "_2", "₃": "_3", "₄": "_4", "₅": "_5", "₆": "_6", "₇": "_7", "₈": "_8", "₉": "_9",
}  # fmt: skip
TEXT_COMMAND = r"\\(?:text(?:bf|it|rm|normal|sf|tt)?|mbox|mathrm|mathtt|operatorname\*?)(?![a-zA-Z])"
FAMILIAR = re.compile(TEXT_COMMAND + r"\s*\{([^{}]*)\}")
THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")


def in_text(words: str) -> str:
    r"""A pattern for one of some words in \text{} or without it, raised as an exponent or not."""
    spelled = rf"\\(?:text|mathrm)\s*\{{\s*(?:{words})\s*\}}"
    return rf"(?:\^\s*)?(?:\{{\s*{spelled}\s*\}}|{spelled}|\{{(?:{words})\}}|(?:{words})(?![a-zA-Z]))"


# Pattern -> replacement, applied from top to bottom.
REWRITINGS = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"\\\\\[\d+(?:pt|em|ex|mm)\]", r"\\\\ "),  # space below a row
        (r"\\\(|\\\)|\\\[|\\\]|(?<!\\)\$|\*\*(?=\s*$)|^\s*\*\*", " "),
        (r"\\(?:color|textcolor|hspace\*?|vspace\*?|label|tag)\s*\{[^{}]*\}", ""),
        (r"\\[hv]?phantom\s*(?:\{[^{}]*\}|\S)", ""),
        (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
        (r"\\[dt]binom(?![a-zA-Z])", r"\\binom"),
        (r"(?<=\d)(?:\s?\{\s?,\s?\}|\\!,\\!|,?\\!,?|\\,|\\ )\s*(?=\d{3}(?!\d))", ""),  # separators of thousands
        (
            r"\\(?:mathbf|boldsymbol|bm|hat|vec)\s*(?:\{\s*\\?([ijk])(?:math)?\s*\}|\s([ijk])(?![a-zA-Z]))",
            r"\\vector\1\2 ",
        ),
        (
            r"\\(?:left|right)(?![a-zA-Z])\.?|\\(?:middle|[bB]ig[lr]?|[bB]igg[lr]?|displaystyle|textstyle|limits|nolimits|rm|bf|it|tiny|small"
            r"|large|Large|LARGE|huge|Huge|mathstrut|strut|allowbreak|nobreak|space)(?![a-zA-Z])|\\#",
            "",
        ),
        (r"(?<![,;\s])\s?\\q?quad\s*(?=[a-zA-Z](?:_\S+)?\s*=)", ", "),
        (r"(?<!\\)\\[,;:!> ]|\\q?quad|\\(?:enspace|thinspace|enskip)(?![a-zA-Z])|~|\\\\\s*$|(?<!\\)\\$", " "),
        (
            TEXT_COMMAND + r"\s*\{\s*(arc(?:sin|cos|tan|cot)|(?:sin|cos|tan)h?|cot|sec|csc|ln|log|exp|cis|gcd|lcm|max"
            r"|min|det)\s*\}(?=\s*[(\\{\w^_])",
            r"\\\1 ",
        ),
        (
            r"\\(?:underline|boldsymbol|mathbf|bm|boxed|fbox|mathit|mathsf|mathcal|ensuremath|vec"
            r"|overrightarrow|emph)\s*(?=\{)",
            "",
        ),
        (r"\\text\s*\{\s*([:.,])\s*\}", r"\1"),
        (r"(?<=\d)\{:\}", ":"),
        (r"\\text\s*\{[\s,(]*(?:for|where) (?:all|every|any|each)\b.*$", ""),
        (r"\([a-z] ?\\in ?\\mathbb ?\{?[NZR]\}?[^()]*\)$", ""),
        (r"(?<=\d)\s*\^\s*(?=\S)" + in_text("o")[len(r"(?:\^\s*)?") :], r"^\\circ"),
        (r"(?<=\d)\s*" + in_text("st|nd|rd|th"), ""),
        *(
            (rf"(?<=\d)\s*(?:\\text\s*\{{\s*{name}\s*\}}|{name}\b)", rf"\\cdot 10^{{{power}}}")
            for name, power in [("hundred", 2), ("thousand", 3), ("million", 6), ("billion", 9), ("trillion", 12)]
        ),
        (r"(?<=\d)\s*dozen\b", r"\\cdot 12"),
        (r"\b(\d+) choose (\d+)\b", r"\\binom{\1}{\2}"),
        (r"^(\d+) to (\d+)$", r"\1:\2"),
        (r"(?:\{\})?[_^]\{?(\d+)\}?\s*C_\{?(\d+)\}?|\bC\((\d+), ?(\d+)\)", r"\\binom{\1\3}{\2\4}"),
        (r"\\text\s*\{[\s,]*(and|or|if|for|when)\s*\}", r" \1 "),
        (r"\\text\s*\{\s*(?:percent(?:age)?|pct)\s*\}|(?<=\d)\s*(?:percent(?:age)?|pct)\b", r"\\%"),
        (r"(?<=\d)(and|or)(?=[A-Za-z(])", r" \1 "),
        (r"\^\s*\{?\s*(?:\\prime|')\s*\}?|\\prime(?![a-zA-Z])", "'"),
        (r"\\[lc]?dots[a-z]?(?![a-zA-Z])|(?<=[\d, ])\.\.\.", r"\\ldots "),
        (r"\b(?:np|numpy|math|sympy)\.(?=[a-z])", ""),
        (r"\s+", " "),
    ]
]


def tidy(text: str) -> str:
    """The same answer in one spelling: plain Unicode, no dollar signs, sizes, colours or closing full stop."""
    if re.fullmatch(r"(?!.*\.\.)[-+\d./,()]*", text, re.ASCII):
        return text.rstrip(".,")  # most answers are numbers
    text = re.sub("[\u200b-\u200f\u2060\ufeff\u00ad]", "", text)  # invisible characters
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻ⁿ]+", lambda m: "^{" + m[0].translate(SUPERSCRIPTS) + "}", text)
    text = re.sub("√\\s*(\\d+|[a-zA-Z])", r"\\sqrt{\1}", text).replace("√", r"\sqrt")
    text = unicodedata.normalize("NFKC", "".join(CHARACTERS.get(c, c) for c in text))
    if r"\begin" not in text:
        text = re.sub(r"\\\\(?=[a-zA-Z]{2})", r"\\", text)  # backslashes that were escaped twice
    for pattern, replacement in REWRITINGS:
        text = pattern.sub(replacement, text)
    return without_outer_braces(text.strip().rstrip(" .,;").removeprefix("=").strip())


def without_outer_braces(text: str) -> str:
    r"""x for {x}, which stays behind when \mathbf{x} loses its command; {1, 2} keeps them."""
    for _ in range(5):
        if not (text.startswith("{") and text.endswith("}")) or "," in text:
            return text
        depth = 0
        for brace in re.finditer(r"(?<!\\)[{}]", text):
            depth += 1 if brace[0] == "{" else -1
            if depth == 0 and brace.start() < len(text) - 1:
                return text
        if depth != 0:
            return text
        text = text[1:-1].strip()
    return text


def without_thousands(text: str) -> str:
    """1,234x and 12,345.5% without separators; not where the comma could part the members of a list."""
    text = re.sub(r"(?<!\\)\{(\d{1,3}(?:,\d{3})+)\}", lambda match: "{" + match[1].replace(",", "") + "}", text)
    found = THOUSANDS.findall(text)
    if len(found) == 1 and text.count(",") == found[0].count(",") and not re.search(r"[(\[{]", text.split(found[0])[0]):
        text = text.replace(found[0], found[0].replace(",", ""))
    return text


# ---------------------------------------------------------------------------------------------------------------------
# Units
# ---------------------------------------------------------------------------------------------------------------------

BRACES = r"\{(?:[^{}]|\{[^{}]*\})*\}"  # with one more pair inside
UNIT_EXPONENT = r"(?:\s*\^\s*(?:\{\s*-?\d+\s*\}|\d))?"
SHORT_UNITS = {
    "cm", "mm", "km", "ft", "in", "mi", "yd", "kg", "mg", "lb", "oz", "ml", "mL", "cl", "dl", "hr", "min", "sec", "ms",
    "Hz", "kHz", "MHz", "Pa", "kPa", "eV", "kW", "MW", "kJ",
}  # fmt: skip
SHORT_WORDS = SHORT_UNITS | {"per", "sq", "cu", "mph", "kph", "hrs", "lbs", "way", "day", "of", "a"}
UNIT_NAMES = {
    "inch": "in", "inches": "in", "foot": "ft", "feet": "ft", "yard": "yd", "yards": "yd", "mile": "mi", "miles": "mi",
    "meter": "m", "meters": "m", "metre": "m", "metres": "m", "centimeter": "cm", "centimeters": "cm",
    "centimetre": "cm", "centimetres": "cm", "millimeter": "mm", "millimeters": "mm", "kilometer": "km",
    "kilometers": "km", "kilometre": "km", "kilometres": "km", "gram": "g", "grams": "g", "kilogram": "kg",
    "kilograms": "kg", "pound": "lb", "pounds": "lb", "lbs": "lb", "ounce": "oz", "ounces": "oz", "hour": "h",
    "hours": "h", "hr": "h", "hrs": "h", "minute": "min", "minutes": "min", "mins": "min", "second": "s",
    "seconds": "s", "sec": "s", "secs": "s", "liter": "L", "liters": "L", "litre": "L", "litres": "L",
    "degrees": "degree", "mph": "mi/h", "kph": "km/h", "kmh": "km/h", "joules": "J", "joule": "J", "newtons": "N",
    "newton": "N", "watts": "W", "volts": "V", "kelvin": "K", "dollars": "dollar", "cents": "cent",
}  # fmt: skip
LETTER_UNITS = set("mgshLJNWVKCA")
CURRENCIES = {r"\$": "dollar", "€": "euro", "£": "pound sterling", "¥": "yen", "₹": "rupee"}
NO_UNITS = {
    "not", "or", "and", "least", "most", "more", "less", "fewer", "than", "except", "between", "odd", "even", "if",
    "plus", "minus", "times", "divided", "squared", "cubed", "factorial", "wrong", "no", "invalid", "valid", "correct",
    "incorrect", "maybe", "perhaps", "is", "are", "does", "do", "solution", "solutions", "half", "halves", "third",
    "thirds", "quarter", "quarters", "fourths", "fifths", "to", "the", "choose", "all", "any", "none", "only",
}  # fmt: skip


def without_unit(text: str) -> tuple[str, str]:
    r"""(the answer, its unit): a currency, a closing \text{...} or \mathrm{...}, a degree sign, words after a number.

    The unit is empty where there is none.
    """
    if time := re.fullmatch(r"(\d{1,2}(?:\s*:\s*\d{2}){1,2})\s*([aApP])\.?\s?[mM]\.?", FAMILIAR.sub(r"\1", text)):
        return time[1], time[2].lower() + "m"
    label = re.match(TEXT_COMMAND + r"\s*\{([^{}]*)\}\s*(?=[-\d\\(\[$])", text)
    if label and is_unit(label[1], marked=True):  # \text{Area: } 5
        text = text[label.end() :]
    for sign, name in CURRENCIES.items():
        if sign in text:
            return re.sub(TEXT_COMMAND + r"\s*(?:\{\s*\}|" + BRACES + "$)", "", text.replace(sign, "")).strip(), name
    if found := re.search(r"(?:" + TEXT_COMMAND + r"\s*" + BRACES + UNIT_EXPONENT + r"\s*)+$", text):
        letters = re.sub(TEXT_COMMAND, " ", found[0]).strip(" {}")
        before = text[: found.start()].strip()
        unfinished = re.search(r"[-+*/^_(=<>&|,]$|\\(?:in|cdot|times|cup|cap|[lg]eq?|neq?|frac|sqrt)$", before)
        if before and not unfinished and is_unit(letters, marked=True):
            return re.sub(r"\^\s*\{?\s*\\circ\s*\}?\s*$", "", before).strip(), unit_name(letters)
    if found := re.fullmatch(r"(-?[\d.,/ ]*\d)\s+([a-zA-Z][a-zA-Z /]*?)(\s*\^\s*\{?\d\}?)?", text):
        if is_unit(found[2], marked=False):
            return found[1].strip(), unit_name(found[2] + (found[3] or ""))
    elif found := re.fullmatch(r"([-\d./\\{}frac]*\d\}?)\s*\^\s*\{?\s*\\circ\s*\}?", text):
        return found[1], "degree"
    return FAMILIAR.sub(r"\1", text) if r"\text" not in text else text, ""


def is_unit(text: str, *, marked: bool) -> bool:
    r"""Can these words be a unit? Not where they say something else of the number: 5 or more, 5 squared, 5 sin x.

    Words that are marked as such, by \text{}, may be short.
    """
    names = re.findall(r"[a-zA-Z]+", text)
    if not names or {name.lower() for name in names} & NO_UNITS or set(names) & set(WORDS_OF_MATHS) - {"min"}:
        return False
    return all(
        name in LETTER_UNITS if len(name) == 1 else marked or len(name) > 3 or name in SHORT_WORDS for name in names
    )


def unit_name(text: str) -> str:
    """One name for a unit: in^2 for `square inches`, mi/h for `miles per hour`."""
    name = re.sub(r"[{}.~()]|\\(?:\W|cdot)", " ", text)
    name = re.sub(r"[a-zA-Z]{4,}", lambda word: word[0].lower(), name)  # but mW is not MW
    name = re.sub(r"[a-zA-Z]+", lambda word: UNIT_NAMES.get(word[0], word[0]), name)
    name = re.sub(r"\b(?:square|sq) +([a-zA-Z]+)", r"\1^2", re.sub(r"\b(?:cubic|cu) +([a-zA-Z]+)", r"\1^3", name))
    name = re.sub(r"([a-z]{3,}?)s\b", r"\1", name.replace(" per ", "/"))
    name = re.sub(r"([a-zA-Z]+) ?\^ ?-(\d)", r"/\1^\2", name).replace("^1", "")
    return re.sub(r"\s+", "", name)


# ---------------------------------------------------------------------------------------------------------------------
# Tokens
# ---------------------------------------------------------------------------------------------------------------------

TOKEN = re.compile(
    r"(?:\d+(?:\.\d*)?|\.\d+)[eE][+-]?\d+(?![a-zA-Z\d])|\d+\.\d+|\d+\.(?!\d)|\.\d+|\d+"
    r"|\\begin\{[a-zA-Z]+\*?\}|\\end\{[a-zA-Z]+\*?\}|\\math(?:bb|bf)\s*\{?\s*[RZNQC]\s*\}?|\\[a-zA-Z]+|\\[{}|%$\\]"
    r"|[a-zA-Z]+|\*\*|<=|>=|!=|==|!!|[^\s]"
)
FUNCTION_WORDS = (
    "arcsin", "arccos", "arctan", "sqrt", "sinh", "cosh", "tanh", "sin", "cos", "tan", "cot", "sec", "csc", "log", "ln",
    "exp", "gcd", "lcm", "max", "min", "floor", "ceil", "abs", "cis", "lg",
)  # fmt: skip
WORDS_OF_MATHS = {
    **{word: "\\" + word for word in FUNCTION_WORDS},
    "pi": r"\pi", "infinity": r"\infty", "inf": r"\infty", "oo": r"\infty", "infty": r"\infty", "or": "or",
    "and": "and",
    "asin": r"\arcsin", "acos": r"\arccos", "atan": r"\arctan", "U": r"\cup", "union": r"\cup", "theta": r"\theta",
    "alpha": r"\alpha", "beta": r"\beta", "mod": r"\mod",
}  # fmt: skip
SAME = {
    r"\leq": "≤", r"\le": "≤", "<=": "≤", r"\leqslant": "≤", r"\leqq": "≤", r"\geq": "≥", r"\ge": "≥", ">=": "≥",
    r"\geqslant": "≥", r"\geqq": "≥", r"\lt": "<", r"\gt": ">", r"\neq": "≠", r"\ne": "≠", "!=": "≠", "==": "=",
    r"\times": "*", r"\cdot": "*", r"\ast": "*", r"\div": "/", "**": "^", r"\{": "\\{", r"\lbrace": "\\{",
    r"\rbrace": "\\}", r"\lbrack": "[", r"\rbrack": "]", r"\vert": "|", r"\lvert": "|", r"\rvert": "|", r"\|": "|",
    r"\varnothing": r"\emptyset", r"\mid": "|", r"\%": "%", r"\lor": "or", r"\vee": "or", r"\land": "and",
    r"\wedge": "and", r"\colon": ":", r"\degree": r"\circ", r"\backslash": r"\setminus", r"\infin": r"\infty",
    r"\lparen": "(", r"\rparen": ")", r"\simeq": r"\approx", r"\bar": r"\overline", r"\pmod": r"\mod",
    r"\bmod": r"\mod",
    r"\bigcup": r"\cup", r"\tg": r"\tan", r"\ctg": r"\cot",
    r"\arctg": r"\arctan",
}  # fmt: skip
NUMBER_SETS = {"R": r"\reals", "Z": r"\integers", "N": r"\naturals", "Q": r"\rationals", "C": r"\complexes"}

GREEK = {
    r"\alpha", r"\beta", r"\gamma", r"\delta", r"\epsilon", r"\theta", r"\lambda", r"\mu", r"\nu", r"\rho", r"\sigma",
    r"\tau", r"\phi", r"\varphi", r"\psi", r"\omega", r"\Omega", r"\Delta", r"\ell", r"\hbar", r"\eta", r"\xi",
    r"\zeta", r"\kappa", r"\chi", r"\varepsilon", r"\Gamma", r"\Phi", r"\Lambda", r"\Sigma", r"\Theta", r"\Psi",
    r"\vartheta",
}  # fmt: skip
PARTS_OF_NAMES = GREEK | {
    r"\text", r"\mathrm", r"\operatorname",
    "'", "(", ")", ",", "|", "/", ":", "{", "}", r"\frac", r"\angle", r"\triangle", r"\overline", r"\cap", r"\cup",
    "[", "]", r"\det",
}  # fmt: skip


def tokens_of(text: str) -> list[str]:
    """The tokens of a tidy text, each in one spelling. Raises Unreadable where there are too many."""
    tokens: list[str] = []
    for token in TOKEN.findall(text):
        if token.isalpha() and token.isascii():
            tokens += letters(token, text)
        elif token.startswith((r"\mathbb", r"\mathbf")):
            tokens.append(NUMBER_SETS[token.rstrip(" }")[-1]])
        else:
            tokens.append(SAME.get(token, token))
    if len(tokens) > MAX_TOKENS:
        raise Unreadable
    return tokens


def letters(word: str, text: str) -> list[str]:
    """A run of letters: a word of mathematics, a function and its variable (`sinx`), or variables side by side."""
    if word in WORDS_OF_MATHS and not (word == "U" and len(text) < 4):
        return [WORDS_OF_MATHS[word]]
    for name in FUNCTION_WORDS:
        if word.startswith(name) and len(word) == len(name) + 1:
            return ["\\" + name, word[-1]]
    return list(word)


OPENING = {"(", "[", "{", "\\{", r"\langle", r"\lfloor", r"\lceil"}
CLOSING = {")", "]", "}", "\\}", r"\rangle", r"\rfloor", r"\rceil"}


def split(tokens: list[str], separators: set[str]) -> tuple[list[list[str]], list[str]]:
    """The pieces between separators outside of brackets and environments, and the separators."""
    if separators.isdisjoint(tokens):
        return [tokens], []
    pieces: list[list[str]] = [[]]
    found = []
    depth = 0
    for token in tokens:
        depth += (token in OPENING or token.startswith(r"\begin")) - (token in CLOSING or token.startswith(r"\end"))
        if depth == 0 and token in separators:
            pieces.append([])
            found.append(token)
        else:
            pieces[-1].append(token)
    if depth != 0:
        raise Unreadable
    return pieces, found


def matching(tokens: list[str], start: int) -> int:
    """The place of the bracket, or of the end of the environment, that closes the one at `start`."""
    depth = 0
    for place in range(start, len(tokens)):
        token = tokens[place]
        depth += (token in OPENING or token.startswith(r"\begin")) - (token in CLOSING or token.startswith(r"\end"))
        if depth == 0:
            return place
    raise Unreadable
