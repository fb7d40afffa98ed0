"""Sampling: G completions of each question, as one padded batch.

`sample` decodes (policy/decoding.py), and `assemble` lays the sequences into a `Rollouts` record, on which the other
modules work. `load` and `token_logps` are those of policy/. The letters of shapes are in the docstring of dagrpo.py.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from policy import logprobs
from policy.decoding import Sampling, decode, is_fast, rows_at_once
from policy.logprobs import MicroBatch
from policy.logprobs import token_logps as token_logps  # a name that others call
from policy.model import load as load
from policy.model import position_limit, text_config
from policy.refilling import Request, decode_batches, decode_each

INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."


@dataclass
class Rollouts:
    """G completions of each of P questions, as one batch of N = P·G rows; row p·G + g is completion g of question p.

    Every row reads: padding, prompt, completion with its EOS, padding. Two rows, one question, `_` padding:

        input_ids        7  8  4  5  1  _       prompt 7 8, completion 4 5 and EOS 1
                         7  8  6  1  _  _       prompt 7 8, completion 6 and EOS 1
        attention_mask   1  1  1  1  1  0
                         1  1  1  1  0  0
        response_mask    0  0  1  1  1  0
                         0  0  1  1  0  0

    What belongs to predictions has one column less: column t is the prediction of token t + 1.

        prediction_mask  0  1  1  1  0          the state at 8 predicts 4, that at 4 predicts 5, that at 5 the EOS
                         0  1  1  0  0
        logps            0  a  b  c  0
                         0  d  e  0  0
    """

    input_ids: torch.Tensor  # (N, T)
    attention_mask: torch.Tensor  # (N, T) True on real tokens
    response_mask: torch.Tensor  # (N, T) True on the completion's tokens, EOS among them: the policy's choices
    anchor_mask: torch.Tensor  # (N,) True where the completion is a verified solution from elsewhere
    logps: torch.Tensor  # (N, S) log-probability of each completion token when it was sampled; 0 elsewhere
    truncated: torch.Tensor  # (N,) True where the completion reached the limit without an EOS
    texts: list[str]  # N completions, special tokens left out
    hidden: list[torch.Tensor | None]  # N times (M, H): the states its tokens were sampled from, where they were kept
    group_size: int

    @property
    def prediction_mask(self) -> torch.Tensor:
        """Which predictions are of a completion's token. -> (N, S)"""
        return self.response_mask[:, 1:]

    @property
    def lengths(self) -> torch.Tensor:
        """Tokens in each completion. -> (N,)"""
        return self.response_mask.sum(1)

    @property
    def prompt_lengths(self) -> torch.Tensor:
        """Tokens in each prompt. -> (N,)"""
        return (self.attention_mask & ~self.response_mask).sum(1)

    @property
    def tokens(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What the model and the scorers read: input_ids, attention_mask, response_mask."""
        return self.input_ids, self.attention_mask, self.response_mask

    def moved(self, values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Values of some of the rows, moved to the left edge and cut to the longest. (N, T or S), (B,) -> (B, T' or S')

        What is moved out on the left is padding, and comes in again on the right.
        """
        attention_mask = self.attention_mask[rows]
        starts = attention_mask.int().argmax(1, keepdim=True)  # (B, 1) the first real token
        cut = self.input_ids.shape[1] - values.shape[1]  # predictions have one column less
        width = int(attention_mask.sum(1).max()) - cut
        columns = torch.arange(width, device=rows.device) + starts
        return values[rows].gather(1, columns % values.shape[1])

    def rows(self, rows: torch.Tensor) -> Rollouts:
        """Some of the rows, moved to the left edge and cut to the longest. (B,) -> B rows, whole groups or not"""
        rows = rows.to(self.input_ids.device)
        return replace(
            self,
            input_ids=self.moved(self.input_ids, rows),
            attention_mask=self.moved(self.attention_mask, rows),
            response_mask=self.moved(self.response_mask, rows),
            logps=self.moved(self.logps, rows),
            anchor_mask=self.anchor_mask[rows],
            truncated=self.truncated[rows],
            texts=[self.texts[i] for i in rows.tolist()],
            hidden=[self.hidden[i] for i in rows.tolist()],
        )

    def without_hidden(self) -> Rollouts:
        """The same without the hidden states, which are as large as all that an update needs."""
        return replace(self, hidden=[None] * len(self.hidden))


@dataclass
class Completion:
    """One completion of one prompt, both as token ids: what `assemble` makes Rollouts of."""

    prompt: list[int]
    tokens: list[int]  # the last one is an EOS, or the completion is truncated
    logps: list[float] | None = None  # where it was sampled
    hidden: torch.Tensor | None = None  # (M, H)
    is_anchor: bool = False


# ---------------------------------------------------------------------------------------------------------------------
# Prompts
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Example:
    """A solved question that is shown before the one that is asked."""

    problem: str
    solution: str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class PromptStyle:
    """How a question is asked."""

    system: str = ""  # the system's turn; none where it is empty
    enable_thinking: bool | None = None  # an argument of some chat templates (Qwen3); None leaves it to the template
    template: str = ""  # the text with {problem} and {choices}; without one, both and INSTRUCTION
    arguments: dict[str, Any] = field(default_factory=dict)  # further ones of the chat template
    examples: tuple[Example, ...] = ()
    turns: tuple[dict[str, str], ...] = ()  # of a chat, before the question; one of the system gives way to `system`

    @property
    def needs_chat_template(self) -> bool:
        return bool(self.system or self.enable_thinking is not None or self.arguments)


PLAIN = PromptStyle()


def render_prompt(
    tokenizer: PreTrainedTokenizerBase, problem: str, choices: Sequence[str] | None = None, style: PromptStyle = PLAIN
) -> str:
    """The text that the policy sees: the chat template around problem and instruction; without one, the problem.

    Examples and earlier turns are turns before it, or without a chat template text with an empty line behind each.
    """
    if tokenizer.chat_template is None:
        shown = [f"{without_turns(each.problem, each.choices, style)}{each.solution}\n\n" for each in style.examples]
        of_data = parted_turns(replace(style, system=""))
        of_system, others = ([f"{turn['content']}\n\n" for turn in turns] for turns in of_data)
        return "".join([*of_system, *shown, *others]) + without_turns(problem, choices, style)
    return render_turns(tokenizer, turns_of(problem, choices, style), style, add_generation_prompt=True)


def render_turns(
    tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]], style: PromptStyle, **options: Any
) -> str:
    options |= style.arguments
    if style.enable_thinking is not None:
        options["enable_thinking"] = style.enable_thinking
    return str(tokenizer.apply_chat_template(turns, tokenize=False, **options))


