"""Compares raysound's metrics with other libraries on the same inputs.

    python -m venv build/peers
    build/peers/bin/pip install --constraint constraints.txt --editable . \
        scikit-learn scipy prdc torch-fidelity
    build/peers/bin/pip install --no-deps fadtk==1.1.0 kadtk==1.1.0
    build/peers/bin/python benchmarks/equal_numbers.py

The libraries are no dependencies of raysound. fadtk and kadtk require NumPy 1 and audio models
that their formulas do not use, and kadtk requires a Python below 3.12 (on a later one, add
--ignore-requires-python). They are installed without dependencies, and their model loaders are
replaced by stand-ins: the modules that compute are the published ones, unchanged.

Inputs come from a seeded generator. Embeddings resemble those of a classifier: 24 latent
dimensions, a random linear map, a ReLU, noise. raysound's values are those of `fidelity_report`,
`classification_report` and the functions that they call, so they are what metrics.json holds.

Prints two Markdown tables, then the versions. The first table has a row per quantity and library:
of all inputs the one with the largest relative difference; `--all` prints a row per input. `equal
digits` is the number of significant digits to which both values agree, 15 at most. The second
table holds the settings in which raysound differs from a library on purpose. The exit code is 1 if
a relative difference in the first table exceeds its tolerance. A library that is not installed has
a row that says so.
"""

import argparse
import contextlib
import importlib
import importlib.util
import io
import itertools
import math
import platform
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock, patch

import numpy as np

from raysound.metrics.classification import classification_report
from raysound.metrics.fidelity import fidelity_report
from raysound.metrics.intervals import paired_p_value, wilson_interval
from raysound.metrics.kernel import SCALE, bandwidth, kernel_matrices, mmd_estimate
from raysound.metrics.neighbours import K, neighbour_metrics
from raysound.metrics.probabilities import clip_log_losses, map_at_k, true_ranks

SIZES = (500, 2000)
DIMENSIONS = (64, 512)
CLASSES = (10, 50)
LATENT = 24

# Shares and counts are ratios of the same integers.
EXACT = 1e-15
# torch-fidelity takes the mean of float32 zeros and ones.
FLOAT32 = 1e-6
# Sums of the same float64 terms in another order.
SUM = 1e-9
# The libraries take roots of the eigenvalues of a product that is not symmetric.
ROOT = 1e-7
# As above, where the product has no full rank: its zero eigenvalues are 1e-15 or less by rounding,
# and their roots are added.
RANK = 1e-5
# Of an even number of pairs the middle two differ a little, the more so the fewer the clips.
MIDDLE = 1e-3
# kadtk adds 1e-8 to 2σ².
ADDED = 1e-8

TIED = "n = m = 300, d = 4, integers"

Numbers = Any


@dataclass(frozen=True)
class Embeddings:
    """Embeddings `(n, d)` and `(m, d)` with raysound's values for them."""

    generated: np.ndarray
    reference: np.ndarray
    name: str
    report: dict[str, Any] = field(repr=False)

    def value(self, key: str) -> float:
        """A metric of the report."""
        return float(self.report[key]["value"])

    @property
    def full_rank(self) -> bool:
        """Whether both covariances have full rank."""
        n, d = self.generated.shape
        return min(n, len(self.reference)) > d


@dataclass(frozen=True)
class Predictions:
    """Labels `(n,)`, probabilities `(n, classes)`, with raysound's values for them."""

    truth: np.ndarray
    probabilities: np.ndarray
    name: str
    report: dict[str, Any] = field(repr=False)

    @property
    def prediction(self) -> np.ndarray:
        """Most probable classes, `(n,)`."""
        return np.argmax(self.probabilities, axis=1)

    def value(self, key: str) -> float:
        """A metric of the report."""
        return float(self.report[key]["value"])


