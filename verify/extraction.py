r"""The final answer that a text gives, as it is written there: in a box, after a mark, or at the end of the text."""

from __future__ import annotations

import re
from collections.abc import Sequence

from verify.equality import choice_of, is_equivalent
from verify.text import tidy

TEXT_END = 100_000  # characters searched for an answer, from the end of the text

BOX = re.compile(r"\\(?:boxed|fbox)\s*(?:\{|(-?\w+)(?![\w{]))")
BOX_OR_BRACE = re.compile(BOX.pattern + r"|(?<!\\)[{}]")
BETWEEN_BOXES = re.compile(
    r"(?:[\s$.,;]|\\[()\[\],;: \\]|\\q?quad|\\text\s*\{[\s,]*(?:and|or)?\s*\}|and\b|or\b|[a-zA-Z](?:_\{?\w\}?)?\s*=)*"
)
FORMULA = re.compile(
    r"\$\$([^$]+)\$\$|\$(?=\S)([^$]*?[^$\s])\$(?!\d)|\$\s([^$]+)\s\$"
    r"|\\\(((?:(?!\\[()]).)+)\\\)|\\\[((?:(?!\\[\[\]]).)+)\\\]",
    re.DOTALL,
)
NUMBER = re.compile(
    r"(?<![\w.])-?\s?(?:\\?\$\s?)?(?:\d{1,3}(?:[, ]\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:/\d+)?(?:\s?\\?%)?|(?<![\w.])-?\.\d+"
)
LEAD = re.compile(r"(?:answer|solution|result|option|choice)s?\s*(?:is|are|:|=)+\s*:?\s*", re.IGNORECASE)
HEDGE = re.compile(
    r"^(?:approximately|about|roughly|exactly|simply|just|equal to|indeed)\s+|,? (?:not|rather than)\b.*"
)
LAYOUT = re.compile(r"</?(?:b|strong|i|em|u|p|br|span|div)\b[^<>\n]*>|[`✅✓✔“”]")
SENTENCE = re.compile(r"\*\*[^*\n]+\*\*|.*?(?=\*\*|[.!?](?:\s|$)|\n|$)")
SPECIAL_TOKEN = re.compile(r"<\|[^|<>]*\|>|</s>")
COMMAND = re.compile(r"\\(?:text\w*|mathrm|mbox)\s*\{[^{}]*\}|\\[a-zA-Z]+|[{}]")
PROSE = re.compile(
    r"\b(?:(?!(?:sqrt|sin|cos|tan|log|exp|and|inf|infinity|union)\b)[a-z]{3,}|so|is|it|to|we|he|of|at|be|by|as|an|on)\b",
    re.IGNORECASE,
)
NAME = re.compile(r"\s*\\?[a-zA-Z]+(?:_\{?\w+\}?)?'*\s*|\s*\\(?:triangle|angle)\s*[A-Z]+\s*")


def extract_answer(text: str) -> str | None:
    r"""The final answer of a text, or None.

    The last complete `\boxed{}` that is not empty; else the last `#### x`, `<answer>x</answer>`, `the answer is x`;
    else the last formula or number of the final sentence. A text that ends inside a box or inside its reasoning has
    none.
    """
    return next(iter(final_answers(text)), None)