def lettered(choices: Sequence[str]) -> str:
    return "\n".join(f"{chr(ord('A') + i)}. {choice}" for i, choice in enumerate(choices))


def with_choices(problem: str, choices: Sequence[str] | None) -> str:
    return f"{problem}\n{lettered(choices)}\nThe answer is the letter of one choice." if choices else problem


def filled(template: str, problem: str, choices: Sequence[str] | None) -> str:
    """The template with a question in it. Where it has no place for choices, they follow the problem."""
    apart = "{choices}" in template
    parts = {"problem": problem if apart else with_choices(problem, choices), "choices": lettered(choices or ())}
    return re.sub(r"\{(problem|choices)\}", lambda match: parts[match[1]], template)


def without_turns(problem: str, choices: Sequence[str] | None, style: PromptStyle) -> str:
    """What is asked where there is no chat template."""
    return filled(style.template, problem, choices) if style.template else f"{with_choices(problem, choices)}\n"


def question_turn(problem: str, choices: Sequence[str] | None, style: PromptStyle) -> dict[str, str]:
    """What is asked in the user's turn."""
    usual = f"{with_choices(problem, choices)}\n\n{INSTRUCTION}"
    return {"role": "user", "content": filled(style.template, problem, choices) if style.template else usual}


def turns_of(problem: str, choices: Sequence[str] | None, style: PromptStyle) -> list[dict[str, str]]:
    """The turns before the policy's."""
    of_system, others = parted_turns(style)
    turns = list(of_system)
    for each in style.examples:
        turns += [
            question_turn(each.problem, each.choices, style),
            {"role": "assistant", "content": each.solution},
        ]
    return [*turns, *others, question_turn(problem, choices, style)]


