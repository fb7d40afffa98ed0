"""One whole training step, computed a second time from docs/method.md alone: plain sums, one answer at a time.

The naive side knows full logits, unpadded rows and Python loops. Gradients of the head come from autograd, the longest
common subsequence from the table of the textbooks, and the step from `torch.optim.AdamW`.
"""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import dataclass, field, fields, replace

import pytest
import torch
from conftest import completions_of, random_model

import anchors
import dagrpo
import rollout
import scoring
from harness.config import configure
from harness.task import Task

ADAM_EPSILON = 1e-4  # in place of 1e-8, at which the rounding of gradients near 0 would decide the sign of a whole step

# --- the naive side ----------------------------------------------------------------------------------------------


@dataclass
class Answer:
    """One answer: the tokens of its prompt, its own tokens with EOS, its reward, and whether it is an anchor."""

    prompt: list[int]
    tokens: list[int]
    reward: float
    anchor: bool = False


@dataclass
class Method:
    """What the equations leave to the options: the table at the end of docs/method.md, and what it does not name."""

    rectify: str = "threshold"
    scorer: str = "gradient"
    threshold: float | None = None
    scale: str = "std"
    negative_weight: float = 1.0
    loss_norm: str = "constant"
    clip_low: float | None = 0.2
    clip_high: float | None = 0.2
    temperature: float = 1.0
    anchors: str | None = "data"
    anchors_per_group: int = 1
    every_group: bool = False
    hard_below: float = 0.0
    anchor_objective: str = "shaped"
    gamma: float = 0.03
    kl: float = 0.0
    entropy_bonus: float = 0.0
    overlong: float = 0.0
    updates: int = 1
    epochs: int = 1
    beta1: float = 0.9
    imitate: bool = False  # answers are anchors only, each with Ã = 1
    max_new_tokens: int = 20
    epsilon: float = 1e-6
    learning_rate: float = 1e-2
    warmup: int = 0
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0

    @property
    def tau(self) -> float:
        """τ of (3)."""
        return {"gradient": 0.35, "state": 0.2, "token": 0.1}[self.scorer] if self.threshold is None else self.threshold


METHODS: dict[str, dict] = {
    "dagrpo": {},
    "grpo": {"rectify": "none", "anchors": None, "loss_norm": "token"},
    "dr_grpo": {"rectify": "none", "anchors": None, "scale": "none"},
    "dapo": {
        "rectify": "none", "anchors": None, "loss_norm": "token", "clip_high": 0.28, "updates": 4, "overlong": 0.2,
    },
    "luffy": {
        "rectify": "none", "scale": "none", "clip_low": None, "clip_high": None, "every_group": True, "gamma": 0.1,
        "entropy_bonus": 0.001, "updates": 2,
    },
    "sft": {
        "rectify": "none", "loss_norm": "token", "clip_low": None, "clip_high": None, "anchor_objective": "sft",
        "imitate": True,
    },
}  # fmt: skip


@dataclass
class Step:
    """Everything that a step makes: the lists of groups, then of answers, then of tokens where there are any."""

    distinctiveness: list = field(default_factory=list)
    kept: list = field(default_factory=list)
    advantages: list = field(default_factory=list)
    token_advantages: list = field(default_factory=list)
    losses: list = field(default_factory=list)
    gradient_norms: list = field(default_factory=list)
    model: torch.nn.Module | None = None


def distributions(model, answer: Answer, temperature: float) -> list[torch.Tensor]:
    """The probabilities of all tokens at each place of an answer."""
    logits = model(input_ids=torch.tensor([answer.prompt + answer.tokens])).logits[0].double()
    first = len(answer.prompt) - 1
    return [torch.softmax(logits[first + t] / temperature, dim=-1) for t in range(len(answer.tokens))]


def head_gradients(model, answer: Answer, method: Method) -> tuple[list[torch.Tensor], list[float]]:
    """∇log π_t of each token by autograd, with respect to W or to a map M = 1 in front of W; and π_t itself."""
    with torch.no_grad():
        row = torch.tensor([answer.prompt + answer.tokens])
        hidden = model(input_ids=row, output_hidden_states=True).hidden_states[-1][0].double()
    weight = model.get_output_embeddings().weight.detach().double().clone().requires_grad_()
    identity = torch.eye(weight.shape[1], dtype=torch.double, requires_grad=True)
    variable = identity if method.scorer == "state" else weight
    first = len(answer.prompt) - 1
    gradients, probabilities = [], []
    for t, token in enumerate(answer.tokens):
        logits = weight @ (identity @ hidden[first + t])
        probability = torch.softmax(logits / method.temperature, dim=-1)[token]
        gradients.append(torch.autograd.grad(probability.log(), variable)[0].flatten())
        probabilities.append(probability.item())
    return gradients, probabilities


