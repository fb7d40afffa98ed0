"""--map: which field of the data is which of this program's. And how the first question looks to the model."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from harness.command import ConfigError
from questions import Question, place_of, prompt_of
from rollout import PromptStyle
from sources.faults import short
from sources.fields import OWN, Names

MOST_SHOWN = 1_200  # characters of a prompt


def names_of(values: list[str]) -> Names:
    """The names of --map problem=question,answer=target. Raises ConfigError for what is no such thing."""
    names: dict[str, str] = {}
    for item in ",".join(values).split(",") if values else []:
        name, given, place = (part.strip() for part in item.partition("="))
        if not given or not place:
            raise ConfigError(f"--map {item}: it must be NAME=FIELD, such as problem=question,answer=target.")
        if name not in OWN:
            raise ConfigError(f"--map {item}: {name!r} is no field here; before the = stands one of {', '.join(OWN)}.")
        if name in names:
            raise ConfigError(f"--map {item}: {name} is given twice; leave one of them out.")
        names[name] = place
    return Names(names)


def first_question(tokenizer: PreTrainedTokenizerBase, question: Question, style: PromptStyle) -> str:
    """A question as the model sees it, with its gold."""
    prompt = short(prompt_of(tokenizer, question, style), MOST_SHOWN)
    lines = "\n".join(f"  | {line}" for line in prompt.split("\n"))
    solution = "with a solution" if question.get("solution") else "without a solution"
    head = f"The first question, {place_of(question)}, as the model sees it:"
    return f"{head}\n{lines}\n  Its answer is {short(question['answer'])}, {solution}."


def first_prompt(tokenizer: PreTrainedTokenizerBase, question: Question, style: PromptStyle) -> str:
    """The prompt of a question in a line."""
    return f"the first prompt: {short(repr(prompt_of(tokenizer, question, style)), 400)}"