def parted_turns(style: PromptStyle) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """(the system's turn, the other turns before the question): examples stand between the two."""
    of_system = [{"role": "system", "content": style.system}] if style.system else []
    of_system = of_system or [turn for turn in style.turns if turn["role"] == "system"]
    return of_system, [turn for turn in style.turns if turn["role"] != "system"]


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """Token ids of a rendered prompt. A chat template has written its own beginning of sequence."""
    return tokenizer(prompt, add_special_tokens=tokenizer.chat_template is None)["input_ids"]


def encode_solution(
    tokenizer: PreTrainedTokenizerBase,
    stops: list[int],
    prompt_of: tuple[str, list[str] | None, PromptStyle],  # problem, choices, style
    solution: str,
) -> list[int]:
    """Token ids of a solution as the policy would have to write it behind the prompt, up to the end of its turn.

    The chat template says what stands around an assistant's turn. Of the tokens that end a completion (`stops`), it
    ends in the one with which the template ends the turn; where the template names none of them, or there is no
    template, in the first of `stops`. Prompt and solution are tokenized together and cut, because some tokenizers
    begin a text by itself with another token.

    Raises ValueError where no token ends a completion.
    """
    prompt, whole = render_prompt(tokenizer, *prompt_of), ""
    if tokenizer.chat_template is not None:
        turns = [*turns_of(*prompt_of), {"role": "assistant", "content": solution}]
        whole = render_turns(tokenizer, turns, prompt_of[2])
    return encode_reply(tokenizer, stops, (prompt, whole), solution)


def encode_reply(
    tokenizer: PreTrainedTokenizerBase, stops: list[int], rendered: tuple[str, str], solution: str
) -> list[int]:
    """The same of a prompt that is rendered already, and of the conversation with the solution in it.

    The second is empty where there is no chat template.
    """
    if not stops:
        raise ValueError("The tokenizer has no EOS token, so that no completion would ever end: give it one.")
    (prompt, whole), lead, tail = rendered, "", ""
    if whole:
        before, found, after = whole.rpartition(solution)
        tail = after if found else ""
        if prompt.rstrip().endswith("<think>"):  # the prompt begins the thinking: here it ends at once
            lead = "\n</think>\n\n"
        elif found and before.startswith(prompt):  # what the template writes itself, such as an empty think block
            lead = before[len(prompt) :]
    ids = encode_behind(tokenizer, prompt, lead + solution + tail)
    end = next((i for i, token in enumerate(ids) if token in stops), None)
    return [*ids, stops[0]] if end is None else ids[: end + 1]


def encode_behind(tokenizer: PreTrainedTokenizerBase, prompt: str, text: str) -> list[int]:
    """Token ids of a text that follows a prompt: those that the two have together, without the prompt's."""
    before = encode_prompt(tokenizer, prompt)
    together = encode_prompt(tokenizer, prompt + text)
    if together[: len(before)] == before:
        return together[len(before) :]
    # The two meet inside of a token. Behind a line end, no tokenizer marks the beginning of a text.
    lead = tokenizer("\n", add_special_tokens=False)["input_ids"]
    return tokenizer("\n" + text, add_special_tokens=False)["input_ids"][len(lead) :]


def stop_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every token that ends a completion: the tokenizer's EOS first, then those of the generation config."""
    configured = model.generation_config.eos_token_id
    configured = configured if isinstance(configured, list) else [configured]
    ids = [tokenizer.eos_token_id, *configured]
    return list(dict.fromkeys(i for i in ids if i is not None))