def common_subsequence(one: list[int], other: list[int]) -> int:
    """The length of the longest common subsequence."""
    table = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
    for i, a in enumerate(one):
        for j, b in enumerate(other):
            table[i + 1][j + 1] = table[i][j] + 1 if a == b else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


def distinctiveness(one: Answer, other: Answer, gradients: tuple, method: Method) -> float:
    """(2) How safely two answers can be pushed apart."""
    if method.scorer == "token":
        matched = 2 * common_subsequence(one.tokens, other.tokens)
        return 1 - matched / (len(one.tokens) + len(other.tokens))
    a, b = (sum(tokens) for tokens in gradients)
    return (1 - (a @ b / (a.norm() * b.norm())).item()) / 2


def push_weight(answer: Answer, probability: float, method: Method) -> float:
    """(5) w_t = γπ/(π+γ)² of a shaped anchor's token, 1 of any other."""
    if answer.anchor and method.anchor_objective == "shaped":
        return method.gamma * probability / (probability + method.gamma) ** 2
    return 1.0


def collision(better: int, worse: int, group: list[Answer], gradients: list, probabilities: list, method: Method):
    """(5) What the better answer gains by its own push, and what each token of the worse one takes from it."""

    def mean(k):
        return 1 / len(group[k].tokens) if method.loss_norm == "sequence" else 1.0

    def pushes(k):
        weights = [push_weight(group[k], probability, method) for probability in probabilities[k]]
        return [w * g * mean(k) for w, g in zip(weights, gradients[k], strict=True)]

    whole = sum(gradients[better]) * mean(better)
    gain = (whole @ sum(pushes(better))).item()
    return gain, [(whole @ push).item() for push in pushes(worse)]


def products_with_tokens(answers: list[Answer], gradients: list, probabilities: list, method: Method) -> dict:
    """(5') What each token's push does to each answer, by (answer, pushing answer): g_i · w_t ∇log π_t, in a list."""

    def mean(k):
        return 1 / len(answers[k].tokens) if method.loss_norm == "sequence" else 1.0

    found = {}
    for i, j in itertools.product(range(len(answers)), repeat=2):
        whole = sum(gradients[i]) * mean(i)
        weights = [push_weight(answers[j], probability, method) for probability in probabilities[j]]
        found[i, j] = [(whole @ (w * g * mean(j))).item() for w, g in zip(weights, gradients[j], strict=True)]
    return found


def displaced_answers(table: list[list[float]], advantages: list[float], plain: list[float]) -> list[int]:
    """(5') The better answers whose v_i = Σ_j Ã_j K_ij is below 0, beyond rounding."""
    found = []
    for i, row in enumerate(table):
        change = sum(advantage * product for advantage, product in zip(advantages, row, strict=True))
        scale = sum(abs(advantage * product) for advantage, product in zip(plain, row, strict=True))
        if plain[i] > 0 and change < -1e-5 * scale:
            found.append(i)
    return found


def masked_by_sums(table: list[list[float]], pairs: dict) -> set:
    """(5') Of the pairs {(better, worse): w}, one by one those that lower the displaced answers most."""

    def advantages_of(kept):
        values = [0.0] * len(table)
        for (a, b), weight in kept.items():
            values[a] += weight
            values[b] -= weight
        return values

    kept, plain = dict(pairs), advantages_of(pairs)
    while True:
        harmed = displaced_answers(table, advantages_of(kept), plain)
        if not harmed:
            return set(pairs) - set(kept)
        effect = {(a, b): weight * sum(table[i][a] - table[i][b] for i in harmed) for (a, b), weight in kept.items()}
        del kept[min(effect, key=lambda pair: effect[pair])]


