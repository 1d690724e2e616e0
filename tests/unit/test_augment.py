import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from raysound.audio.log_mel import POWER_FLOOR, LogMel
from raysound.settings.features import FeatureSettings
from raysound.settings.training import AugmentSettings
from raysound.training.augment import (
    LOG_POWER_PER_DB,
    between_class,
    crop,
    mask,
    mixup,
    probabilities,
    random_gain,
    roll,
)

FLOOR = math.log(POWER_FLOOR)
CLIPS, BANDS, FRAMES = 200, 3, 9
MASKS = AugmentSettings(frequency_masks=1, time_masks=1)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def log_mel() -> Tensor:
    """No value twice, all far above the floor."""
    return torch.arange(CLIPS * BANDS * FRAMES).view(CLIPS, BANDS, FRAMES) / 1000 - 5


def places(found: Tensor, candidates: list[Tensor]) -> list[int]:
    """Which candidate each clip is, bit by bit."""
    seen = []
    for index, clip in enumerate(found):
        (place,) = [at for at, some in enumerate(candidates) if clip.equal(some[index])]
        seen.append(place)
    return seen


# Crop and roll


def test_each_clip_is_cropped_at_a_random_position(log_mel: Tensor) -> None:
    cropped = crop(log_mel, 5)

    pieces = [log_mel[:, :, start : start + 5] for start in range(5)]
    starts = places(cropped, pieces)
    assert set(starts) == {0, 1, 2, 3, 4}
    assert min(starts.count(start) for start in range(5)) > CLIPS / 10


@pytest.mark.parametrize("frames", [FRAMES, FRAMES + 1, 1000])
def test_short_clips_are_not_cropped(log_mel: Tensor, frames: int) -> None:
    assert crop(log_mel, frames).equal(log_mel)


def test_a_crop_avoids_the_padding_of_a_clip(log_mel: Tensor) -> None:
    log_mel[:, :, 6:] = FLOOR

    cropped = crop(log_mel, 5)

    assert set(places(cropped, [log_mel[:, :, start : start + 5] for start in (0, 1)])) == {0, 1}


def test_a_stretch_changes_the_speed_of_each_clip_within_its_bound() -> None:
    """A log-mel that rises by 1 per frame rises by the factor of its clip."""
    ramp = torch.arange(100.0).expand(CLIPS, BANDS, -1)

    stretched = crop(ramp, 60, max_stretch=0.25)

    steps = stretched.diff(dim=2)
    factors = steps[:, 0, 0]
    torch.testing.assert_close(steps, factors.view(-1, 1, 1).expand_as(steps), atol=1e-4, rtol=0)
    assert 1 / 1.25 - 1e-4 <= factors.min() < 0.82
    assert 1.22 < factors.max() <= 1.25 + 1e-4
    assert factors.log().mean().abs() < 0.03
    assert stretched.min() >= 0
    assert stretched.max() <= 99


def test_a_faster_clip_is_filled_up_with_silence() -> None:
    """Without a crop, a clip that became shorter lies at a random place."""
    ramp = torch.arange(1.0, 101).expand(CLIPS, BANDS, -1)

    stretched = crop(ramp, 100, max_stretch=0.25)

    silent = (stretched == FLOOR).sum(dim=2)[:, 0]
    assert stretched.shape == ramp.shape
    assert silent.max() <= 20
    assert silent.max() > 15
    assert (silent == 0).any()


def test_padding_puts_silence_before_or_after_a_crop(log_mel: Tensor) -> None:
    cropped = crop(log_mel, 5, padding=2)

    padded = functional.pad(log_mel, (2, 2), value=FLOOR)
    starts = places(cropped, [padded[:, :, start : start + 5] for start in range(9)])
    assert set(starts) == set(range(9))


def test_a_clip_that_is_shorter_than_the_crop_is_padded_to_it(log_mel: Tensor) -> None:
    assert crop(log_mel, FRAMES + 4, padding=4).shape == (CLIPS, BANDS, FRAMES + 4)


def test_each_clip_is_rolled_by_its_own_shift(log_mel: Tensor) -> None:
    turned = roll(log_mel)

    shifts = places(turned, [log_mel.roll(shift, 2) for shift in range(FRAMES)])
    assert set(shifts) == set(range(FRAMES))


# Gain


def test_gain_in_decibels_matches_that_of_a_waveform() -> None:
    """Ten times the amplitude are 20 dB."""
    to_log_mel = LogMel(FeatureSettings(clip_length=0.1, n_mels=16))
    waveform = torch.randn(1, 4410) * 0.01

    louder = to_log_mel(waveform * 10) - to_log_mel(waveform)

    torch.testing.assert_close(louder, torch.full_like(louder, 20 * LOG_POWER_PER_DB))