def final_answers(text: str) -> list[str]:
    r"""The final answer; after it, where the text ends in `\boxed{1} and \boxed{2}`, the list of both."""
    text = text[-TEXT_END:]
    if "</think>" in text:
        text = text.rpartition("</think>")[2]
    elif "<think>" in text:
        return []
    boxes, truncated = boxes_of(text)
    if boxes:
        joined = [boxes[-1]]
        while len(joined) < len(boxes):
            between = text[boxes[-len(joined) - 1][1] : joined[0][0]]
            if len(between) > 200 or not BETWEEN_BOXES.fullmatch(between):
                break
            joined.insert(0, boxes[-len(joined) - 1])
        if len(joined) == 1 and LEAD.search(boxes[-1][2]):  # \boxed{\text{The answer is 5}}
            return [spoken_answer(re.sub(r"\\text\s*\{|\}", " ", boxes[-1][2])) or boxes[-1][2]]
        together = ", ".join(content for _, _, content in joined)
        alternatives = re.search(r"\bor\b", text[joined[0][1] : joined[-1][0]])  # 3 or 5 is not the answer 5
        return [together] if len(joined) == 1 or alternatives else [boxes[-1][2], together]
    if truncated:
        return []
    marked = text.rpartition("####")[2].strip() if "####" in text else ""
    if marked and not PROSE.search(COMMAND.sub(" ", marked.partition("\n")[0])):  # else it is a heading
        return [marked.partition("\n")[0].strip()]
    tag_end = text.rfind("</answer>")
    tag_start = text.rfind("<answer>", 0, max(0, tag_end))
    answer = text[tag_start + len("<answer>") : tag_end].strip() if tag_start >= 0 else spoken_answer(text)
    return [answer] if answer else []


def boxes_of(text: str) -> tuple[list[tuple[int, int, str]], bool]:
    """((start, end, content) of the complete boxes that are not empty, is there a box that was never closed)."""
    boxes: list[tuple[int, int, str]] = []
    open_braces: list[tuple[int, int, int]] = []  # (start of a box or −1, start of its content, boxes before it)
    for match in BOX_OR_BRACE.finditer(text):
        if match[0] == "}":
            if not open_braces:
                continue
            start, content_start, before = open_braces.pop()
            if start < 0:
                continue
            inner = boxes[before:]  # of nested boxes the innermost counts
            content = inner[-1][2] if inner else text[content_start : match.start()].strip()
            del boxes[before:]
            if content:
                boxes.append((start, match.end(), content))
        elif match[1]:
            boxes.append((match.start(), match.end(), match[1]))
        else:
            open_braces.append((match.start() if match[0] != "{" else -1, match.end(), len(boxes)))
    return boxes, any(start >= 0 for start, _, _ in open_braces)


def spoken_answer(text: str) -> str | None:
    """What follows the last `the answer is`; else the last formula or number of the final sentence."""
    text = next((part for part in SPECIAL_TOKEN.split(text) if part.strip()), "")
    text = re.sub(r"\n\s*[-*•]\s+", "\n", LAYOUT.sub("", text))
    text = re.sub(r"I hope (?:it|this) is correct\.?\s*$", "", text.strip())
    formulas: list[str] = []

    def keep(match: re.Match[str]) -> str:
        formulas.append(next(group for group in match.groups() if group is not None))
        return f" \x00{len(formulas) - 1}\x00 "  # so that a full stop or a line end inside of it ends no sentence

    text = FORMULA.sub(keep, text.replace("\x00", ""))
    text = re.sub("\\n *(\x00\\d+\x00) *\\n", r" \1 ", text)  # a displayed formula is a part of its sentence
    for lead in reversed([match.end() for match in LEAD.finditer(text)][-3:]):
        sentence = SENTENCE.match(text[lead : lead + 1_000].lstrip())
        if sentence and (answer := answer_in(sentence[0], formulas, led=True)):
            return answer
    sentences = [sentence for sentence in re.split(r"(?<=[.!?])\s+|\n+", text.strip()) if sentence.strip()]
    return answer_in(sentences[-1], formulas, led=False) if sentences else None


