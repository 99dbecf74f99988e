"""Losses: the value and its gradient together, because they share the work."""

from .backend import array_module
from .ops import softmax


def cross_entropy(logits, labels):
    """Mean over the batch of -log softmax(logits)[label], in nats.

    logits (B, C), labels (B,) integers. Returns the loss, its gradient (B, C), and how many labels had the top logit.
    """
    xp, rows = array_module(logits), len(logits)
    p = softmax(logits)
    picked = xp.arange(rows), labels
    # log of the sum, not log of p: p may underflow to 0, where the loss is large but finite.
    shifted = logits - logits.max(-1, keepdims=True)
    loss = (xp.log(xp.exp(shifted).sum(-1)) - shifted[picked]).mean()
    p[picked] -= 1
    p /= rows
    return loss, p, (logits.argmax(-1) == labels).sum()


def mean_squared_error(y, target):
    """Mean over batch and outputs of (y - target)^2, both (B, O). Returns the loss and its gradient (B, O)."""
    error = y - target
    return (error * error).mean(), error * (2 / error.size)
