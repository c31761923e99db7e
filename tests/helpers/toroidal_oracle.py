"""Attention on a torus in NumPy's float64, one query at a time, as its definition reads."""

import numpy as np


def distance(offset, size):
    """Steps round a ring, the shorter way, in turns."""
    return min(offset % size, -offset % size) / size


def attention(
    query,
    key,
    value,
    *,
    depth,
    slope,
    circumference,
    causal=False,
    window=None,
    mask=None,
    positions=None,
    linear=False,
    axial=False,
):
    """Answers ``[b, n, h, v]`` from arrays ``[b, n, h, c]``, ``slope [h]`` and ``mask [b, h, n,
    n]``.
    """
    query, key, value = (np.asarray(x, float) for x in (query, key, value))
    batch, n, heads, channels = query.shape
    group = heads // depth
    answer = np.zeros(value.shape)
    for b in range(batch):
        places = np.arange(n) if positions is None else np.broadcast_to(positions, (batch, n))[b]
        for h in range(heads):
            k, p = divmod(h, group)
            for i in range(n):
                scores, values = [], []
                for j in range(n):
                    offset = int(places[i]) - int(places[j])
                    if mask is not None and not mask[b, h, i, j]:
                        continue
                    if causal and offset < 0:
                        continue
                    if window is not None and causal and offset >= window:
                        continue
                    hops = min(offset % circumference, -offset % circumference)
                    if window is not None and not causal and hops > window:
                        continue
                    for other in [k] if axial else range(depth):
                        head = other * group + p
                        along = (
                            abs(offset) / circumference
                            if linear
                            else distance(offset, circumference)
                        )
                        away = along + abs(k - other) / depth
                        product = query[b, i, h] @ key[b, j, head] / np.sqrt(channels)
                        scores.append(product - slope[h] * away)
                        values.append(value[b, j, head])
                if scores:
                    weights = np.exp(np.array(scores) - max(scores))
                    answer[b, i, h] = weights @ np.array(values) / weights.sum()
    return answer
