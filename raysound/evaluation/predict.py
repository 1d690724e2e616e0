"""Sound files → predicted classes, without features on disk and without Ray."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from raysound.audio.decode import read_clip
from raysound.audio.log_mel import LogMel
from raysound.corpora.formats.samples import Reject
from raysound.errors import UserError
from raysound.training import checkpoint
from raysound.training.inference import score

# Windows of a forward pass.
BATCH_SIZE = 16


class Prediction(NamedTuple):
    """One file.

    Attributes:
        path: of the file.
        label: class of the highest probability.
        probability: of this class, the mean over the windows of the file, in [0, 1].
    """

    path: str
    label: str
    probability: float


def predict(run: str, *paths: str) -> str:
    """Predicts the class of some sound files.

    Args:
        run: folder of the classifier, below `training/`.
        paths: of the files; URIs too.

    Returns:
        A line a file: label, probability, path.

    Raises:
        UserError: there is no checkpoint, or files are not readable; the others are printed.
    """
    lines, rejects = [], []
    for path, found in predictions(run, paths):
        if isinstance(found, Reject):
            rejects.append(f"{path}: {found}")
        else:
            lines.append(f"{found.label}\t{found.probability:.1%}\t{path}")
    text = "\n".join(lines)
    if rejects:
        if text:
            print(text, flush=True)
        raise UserError("\n".join(rejects))
    return text


def predictions(run: str, paths: Sequence[str]) -> Iterator[tuple[str, Prediction | Reject]]:
    """The prediction of each file, or the reason why it has none, in the order given."""
    metadata = checkpoint.load_metadata(run)
    model = checkpoint.load_model(run, metadata)
    log_mel = LogMel(metadata.features)
    for path in paths:
        try:
            windows = read_clip(path, metadata.features).windows
        except Reject as reject:
            yield path, reject
            continue
        features = log_mel(torch.from_numpy(windows)).numpy().astype(metadata.features.dtype)
        probabilities, _ = score(model, metadata.normalisation, features, BATCH_SIZE)
        mean = probabilities.mean(axis=0)
        best = int(mean.argmax())
        yield path, Prediction(path, metadata.labels[best], float(mean[best]))
