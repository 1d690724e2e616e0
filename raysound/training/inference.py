"""Inference: normalised log-mels to probabilities and embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from raysound.errors import UserError
from raysound.models import EmbeddingClassifier

# In natural log power. Limits the values of a band that is constant in the training set.
MIN_STD = 0.1


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation of the training set, per mel band (natural log power)."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, log_mel: Tensor) -> Tensor:
        """Normalises `(B, n_mels, n_frames)` to `(B, 1, n_mels, n_frames)` float32."""
        mean, std = on_device(self, log_mel.device)
        return ((log_mel.float() - mean) / std).unsqueeze(1)


@lru_cache(maxsize=8)
def on_device(normalisation: Normalisation, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and clamped standard deviation, `(n_mels, 1)`, copied to a device once."""
    # Tensors created in inference mode can't be used for training.
    with torch.inference_mode(mode=False):
        mean, std = (
            torch.tensor(values, dtype=torch.float32, device=device).unsqueeze(-1)
            for values in (normalisation.mean, normalisation.std)
        )
        return mean, std.clamp(min=MIN_STD)


def score(
    model: EmbeddingClassifier, normalisation: Normalisation, log_mel: np.ndarray, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Scores log-mels in batches, on the model's device.

    Args:
        model: in eval mode.
        normalisation: of the model's training set.
        log_mel: `(n, n_mels, n_frames)`, n at least 1.
        batch_size: log-mels per forward pass.

    Returns:
        Probabilities float32 `(n, classes)` and embeddings float32 `(n, size)`.

    Raises:
        UserError: a GPU has too little memory for the batch.
    """
    device = next(model.parameters()).device
    probabilities, embeddings = [], []
    try:
        with torch.inference_mode():
            for start in range(0, len(log_mel), batch_size):
                batch = torch.tensor(log_mel[start : start + batch_size], device=device)
                logits, embedding = model.logits_and_embedding(normalisation(batch))
                probabilities.append(logits.softmax(dim=1).cpu())
                embeddings.append(embedding.cpu())
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"a GPU has too little memory to score evaluation.batch_size {batch_size} windows at "
            f"once: lower it ({describe_shortage(error)})"
        ) from error
    finally:
        # The process lives on, and memory that it caches is missing in the next training.
        torch.cuda.empty_cache()
    return torch.cat(probabilities).numpy(), torch.cat(embeddings).numpy()


def describe_shortage(error: torch.OutOfMemoryError) -> str:
    """Torch's message without its advice: requested, total and free memory."""
    return ". ".join(str(error).partition("\n")[0].rstrip(".").split(". ")[:3])


def mean_by_clip(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Averages the windows of each clip.

    Args:
        values: `(n_windows, size)`, with the windows of a clip in consecutive rows.
        starts: index of every clip's first window `(n_clips,)`, ascending from 0.

    Returns:
        float32 `(n_clips, size)`.
    """
    counts = np.diff(np.append(starts, len(values)))
    sums = np.add.reduceat(values.astype(np.float64), starts, axis=0)
    means: np.ndarray = (sums / counts[:, np.newaxis]).astype(np.float32)
    return means
