"""Ask a language model for scores: a chat endpoint, many calls at once, or a local model; within a time limit.

Whatever goes wrong with a question costs it its scores, and nothing else: a verdict is then the reason in a few words.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import math
import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import rollout
from policy.model import check_files, position_limit
from questions import DataError
from rollout import PromptStyle
from sources.faults import short

KEYS = ("JUDGE_API_KEY", "OPENAI_API_KEY")  # the first of these environment variables that is set
TRIES = 5  # of a call that fails for want of a connection, by 429 or by 5xx
FIRST_PAUSE = 0.5  # seconds before the second try; each further pause is twice as long
JITTER = random.Random()  # not the module's own numbers, which a seed may have fixed
LONGEST_REPLY = 1_000_000  # bytes; what is longer is no list of scores
LOCAL_BATCH = 16  # prompts between two looks at the clock
END_OF_THOUGHTS = "</think>"
MOST_MISSES = 1_000  # braces of a reply that begin no JSON object: each costs a look at all that stands before it
LONGEST_FAULT = 150  # characters of what a server says went wrong
LATE = "no reply within --judge-timeout"
NONSENSE = "no scores in its reply"
HELP = {
    "HTTP 401": "judge: HTTP 401, the endpoint wants a key: set JUDGE_API_KEY (or OPENAI_API_KEY) to a valid one.",
    "HTTP 403": "judge: HTTP 403, the key may not use this model: set JUDGE_API_KEY (or OPENAI_API_KEY) to another.",
    "HTTP 404": "judge: HTTP 404, there is no such address or no such model ({judge[0]}/chat/completions, {judge[1]}): "
    "--judge-url is what /chat/completions is added to, and mostly ends in /v1.",
}


# How a request is made: as (JSON asked for, the names of OpenAI's reasoning models). Servers that refuse one get the
# next.
FORMS = ((True, False), (False, False), (True, True), (False, True))


@dataclass(frozen=True)
class Request:
    """What one call asks."""

    prompt: str
    count: int  # of answers that it has: as many scores must come back


Verdict = list[float] | str  # the scores by number, or why there are none
Asker = Callable[[list[Request]], list[Verdict]]


def read_scores(reply: str, count: int) -> list[float] | None:
    """The scores of a reply: a number in [0, 1] for each of the answers 1 to `count`; None for anything else.

    What stands before the end of a model's thoughts does not count. Behind it there must be one JSON object with
    `scores`, in whatever text, or several that say the same: another one may be a quotation of an answer. So may one
    that is whole where the last mention of `scores` is broken or cut off: it does not count either.
    """
    reply = reply.rpartition(END_OF_THOUGHTS)[2]
    found = [(scores_in(value), end) for value, end in json_objects(reply)]
    found = [(scores, end) for scores, end in found if scores is not None]
    if not found or reply.find('"scores"', found[-1][1]) >= 0 or any(other != found[0][0] for other, _ in found):
        return None
    scores = found[0][0]
    if not isinstance(scores, dict) or scores.keys() != {str(number) for number in range(1, count + 1)}:
        return None
    values = [scores[str(number)] for number in range(1, count + 1)]
    numbers = all(
        isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1 for value in values
    )
    return [float(value) for value in values] if numbers else None


def json_objects(text: str) -> list[tuple[dict[str, Any], int]]:
    """The JSON objects of a text that stand in no other one, each with where it ends.

    A text in which too many braces begin none is not read to its end.
    """
    found, misses, start = [], 0, text.find("{")
    while start >= 0 and misses < MOST_MISSES:
        try:
            value, end = json.JSONDecoder().raw_decode(text, start)
        except ValueError:
            misses += 1
            start = text.find("{", start + 1)
        except RecursionError:
            break
        else:
            found.append((value, end))
            start = text.find("{", end)
    return found


def scores_in(value: Any) -> Any:
    """What stands under `scores` in an object, or in the first of those within it that has such a key; else None."""
    if not isinstance(value, dict):
        return None
    if "scores" in value:
        return value["scores"]
    return next((inner for inner in map(scores_in, value.values()) if inner is not None), None)


# ---------------------------------------------------------------------------------------------------------------------
# A chat endpoint
# ---------------------------------------------------------------------------------------------------------------------


def check_httpx() -> None:
    """Raises DataError where the package that asks an endpoint is missing."""
    if importlib.util.find_spec("httpx") is None:
        raise DataError("--judge-url: to ask an endpoint one more package is needed. Run: pip install httpx")


def api_key() -> str:
    """The key, or nothing. Raises DataError, which does not show it, for one that no header can hold."""
    name = next((name for name in KEYS if os.environ.get(name, "").strip()), None)
    key = os.environ[name].strip() if name else ""
    if not (key.isascii() and key.isprintable()):
        raise DataError(f"{name}: it has characters that no key has, such as a line end or a letter that is not ASCII.")
    return key


@dataclass
class Endpoint:
    """An OpenAI-compatible chat endpoint."""

    url: str  # what /chat/completions is added to
    model: str
    key: str = field(repr=False)
    calls: int  # at once
    timeout: float  # seconds for all requests of a step
    form: int = 0  # of FORMS, the first that it has not refused

    def ask(self, requests: list[Request]) -> list[Verdict]:
        """The verdicts, in order, after `timeout` seconds at most.

        The calls run in a thread of their own. What asyncio cannot cancel, such as the look-up of a host's name, is
        left behind in it; and a program that has a loop running already can train too.
        """
        verdicts: dict[int, Verdict] = {}

        def run() -> None:
            try:
                asyncio.run(self.ask_all(requests, verdicts))
            except Exception as error:  # no client could be made, as with a proxy that is none
                for number in range(len(requests)):
                    verdicts.setdefault(number, type(error).__name__)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(self.timeout)
        found = dict(verdicts)
        return [found.get(number, LATE) for number in range(len(requests))]

    async def ask_all(self, requests: list[Request], verdicts: dict[int, Verdict]) -> None:
        """Fill in the verdict of each request as it comes."""
        import httpx

        deadline = time.monotonic() + self.timeout
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        limits = httpx.Limits(max_connections=self.calls)

        async def one(number: int, client: httpx.AsyncClient) -> None:
            try:
                verdicts[number] = await self.verdict(requests[number], client, deadline)
            except Exception as error:  # its text might show the key
                verdicts[number] = type(error).__name__

        async with httpx.AsyncClient(headers=headers, limits=limits, timeout=httpx.Timeout(self.timeout)) as client:
            tasks = [asyncio.create_task(one(number, client)) for number in range(len(requests))]
            _, late = await asyncio.wait(tasks, timeout=deadline - time.monotonic())
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def verdict(self, request: Request, client: Any, deadline: float) -> Verdict:
        """Ask until there are scores, or until there is no use in it."""
        form, failures, nonsense = self.form, 0, 0
        while True:
            reply = await self.post(request, client, FORMS[form])
            if reply.status == 200:
                self.form = max(self.form, form)
                scores = read_scores(reply.text, request.count)
                if scores is not None:
                    return scores
                nonsense += 1
                if nonsense == 2:
                    return NONSENSE + reply.said
                continue
            if reply.status in (400, 422) and form + 1 < len(FORMS):
                form += 1
                continue
            named = f"HTTP {reply.status}"
            reason = (named if named in HELP else named + reply.said) if reply.status else reply.fault
            failures += 1
            if (0 < reply.status < 500 and reply.status != 429) or failures == TRIES:
                return reason
            pause = max(reply.wait, FIRST_PAUSE * 2 ** (failures - 1) * JITTER.uniform(0.5, 1.5))
            if time.monotonic() + pause > deadline:
                return reason
            await asyncio.sleep(pause)

    async def post(self, request: Request, client: Any, form: tuple[bool, bool]) -> Reply:
        """One call, in one of FORMS."""
        import httpx

        as_json, of_reasoning = form
        limit = 1024 + 32 * request.count  # some models think before they reply
        payload: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": request.prompt}],
        }
        payload |= {"max_completion_tokens": limit} if of_reasoning else {"max_tokens": limit, "temperature": 0}
        if as_json:
            payload["response_format"] = {"type": "json_object"}
        body, headers = b"", {"Content-Type": "application/json"}
        try:
            async with client.stream(
                "POST", f"{self.url}/chat/completions", content=json.dumps(payload), headers=headers
            ) as response:
                async for part in response.aiter_bytes():
                    body += part
                    if len(body) > LONGEST_REPLY:
                        break
        except httpx.TransportError as error:
            return Reply(0, fault=type(error).__name__)
        text, fault = read_body(body)
        fault = short(fault.replace(self.key, "…") if self.key else fault, LONGEST_FAULT)
        return Reply(response.status_code, text, fault, seconds_of(response.headers.get("Retry-After", "")))


@dataclass(frozen=True)
class Reply:
    """What a server sent back."""

    status: int  # of HTTP; 0: no connection came about or held
    text: str = ""  # of the completion, if there is one
    fault: str = ""  # what went wrong, in its own words
    wait: float = 0.0  # seconds that it asks to wait, by Retry-After

    @property
    def said(self) -> str:
        return f" ({self.fault})" if self.fault else ""


def read_body(body: bytes) -> tuple[str, str]:
    """The text of a chat completion, and what is said to have gone wrong; nothing where there is none."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return "", ""
    if not isinstance(found, dict):
        return "", ""
    error = found.get("error")
    fault = error.get("message") if isinstance(error, dict) else error
    text = None
    with contextlib.suppress(LookupError, TypeError):
        choice = found["choices"][0]
        text = choice["message"]["content"]
        if not text and choice.get("finish_reason") == "length":
            fault = fault or "cut off before it said anything: the judge thinks for too long"
    fault = " ".join(fault.split()) if isinstance(fault, str) else ""
    return text if isinstance(text, str) else "", fault