# ---------------------------------------------------------------------------------------------------------------------
# Sampling
# ---------------------------------------------------------------------------------------------------------------------


def noise_key(*parts: int | str) -> int:
    """A 63-bit number that depends on the parts and on nothing else: the same on every machine and in every run."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def noise_keys(prompts: list[str], group_size: int, seed: int, seen: Counter[str]) -> list[list[int]]:
    """On what the random choices of each completion depend: seed, prompt, and how many this prompt had before. (P, G)

    `seen` counts what each prompt has had, in calls before this one too.
    """
    keys = []
    for prompt in prompts:
        keys.append([noise_key(seed, prompt, seen[prompt] + number) for number in range(group_size)])
        seen[prompt] += group_size
    return keys


def encoded(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[str], max_new_tokens: int
) -> list[list[int]]:
    """Token ids of the prompts. Raises ValueError where one and its completion do not fit the model's positions."""
    prompt_ids = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    limit, longest = position_limit(model), max(map(len, prompt_ids))
    if limit is not None and longest + max_new_tokens > limit:
        rotates = limit < (getattr(text_config(model), "max_position_embeddings", None) or 0)
        beyond = ", beyond which its rotation would depend on the other rows of a batch" if rotates else ""
        raise ValueError(
            f"The longest prompt has {longest} tokens; with --max-new-tokens {max_new_tokens} that is more than the "
            f"{limit} positions of the model{beyond}. Lower --max-new-tokens to {limit - longest} or leave the "
            "question out."
        )
    return prompt_ids


