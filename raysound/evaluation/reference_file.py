"""The real side of an evaluation as one file, which replaces the real clips.

It is a safetensors file. docs/reference.md describes its arrays; other data is JSON in its header.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from raysound import storage
from raysound.errors import UserError
from raysound.metrics.corpus import Scored
from raysound.metrics.declarations import METRICS_SCHEMA
from raysound.metrics.mismatch import CorpusSound, SoundSums
from raysound.metrics.moments import covariance, moments

# Incremented when the layout of the file changes. Its rows have the layout of metrics.json.
REFERENCE_VERSION = 2
HEADER_KEY = "raysound.reference"
REFERENCE_NAME = "reference.safetensors"


@dataclass(frozen=True, eq=False)
class RealEmbedding:
    """The real side in one further embedding.

    Attributes:
        digest: of the embedding, see `EmbeddingSource.digest`.
        training: real training clips, in the order of sampling, float32 `(n, size)`.
        row: distances of the real test clips.
        anchors: distances of the anchors, by name.
    """

    digest: str
    training: NDArray[np.float32]
    row: dict[str, Any]
    anchors: dict[str, dict[str, Any]]


@dataclass(frozen=True, eq=False)
class RealSide:
    """The data on real clips that the evaluation of a generated corpus needs.

    Attributes:
        classifier: `classifier` of metrics.json.
        reference: `reference` of metrics.json.
        clip_ids: names of the training clips in the reference set.
        training: these clips, at most PAIR_CLIPS, in the order of sampling.
        class_sizes: clips of each class for metrics that depend on the sample size.
        row: the real row of metrics.json.
        anchors: `anchors` of metrics.json.
        sound: levels, durations, sample rates and spectra of test and training clips.
        embeddings: the real side in further embeddings, by name.
        identity: `weights_sha256` and `normalisation` (a digest) of the classifier.
    """

    classifier: dict[str, Any]
    reference: dict[str, Any]
    clip_ids: list[str]
    training: Scored
    class_sizes: list[int]
    row: dict[str, Any]
    anchors: dict[str, dict[str, Any]]
    sound: CorpusSound
    embeddings: dict[str, RealEmbedding]
    identity: dict[str, str]

    @property
    def set_size(self) -> int:
        """Number of clips for metrics that depend on the sample size."""
        size: int = self.reference["set_size"]
        return size

    @property
    def digest(self) -> str:
        """A digest of the reference set."""
        text = json.dumps(self.clip_ids).encode()
        return hashlib.sha256(text + self.training.embedding.tobytes()).hexdigest()


def write_reference(uri: str, side: RealSide) -> None:
    """Writes a real side as one file, atomically.

    Args:
        uri: of the file.
        side: with at least two training clips, so that there is a covariance.
    """
    training, sound = side.training, side.sound
    arrays = {
        **with_moments(training.embedding),
        "truth": training.truth,
        "probabilities": training.probabilities,
        "sound.rows": sound.sums.rows,
        "sound.level_db": sound.level_db,
        "sound.duration": sound.duration,
    }
    for name, embedding in side.embeddings.items():
        for key, array in with_moments(embedding.training).items():
            arrays[f"embeddings/{name}/{key}"] = array
    content = {
        "version": REFERENCE_VERSION,
        "metrics_schema": METRICS_SCHEMA,
        "classifier": side.classifier,
        "identity": side.identity,
        "reference": side.reference,
        "class_sizes": side.class_sizes,
        "real": side.row,
        "anchors": side.anchors,
        "sample_rates": list(sound.sums.rates.items()),
        "embeddings": {
            name: {
                "digest": embedding.digest,
                "real": embedding.row,
                "anchors": embedding.anchors,
            }
            for name, embedding in side.embeddings.items()
        },
        "clip_ids": side.clip_ids,
    }
    header = {HEADER_KEY: json.dumps(content, ensure_ascii=False, allow_nan=False)}
    contiguous = {key: np.ascontiguousarray(array) for key, array in arrays.items()}
    storage.write_bytes(uri, safetensors.numpy.save(contiguous, header))


def with_moments(embedding: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """Embeddings `(n, d)`, their mean `(d,)` and covariance `(d, d)`, the last two float64."""
    sums = moments(embedding)
    return {"embedding": embedding, "mean": sums.mean, "covariance": covariance(sums)}


def read_reference(uri: str) -> RealSide:
    """Reads a file of `write_reference`.

    Raises:
        UserError: the file is missing, truncated, of another kind or of another version.
    """
    try:
        data = storage.read_bytes(uri)
    except OSError as error:
        raise UserError(f"evaluation.reference: {uri} can't be read: {error}") from error
    try:
        arrays = safetensors.numpy.load(data)
        # Parsed here, because safetensors reads the metadata only of local files.
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        content = json.loads(header["__metadata__"][HEADER_KEY])
        written = content["version"], content["metrics_schema"]
        if written != (REFERENCE_VERSION, METRICS_SCHEMA):
            raise UserError(
                f"evaluation.reference: {uri} has version {written[0]} with metrics schema "
                f"{written[1]}; this raysound reads version {REFERENCE_VERSION} with schema "
                f"{METRICS_SCHEMA}: write it again with jobs/reference.py"
            )
        return parse_real_side(content, arrays)
    except (
        safetensors.SafetensorError, ValueError, LookupError, TypeError, AttributeError
    ) as error:  # fmt: skip
        raise UserError(
            f"evaluation.reference: {uri} is truncated, or is not a file that jobs/reference.py "
            "wrote"
        ) from error


def parse_real_side(content: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> RealSide:
    """The real side from a file's header and arrays.

    Raises:
        KeyError, ValueError, TypeError or AttributeError: content is missing or invalid.
    """
    rates = {int(rate): int(count) for rate, count in content["sample_rates"]}
    sums = SoundSums(rates, arrays["sound.rows"])
    scored = Scored(arrays["truth"], arrays["probabilities"], arrays["embedding"])
    clips, classes = len(content["clip_ids"]), len(content["classifier"]["labels"])
    shapes = scored.truth.shape, scored.probabilities.shape, scored.embedding.shape[:1]
    if shapes != ((clips,), (clips, classes), (clips,)):
        raise ValueError(f"arrays of {shapes} for {clips} clips of {classes} classes")
    return RealSide(
        classifier=content["classifier"],
        reference=content["reference"],
        clip_ids=content["clip_ids"],
        training=scored,
        class_sizes=content["class_sizes"],
        row=content["real"],
        anchors=content["anchors"],
        sound=CorpusSound(sums, arrays["sound.level_db"], arrays["sound.duration"]),
        embeddings={
            name: RealEmbedding(
                row["digest"], arrays[f"embeddings/{name}/embedding"], row["real"], row["anchors"]
            )
            for name, row in content["embeddings"].items()
        },
        identity=content["identity"],
    )


def check_reference(
    side: RealSide, uri: str, classifier: Mapping[str, Any], run: str, embeddings: Mapping[str, str]
) -> None:
    """Raises UserError if a real side has another classifier, or lacks an embedding.

    Args:
        side: from `read_reference`.
        uri: of its file.
        classifier: expected values of `classifier` and `identity` of the side, by key.
        run: folder of the classifier.
        embeddings: digests of the required embeddings, by name.
    """
    actual = side.classifier | side.identity
    differing = [key for key, value in classifier.items() if actual.get(key) != value]
    if differing:
        raise UserError(
            f"evaluation.reference: {uri} has another classifier than evaluation.checkpoint "
            f"{run}: {', '.join(differing)} {'differs' if len(differing) == 1 else 'differ'}"
        )
    for name, digest in embeddings.items():
        if name not in side.embeddings:
            raise UserError(
                f"evaluation.embeddings.{name}: evaluation.reference {uri} has no embedding of "
                f"this name; it has {', '.join(side.embeddings) or 'none'}"
            )
        if side.embeddings[name].digest != digest:
            raise UserError(
                f"evaluation.embeddings.{name}: evaluation.reference {uri} has another embedding "
                "of this name: model, sample rate, clip length, long_clips or features differ"
            )