@dataclass(frozen=True)
class Row:
    """One quantity by both.

    Attributes:
        quantity: What is computed.
        ours: raysound's number or numbers.
        theirs: The library's.
        tolerance: Largest relative difference that counts as equal.
        call: The library's function.
        note: Parameters that make the two equal.
        inputs: Name of the inputs where they are not those of the case.
    """

    quantity: str
    ours: Numbers
    theirs: Numbers
    tolerance: float
    call: str
    note: str = ""
    inputs: str = ""

    @property
    def difference(self) -> float:
        """Largest |ours - theirs|, relative to the largest |theirs|."""
        ours, theirs = (np.asarray(side, dtype=np.float64) for side in (self.ours, self.theirs))
        if ours.shape != theirs.shape:
            return math.inf
        apart, scale = float(np.abs(ours - theirs).max()), float(np.abs(theirs).max())
        if not math.isfinite(apart):
            return math.inf
        return apart / scale if scale else apart

    @property
    def digits(self) -> int:
        """Significant digits to which both agree, 0 to 15."""
        difference = self.difference
        if difference == 0:
            return 15
        return int(np.clip(math.floor(-math.log10(min(difference, 1.0))), 0, 15))

    @property
    def equal(self) -> bool:
        """Whether the difference is within the tolerance."""
        return self.difference <= self.tolerance


def embedding_case(n: int, m: int, d: int) -> Embeddings:
    """A generator that is shifted and a little less varied than its reference."""
    rng = np.random.default_rng([n, m, d])
    mix = rng.standard_normal((LATENT, d)) / math.sqrt(LATENT)

    def draw(clips: int, shift: np.ndarray, scale: float) -> np.ndarray:
        latent = rng.standard_normal((clips, LATENT)) * scale + shift
        noisy = np.maximum(latent @ mix, 0) + 0.2 * rng.standard_normal((clips, d))
        # Numbers that float32 holds, as those of a classifier.
        return noisy.astype(np.float32).astype(np.float64)

    generated = draw(n, 0.7 * (np.arange(LATENT) < 4), 0.85)
    reference = draw(m, np.zeros(LATENT), 1.0)
    report = fidelity_report(generated, reference, seed=0, set_size=n)
    return Embeddings(generated, reference, f"n = {n}, m = {m}, d = {d}", report)


def prediction_case(n: int, classes: int) -> Predictions:
    """Classes of unequal size; about two thirds of the predictions are right."""
    rng = np.random.default_rng([n, classes])
    share = 1 / np.arange(2, classes + 2)
    truth = rng.choice(classes, size=n, p=share / share.sum())
    logits = rng.standard_normal((n, classes)) * 1.5
    logits[np.arange(n), truth] += 3.5
    raw = np.exp(logits)
    probabilities = raw / raw.sum(axis=1, keepdims=True)
    report = classification_report(truth, probabilities, [str(one) for one in range(classes)])
    return Predictions(truth, probabilities, f"n = {n}, {classes} classes", report)


def tied_case() -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of small integers: many distances are equal, and exact in any arithmetic."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 9, (300, 4)) + 1.0, rng.integers(0, 9, (300, 4)).astype(np.float64)


def import_without_models(package: str, module: str, *loaders: str) -> ModuleType:
    """Import `package.module` without running what loads audio and models.

    Args:
        package: Installed package, whose `__init__` is not run.
        module: The module that computes.
        *loaders: Modules of the package that are replaced by stand-ins, as is hypy_utils.

    Raises:
        PackageNotFoundError: The package is not installed.
    """
    found = importlib.util.find_spec(package)
    if found is None or found.submodule_search_locations is None:
        raise PackageNotFoundError(package)
    bare = ModuleType(package)
    bare.__path__ = list(found.submodule_search_locations)
    names = [f"{package}.{loader}" for loader in loaders]
    names += ["hypy_utils", *(f"hypy_utils.{part}_utils" for part in ("nlp", "tqdm", "logging"))]
    stand_ins = {name: StandIn(name) for name in names}
    with patch.dict(sys.modules, {package: bare, **stand_ins}):
        return importlib.import_module(f"{package}.{module}")