def seconds_of(retry_after: str) -> float:
    """How long a Retry-After asks to wait: seconds, or a date; 0 where it is neither."""
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(retry_after) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return 0.0
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0


# ---------------------------------------------------------------------------------------------------------------------
# A local model
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class LocalModel:
    """A judge in this process, frozen."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    timeout: float

    @classmethod
    def load(cls, source: str, device: str | None, timeout: float) -> LocalModel:
        check_files(source, "--judge-model")
        model, tokenizer = rollout.load(source, device, flag="--judge-model")
        return cls(model.requires_grad_(False), tokenizer, timeout)

    def ask(self, requests: list[Request]) -> list[Verdict]:
        """The verdicts, in order. After `timeout` seconds no further batch is begun; one that runs is not stopped."""
        deadline = time.monotonic() + self.timeout
        prompts = [self.rendered(request.prompt) for request in requests]
        verdicts: list[Verdict] = [LATE] * len(requests)
        limit = 256 + 32 * max(request.count for request in requests)
        room = (position_limit(self.model) or math.inf) - limit
        fitting = []
        for number, prompt in enumerate(prompts):
            if len(rollout.encode_prompt(self.tokenizer, prompt)) <= room:
                fitting.append(number)
            else:
                verdicts[number] = "the judge has no room for the prompt"
        fitting.sort(key=lambda number: len(prompts[number]))  # rows of a batch are as long as its longest
        for start in range(0, len(fitting), LOCAL_BATCH):
            if time.monotonic() > deadline:
                break
            part = fitting[start : start + LOCAL_BATCH]
            try:
                texts = rollout.sample(
                    self.model, self.tokenizer, [prompts[number] for number in part], 1,
                    max_new_tokens=limit, temperature=0.0, seed=0,
                ).texts  # fmt: skip
            except (FloatingPointError, torch.OutOfMemoryError) as error:
                texts = []
                for number in part:
                    verdicts[number] = type(error).__name__
            for number, text in zip(part, texts, strict=False):
                verdicts[number] = read_scores(text, requests[number].count) or NONSENSE
        return verdicts

    def rendered(self, prompt: str) -> str:
        """By the chat template, where there is one, and without thinking, where it can be turned off."""
        prompt = without_marks_of_turns(self.tokenizer, prompt)
        if self.tokenizer.chat_template is None:
            return f"{prompt}\n"
        turns = [{"role": "user", "content": prompt}]
        style = PromptStyle(enable_thinking=False)
        return rollout.render_turns(self.tokenizer, turns, style, add_generation_prompt=True)


def without_marks_of_turns(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """The text, in which nothing becomes one of the tokens that begin and end turns: `< |im_end|>` in place of one.

    Answers are text of a model. With such a token one of them could end the turn in which it is to be graded, and begin
    the judge's own.
    """
    added = tokenizer.added_tokens_decoder.values()
    marks = {str(token) for token in added if token.special or str(token).startswith("<")}
    marks = {mark for mark in marks | set(tokenizer.all_special_tokens) if len(mark) > 1}
    while found := next((mark for mark in sorted(marks) if mark in text), None):
        text = text.replace(found, f"{found[0]} {found[1:]}")
    return text
