"""The probability that a logit stands for, the decision it leads to, and what it costs; no scikit-learn, which takes a second."""

import numpy as np
from scipy.special import expit

THRESHOLD = 0.5


def probabilities_of(logits: np.ndarray) -> np.ndarray:
    """P(evidence), float64 (n,), of the logit of evidence minus that of no evidence."""
    return np.asarray(expit(np.asarray(logits, dtype=np.float64)))


def log_losses(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """``-log P(true answer)`` of each pair (n,), in nats; 0 and 1 count as the nearest float64, as in scikit-learn."""
    least = float(np.finfo(np.float64).eps)
    clipped = np.clip(np.asarray(probabilities, dtype=float), least, 1 - least)
    return -np.log(np.where(np.asarray(labels) == 1, clipped, 1 - clipped))