class StandIn(ModuleType):
    """A module whose attributes do nothing."""

    def __getattr__(self, name: str) -> MagicMock:
        if name.startswith("__"):
            raise AttributeError(name)
        return MagicMock(name=name)


def torch_fidelity_rows(case: Embeddings) -> Iterator[Row]:
    import torch
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    x, y = torch.from_numpy(case.generated), torch.from_numpy(case.reference)
    statistics = [fid_features_to_statistics(side) for side in (x, y)]
    fid = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    if case.full_rank:
        yield Row(
            "Fréchet distance", case.value("frechet_distance"), fid, ROOT,
            "FID: `fid_statistics_to_metric`",
        )  # fmt: skip
    else:
        yield Row(
            "Fréchet distance, n ≤ d", case.value("frechet_distance"), fid, RANK,
            "FID: `fid_statistics_to_metric`", "covariances without full rank",
        )  # fmt: skip
    found = prc_features_to_metric(x, y, prc_neighborhood=K, verbose=False)
    for key in ("precision", "recall"):
        note = f"`prc_neighborhood={K}`; it counts distance ≤ radius, raysound <: no ties here"
        yield Row(key, case.value(key), found[key], FLOAT32, "`prc_features_to_metric`", note)
    if len(x) == len(y):
        sigma = bandwidth(case.reference)
        settings = {"kid_kernel": "rbf", "kid_kernel_rbf_sigma": sigma}
        one_subset = {"kid_subsets": 1, "kid_subset_size": len(x)}
        kid = kid_features_to_metric(x, y, **settings, **one_subset, verbose=False)
        yield Row(
            "MMD² × 100",
            case.value("mmd2_x100"),
            SCALE * kid["kernel_inception_distance_mean"],
            SUM,
            "KID: `kid_features_to_metric`",
            "× 100; Gaussian kernel (`kid_kernel=rbf`) with raysound's σ; one subset of all clips; "
            "n = m only",
        )  # fmt: skip


def prdc_rows(case: Embeddings) -> Iterator[Row]:
    from prdc import compute_prdc

    with contextlib.redirect_stdout(io.StringIO()):
        found = compute_prdc(case.reference, case.generated, nearest_k=K)
    for key in ("precision", "recall", "density", "coverage"):
        yield Row(key, case.value(key), found[key], EXACT, "`compute_prdc`", f"`nearest_k={K}`")


def tied_rows(case: Embeddings) -> Iterator[Row]:
    """Compare with prdc on embeddings with ties, which do not depend on the case."""
    from prdc import compute_prdc

    x, y = tied_case()
    with contextlib.redirect_stdout(io.StringIO()):
        found = compute_prdc(y, x, nearest_k=K)
    for key, ours in four(x, y).items():
        note = "many equal distances: both count distance < radius"
        yield Row(f"{key}, ties", ours, found[key], EXACT, "`compute_prdc`", note, TIED)