def withheld_by_sums(shares: dict, plain: list[float]) -> set:
    """(5') Tokens (answer, place) of worse answers that are withheld, one by one the one that lowers most."""
    size = len(plain)
    table = [[sum(shares[i, j]) for j in range(size)] for i in range(size)]
    limits = [1e-5 * sum(abs(a * product) for a, product in zip(plain, row, strict=True)) for row in table]
    changes = [sum(a * product for a, product in zip(plain, row, strict=True)) for row in table]
    left = {(j, t) for j in range(size) if plain[j] < 0 for t in range(len(shares[0, j]))}
    withheld = set()
    while True:
        harmed = [i for i in range(size) if plain[i] > 0 and changes[i] < -limits[i]]
        effect = {(j, t): sum(plain[j] * shares[i, j][t] for i in harmed) for j, t in left}
        worst = min(effect, key=lambda token: effect[token], default=None)
        if worst is None or effect[worst] >= 0:
            return withheld
        j, t = worst
        left.remove(worst)
        withheld.add(worst)
        changes = [changes[i] - plain[j] * shares[i, j][t] for i in range(size)]


def divisor_of(group: list[Answer], method: Method) -> float:
    """G(σ+ε), or G."""
    size = len(group)
    mean = sum(answer.reward for answer in group) / size
    sigma = math.sqrt(sum((answer.reward - mean) ** 2 for answer in group) / size)
    return size * (sigma + method.epsilon if method.scale == "std" else 1.0)


def masked_in_batch(groups: list[list[Answer]], gradients: list, probabilities: list, method: Method) -> list[set]:
    """(5') The pairs of each group that are masked, by the update of the group itself or by that of all groups."""
    units = [[p] for p in range(len(groups))] if method.rectify == "group" else [list(range(len(groups)))]
    masked: list[set] = [set() for _ in groups]
    for unit in units:
        members = [(p, k) for p in unit for k in range(len(groups[p]))]
        answers = [groups[p][k] for p, k in members]
        shares = products_with_tokens(
            answers, [gradients[p][k] for p, k in members], [probabilities[p][k] for p, k in members], method
        )
        table = [[sum(shares[i, j]) for j in range(len(members))] for i in range(len(members))]
        pairs = {}
        for (i, (p, a)), (j, (q, b)) in itertools.product(enumerate(members), repeat=2):
            if p == q and groups[p][a].reward > groups[p][b].reward:
                weight = (groups[p][a].reward - groups[p][b].reward) / divisor_of(groups[p], method)
                pairs[i, j] = weight
        for i, j in masked_by_sums(table, pairs):
            masked[members[i][0]] |= {(members[i][1], members[j][1]), (members[j][1], members[i][1])}
    return masked


def naive_advantages(group: list[Answer], gradients: list, probabilities: list, method: Method, masked: set) -> tuple:
    """(1) to (5'): distinctiveness and mask of each pair, advantage of each answer and of each of its tokens."""
    size = len(group)
    rewards = [answer.reward for answer in group]
    divisor = divisor_of(group, method)
    scores = [[0.0] * size for _ in group]
    kept = [[True] * size for _ in group]
    token_advantages = [[0.0] * len(answer.tokens) for answer in group]
    advantages = [0.0] * size
    for i, j in itertools.product(range(size), repeat=2):
        if method.rectify == "none":
            break
        scores[i][j] = distinctiveness(group[i], group[j], (gradients[i], gradients[j]), method)
        if method.rectify == "threshold":
            kept[i][j] = scores[i][j] >= method.tau
        elif method.rectify == "pair" and rewards[i] != rewards[j]:
            better, worse = (i, j) if rewards[i] > rewards[j] else (j, i)
            gain, shares = collision(better, worse, group, gradients, probabilities, method)
            kept[i][j] = not sum(shares) > gain
        elif (i, j) in masked:
            kept[i][j] = False
    withheld = set()
    if method.rectify == "token":
        plain = [sum(one - other for other in rewards) / divisor for one in rewards]
        withheld = withheld_by_sums(products_with_tokens(group, gradients, probabilities, method), plain)
    for i, j in itertools.product(range(size), repeat=2):
        if not kept[i][j]:
            continue
        part = (rewards[i] - rewards[j]) / divisor
        advantages[i] += part
        for t in range(len(group[i].tokens)):
            token_advantages[i][t] += 0.0 if (i, t) in withheld else part
    for i in range(size):
        if advantages[i] < 0:
            advantages[i] *= method.negative_weight
            token_advantages[i] = [value * method.negative_weight for value in token_advantages[i]]
    return scores, kept, advantages, token_advantages


