"""LSTM and GRU as their gates, written out; :class:`vqa_core.encoders.text.RecurrentText` uses PyTorch's fused ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def lstm(recurrent: nn.LSTM, x: Tensor) -> Tensor:
    """States of an LSTM (Hochreiter and Schmidhuber 1997), step by step.

    Parameters
    ----------
    recurrent
        Its weights are used; one layer, one direction, ``batch_first``.
    x
        (B, T, E).

    Returns
    -------
    Tensor
        (B, T, D), the state after each step; the first one follows on zeros.
    """
    w, u, b, a = _weights(recurrent, nn.LSTM)
    h = c = x.new_zeros(len(x), recurrent.hidden_size)  # (B, D)
    states = []
    for step in x.unbind(1):  # (B, E)
        i, f, g, o = (F.linear(step, w, b) + F.linear(h, u, a)).chunk(4, dim=-1)  # (B, D) each
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()  # keep a share of the memory, write a share of the new
        h = o.sigmoid() * c.tanh()  # show a share of it
        states.append(h)
    return torch.stack(states, dim=1)  # (B, T, D)


def gru(recurrent: nn.GRU, x: Tensor) -> Tensor:
    """States of a GRU (Cho et al. 2014, arXiv 1406.1078), step by step; parameters and shapes as in :func:`lstm`."""
    w, u, b, a = _weights(recurrent, nn.GRU)
    h = x.new_zeros(len(x), recurrent.hidden_size)  # (B, D)
    states = []
    for step in x.unbind(1):  # (B, E)
        (xr, xz, xn), (hr, hz, hn) = F.linear(step, w, b).chunk(3, -1), F.linear(h, u, a).chunk(3, -1)  # (B, D) each
        r, z = (xr + hr).sigmoid(), (xz + hz).sigmoid()
        n = (xn + r * hn).tanh()  # the reset gate decides how much of the past the new state is made from
        h = (1 - z) * n + z * h  # the update gate how much of the past stays
        states.append(h)
    return torch.stack(states, dim=1)  # (B, T, D)


def _weights(recurrent: nn.RNNBase, kind: type) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weight of the input, weight of the state, and the bias of each."""
    simple = isinstance(recurrent, kind) and recurrent.num_layers == 1 and recurrent.batch_first and recurrent.bias
    if not simple or recurrent.bidirectional or recurrent.proj_size:
        raise ValueError(f"{recurrent} is not written out here; give {kind.__name__}(E, D, batch_first=True)")
    return recurrent.weight_ih_l0, recurrent.weight_hh_l0, recurrent.bias_ih_l0, recurrent.bias_hh_l0