def four(x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    found = neighbour_metrics(x, y)
    return {key: found[key] for key in ("precision", "recall", "density", "coverage")}


def fadtk_rows(case: Embeddings) -> Iterator[Row]:
    fad = import_without_models("fadtk", "fad", "model_loader")
    with warnings.catch_warnings():
        # scipy deprecates an argument of sqrtm that fadtk gives.
        warnings.simplefilter("ignore")
        mine, real = (fad.calc_embd_statistics(side) for side in (case.generated, case.reference))
        theirs = fad.calc_frechet_distance(*mine, *real)
    name, tolerance, note = "Fréchet distance", ROOT, ""
    if not case.full_rank:
        name, tolerance, note = f"{name}, n ≤ d", RANK, "covariances without full rank"
    call = "FAD: `calc_frechet_distance`"
    yield Row(name, case.value("frechet_distance"), theirs, tolerance, call, note)


def kadtk_rows(case: Embeddings) -> Iterator[Row]:
    import torch

    kad = import_without_models("kadtk", "kad", "emb_loader", "model_loader")
    x, y = torch.from_numpy(case.generated), torch.from_numpy(case.reference)

    def distance(**settings: Any) -> float:
        found = kad.calc_kernel_audio_distance(
            x, y, (None, None), "cpu", precision=torch.float64, **settings
        )
        return float(found)

    call = "KAD: `calc_kernel_audio_distance`"
    sigma = bandwidth(case.reference)
    note = "raysound's σ, `precision=float64`; kadtk adds `eps=1e-8` to 2σ²"
    yield Row("MMD² × 100", case.value("mmd2_x100"), distance(bandwidth=sigma), ADDED, call, note)
    own = kad.median_pairwise_distance(y)
    note = "of the reference; float32, and of an even number of pairs the lower of the middle two"
    yield Row("σ of the MMD", sigma, own, MIDDLE, "`median_pairwise_distance`", note)


def formula_rows(case: Embeddings) -> Iterator[Row]:
    """Definitions in a few lines of NumPy; distances from differences, a clip at a time."""
    x, y = case.generated, case.reference
    own, cross, real = distances(x, x), distances(x, y), distances(y, y)
    pairs = real[np.triu_indices(len(y), 1)]
    sigma = bandwidth(y)
    k_own, k_cross, k_real = (np.exp(-(d**2) / (2 * sigma**2)) for d in (own, cross, real))
    n, m = len(x), len(y)
    mmd2 = (k_own.sum() - n) / (n * (n - 1)) + (k_real.sum() - m) / (m * (m - 1))
    mmd2 -= 2 * k_cross.mean()
    source = "definition: Gretton et al. 2012, lemma 6"
    yield Row("MMD² × 100", case.value("mmd2_x100"), SCALE * mmd2, SUM, source, "raysound's σ")
    note = "of an even number of pairs raysound averages the squares of the middle two distances"
    yield Row("σ of the MMD", sigma, np.median(pairs), MIDDLE, "`median` of the distances", note)
    np.fill_diagonal(real, np.inf)
    nearest = cross.argmin(axis=1)
    authentic = cross.min(axis=1) > real.min(axis=1)[nearest]
    source = "dgm-eval's AuthPct, of Alaa et al. 2022"
    yield Row(
        "authenticity", case.value("authenticity"), authentic.mean(), EXACT, source,
        "a share, not per cent; float64; dgm-eval is not published as a package",
    )  # fmt: skip


def distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Euclidean distances, `(n, m)`."""
    return np.array([np.sqrt(np.square(y - one).sum(axis=1)) for one in x])


def scikit_learn_rows(case: Predictions) -> Iterator[Row]:
    from sklearn import metrics

    truth, prediction, probabilities = case.truth, case.prediction, case.probabilities
    classes = np.arange(probabilities.shape[1])
    found = metrics.confusion_matrix(truth, prediction, labels=classes)
    yield Row("confusion matrix", case.report["confusion"], found, 0.0, "`confusion_matrix`")
    theirs = metrics.accuracy_score(truth, prediction)
    yield Row("accuracy", case.value("accuracy"), theirs, EXACT, "`accuracy_score`")
    theirs = metrics.balanced_accuracy_score(truth, prediction)
    yield Row(
        "balanced accuracy", case.value("balanced_accuracy"), theirs, SUM,
        "`balanced_accuracy_score`",
    )  # fmt: skip
    theirs = metrics.f1_score(truth, prediction, average="macro")
    yield Row("macro F1", case.value("macro_f1"), theirs, SUM, "`f1_score`", "`average=macro`")
    theirs = metrics.top_k_accuracy_score(truth, probabilities, k=3, labels=classes)
    yield Row("top-3", case.value("top_3"), theirs, EXACT, "`top_k_accuracy_score`", "no ties here")
    theirs = metrics.log_loss(truth, probabilities, labels=classes)
    ours = case.value("log_loss")
    yield Row("log loss", ours, theirs, SUM, "`log_loss`", "no probability below 1e-12 here")
    ours = map_at_k(truth, probabilities, k=len(classes))
    one_hot = np.eye(len(classes))[truth]
    theirs = metrics.label_ranking_average_precision_score(one_hot, probabilities)
    yield Row(
        "MAP@k", ours, theirs, SUM, "`label_ranking_average_precision_score`",
        "k = all classes; the report has k = 3, which scikit-learn lacks",
    )  # fmt: skip


def scipy_rows(case: Predictions) -> Iterator[Row]:
    from scipy.stats import binomtest, entropy

    n, right = len(case.truth), case.truth == case.prediction
    pair = case.report["accuracy"]["low"], case.report["accuracy"]["high"]
    note = "`method=wilson`"
    call = "`binomtest().proportion_ci`"
    theirs = tuple(binomtest(int(right.sum()), n).proportion_ci(method="wilson"))
    yield Row("accuracy's Wilson interval", pair, theirs, SUM, call, note)
    for correct, of in ((0, 20), (20, 20), (1, 10000)):
        theirs = tuple(binomtest(correct, of).proportion_ci(method="wilson"))
        ours = wilson_interval(correct, of)
        yield Row("Wilson interval", ours, theirs, SUM, call, note, f"{correct} of {of}")
    # Of a second classifier, which differs on every seventh clip.
    other = right ^ (np.random.default_rng(n).random(n) < 1 / 7)
    only, both = int((right & ~other).sum()), int((right ^ other).sum())
    yield Row(
        "p-value of McNemar's exact test", paired_p_value(right, other),
        binomtest(only, both, 0.5).pvalue, SUM, "`binomtest`", "of the clips that differ, p = 1/2",
    )  # fmt: skip
    shares = np.bincount(case.prediction)
    yield Row(
        "effective number of classes", case.value("effective_num_classes"), np.exp(entropy(shares)),
        SUM, "exp of `entropy`",
    )  # fmt: skip


def isc_rows(case: Predictions) -> Iterator[Row]:
    import torch
    from torch_fidelity.metric_isc import isc_features_to_metric

    # Logits whose softmax is the probabilities.
    logits = torch.from_numpy(np.log(case.probabilities))
    theirs = isc_features_to_metric(logits, splits=1)["inception_score_mean"]
    note = "`splits=1`; it takes logits: logarithms of the probabilities"
    call = "`isc_features_to_metric`"
    yield Row("inception score", case.value("inception_score"), theirs, SUM, call, note)


# Functions that compare with a library, and the quantities that they cover.
Library = tuple[tuple[Callable[[Any], Iterator[Row]], ...], str]
# Library and its version, name of the inputs, row: None where the library is not installed.
Found = tuple[str, str, Row | None]

EMBEDDING_LIBRARIES: dict[str, Library] = {
    "torch-fidelity": ((torch_fidelity_rows,), "Fréchet distance, precision, recall, MMD"),
    "fadtk": ((fadtk_rows,), "Fréchet distance"),
    "kadtk": ((kadtk_rows,), "MMD"),
    "numpy": ((formula_rows,), "MMD, authenticity"),
    "prdc": ((prdc_rows, tied_rows), "precision, recall, density, coverage"),
}
PREDICTION_LIBRARIES: dict[str, Library] = {
    "torch-fidelity": ((isc_rows,), "inception score"),
    "scikit-learn": ((scikit_learn_rows,), "accuracy, F1, top-k, log loss"),
    "scipy": ((scipy_rows,), "Wilson interval, McNemar's test"),
}


def on_purpose(
    case: Embeddings, predictions: Predictions
) -> Iterator[tuple[str, str, Numbers, Numbers, str]]:
    """Quantity, library, raysound's number, the library's, and why they differ."""
    x, y = case.generated, case.reference
    if installed("kadtk"):
        import torch

        kad = import_without_models("kadtk", "kad", "emb_loader", "model_loader")
        sides = torch.from_numpy(y), torch.from_numpy(x)
        theirs = float(kad.calc_kernel_audio_distance(*sides, (None, None), "cpu"))
        yield (
            "MMD² × 100", "kadtk, as its command calls it", case.value("mmd2_x100"), theirs,
            "kadtk takes σ from the evaluated set, raysound from the reference: one σ for all "
            "generators. With this σ raysound gives "
            f"{shown(mmd_estimate(kernel_matrices(x, y, bandwidth(x)))['value'], 6)}",
        )  # fmt: skip
    if installed("torch-fidelity"):
        yield from torch_fidelity_differences(x, y, predictions)
    if installed("scikit-learn"):
        yield from scikit_learn_differences()


def torch_fidelity_differences(
    x: np.ndarray, y: np.ndarray, case: Predictions
) -> Iterator[tuple[str, str, Numbers, Numbers, str]]:
    import torch
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    sides = torch.from_numpy(x), torch.from_numpy(y)
    kid = kid_features_to_metric(*sides, kid_subsets=1, kid_subset_size=len(x), verbose=False)
    yield (
        "KID", "torch-fidelity, its defaults but one subset of all clips", None,
        kid["kernel_inception_distance_mean"],
        "raysound has no KID: its MMD has a Gaussian kernel, KID a polynomial one of degree 3",
    )  # fmt: skip
    theirs = isc_features_to_metric(torch.from_numpy(np.log(case.probabilities)))
    yield (
        "inception score", "torch-fidelity, `splits=10`", case.value("inception_score"),
        theirs["inception_score_mean"],
        f"raysound takes all clips at once: tenths of {len(case.truth)} clips bias it downwards",
    )  # fmt: skip
    found = prc_features_to_metric(*sides, verbose=False)
    ours = neighbour_metrics(x, y)["precision"]
    yield (
        "precision", "torch-fidelity, its k = 3", ours, found["precision"],
        f"raysound has k = {K}, as prdc's authors",
    )  # fmt: skip
    tied = tied_case()
    found = prc_features_to_metric(
        *(torch.from_numpy(side) for side in tied), prc_neighborhood=K, verbose=False
    )
    for key in ("precision", "recall"):
        yield (
            f"{key}, integers with ties", f"torch-fidelity, k = {K}", four(*tied)[key], found[key],
            "it counts distance ≤ radius, raysound and prdc <",
        )  # fmt: skip


def scikit_learn_differences() -> Iterator[tuple[str, str, Numbers, Numbers, str]]:
    from sklearn import metrics

    truth = np.array([0, 0, 0, 1])
    even = np.full((4, 4), 0.25)
    yield (
        "top-2 of four equal probabilities", "scikit-learn",
        float(np.mean(true_ranks(truth, even) <= 2)),
        metrics.top_k_accuracy_score(truth, even, k=2, labels=np.arange(4)),
        "of equal classes raysound takes those of lower index, so that top-1 is the accuracy "
        f"({np.mean(truth == even.argmax(axis=1))}); scikit-learn those of higher index",
    )  # fmt: skip
    certain = np.array([[1.0, 0.0], [0.0, 1.0]])
    yield (
        "log loss, a true class of probability 0", "scikit-learn",
        float(clip_log_losses([0, 0], certain).mean()),
        metrics.log_loss([0, 0], certain, labels=[0, 1]),
        "raysound raises probabilities to 1e-12, scikit-learn to float64's 2.2e-16",
    )  # fmt: skip


def installed(library: str) -> bool:
    with contextlib.suppress(PackageNotFoundError):
        return bool(version(library))
    return False


def shown(numbers: Numbers, digits: int = 12) -> str:
    """Numbers of a table."""
    if numbers is None:
        return "–"
    array = np.asarray(numbers)
    if array.size > 2:
        return f"{' × '.join(map(str, array.shape))} counts"
    return " – ".join(f"{one:.{digits}g}" for one in array.ravel())


def compared(libraries: dict[str, Library], cases: Sequence[Any]) -> Iterator[Found]:
    """All rows of some libraries; inputs that do not depend on the case come once."""
    for library, (functions, quantities) in libraries.items():
        if not installed(library):
            yield library, quantities, None
            continue
        seen = set()
        for function, case in itertools.product(functions, cases):
            for row in function(case):
                key = row.quantity, row.inputs or case.name
                if key not in seen:
                    yield f"{library} {version(library)}", key[1], row
                seen.add(key)


def largest(found: Sequence[Found]) -> list[Found]:
    """Of each library's quantity the inputs with the largest difference, in the order met."""
    kept: dict[tuple[str, str], Found] = {}
    for one in found:
        library, inputs, row = one
        key = library, inputs if row is None else f"{row.quantity}, {row.inputs}"
        before = kept[key][2] if key in kept else None
        if row is None or before is None or row.difference > before.difference:
            kept[key] = one
    return list(kept.values())


COLUMNS = (
    "quantity", "inputs", "raysound", "library's value", "library, function",
    "relative difference", "equal digits", "tolerance", "parameters and notes",
)  # fmt: skip


def line(library: str, inputs: str, row: Row | None) -> str:
    if row is None:
        return f"| {inputs} | | | | {library}: not installed | | | | |"
    digits = "all" if row.difference == 0 else f"{row.digits}"
    verdict = "" if row.equal else " **exceeded**"
    cells = (
        row.quantity, inputs, shown(row.ours), shown(row.theirs), f"{library}, {row.call}",
        f"{row.difference:.0e}" if row.difference else "0", digits,
        f"{row.tolerance:.0e}{verdict}" if row.tolerance else f"0{verdict}", row.note,
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def header(*columns: str) -> str:
    return f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}"


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="clips")
    parser.add_argument("--dimensions", type=int, nargs="+", default=list(DIMENSIONS))
    parser.add_argument("--classes", type=int, nargs="+", default=list(CLASSES))
    parser.add_argument("--all", action="store_true", help="a row per input")
    arguments = parser.parse_args(words)

    # Sets of different sizes would reveal exchanged sides.
    sizes = [*((n, n) for n in arguments.sizes), (max(arguments.sizes), min(arguments.sizes))]
    pairs = list(dict.fromkeys(sizes))
    embeddings = [embedding_case(n, m, d) for d in arguments.dimensions for n, m in pairs]
    predictions = [prediction_case(n, c) for c in arguments.classes for n in arguments.sizes]
    found = [
        *compared(EMBEDDING_LIBRARIES, embeddings),
        *compared(PREDICTION_LIBRARIES, predictions),
    ]

    print(header(*COLUMNS))
    for one in found if arguments.all else largest(found):
        print(line(*one))

    first = embeddings[0], predictions[0]
    print(f"\nInputs: {first[0].name}; {first[1].name}.\n")
    print(header("quantity", "library", "raysound", "library's value", "why they differ"))
    for quantity, library, ours, theirs, why in on_purpose(*first):
        print(f"| {quantity} | {library} | {shown(ours, 6)} | {shown(theirs, 6)} | {why} |")

    rows = [row for _, _, row in found if row is not None]
    wrong = sum(not row.equal for row in rows)
    print(f"\n{len(rows)} comparisons, {wrong} beyond their tolerance.")
    names = ["raysound", "numpy", "torch", *EMBEDDING_LIBRARIES, *PREDICTION_LIBRARIES]
    print(f"Python {platform.python_version()}, ", end="")
    print(*(f"{one} {version(one)}" for one in dict.fromkeys(names) if installed(one)), sep=", ")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