@torch.no_grad()
def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],  # P prompts
    group_size: int,  # G
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int | None = None,
    keep_hidden: bool = False,
    seen: Counter[str] | None = None,
    progress: Callable[[int], object] | None = None,
) -> Rollouts:  # N rows
    """`group_size` completions of each rendered prompt.

    The random choice at a place is a function of (seed, prompt, number of the completion, position), not of the batch
    around it: the same seed gives the same completions in any order of the prompts, up to ties of rounding. A prompt
    that stands in the list twice gets further completions, not the same ones again; so does one that another call with
    this seed had, where `seen` counts them over the calls. Without a seed one is drawn.
    With `keep_hidden` the record has the hidden states, so that scoring needs no forward pass for them.
    `progress` is called with about the number of tokens as they are made.

    Where memory runs out, half as many questions are decoded at once from there on, and a warning says so.

    Raises ValueError where prompt and completion do not fit into the model's positions, and for a top-p that leaves
    nothing to choose from; torch.OutOfMemoryError where there is no room for the completions of one question.
    """
    if not 0 < top_p <= 1:
        raise ValueError(f"--top-p {top_p:g}: it must be above 0 and at most 1.")
    if seed is None:
        seed = int(torch.randint(2**62, ()))
    prompt_ids = encoded(model, tokenizer, prompts, max_new_tokens)
    longest = max(map(len, prompt_ids))
    keys = noise_keys(prompts, group_size, seed, Counter() if seen is None else seen)
    keys_of_rows = torch.tensor(keys, device=model.device).flatten()

    sampling = Sampling(max_new_tokens, temperature, top_p, stop_ids(model, tokenizer))
    groups = max(1, rows_at_once(model, longest + max_new_tokens) // group_size)
    completions: list[Completion] = []
    start = 0
    while start < len(prompts):
        part = prompt_ids[start : start + groups]
        part_keys = keys_of_rows[start * group_size : (start + groups) * group_size]
        try:
            decoded = decode(model, part, part_keys, sampling, keep_hidden=keep_hidden, progress=progress)
        except torch.OutOfMemoryError as error:
            groups = min(groups, len(prompts) - start) // 2
            if groups == 0:
                raise torch.OutOfMemoryError(
                    f"Out of memory with the completions of one question, {group_size} at once with up to "
                    f"{longest + max_new_tokens} tokens each. Sample fewer of a question, lower --max-new-tokens, or "
                    "take a smaller model."
                ) from error
        else:
            repeated = [ids for ids in part for _ in range(group_size)]
            lengths, tokens, logps = decoded.lengths.tolist(), decoded.tokens.tolist(), decoded.logps.tolist()
            for i, (prompt_tokens, n) in enumerate(zip(repeated, lengths, strict=True)):
                states = None if decoded.hidden is None else decoded.hidden[i, :n].clone()
                completions.append(Completion(prompt_tokens, tokens[i][:n], logps[i][:n], states))
            start += groups
            continue
        # Not in the handler, which keeps the tensors of the failed call alive.
        warnings.warn(
            f"out of memory while sampling: going on with {groups * group_size} completions at once", stacklevel=2
        )
        torch.cuda.empty_cache()
    return assemble(model, tokenizer, completions, group_size)


@dataclass(frozen=True)
class Sampled:
    """One completion, as soon as it has ended."""

    prompt: int  # the number of its prompt
    number: int  # which of the prompt's completions it is
    text: str  # special tokens left out
    length: int  # tokens, EOS among them
    truncated: bool  # it reached the limit without an EOS


def sample_each(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],  # P prompts
    group_size: int,  # G
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    rows: int = 256,
    done: Set[tuple[int, int]] = frozenset(),
    progress: Callable[[int], object] | None = None,
) -> Iterator[Sampled]:
    """The completions of `sample`, but each as soon as it has ended, in no order; at most `rows` in the batch at once.

    Where a completion has ended, the next prompt takes its row (policy/refilling.py). A model that this does not
    compute (`is_fast`) decodes batches, each as long as its longest completion. What is `done`, by numbers of prompt
    and completion, is left out. Where memory runs out, half as many rows are decoded from there on, and a warning says
    so.

    Raises as `sample` does, and FloatingPointError where the model gives NaN.
    """
    prompt_ids = encoded(model, tokenizer, prompts, max_new_tokens)
    keys = noise_keys(prompts, group_size, seed, Counter())
    pairs = [(p, g) for p in range(len(prompts)) for g in range(group_size) if (p, g) not in done]
    sampling = Sampling(max_new_tokens, temperature, top_p, stop_ids(model, tokenizer))
    rows = min(rows, rows_at_once(model, max(map(len, prompt_ids)) + max_new_tokens))
    each = decode_each if is_fast(model) else decode_batches
    while pairs:
        requests = [Request(prompt_ids[p], keys[p][g]) for p, g in pairs]
        ended = set()
        try:
            for number, tokens in each(model, requests, sampling, rows, progress):
                ended.add(number)
                text = str(tokenizer.decode(tokens, skip_special_tokens=True))
                yield Sampled(*pairs[number], text, len(tokens), tokens[-1] not in sampling.stop_ids)
        except torch.OutOfMemoryError as error:
            if rows == 1:
                raise torch.OutOfMemoryError(
                    f"Out of memory with one completion of up to {max_new_tokens} tokens. Lower --max-new-tokens, or "
                    "take a smaller model."
                ) from error
            rows //= 2
        pairs = [pair for number, pair in enumerate(pairs) if number not in ended]
        if pairs:  # not in the handler, which keeps the tensors of the failed call alive
            warnings.warn(f"out of memory while sampling: going on with {rows} completions at once", stacklevel=2)
            torch.cuda.empty_cache()


# ---------------------------------------------------------------------------------------------------------------------
# Batches
# ---------------------------------------------------------------------------------------------------------------------