def objective(probability, old: float, answer: Answer, advantage: float, method: Method):
    """(7) J_t of one token."""
    if answer.anchor:
        if method.anchor_objective == "shaped":
            return probability / (probability + method.gamma) * advantage
        return advantage * probability.log()
    ratio = probability / old
    low = -math.inf if method.clip_low is None else 1 - method.clip_low
    high = math.inf if method.clip_high is None else 1 + method.clip_high
    clipped = low if ratio < low else high if ratio > high else ratio
    return min(ratio * advantage, clipped * advantage)


def with_anchors(sampled: list[list[Answer]], solutions: list[list[Answer]], method: Method) -> list[list[Answer]]:
    """(6) Anchors in the place of the last failing answers of hard questions, or behind every group."""
    groups = []
    for group, given in zip(sampled, solutions, strict=True):
        if method.imitate:
            groups.append(given)
            continue
        if method.every_group:
            groups.append(group + given)
            continue
        right = 1.0
        failing = [answer for answer in group if answer.reward < right]
        group = list(group)
        if method.anchors and (len(group) - len(failing)) / len(group) <= method.hard_below:
            count = min(method.anchors_per_group, len(failing))
            places = [k for k, answer in enumerate(group) if answer.reward < right][len(failing) - count :]
            for k, anchor in zip(places, given, strict=False):
                group[k] = anchor
        groups.append(group)
    return groups


def with_penalty(groups: list[list[Answer]], method: Method) -> list[list[Answer]]:
    """The last part of the token limit costs a sampled answer up to 1/2, at the limit, where the group has a signal."""
    margin = method.overlong * method.max_new_tokens
    for group in groups:
        signal = len({answer.reward for answer in group}) > 1
        for answer in group:
            over = len(answer.tokens) - (method.max_new_tokens - margin)
            if signal and margin and over > 0 and not answer.anchor:
                answer.reward -= over / margin / 2
    return groups


def shares_of(count: int, updates: int) -> list[list[int]]:
    """The questions of each optimizer step: in order, the first shares one longer where they cannot be equal."""
    shares, first = [], 0
    for number in range(updates):
        size = count // updates + (number < count % updates)
        shares.append(list(range(first, first + size)))
        first += size
    return shares


def naive_loss(model, share: list, before: dict, fixed: dict, method: Method):
    """(8) over the answers of one optimizer step; None where none of them is trained on."""
    all_tokens = sum(len(answer.tokens) for _, answer, _ in share)
    loss = None
    for key, answer, advantages in share:
        if not any(advantages) and not method.kl and not method.entropy_bonus:
            continue  # not trained on
        denominator = {
            "token": all_tokens,
            "sequence": len(answer.tokens) * len(share),
            "constant": method.max_new_tokens * len(share),
        }[method.loss_norm]
        for t, now in enumerate(distributions(model, answer, method.temperature)):
            token = answer.tokens[t]
            old = before[key][t][token] if before else now[token].item()
            term = -objective(now[token], old, answer, advantages[t], method)
            if method.kl and not answer.anchor:
                difference = (fixed[key][t][token] / now[token]).log()
                term = term + method.kl * (difference.exp() - difference - 1)
            term = term / denominator
            if method.entropy_bonus:  # of the mean over the tokens of the optimizer step
                term = term + method.entropy_bonus * (now * now.log()).sum() / all_tokens
            loss = term + (0.0 if loss is None else loss)
    return loss


