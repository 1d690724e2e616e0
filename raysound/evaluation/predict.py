"""Predicts the classes of sound files, without features on disk and without Ray."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from raysound.audio.decode import read_clip
from raysound.audio.log_mel import LogMel
from raysound.corpora.formats.samples import Reject
from raysound.errors import UserError
from raysound.models import EmbeddingClassifier
from raysound.training import checkpoint
from raysound.training.checkpoint import ClassifierMetadata
from raysound.training.inference import score

# Windows per forward pass.
BATCH_SIZE = 16


class Prediction(NamedTuple):
    """The prediction for one file, or the reason why there is none.

    Attributes:
        path: path or URI of the file.
        label: the class of the highest probability; None for a rejected file.
        probability: of this class, in [0, 1]; None for a rejected file.
        probabilities: of all classes in the order of `Classifier.labels`, averaged over the windows
            of the file; empty for a rejected file.
        reason: why the file is rejected; None for a file with a prediction.
    """

    path: str
    label: str | None = None
    probability: float | None = None
    probabilities: tuple[float, ...] = ()
    reason: str | None = None


@dataclass(frozen=True, eq=False)
class Classifier:
    """A trained classifier that predicts the class of sound files, without Ray.

    Attributes:
        model: the network, on the CPU.
        metadata: labels, feature settings and normalisation.
        log_mel: from waveforms to log-mels, with the feature settings of the training.
    """

    model: EmbeddingClassifier
    metadata: ClassifierMetadata
    log_mel: LogMel

    @classmethod
    def load(cls, run: str | os.PathLike[str]) -> Classifier:
        """Loads a classifier.

        Args:
            run: run folder that `train` returns, `OUTPUT/training/<model>-<hash>`; path or URI.

        Raises:
            UserError: the folder has no checkpoint.
        """
        metadata = checkpoint.load_metadata(os.fspath(run))
        model = checkpoint.load_model(os.fspath(run), metadata)
        return cls(model, metadata, LogMel(metadata.features))

    @property
    def labels(self) -> list[str]:
        """The class names, in the order of the probabilities."""
        return list(self.metadata.labels)

    def predict(self, paths: Iterable[str | os.PathLike[str]]) -> list[Prediction]:
        """Predicts the class of some sound files.

        A file of any sample rate and length that libsndfile reads is resampled and cut into windows
        with the feature settings of the classifier.

        Args:
            paths: paths or URIs of the files.

        Returns:
            One prediction per file, in the order given. A file that can't be used raises no error:
            its prediction has a `reason` and no label.
        """
        return [self.predict_file(os.fspath(path)) for path in paths]

    def predict_file(self, path: str) -> Prediction:
        """Predicts the class of one sound file; see `predict`."""
        settings = self.metadata.features
        try:
            windows = read_clip(path, settings).windows
        except Reject as reject:
            return Prediction(path, reason=str(reject))
        features = self.log_mel(torch.from_numpy(windows)).numpy().astype(settings.dtype)
        probabilities, _ = score(self.model, self.metadata.normalisation, features, BATCH_SIZE)
        mean = probabilities.mean(axis=0)
        best = int(mean.argmax())
        label = self.metadata.labels[best]
        return Prediction(path, label, float(mean[best]), tuple(mean.tolist()))


def predict_command(run: str, *paths: str) -> str:
    """Predicts the class of some sound files.

    Args:
        run: folder of the classifier, below `training/`.
        paths: paths or URIs of the files.

    Returns:
        A line per file: label, probability, path.

    Raises:
        UserError: there is no checkpoint, or files can't be used. The predictions of the other
            files are printed first.
    """
    predictions = Classifier.load(run).predict(paths)
    rejects = [f"{row.path}: {row.reason}" for row in predictions if row.reason is not None]
    text = "\n".join(
        f"{row.label}\t{row.probability:.1%}\t{row.path}"
        for row in predictions
        if row.reason is None
    )
    if rejects:
        if text:
            print(text, flush=True)
        raise UserError("\n".join(rejects))
    return text
