"""Slow, plain implementations that the tests compare with.

Loops where the package uses matrix products and closed forms, float64 unless a result
hangs on float32 rounding. Nothing here imports the package.
"""

import math

import numpy as np


def local_attention_loops(queries, keys, values, row, column, cotangent, *, border):
    """Local attention and its gradients by the chain rule, a pair of pixels at a time.

    Returns:
        The output `[batch, height, width, heads, head_dim]`, and the gradients of
        `sum(output * cotangent)` with respect to the five inputs, in their order.
    """
    height, width = queries.shape[1:3]
    size, half = row.shape
    reach = size // 2
    outside = np.zeros_like(keys[:, 0, 0])  # [batch, heads, head_dim]
    output = np.zeros_like(queries)
    inputs = (queries, keys, values, row, column)
    d_queries, d_keys, d_values, d_row, d_column = (np.zeros_like(x) for x in inputs)
    for i in range(height):
        for j in range(width):
            query, upstream = queries[:, i, j], cotangent[:, i, j]
            window, logits, gains = [], [], []
            for a in range(size):
                for b in range(size):
                    u, v = i + a - reach, j + b - reach
                    inside = 0 <= u < height and 0 <= v < width
                    if not inside and border == "mask":
                        continue
                    key = keys[:, u, v] if inside else outside
                    value = values[:, u, v] if inside else outside
                    relative = np.concatenate([row[a], column[b]])
                    window.append((a, b, u, v, inside, key, value, relative))
                    logits.append(np.sum(query * (key + relative), axis=-1))
                    gains.append(np.sum(upstream * value, axis=-1))
            weights = np.exp(np.array(logits) - np.max(logits, axis=0))
            weights /= weights.sum(axis=0)  # [window, batch, heads]
            mean_gain = np.sum(weights * gains, axis=0)
            for weight, gain, place in zip(weights, gains, window, strict=True):
                a, b, u, v, inside, key, value, relative = place
                output[:, i, j] += weight[..., None] * value
                d_logit = (weight * (gain - mean_gain))[..., None]
                d_queries[:, i, j] += d_logit * (key + relative)
                d_relative = np.sum(d_logit * query, axis=(0, 1))
                d_row[a] += d_relative[:half]
                d_column[b] += d_relative[half:]
                if inside:
                    d_keys[:, u, v] += d_logit * query
                    d_values[:, u, v] += weight[..., None] * upstream
    return output, (d_queries, d_keys, d_values, d_row, d_column)


def erk_shares(shapes, density):
    """The unrounded weights of each layer under ERK, found by bisection.

    By definition a layer of dimensions n_1, n_2, ... has the density
    `min(1, scale * (n_1 + n_2 + ...) / (n_1 * n_2 * ...))`, with one scale for all that
    makes the total `density * size`.
    """
    sizes = [math.prod(shape) for shape in shapes]

    def shares(scale):
        return [
            size * min(1.0, scale * sum(shape) / size)
            for size, shape in zip(sizes, shapes, strict=True)
        ]

    low, high = 0.0, float(max(sizes))
    for _ in range(200):
        middle = (low + high) / 2
        if sum(shares(middle)) < density * sum(sizes):
            low = middle
        else:
            high = middle
    return shares(high)


def top_by_sorting(scores, count):
    """Marks the `count` highest scores; of equal ones the first are taken."""
    marked = np.zeros(len(scores), bool)
    marked[np.argsort(-scores, kind="stable")[:count]] = True
    return marked