def test_a_gain_shifts_each_clip_as_a_whole_within_its_bound(log_mel: Tensor) -> None:
    most = 6 * math.log(10) / 10

    shift = random_gain(log_mel, 6.0) - log_mel

    by_clip = shift.mean(dim=(1, 2))
    torch.testing.assert_close(shift, by_clip.view(-1, 1, 1).expand_as(shift))
    assert by_clip.abs().max() <= most + 1e-5
    assert by_clip.min() < -0.9 * most
    assert by_clip.max() > 0.9 * most
    assert len(by_clip.unique()) > CLIPS * 0.9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_silence_stays_silent(dtype: torch.dtype) -> None:
    """Silence is tested in both types of log-mels."""
    to_log_mel = LogMel(FeatureSettings(clip_length=0.1, n_mels=16))
    silence = to_log_mel(torch.zeros(50, 4410)).to(dtype).float()

    assert random_gain(silence, 20.0).equal(silence)


def test_values_below_the_floor_are_clamped() -> None:
    quiet = torch.full((CLIPS, 2, 3), FLOOR + 0.5)
    quiet[:, 0] = FLOOR

    changed = random_gain(quiet, 20.0)

    assert (changed[:, 0] == torch.tensor(FLOOR)).all()
    assert changed.min() == torch.tensor(FLOOR)
    assert (changed[:, 1] > FLOOR + 0.5).any()


# Masks


def masked(settings: AugmentSettings, bands: int = 20, frames: int = 40) -> Tensor:
    """Which values of a thousand clips are masked: `(1000, bands, frames)`."""
    seen = mask(torch.ones(1000, 1, bands, frames), settings).squeeze(1)
    assert ((seen == 0) | (seen == 1)).all()
    return seen == 0


@pytest.mark.parametrize("axis", ["frequency", "time"])
def test_a_mask_is_contiguous_and_not_wider_than_its_maximum(axis: str) -> None:
    """The maxima are 5 of 20 bands and 10 of 40 frames; every width occurs."""
    settings = AugmentSettings(**{f"{axis}_masks": 1, f"max_{axis}_mask": 0.25})
    widest = {"frequency": 5, "time": 10}[axis]

    seen = masked(settings)

    lines = seen.transpose(1, 2) if axis == "frequency" else seen
    # Whole bands or frames: the other axis has no say.
    assert (lines == lines[:, :1]).all()
    covered = lines[:, 0]
    assert set(covered.sum(1).tolist()) == set(range(widest + 1))
    edges = functional.pad(covered.int(), (1, 1)).diff(dim=1)
    assert (edges == 1).sum(1).max() == 1
    assert covered.any(0).float().mean() > 0.9


def test_the_number_of_masks_follows_the_settings() -> None:
    settings = AugmentSettings(frequency_masks=3, max_frequency_mask=0.1)

    covered = masked(settings)[:, :, 0].sum(1)

    # Three masks of two bands, most often apart.
    assert covered.max() == 6


@pytest.mark.parametrize("axis", ["frequency", "time"])
def test_the_narrowest_mask_covers_a_band(axis: str) -> None:
    """A fraction of less than one band is one band."""
    settings = AugmentSettings(**{f"{axis}_masks": 1, f"max_{axis}_mask": 0.01})

    covered = masked(settings).any(2 if axis == "frequency" else 1).sum(1)

    assert set(covered.tolist()) == {0, 1}


@pytest.mark.parametrize("size", [1, 2, 3])
def test_masks_fit_into_the_smallest_log_mel(size: int) -> None:
    settings = AugmentSettings(
        frequency_masks=1, max_frequency_mask=0.99, time_masks=1, max_time_mask=0.99
    )

    assert masked(settings, size, size).any()


def test_each_clip_has_its_own_masks() -> None:
    assert len(masked(MASKS).flatten(1).unique(dim=0)) > 600


def test_zero_masks_change_nothing() -> None:
    assert not masked(AugmentSettings()).any()


# Mixup


def blends(alpha: float, clips: int = 1024) -> Tensor:
    """How much of each clip is in each blend: `(clips, clips)`."""
    _, target = mixup(torch.zeros(clips, 1, 1, 1), torch.eye(clips), alpha)
    return target


def test_mixup_blends_clips_and_targets_equally() -> None:
    """Each clip is its own one-hot target, so both blends must be equal."""
    each = torch.eye(64)

    inputs, target = mixup(each.view(64, 1, 8, 8), each, 1.0)

    assert inputs.shape == (64, 1, 8, 8)
    assert inputs.flatten(1).equal(target)
    torch.testing.assert_close(target.sum(1), torch.ones(64))
    assert target.min() >= 0
    assert (target > 0).sum(1).max() == 2
    # Nobody is blended with the same one by all.
    assert ((target > 0).sum(0) <= 2).all()
    assert ((target > 0).sum(1) == 2).sum() > 55


def test_mixup_is_applied_after_normalisation() -> None:
    normalised = torch.randn(32, 1, 4, 5)

    inputs, share = mixup(normalised, torch.eye(32), 0.5)

    expected = (share @ normalised.flatten(1)).view_as(normalised)
    torch.testing.assert_close(inputs, expected)