def naive_step(model, reference, groups: list[list[Answer]], method: Method) -> Step:
    """(1) to (8) on a copy of the model."""
    model, reference = copy.deepcopy(model).double(), copy.deepcopy(reference).double()
    step = Step(model=model)
    compared = method.rectify != "none" and not method.imitate
    looked_at = [[head_gradients(model, answer, method) for answer in group] if compared else [] for group in groups]
    gradients = [[of_tokens for of_tokens, _ in group] for group in looked_at]
    probabilities = [[of_targets for _, of_targets in group] for group in looked_at]
    masked: list[set] = [set() for _ in groups]
    if method.rectify in ("group", "batch"):
        masked = masked_in_batch(groups, gradients, probabilities, method)
    for p, group in enumerate(groups):
        if method.imitate:
            step.token_advantages.append([[1.0] * len(answer.tokens) for answer in group])
            continue
        scores, kept, advantages, token_advantages = naive_advantages(
            group, gradients[p], probabilities[p], method, masked[p]
        )
        step.distinctiveness.append(scores)
        step.kept.append(kept)
        step.advantages.append(advantages)
        step.token_advantages.append(token_advantages)
    answers = [
        [((p, k), answer, step.token_advantages[p][k]) for k, answer in enumerate(group)]
        for p, group in enumerate(groups)
    ]
    before: dict = {}
    fixed: dict = {}
    with torch.no_grad():
        for key, answer, _ in itertools.chain(*answers):
            if method.updates * method.epochs > 1:
                before[key] = distributions(model, answer, method.temperature)
            if method.kl:
                fixed[key] = distributions(reference, answer, method.temperature)
    optimizer = torch.optim.AdamW(
        model.parameters(), weight_decay=method.weight_decay, eps=ADAM_EPSILON, betas=(method.beta1, 0.999)
    )
    made = 0
    for questions_of_share in shares_of(len(groups), method.updates) * method.epochs:
        share = [answer for p in questions_of_share for answer in answers[p]]
        loss = naive_loss(model, share, before, fixed, method)
        if loss is None:
            continue
        optimizer.zero_grad()
        loss.backward()
        step.losses.append(loss.item())
        norm = math.sqrt(sum(float((parameter.grad**2).sum()) for parameter in model.parameters()))
        step.gradient_norms.append(norm)
        for parameter in model.parameters():
            parameter.grad *= min(1.0, method.max_grad_norm / norm)
        made += 1
        optimizer.param_groups[0]["lr"] = method.learning_rate * min(1.0, made / max(1, method.warmup))
        optimizer.step()
    return step


# --- the program -------------------------------------------------------------------------------------------------


QUESTIONS = [
    {"problem": "1+1?", "answer": "2"},
    {"problem": "what is 2+2?", "answer": "4"},
    {"problem": "7", "answer": "7"},
]
SOLUTIONS = ["1+1 = 2. so 2", "it is 4", "7!", "a bit longer: 2", "2+2 = 4", "7 = 7"]
REWARDS = {
    "mixed": [[1.0, 0.0, 0.0, 1.0], [0.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]],
    "graded": [[0.5, 0.0, 0.25, 0.75], [1.0, 0.25, 0.75, 0.25], [0.0, 0.5, 0.25, -1.0]],
    "all right": [[1.0] * 4] * 3,
    "all wrong": [[0.0] * 4] * 3,
    "two of three without signal": [[1.0] * 4, [0.0] * 4, [0.0, 0.0, 1.0, 0.0]],
}
MODELS = {
    "plain": {},
    "tied": {"tie_word_embeddings": True},
}


def alike(tokenizer) -> list[list[str]]:
    """Answers that collide: a text, a part of it, the same with more of the same, and another one."""
    return [["1+1 = 2", "1+1", "1+1 = 2 = 2 = 2", "no"], ["4", "4444 4444", "44", "it is 4"], ["7", "7 7 7", "77", "7"]]


def setting(method: str = "dagrpo", rewards: str = "mixed", answers: str = "sampled", model: str = "plain", **flags):
    if method == "dapo":
        flags = {"updates": 3, **flags}  # there are three questions
    return {"method": method, "rewards": rewards, "answers": answers, "model": model, "flags": flags}