def sparse_momentum(weights, momentum, masks, prune_rate):
    """One rewiring by sparse momentum, layer by layer and weight by weight.

    After the published code (arXiv 1907.04840), with exact counts in the place of its
    corrections. float32 throughout, because rounding decides where counts are shared.

    Args:
        weights: list of flat float32 arrays, one for each prunable layer.
        momentum: the same.
        masks: the same, bool.
        prune_rate: share of the active weights that each layer drops.

    Returns:
        The new masks.
    """
    f32 = np.float32
    layers = range(len(masks))
    active = [int(mask.sum()) for mask in masks]
    sizes = [len(mask) for mask in masks]

    importance = []
    for m, mask, count in zip(momentum, masks, active, strict=True):
        total = np.abs(m[mask]).sum(dtype=np.float64)
        importance.append(f32(total) / f32(count) if count else f32(0))
    total = f32(0)
    for value in importance:
        total = f32(total + value)
    if total > 0:
        importance = [f32(value / total) for value in importance]

    kept = []
    for n in layers:
        rate = f32(prune_rate)
        sparsity = f32(sizes[n] - active[n]) / f32(sizes[n])
        # Nearly dense and important: it would only get its weights back.
        if sparsity < f32(0.2) and importance[n] > f32(1 / len(masks)):
            rate = min(rate, sparsity)
        drop = math.ceil(rate * f32(active[n]))
        kept.append(max(active[n] - drop, min(active[n], 1)))
    budget = sum(active) - sum(kept)
    zeros = [sizes[n] - kept[n] for n in layers]

    room = [math.floor(f32(0.99) * f32(z)) for z in zeros]
    if sum(room) < budget:
        room = zeros
    if total > 0:
        grown, running, given = [], f32(0), 0
        shares = []
        for value in importance:
            running = f32(running + value)
            shares.append(running)
        for n in layers:
            bound = math.floor(f32(shares[n] / shares[-1]) * f32(budget))
            bound = budget if n == layers[-1] else min(bound, budget)
            grown.append(bound - given)
            given = bound
    else:
        grown = [active[n] - kept[n] for n in layers]
    grown = [min(grown[n], room[n]) for n in layers]
    while sum(grown) < budget:
        rest = budget - sum(grown)
        open_layers = [n for n in layers if grown[n] < room[n]]
        equal = rest // len(open_layers)
        for n in open_layers if equal else open_layers[:rest]:
            grown[n] += min(max(equal, 1), room[n] - grown[n])

    new_masks = []
    for n in layers:
        magnitude = np.where(masks[n], np.abs(weights[n]), -np.inf)
        survivors = top_by_sorting(magnitude, kept[n])
        pull = np.where(survivors, -np.inf, np.abs(momentum[n]))
        new_masks.append(survivors | top_by_sorting(pull, grown[n]))
    return new_masks


def rigl(weights, gradients, masks, prune_rate):
    """One rewiring by RigL (arXiv 1911.11134, algorithm 1), layer by layer.

    Args:
        weights: list of flat float32 arrays, one for each prunable layer.
        gradients: the same, dense.
        masks: the same, bool.
        prune_rate: share of the active weights that each layer drops.

    Returns:
        The new masks.
    """
    new_masks = []
    for weight, gradient, mask in zip(weights, gradients, masks, strict=True):
        active = int(mask.sum())
        dropped = min(math.floor(np.float32(prune_rate) * np.float32(active)), active)
        dropped = min(dropped, max(active - 1, 0))
        magnitude = np.where(mask, np.abs(weight), -np.inf)
        survivors = top_by_sorting(magnitude, active - dropped)
        pull = np.where(survivors, -np.inf, np.abs(gradient))
        new_masks.append(survivors | top_by_sorting(pull, dropped))
    return new_masks


def gradual(weights, masks, counts, *, everywhere):
    """One step of gradual magnitude pruning, by one list of weights at a time.

    Args:
        weights: list of flat arrays, one for each prunable layer.
        masks: the same, bool.
        counts: the weights that each layer keeps.
        everywhere: whether the layers compete for the sum of `counts`; each keeps its
            largest weight.

    Returns:
        The new masks.
    """
    magnitudes = [
        np.where(mask, np.abs(weight), -np.inf)
        for weight, mask in zip(weights, masks, strict=True)
    ]
    if not everywhere:
        return [top_by_sorting(m, n) for m, n in zip(magnitudes, counts, strict=True)]
    for magnitude in magnitudes:
        magnitude[np.argmax(magnitude)] = np.inf
    kept = top_by_sorting(np.concatenate(magnitudes), sum(counts))
    return np.split(kept, np.cumsum([len(m) for m in magnitudes])[:-1])


def stem_attention_loops(
    images, query, key, value, row, column, mixture, *, heads, border
):
    """The attention stem, a pair of pixels at a time; arguments as in the package."""
    batch, height, width, _ = images.shape
    size, features = len(row), query.shape[1]
    head_dim = features // heads
    output = np.zeros((batch, height, width, features))
    for n in range(batch):
        for i in range(height):
            for j in range(width):
                logits, values = [], []
                for a in range(size):
                    for b in range(size):
                        u, v = i + a - size // 2, j + b - size // 2
                        inside = 0 <= u < height and 0 <= v < width
                        if not inside and border == "mask":
                            continue
                        pixel = images[n, u, v] if inside else 0 * images[n, i, j]
                        shares = np.exp([(row[a] + column[b]) @ m for m in mixture])
                        shares /= shares.sum()
                        kernel = sum(p * w for p, w in zip(shares, value, strict=True))
                        pairs = (images[n, i, j] @ query) * (pixel @ key)
                        logits.append(pairs.reshape(heads, head_dim).sum(axis=1))
                        values.append((pixel @ kernel).reshape(heads, head_dim))
                weights = np.exp(logits) / np.exp(logits).sum(axis=0)
                output[n, i, j] = (weights[..., None] * values).sum(axis=0).ravel()
    return output
