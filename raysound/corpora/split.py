"""Train, validation and test split: from the corpus, from its folds, or random and stratified."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from raysound.errors import UserError
from raysound.settings.corpora import SplitSettings

# Maximum deviation of a split from its share: CLIPS_OFF clips or SHARE_OFF of the share, whichever
# is larger. Beyond it, clips of small classes are moved.
CLIPS_OFF, SHARE_OFF = 1, 0.25


def assign_split(table: pa.Table, settings: SplitSettings) -> pa.Table:
    """Assigns every clip of a real corpus to train, validation or test.

    The split of the corpus is used, except for the configured folds. If test or validation is then
    empty, a share of the remaining groups is sampled for it, stratified by label and seeded.
    Groups are never divided.

    Args:
        table: clips of the corpus, a table of SCHEMA.
        settings: folds, fractions and seed.

    Returns:
        The table with `split` train, validation or test in every row.

    Raises:
        UserError: the corpus lacks a configured fold, a group is on both sides of a given split,
            or a class has no training clip.
    """
    labels, folds = _column(table, "label"), _column(table, "fold")
    split = _column(table, "split")
    unknown = {*settings.test_folds, *settings.validation_folds} - set(folds)
    if unknown:
        known = sorted({str(fold) for fold in folds if fold is not None})
        raise UserError(
            f"the real corpus has no fold {', '.join(sorted(unknown))}; "
            f"its folds are: {', '.join(known) or 'none'}"
        )
    for name, chosen in (
        ("test", settings.test_folds),
        ("validation", settings.validation_folds),
    ):
        split[np.isin(folds, chosen)] = name
    groups = _column(table, "group")
    for name in ("test", "validation"):
        shared = set(groups[split == name]) & set(groups[split != name])
        if shared:
            raise UserError(
                f"the clips of group '{min(shared)}' are not all in {name}: clips of one source "
                "must not be on both sides of a split; correct the folds, the split or the groups"
            )
    shares = {
        name: fraction
        for name, fraction in (
            ("test", settings.test_fraction),
            ("validation", settings.validation_fraction),
        )
        if not (split == name).any()
    }
    free = np.flatnonzero((split == None) | (split == "train"))  # noqa: E711 - elementwise
    split[free] = stratified_split(labels[free], groups[free], shares, settings.seed)
    untrained = sorted(set(labels) - set(labels[split == "train"]))
    if untrained:
        raise UserError(f"no training clip is left for the classes {', '.join(untrained)}")
    return table.set_column(
        table.schema.get_field_index("split"), "split", pa.array(split, pa.string())
    )


def stratified_split(
    labels: np.ndarray, groups: np.ndarray, shares: Mapping[str, float], seed: int
) -> np.ndarray:
    """Assigns a split to every clip so that each class is divided by the shares.

    Groups are taken in a seeded random order; each goes to the split that lacks most of its labels.
    If the classes are too small to be divided by the shares, the total of a split can be far from
    its share; then some groups are moved. With 300 classes of 3 clips, each class has at most one
    clip in test or validation.

    Args:
        labels: names `(n,)`.
        groups: names `(n,)`; clips of a group stay together.
        shares: split name → share of the clips, in [0, 1), with a sum below 1; train gets the
            rest.
        seed: seed of the order of groups.

    Returns:
        Split names, objects `(n,)`.

    Raises:
        UserError: the sum of the shares is 1 or more.
    """
    wanted = {"train": 1 - sum(shares.values()), **shares}
    if wanted["train"] <= 0:
        raise UserError("test_fraction and validation_fraction leave nothing to train on")
    names = [name for name, share in wanted.items() if share > 0]
    share = np.array([wanted[name] for name in names])
    _, label_codes = np.unique(labels, return_inverse=True)
    group_names, group_codes = np.unique(groups, return_inverse=True)
    members = np.split(
        np.argsort(group_codes, kind="stable"), np.bincount(group_codes).cumsum()[:-1]
    )
    totals = np.bincount(label_codes)
    given = np.zeros((len(names), len(totals)))
    split = np.empty(len(labels), dtype=object)
    place = np.empty(len(group_names), np.int64)
    for group in np.random.default_rng(seed).permutation(len(group_names)):
        counts = np.bincount(label_codes[members[group]], minlength=len(totals))
        # Share of the planned clips with these labels that each split already has.
        fullness = ((given + counts / 2) / (share[:, np.newaxis] * totals)) @ counts
        # Each class needs a training clip: its first group goes to train.
        untrained = (counts > 0) & (given[0] == 0)
        place[group] = 0 if untrained.any() else int(fullness.argmin())
        given[place[group]] += counts
    _meet_shares(place, members, label_codes, given, share, seed)
    for group, clips in enumerate(members):
        split[clips] = names[place[group]]
    return split


def _meet_shares(
    place: np.ndarray,
    members: Sequence[np.ndarray],
    labels: np.ndarray,
    given: np.ndarray,
    share: np.ndarray,
    seed: int,
) -> None:
    """Moves groups, in place, until the splits have their shares of all clips.

    Each class keeps a training clip. The number of its clips in a split differs from the share by
    less than one clip, or less than one group if groups are larger.

    Args:
        place: index of each group's split; 0 is train.
        members: clips of each group.
        labels: label code of each clip.
        given: number of clips `(splits, labels)`.
        share: share of each split.
        seed: seed of the order in which groups are moved.
    """
    totals = given.sum(axis=0)
    missing = share * totals.sum() - given.sum(axis=1)
    far = np.maximum(CLIPS_OFF, SHARE_OFF * share * totals.sum())
    if (np.abs(missing) <= far).all():
        return
    for group in np.random.default_rng((seed, 1)).permutation(len(place)):
        codes, counts = np.unique(labels[members[group]], return_counts=True)
        source, target = place[group], int(missing.argmax())
        exact, slack = np.outer(share, totals[codes]), np.maximum(1, counts)
        left, grown = given[source, codes] - counts, given[target, codes] + counts
        if (
            missing[target] - missing[source] > counts.sum()
            and (source > 0 or (left >= 1).all())
            and (exact[source] - left < slack).all()
            and (grown - exact[target] < slack).all()
        ):
            place[group] = target
            given[source, codes], given[target, codes] = left, grown
            missing[source] += counts.sum()
            missing[target] -= counts.sum()


def _column(table: pa.Table, name: str) -> np.ndarray:
    return np.array(table[name].to_pylist(), dtype=object)
