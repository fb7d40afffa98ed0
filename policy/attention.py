"""Attention on a GPU for sequences that hold several rows, each of which sees itself and a prompt that it may share.

A mask (B, 1, L, L) says so too, and on a CPU it does. But it rules FlashAttention out, keys and values have to be
repeated for all heads of a group, and each layer keeps a copy for the backward pass: 15 GB at 16,384 tokens and 28
layers. Here queries, keys and values are laid into rows, prompt and completion, and attention is what it is for any
batch: causal, without a mask. All that is no attention still runs over each prompt once.

Importing this module has transformers' models call `attention`; with any other mask it is their own function.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from policy.model import takes_any_mask

DEVICES = ("cuda",)  # where rows are faster than a mask


def by_rows(model: PreTrainedModel) -> bool:
    """Do the layers of the model, on its device, attend by `attention` to what `rows_as_mask` says?"""
    return model.device.type in DEVICES and takes_any_mask(model) and model._supports_attention_backend


def rows_as_mask(rows: list[list[torch.Tensor]]) -> torch.Tensor:  # (1, 1, N, T) int64
    """Which places of the sequences make each row, in a form that transformers hands to every layer as it is.

    Of each row come the places of its pieces in order, (n,) each, counted through all sequences: what its prompt shares
    with others, its prompt, its completion. The first row with a piece computes what the tokens of that piece see. In
    others these places stand as −1 − place, and so does padding.
    """
    listed: list[torch.Tensor] = []
    seen: set[int] = set()  # the first places of pieces
    for pieces in rows:
        known = [len(piece) > 0 and int(piece[0]) in seen for piece in pieces]
        listed.append(torch.cat([-1 - piece if again else piece for piece, again in zip(pieces, known, strict=True)]))
        seen.update(int(piece[0]) for piece in pieces if len(piece))
    return torch.nn.utils.rnn.pad_sequence(listed, batch_first=True, padding_value=-1)[None, None]


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,  # (B, Q, L, D)
    key: torch.Tensor,  # (B, K, L, D)
    value: torch.Tensor,  # (B, K, L, D)
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:  # (B, L, Q, D)
    """Attention of one layer: by rows where the mask is one of `rows_as_mask`, else as transformers computes it."""
    if attention_mask is None or attention_mask.dtype != torch.long:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **options)
    batch, heads, length, size = query.shape
    rows = attention_mask[0, 0]  # (N, T)
    places = torch.where(rows < 0, -1 - rows, rows).flatten()

    def laid_out(x: torch.Tensor) -> torch.Tensor:
        """(B, heads, L, D) -> (N, heads, T, D)"""
        x = x.to(value.dtype).transpose(1, 2).flatten(0, 1)  # autocast rotates in fp32, and attends in bf16
        return x.index_select(0, places).unflatten(0, rows.shape).transpose(1, 2)

    # Padding stands on the right: no token that counts sees it.
    attended = F.scaled_dot_product_attention(
        laid_out(query), laid_out(key), laid_out(value), dropout_p=dropout, is_causal=True, scale=scaling,
        enable_gqa=heads != key.shape[1],
    )  # fmt: skip
    # One more place takes what nobody owns.
    owned = torch.where(rows < 0, batch * length, rows).flatten()
    room = attended.new_zeros(batch * length + 1, heads, size)
    packed = room.index_copy(0, owned, attended.transpose(1, 2).flatten(0, 1))
    return packed[:-1].unflatten(0, (batch, length)), None


AttentionInterface.register("sdpa", attention)
