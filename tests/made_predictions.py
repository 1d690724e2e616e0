"""Predictions that no classifier made."""

import numpy as np
import pyarrow as pa

from raysound.evaluation.predictions import PREDICTIONS

CLASSES, SIZE, BANDS = 5, 4, 3
LABELS = [f"class {number}" for number in range(CLASSES)]


def clips(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """True classes, and probabilities that follow them loosely."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(CLASSES, size=count)
    logits = rng.normal(0, 1, (count, CLASSES))
    logits[np.arange(count), truth] += 1
    exp = np.exp(logits)
    return truth, (exp / exp.sum(axis=1, keepdims=True)).astype(np.float32)


def make_predictions(count: int, seed: int, train: int = 0) -> pa.Table:
    """Made-up predictions, the first of which trained the classifier."""
    rng = np.random.default_rng(seed)
    truth, probabilities = clips(count, seed)
    is_train = np.arange(count) < train
    prediction = probabilities.argmax(axis=1)
    return pa.table(
        {
            "corpus": ["real"] * count,
            "clip_id": [f"{seed}/{number}" for number in range(count)],
            "split": ["train" if own else "test" for own in is_train],
            "label": [LABELS[index] for index in truth],
            "prediction": [LABELS[index] for index in prediction],
            "probability": probabilities.max(axis=1),
            "target_probability": probabilities[np.arange(count), truth],
            "windows": [1] * count,
            "sample_rate": rng.choice([16000, 44100], count),
            "duration": rng.uniform(0.5, 2, count),
            "level_db": rng.normal(-30, 3, count),
            "nonsilent_fraction": rng.uniform(0.5, 1, count),
            "realism": rng.uniform(0, 2, count),
            "nearest_train_clip_id": ["x"] * count,
            "balls": pa.array(rng.integers(0, 9, count), mask=is_train),
            "authentic": pa.array(rng.random(count) < 0.5, mask=is_train),
            "probabilities": list(probabilities),
            "embedding": list(rng.normal(0, 1, (count, SIZE))),
            "spectrum": list(rng.normal(-8, 1, (count, BANDS))),
        }
    ).cast(PREDICTIONS)