SETTINGS = {
    # each method as it is
    **{f"{method}, {rewards}": setting(method, rewards) for method in METHODS for rewards in ("mixed", "graded")},
    **{f"{method}, alike": setting(method, answers="alike") for method in ("dagrpo", "luffy")},
    **{
        f"{method}, {rewards}": setting(method, rewards)
        for method in ("dagrpo", "grpo", "luffy")
        for rewards in ("all right", "all wrong", "two of three without signal")
    },
    # the rules by which pairs are judged
    **{
        f"{rule} by {scorer}, {norm}": setting(answers="alike", rectify=rule, scorer=scorer, loss_norm=norm)
        for rule in ("threshold", "pair", "group", "batch", "token")
        for scorer in ("gradient", "state")
        for norm in ("constant", "sequence")
    },
    **{
        f"{rule} by {scorer}, temperature 0.7, graded": setting(
            rewards="graded", answers="alike", rectify=rule, scorer=scorer, temperature=0.7
        )
        for rule in ("pair", "group", "batch", "token")
        for scorer in ("gradient", "state")
    },
    "threshold 0.45, sampled, temperature 0.7": setting(threshold=0.45, temperature=0.7),
    "threshold 0.5 by state, sampled, sequence": setting(threshold=0.5, scorer="state", loss_norm="sequence"),
    "threshold by token": setting(answers="alike", scorer="token"),
    "threshold 0.4 by token, graded": setting(rewards="graded", answers="alike", scorer="token", threshold=0.4),
    "threshold 0.6 by token, two anchors": setting(scorer="token", threshold=0.6, anchors_per_group=2),
    "token, sampled, no scale, sequence, two updates": setting(
        rectify="token", scale="none", loss_norm="sequence", updates=2
    ),
    "token, plain anchors, temperature 0.7": setting(
        answers="alike", rectify="token", anchor_objective="sft", temperature=0.7
    ),
    "pair, anchors behind every group, gamma 0.5": setting(
        rewards="graded", answers="alike", rectify="pair", every_group=True, gamma=0.5
    ),
    "pair by state, hard up to half, sequence, temperature 0.7": setting(
        answers="alike", rectify="pair", scorer="state", hard_below=0.5, loss_norm="sequence", temperature=0.7
    ),
    "token by state, hard up to half, gamma 0.3, token norm": setting(
        answers="alike", rectify="token", scorer="state", hard_below=0.5, gamma=0.3, loss_norm="token"
    ),
    # ratio, clipping, several updates
    "two updates": setting(answers="alike", updates=2),
    "three updates, token norm, temperature 0.7": setting(
        "grpo", "two of three without signal", "alike", updates=3, temperature=0.7
    ),
    "three updates, no clip": setting(rewards="graded", updates=3, clip_low=None, clip_high=None),
    "three updates, narrow clip": setting("grpo", "graded", updates=3, clip_low=0.02, clip_high=0.05),
    "two updates, clip below only": setting("dr_grpo", "graded", updates=2, clip_low=0.1, clip_high=None),
    "dapo, three updates, sequence": setting("dapo", "graded", updates=3, loss_norm="sequence"),
    "luffy, three updates, clip 0.1": setting("luffy", "graded", updates=3, clip_low=0.1, clip_high=0.1),
    "sft, three updates": setting("sft", updates=3),
    "dapo, one update, overlong 0.5": setting("dapo", "graded", updates=1, overlong=0.5),
    "luffy, one update": setting("luffy", "graded", updates=1),
    "two epochs": setting(answers="alike", epochs=2),
    "three epochs of two updates, narrow clip": setting(
        "grpo", "graded", updates=2, epochs=3, clip_low=0.02, clip_high=0.05
    ),
    "two epochs without momentum, batch": setting(answers="alike", rectify="batch", epochs=2, beta1=0.0),
    "better answers alone, two epochs": setting("grpo", "graded", negative_weight=0.0, epochs=2),
    "half of the negatives' weight, masks and anchors": setting(
        rewards="graded", answers="alike", rectify="pair", negative_weight=0.5
    ),
    "group, sampled, no scale, temperature 0.7": setting(rectify="group", scale="none", temperature=0.7),
    "batch, anchors behind every group, gamma 0.5": setting(
        rewards="graded", answers="alike", rectify="batch", every_group=True, gamma=0.5
    ),
    # KL, entropy, anchors' objective
    "kl": setting("grpo", kl=0.2),
    "kl, nothing else to learn, temperature 0.7": setting("grpo", "all right", kl=0.2, temperature=0.7),
    "kl, three updates, entropy, sequence": setting(
        "grpo", "graded", updates=3, kl=0.5, entropy_bonus=0.02, loss_norm="sequence"
    ),
    "kl and entropy with masked pairs and anchors": setting(answers="alike", kl=0.1, entropy_bonus=0.05),
    "entropy, temperature 0.7": setting("dr_grpo", entropy_bonus=0.1, temperature=0.7),
    "plain anchors, kl, two updates": setting(anchor_objective="sft", kl=0.1, updates=2),
    "luffy, two anchors, gamma 0.3, scale std": setting("luffy", anchors_per_group=2, gamma=0.3, scale="std"),
    "sft, shaped, gamma 0.2, sequence": setting("sft", anchor_objective="shaped", gamma=0.2, loss_norm="sequence"),
    "sft, constant, entropy": setting("sft", loss_norm="constant", entropy_bonus=0.1),
    # what must not change the result
    "checkpointing": setting(answers="alike", checkpointing=True, updates=2, kl=0.1),
    "micro-batches of one row": setting(answers="alike", token_budget=1, updates=2, rectify="token"),
    "micro-batches of 60 tokens": setting("grpo", "graded", token_budget=60, loss_norm="sequence", entropy_bonus=0.01),
    # other models and optimizer settings
    "tied weights": setting(model="tied", answers="alike", rectify="pair"),
    "tied weights, threshold 0.45, luffy": setting("luffy", model="tied", rectify="threshold", threshold=0.45),
    "short gradients, weight decay 0.3, warm-up": setting(
        "grpo", "graded", updates=3, max_grad_norm=0.01, weight_decay=0.3, warmup=4
    ),
    "no weight decay, token norm": setting(weight_decay=0.0, loss_norm="token", max_grad_norm=100.0),
}