def assemble(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, completions: list[Completion], group_size: int
) -> Rollouts:
    """The record of N completions, those of one question together. N completions -> N rows"""
    width = max(len(completion.prompt) for completion in completions)  # prompts end at this column
    shape = (len(completions), width + max(len(completion.tokens) for completion in completions))
    input_ids = torch.full(shape, tokenizer.pad_token_id)
    attention_mask, response_mask = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
    logps = torch.zeros(shape[0], shape[1] - 1)
    for i, completion in enumerate(completions):
        start, end = width - len(completion.prompt), width + len(completion.tokens)
        input_ids[i, start:end] = torch.tensor(completion.prompt + completion.tokens)
        attention_mask[i, start:end] = True
        response_mask[i, width:end] = True  # with the EOS: where to stop is the policy's choice, and is trained
        if completion.logps is not None:
            logps[i, width - 1 : end - 1] = torch.tensor(completion.logps)
    stops = set(stop_ids(model, tokenizer))
    device = model.device
    return Rollouts(
        input_ids=input_ids.to(device),
        attention_mask=attention_mask.to(device),
        response_mask=response_mask.to(device),
        anchor_mask=torch.tensor([completion.is_anchor for completion in completions], device=device),
        logps=logps.to(device),
        truncated=torch.tensor([completion.tokens[-1] not in stops for completion in completions], device=device),
        texts=tokenizer.batch_decode([completion.tokens for completion in completions], skip_special_tokens=True),
        hidden=[completion.hidden for completion in completions],
        group_size=group_size,
    )


def combined(first: Rollouts, second: Rollouts, rows: list[int]) -> Rollouts:
    """Rows of two records as one: number i is row i of the first, or row i − N of the second. N, N' rows -> one each"""
    picked = torch.tensor(rows, device=first.input_ids.device)

    def of_both(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """(N, T), (N', T') -> (B, the larger of T and T')"""
        width = max(a.shape[1], b.shape[1])
        return torch.cat([F.pad(values, (0, width - values.shape[1])) for values in (a, b)])[picked]

    texts, hidden = first.texts + second.texts, first.hidden + second.hidden
    return Rollouts(
        input_ids=of_both(first.input_ids, second.input_ids),
        attention_mask=of_both(first.attention_mask, second.attention_mask),
        response_mask=of_both(first.response_mask, second.response_mask),
        anchor_mask=torch.cat([first.anchor_mask, second.anchor_mask])[picked],
        logps=of_both(first.logps, second.logps),
        truncated=torch.cat([first.truncated, second.truncated])[picked],
        texts=[texts[i] for i in rows],
        hidden=[hidden[i] for i in rows],
        group_size=first.group_size,
    )


def replace_groups(rollouts: Rollouts, groups: list[int], others: Rollouts) -> Rollouts:
    """The rollouts with some of their groups replaced by those of `others`, in order. N rows, P' groups -> N rows"""
    size, count = rollouts.group_size, len(rollouts.texts)
    rows = list(range(count))
    for new, old in enumerate(groups):
        rows[old * size : (old + 1) * size] = range(count + new * size, count + (new + 1) * size)
    return combined(rollouts, others, rows)


def micro_batches(
    model: PreTrainedModel, rollouts: Rollouts, rows: torch.Tensor, token_budget: int
) -> Iterator[MicroBatch]:
    """The given rows in micro-batches of at most `token_budget` padded tokens: policy.logprobs.micro_batches. (B,)"""
    prompts, completions = rollouts.prompt_lengths[rows].tolist(), rollouts.lengths[rows].tolist()
    questions = (rows // rollouts.group_size).tolist()
    shared = logprobs.shared_prefix(prompts_of(rollouts, rows))
    for batch in logprobs.micro_batches(model, prompts, completions, questions, token_budget, shared):
        yield replace(batch, rows=rows[batch.rows.to(rows.device)])


def prompts_of(rollouts: Rollouts, rows: torch.Tensor) -> list[list[int]]:
    """The tokens of the prompt of each question that the given rows are of. (B,)"""
    first = {row // rollouts.group_size: row for row in rows.tolist()}
    members = torch.tensor(list(first.values()), dtype=torch.long, device=rows.device)
    starts = rollouts.attention_mask[members].int().argmax(1).tolist()
    lengths = rollouts.prompt_lengths[members].tolist()
    ids = rollouts.input_ids[members].tolist()
    return [row[start : start + n] for row, start, n in zip(ids, starts, lengths, strict=True)]
