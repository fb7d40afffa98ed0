"""How many tokens two completions have in common: --scorer token of equation (2)."""

from __future__ import annotations

import torch

from scorers.gradients import Sequences


def by_tokens(sequences: Sequences) -> torch.Tensor:
    """d_ij = 1 − matched tokens / all tokens, from the longest common subsequence of two completions. Equation (2).

    N sequences -> (P, G, G)
    """
    size = sequences.group_size
    rows = zip(sequences.input_ids, sequences.response_mask, strict=True)
    completions = [ids[mask].tolist() for ids, mask in rows]
    d = torch.zeros(len(completions) // size, size, size)
    for p in range(len(d)):
        group = completions[p * size : (p + 1) * size]
        for i in range(size):
            for j in range(i):
                matched = 2 * common_subsequence_length(group[i], group[j])
                d[p, i, j] = d[p, j, i] = 1 - matched / max(1, len(group[i]) + len(group[j]))
    return d.to(sequences.input_ids.device)


def common_subsequence_length(a: list[int], b: list[int]) -> int:
    """Length of the longest common subsequence, one big-integer operation for each token of b.

    Bit i of `bits` is 0 where the line of the dynamic programme grows at a[i] (Hyyrö 2004, "Bit-parallel LCS-length
    computation revisited").
    """
    places: dict[int, int] = {}
    for i, token in enumerate(a):
        places[token] = places.get(token, 0) | 1 << i
    ones = (1 << len(a)) - 1
    bits = ones
    for token in b:
        match = bits & places.get(token, 0)
        bits = ((bits + match) | (bits - match)) & ones
    return len(a) - bits.bit_count()