@dataclass
class Program:
    """What the program makes of a setting."""

    model: torch.nn.Module
    groups: list[list[Answer]]
    rectified: scoring.Rectified
    rollouts: rollout.Rollouts
    rewards: torch.Tensor
    sums: dict[str, float]


def naive_groups(
    sampled, solutions: dict, rewards: list, batch: dagrpo.Batch, tokenizer, method: Method
) -> list[list[Answer]]:
    """The answers of each question as they were sampled, with the anchors of (6)."""
    answers: list[list[Answer]] = [[] for _ in QUESTIONS]
    given: list[list[Answer]] = []
    placed = completions_of(batch.rollouts)
    for p, question in enumerate(QUESTIONS):
        prompt = tokenizer(question["problem"] + "\n")["input_ids"]
        of_question = [
            Answer(prompt, ids, earned, anchor=True) for ids, earned in solutions[anchors.place_of(question)]
        ]
        # Which of several anchors comes first is chance.
        of_question.sort(key=lambda anchor: placed.index(anchor.tokens) if anchor.tokens in placed else 0)
        given.append(of_question)
        if sampled:
            size = sampled[0].group_size
            for tokens in completions_of(sampled[0])[p * size : (p + 1) * size]:
                answers[p].append(Answer(prompt, tokens, rewards[p][len(answers[p])]))
    return with_penalty(with_anchors(answers, given, method), method)


def run_program(
    tokenizer, monkeypatch, given: dict, method: Method
) -> tuple[Program, torch.nn.Module, torch.nn.Module]:
    """One step of `dagrpo.train`, and the models that it started from: the policy and the reference."""
    model = random_model(**MODELS[given["model"]])
    start, other = copy.deepcopy(model), random_model(seed=9)
    flags = {
        "model": "m",
        "data": ["d"],
        "questions": 3,
        "group_size": 4,
        "max_new_tokens": 20,
        "warmup": 0,
        "resample": 0,
    }
    if given["method"] == "sft":
        del flags["group_size"]  # one anchor each
    config = configure(**flags | {"learning_rate": 1e-2, "method": given["method"]} | given["flags"])
    monkeypatch.setattr(rollout, "load", lambda *_, **__: (model, tokenizer))
    learner = dagrpo.new_learner(config)
    repeated = method.updates * method.epochs > 1
    if learner.reference is not None and not repeated:
        learner.reference = other  # else it is the start model, which the second update finds moved
    for group in learner.optimizer.param_groups:
        group["eps"] = ADAM_EPSILON

    sampled: list[rollout.Rollouts] = []
    plain_sample = rollout.sample

    def sample(*arguments, **options):
        made = plain_sample(*arguments, **options)
        if given["answers"] == "alike":
            size = made.group_size
            placed = [
                rollout.Completion(
                    tokenizer(question["problem"] + "\n")["input_ids"], tokenizer(text)["input_ids"] + [1]
                )
                for question, texts in zip(QUESTIONS, alike(tokenizer), strict=True)
                for text in texts[:size]
            ]
            made = rollout.assemble(model, tokenizer, placed, size)
        sampled.append(made)
        return made

    monkeypatch.setattr(rollout, "sample", sample)
    solutions: dict = {}
    for question, solution in zip(itertools.cycle(QUESTIONS), SOLUTIONS, strict=False):
        ids = tokenizer(solution)["input_ids"] + [1]
        solutions.setdefault(anchors.place_of(question), []).append((ids, 1.0))
    for found in solutions.values():
        del found[config.anchors_per_group :]

    def reward(texts, asked):
        size = len(texts) // len(QUESTIONS)
        return [value for values in REWARDS[given["rewards"]] for value in values[:size]]

    task = Task(QUESTIONS, [], [], anchors.Anchors(solutions), reward)
    batch = dagrpo.collect(learner, task, iter(QUESTIONS), config, 1, {})
    rectified = scoring.rectify(model, batch.rollouts, batch.rewards, config.rectification)
    if not config.rollouts:
        rectified = replace(rectified, advantages=torch.ones_like(batch.rewards))
    trained = rectified.has_advantage
    if config.kl or config.entropy_bonus:
        trained = torch.ones_like(trained)
    sums = dagrpo.update(learner, batch.rollouts, rectified.token_advantages, trained, config, "x")
    groups = naive_groups(sampled, solutions, REWARDS[given["rewards"]], batch, tokenizer, method)
    program = Program(model, groups, rectified, batch.rollouts, batch.rewards, sums)
    return program, start, (start if repeated else other)