@pytest.mark.parametrize(("alpha", "spread"), [(0.2, 0.423), (1.0, 0.289), (50.0, 0.0498)])
def test_mixup_weights_have_a_beta_distribution(alpha: float, spread: float) -> None:
    """Mean a half, variance 1 / (4 (2 alpha + 1))."""
    target = blends(alpha)

    # A clip that was blended with itself tells nothing of its share.
    share = target.diagonal()[(target > 0).sum(1) == 2]

    assert share.mean().item() == pytest.approx(0.5, abs=0.05)
    assert share.std().item() == pytest.approx(spread, rel=0.1)


# Between-class learning


def test_between_class_mixes_each_clip_with_one_of_another_class(log_mel: Tensor) -> None:
    """The targets of the two add up to 1, and the shares are uniform."""
    target = probabilities(torch.arange(CLIPS) % 4, 4)

    _, mixed = between_class(log_mel, target)

    own = (mixed * target).sum(dim=1)
    assert (mixed > 0).sum(dim=1).tolist() == [2] * CLIPS
    torch.testing.assert_close(mixed.sum(dim=1), torch.ones(CLIPS))
    assert own.mean().item() == pytest.approx(0.5, abs=0.1)
    assert own.min() < 0.05
    assert own.max() > 0.95


def test_between_class_adds_powers_at_equal_levels() -> None:
    """Of two tones, the louder one is attenuated: the ratio of their amplitudes is r / (1 - r)."""
    quiet, loud = torch.full((2, 4), FLOOR), torch.full((2, 4), FLOOR)
    quiet[0], loud[1] = -8.0, 3.0
    log_mel = torch.stack([quiet, loud])

    mixed, target = between_class(log_mel, torch.eye(2))

    for clip, (own, other) in enumerate(((0, 1), (1, 0))):
        ratio = (mixed[clip, own] - mixed[clip, other]) / 2
        expected = torch.logit(target[clip, own])
        torch.testing.assert_close(ratio, expected.expand(4), atol=1e-3, rtol=1e-3)


def test_the_power_of_a_mixture_follows_the_formula_of_the_waveforms() -> None:
    """Two sounds of equal level: (p² P₁ + (1 - p)² P₂) / (p² + (1 - p)²) with p = r."""
    log_mel = torch.randn(2, 5, 7)
    log_mel -= log_mel.logsumexp(dim=1).amax(dim=1).view(-1, 1, 1)

    mixed, target = between_class(log_mel, torch.eye(2))

    p = target[0, 0].item()
    power = (p**2 * log_mel[0].exp() + (1 - p) ** 2 * log_mel[1].exp()) / (p**2 + (1 - p) ** 2)
    torch.testing.assert_close(mixed[0], power.log(), atol=1e-4, rtol=1e-4)


def test_between_class_leaves_a_batch_of_one_class_as_it_is(log_mel: Tensor) -> None:
    target = probabilities(torch.ones(CLIPS, dtype=torch.long), 3)

    mixed, targets = between_class(log_mel, target)

    torch.testing.assert_close(mixed, log_mel)
    torch.testing.assert_close(targets, target)


def test_silence_mixes_without_an_infinity() -> None:
    mixed, _ = between_class(torch.full((6, 4, 5), FLOOR), probabilities(torch.arange(6), 6))

    torch.testing.assert_close(mixed, torch.full_like(mixed, FLOOR))


def test_probabilities_are_one_at_the_class() -> None:
    actual = probabilities(torch.tensor([2, 0]), 3)

    assert actual.dtype == torch.float32
    assert actual.tolist() == [[0, 0, 1], [1, 0, 0]]


# All of them


@pytest.mark.parametrize(
    "change",
    [
        lambda clips: crop(clips.squeeze(1), 7),
        lambda clips: roll(clips.squeeze(1)),
        lambda clips: random_gain(clips.squeeze(1), 6.0),
        lambda clips: mask(clips, MASKS),
        lambda clips: mixup(clips, torch.eye(len(clips)), 0.5)[0],
        lambda clips: mixup(clips, torch.eye(len(clips)), 0.5)[1],
    ],
    ids=["crop", "roll", "change_gain", "mask", "mixup", "mixup of targets"],
)
def test_augmentation_depends_on_the_seed_and_keeps_the_input(
    change: Callable[[Tensor], Tensor],
) -> None:
    clips = torch.randn(40, 1, 20, 30)
    before = clips.clone()

    def drawn(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return change(clips)

    assert drawn(1).equal(drawn(1))
    assert not drawn(1).equal(drawn(2))
    assert drawn(1).dtype == torch.float32
    assert clips.equal(before)


def test_augmentation_keeps_shapes_and_types(log_mel: Tensor) -> None:
    for dtype in (torch.float32, torch.float16):
        assert crop(log_mel.to(dtype), 5).shape == (CLIPS, BANDS, 5)
        assert crop(log_mel.to(dtype), 5).dtype == dtype
        assert roll(log_mel.to(dtype)).shape == log_mel.shape
        assert roll(log_mel.to(dtype)).dtype == dtype
    assert random_gain(log_mel, 6.0).shape == log_mel.shape
    normalised = log_mel.unsqueeze(1)
    assert mask(normalised, MASKS).shape == normalised.shape