def answer_in(sentence: str, formulas: list[str], *, led: bool) -> str | None:
    """The whole sentence where it is mathematics, or where it was announced and is short; else its last number."""
    sentence = sentence.strip(' *\t"').rstrip(".").strip(' *"')
    if led:  # "the answer is: the largest n is 34"
        sentence = HEDGE.sub("", re.split(r"\b(?:is|are|equals)\b", sentence)[-1].strip()).strip()
    words = len(PROSE.findall(COMMAND.sub(" ", sentence)))
    starts_with_formula = re.match("\x00(\\d+)\x00", sentence)
    if words and led and starts_with_formula:
        return formulas[int(starts_with_formula[1])].strip()
    if words <= (3 if led else 0):
        return re.sub("\x00(\\d+)\x00", lambda match: formulas[int(match[1])], sentence).strip()
    found = [
        formulas[int(match[1])].strip() if match[1] else match[0].replace("$", "").strip("\\ ")
        for match in re.finditer(f"\x00(\\d+)\x00|{NUMBER.pattern}", sentence)
        if not (match[1] and NAME.fullmatch(formulas[int(match[1])]))
    ]
    return found[-1] if found else sentence if led else None


# ---------------------------------------------------------------------------------------------------------------------
# Choices
# ---------------------------------------------------------------------------------------------------------------------

NEGATION = re.compile(r"\b(?:not|never|neither|nor|except|unlike|rather than|instead of)\b|n['’]t\b", re.IGNORECASE)
PLAIN_VALUE = re.compile(r"[-+]?[\d,]*\.?\d+%?")


def chosen(text: str, choices: Sequence[str] = ()) -> str | None:
    """The letter of the choice that a text makes: in its answer; else that of the choice which the answer, or else the
    final sentence, names alone; else the last capital letter that stands alone."""
    answers = final_answers(text)
    if not answers and ("<think>" in text.rpartition("</think>")[2] or boxes_of(text[-TEXT_END:])[1]):
        return None  # cut off
    answer = answers[0] if answers else ""
    if letter := choice_of(answer) or same_text(answer, choices):
        return letter
    letters = re.findall(r"\b([A-HJ-Z])\b", answer)
    if len(letters) > 1:
        return None
    sentences = re.split(r"(?<=[.!?])(?<!\b[A-Z]\.)\s+|\n+", text[-1_000:].rpartition("</think>")[2].strip())
    if not letters and not re.search(r"\b[A-HJ-Z]\b", sentences[-1]):
        for said in (answer, sentences[-1]):
            if letter := named_alone(said, choices):
                return letter
    letters = re.findall(r"\b([A-HJ-Z])\b", text[-1_000:])
    return letters[-1] if letters else None


def same_text(answer: str, choices: Sequence[str]) -> str | None:
    """The letter of the one choice whose text, or whose number, is the answer."""
    said, value = plain(answer), tidy(answer)
    alike = [
        number
        for number, choice in enumerate(choices)
        if said
        and (
            plain(choice) == said
            or (PLAIN_VALUE.fullmatch(value) and PLAIN_VALUE.fullmatch(tidy(choice)) and is_equivalent(value, choice))
        )
    ]
    return letter_of(alike[0]) if len(alike) == 1 else None


def named_alone(sentence: str, choices: Sequence[str]) -> str | None:
    """The letter of the one choice whose words stand in a sentence that denies nothing. Numbers name no choice so."""
    if NEGATION.search(sentence):
        return None
    said = f" {plain(sentence)} "
    names = [plain(choice) for choice in choices]
    found = [number for number, name in enumerate(names) if re.search("[a-z]{3}", name) and f" {name} " in said]
    # Of rain and acid rain, "it is acid rain" names the second.
    alone = [n for n in found if not any(m != n and f" {names[n]} " in f" {names[m]} " for m in found)]
    return letter_of(alone[0]) if len(alone) == 1 else None


def plain(text: str) -> str:
    """Words and signs in lower case, without commands for words, punctuation and a leading article."""
    text = re.sub(r"\\(?:text\w*|mathrm|mbox)\b|[^\w\s%.+*/^=<>−-]|(?<!\d)\.|\.(?!\d)", " ", text.casefold())
    words = re.sub(r"\s*([+*/^=<>−-])\s*", r"\1", text).split()
    return " ".join(words[1:] if words[:1] in (["the"], ["a"], ["an"]) and len(words) > 1 else words)


def letter_of(number: int) -> str:
    return chr(ord("A") + number)