# --- both --------------------------------------------------------------------------------------------------------


def place_by_place(rows: list[list[float]]) -> torch.Tensor:
    return torch.tensor([value for row in rows for value in row], dtype=torch.double)


def with_ties_in_order(rows: list[list[float]], group: list[Answer]) -> list[list[float]]:
    """The advantages of a group's tokens, sorted among tokens that are the same behind the same text with one reward.

    Such tokens have one gradient, so that rounding alone, another one on another processor, says which is withheld.
    """
    ordered = [list(row) for row in rows]
    for t in range(max(map(len, rows))):
        alike: dict[tuple, list[int]] = {}
        for i, answer in enumerate(group):
            if t < len(rows[i]):
                alike.setdefault((answer.reward, *answer.tokens[: t + 1]), []).append(i)
        for members in alike.values():
            for i, value in zip(members, sorted(rows[i][t] for i in members), strict=True):
                ordered[i][t] = value
    return ordered


@pytest.mark.parametrize("name", SETTINGS)
def test_one_step_is_the_one_of_the_equations(name, tokenizer, monkeypatch):
    """Groups, masks, advantages, loss, gradient norm, and the weights after steps of 0.01, which agree to 3e-6."""
    given = SETTINGS[name]
    names = {item.name for item in fields(Method)}
    options = METHODS[given["method"]] | {option: value for option, value in given["flags"].items() if option in names}
    method = Method(**options)
    program, start, reference = run_program(tokenizer, monkeypatch, given, method)
    step = naive_step(start, reference, program.groups, method)

    answers = [answer for group in program.groups for answer in group]
    assert completions_of(program.rollouts) == [answer.tokens for answer in answers]
    assert program.rollouts.anchor_mask.tolist() == [answer.anchor for answer in answers]
    assert program.rewards.flatten().tolist() == pytest.approx([answer.reward for answer in answers])

    rectified, close = program.rectified, {"rtol": 1e-5, "atol": 1e-5}
    for p, group in enumerate(program.groups):
        if method.imitate or len({answer.reward for answer in group}) == 1:
            continue
        if method.rectify != "none":
            scores = torch.tensor(step.distinctiveness[p])
            torch.testing.assert_close(rectified.distinctiveness[p], scores, **close)
        assert rectified.pair_mask[p].tolist() == step.kept[p]
        torch.testing.assert_close(rectified.advantages[p], torch.tensor(step.advantages[p]), **close)
    of_rows = zip(rectified.token_advantages, program.rollouts.prediction_mask, strict=True)
    found = iter([row[mask].tolist() for row, mask in of_rows])
    for expected, group in zip(step.token_advantages, program.groups, strict=True):
        pair = (with_ties_in_order(rows, group) for rows in ([next(found) for _ in group], expected))
        torch.testing.assert_close(*map(place_by_place, pair), **close)

    assert program.sums.get("loss", 0.0) == pytest.approx(sum(step.losses), rel=1e-5, abs=1e-6)
    assert program.sums.get("grad_norm", 0.0) == pytest.approx(max(step.gradient_norms, default=0.0), rel=1e-4)
    for (label, parameter), expected in zip(program.model.named_parameters(), step.model.parameters(), strict=True):
        torch.testing.assert_close(parameter.detach(), expected.detach().float(), rtol=1e-5, atol=3e-6, msg=label)
