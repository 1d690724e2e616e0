import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchaudio.transforms import MelSpectrogram

from raysound.audio import log_mel as log_mel_module
from raysound.audio.log_mel import POWER_FLOOR, LogMel, filterbank
from raysound.features.bands import empty_bands
from raysound.settings.features import FeatureSettings

# torchaudio warns about mel bands without a Fourier bin, which some settings below have.
pytestmark = pytest.mark.filterwarnings("ignore:At least one mel filterbank:UserWarning")

SILENCE = float(np.log(np.float32(POWER_FLOOR)))


def feature_settings(**changes: object) -> FeatureSettings:
    return FeatureSettings(
        **{
            "clip_length": 0.25, "sample_rate": 16000, "hop_length": 160, "n_fft": 512,
            "n_mels": 40, "f_max": 8000, **changes,
        }
    )  # fmt: skip


def noise(samples: int, seed: int = 0) -> torch.Tensor:
    return 0.2 * torch.randn(samples, generator=torch.Generator().manual_seed(seed))


def chirp(samples: int) -> torch.Tensor:
    time = torch.linspace(0, 1, samples)
    return 0.5 * torch.sin(2 * torch.pi * samples / 8 * time**2)


SIGNALS = {
    "noise": noise,
    "tone": lambda n: 0.3 * torch.sin(0.123 * torch.arange(n)),
    "two tones": lambda n: torch.sin(0.1 * torch.arange(n)) + 1e-3 * torch.sin(torch.arange(n)),
    "chirp": chirp,
    "impulse": lambda n: torch.zeros(n).index_fill(0, torch.tensor([n // 3]), 1.0),
    "impulses": lambda n: (torch.arange(n) % 97 == 0).float(),
    "silence": torch.zeros,
    "constant": torch.ones,
    "square": lambda n: torch.sign(torch.sin(0.05 * torch.arange(n)) + 1e-9),
    "half silence": lambda n: noise(n) * (torch.arange(n) < n // 2),
    "tiny": lambda n: 1e-6 * noise(n),
    "huge": lambda n: 3e4 * noise(n),
}


@st.composite
def any_settings(draw: st.DrawFn) -> FeatureSettings:
    sample_rate = draw(st.sampled_from([8000, 11025, 16000, 22050, 44100, 48000]))
    n_fft = draw(st.one_of(st.sampled_from([256, 400, 512, 1024]), st.integers(64, 1100)))
    shortest = (n_fft // 2 + 1) / sample_rate
    f_min = draw(st.sampled_from([0.0, 20.0, 133.3, 1000.0]))
    f_max = draw(st.sampled_from([0.5, 0.45, 0.25])) * sample_rate
    bins = int((f_max - f_min) * n_fft / sample_rate) - 1
    return FeatureSettings(
        clip_length=shortest + draw(st.floats(0.0, 0.1)),
        sample_rate=sample_rate,
        hop_length=draw(st.integers(40, min(700, n_fft))),
        n_fft=n_fft,
        n_mels=draw(st.integers(1, min(128, 2 * bins))),
        f_min=f_min,
        f_max=f_max,
    )


def reference(wanted: FeatureSettings, waveform: torch.Tensor) -> torch.Tensor:
    """Mel power by torchaudio."""
    return MelSpectrogram(
        sample_rate=wanted.sample_rate,
        n_fft=wanted.n_fft,
        hop_length=wanted.hop_length,
        n_mels=wanted.n_mels,
        f_min=wanted.f_min,
        f_max=wanted.f_max,
    )(waveform)


@settings(max_examples=120, deadline=None)
@given(wanted=any_settings(), kind=st.sampled_from(sorted(SIGNALS)))
def test_log_mels_equal_torchaudio(wanted, kind):
    """Within 1e-4 for values above rounding errors, a millionth of the clip's maximum power."""
    waveform = SIGNALS[kind](wanted.clip_samples)
    log_mel = LogMel(wanted)(waveform)
    power = reference(wanted, waveform)
    expected = power.clamp(min=1e-10).log()
    assert log_mel.shape == expected.shape
    assert log_mel.dtype == torch.float32
    assert torch.isfinite(log_mel).all()
    audible = power >= 1e-6 * power.max()
    assert (log_mel - expected)[audible].abs().max() < 1e-4
    # Below that, no band may have power where torchaudio has almost none.
    ceiling = max(1e-6 * float(power.max()), 1e-10)
    assert (log_mel[~audible] <= np.log(ceiling) + 0.1).all()


@pytest.mark.parametrize("kind", sorted(SIGNALS))
def test_log_mels_equal_torchaudio_at_the_default_settings(kind):
    wanted = FeatureSettings(clip_length=0.5)
    waveform = SIGNALS[kind](wanted.clip_samples)
    power = reference(wanted, waveform)
    audible = power >= 1e-6 * power.max()
    difference = LogMel(wanted)(waveform) - power.clamp(min=1e-10).log()
    assert difference[audible].abs().max() < 1e-4


@settings(max_examples=60, deadline=None)
@given(wanted=any_settings())
def test_the_shape_is_that_of_the_settings(wanted):
    """Also for an odd n_fft, because the Parquet column has the shape of the settings."""
    log_mel = LogMel(wanted)(torch.zeros(wanted.clip_samples))
    assert log_mel.shape == (wanted.n_mels, wanted.n_frames)


@pytest.mark.parametrize("n_fft", [511, 512, 513])
@pytest.mark.parametrize("hop_length", [159, 160, 400])
def test_the_shape_if_the_clip_is_a_multiple_of_the_hop(n_fft, hop_length):
    wanted = feature_settings(n_fft=n_fft, hop_length=hop_length)
    log_mel = LogMel(wanted)(torch.zeros(wanted.clip_samples))
    assert log_mel.shape == (wanted.n_mels, wanted.n_frames)


def test_a_batch_equals_its_clips():
    """For any leading dimensions, including none."""
    wanted = feature_settings()
    transform = LogMel(wanted)
    batch = torch.stack([signal(wanted.clip_samples) for signal in SIGNALS.values()])
    alone = torch.stack([transform(clip) for clip in batch])
    assert torch.allclose(transform(batch), alone, atol=1e-4)
    boxed = transform(batch.reshape(3, 4, -1))
    assert boxed.shape == (3, 4, wanted.n_mels, wanted.n_frames)
    assert torch.allclose(boxed.reshape(alone.shape), alone, atol=1e-4)
    assert transform(batch[:1]).shape == (1, wanted.n_mels, wanted.n_frames)


def test_the_input_is_not_modified():
    wanted = feature_settings()
    waveform = noise(wanted.clip_samples)
    before = waveform.clone()
    LogMel(wanted)(waveform)
    assert torch.equal(waveform, before)


@pytest.mark.parametrize("amplitude", [2.0**31, 32768.0, 1e-20, 1e-40, 1e-45])
@pytest.mark.parametrize("kind", ["noise", "square", "constant", "impulse"])
@pytest.mark.parametrize("n_fft", [512, 4096])
def test_log_mels_are_always_finite(amplitude, kind, n_fft):
    """At the maximum that the decoder accepts, and for denormals."""
    wanted = feature_settings(n_fft=n_fft)
    waveform = SIGNALS[kind](wanted.clip_samples)
    waveform = waveform / waveform.abs().max() * amplitude
    log_mel = LogMel(wanted)(waveform)
    assert torch.isfinite(log_mel).all()
    assert (log_mel >= SILENCE - 1e-5).all()
    assert (log_mel.max() > SILENCE + 1) == (amplitude > 1)


def test_silence_is_the_log_of_the_floor_everywhere():
    log_mel = LogMel(feature_settings())(torch.zeros(4000))
    assert torch.allclose(log_mel, torch.tensor(np.log(1e-10), dtype=torch.float32))


def test_double_the_amplitude_adds_log_four():
    """Power, not magnitude; natural log, not decibels."""
    wanted = feature_settings()
    waveform = noise(wanted.clip_samples)
    difference = LogMel(wanted)(2 * waveform) - LogMel(wanted)(waveform)
    assert torch.allclose(difference, torch.tensor(np.log(4.0), dtype=torch.float32), atol=1e-4)


@pytest.mark.parametrize("pitch", [300.0, 1000.0, 3000.0, 7000.0])
def test_a_tone_is_loudest_in_the_band_of_its_pitch(pitch):
    """Bands are evenly spaced on the HTK mel scale, 2595 log10(1 + f / 700)."""
    wanted = feature_settings()
    waveform = torch.sin(2 * torch.pi * pitch * torch.arange(4000) / 16000)
    mel = 2595 * np.log10(1 + pitch / 700) / (2595 * np.log10(1 + 8000 / 700)) * 41 - 1
    loudest = LogMel(wanted)(waveform).mean(dim=1).argmax()
    assert abs(float(loudest) - mel) <= 0.6


@pytest.mark.parametrize("frame", [0, 5, 12, 25])
def test_frames_are_centred_on_hops(frame):
    """A click at sample hop × n has its maximum in frame n."""
    wanted = feature_settings()
    waveform = torch.zeros(wanted.clip_samples)
    waveform[min(frame * wanted.hop_length, len(waveform) - 1)] = 1
    assert LogMel(wanted)(waveform).sum(dim=0).argmax() == frame


def test_a_clip_too_short_to_mirror_raises():
    with pytest.raises(RuntimeError):
        LogMel(feature_settings())(torch.zeros(256))


def test_a_result_is_not_overwritten_by_the_next():
    """The transform reuses only its internal buffers."""
    wanted = feature_settings()
    transform = LogMel(wanted)
    first = transform(noise(wanted.clip_samples))
    kept = first.clone()
    transform(chirp(wanted.clip_samples))
    transform(noise(wanted.clip_samples + 1000, seed=1))
    assert torch.equal(first, kept)
    assert torch.equal(transform(noise(wanted.clip_samples)), kept)


@settings(max_examples=40, deadline=None)
@given(wanted=any_settings(), rows=st.sampled_from([1, 7, 64, 1000, 5000]), clips=st.integers(1, 9))
def test_the_result_does_not_depend_on_the_batch(wanted, rows, clips):
    """For pieces of a clip, as on a CPU, and for frames of many clips, as on a GPU."""
    transform = LogMel(wanted)
    waveforms = torch.stack([noise(wanted.clip_samples, seed) for seed in range(clips)])
    expected = transform(waveforms)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log_mel_module, "CPU_FRAMES", rows)
        transform = LogMel(wanted)
    assert torch.allclose(transform(waveforms), expected, atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(wanted=any_settings())
def test_int16_and_float32_samples_yield_the_same_bits(wanted):
    """The full scale of int16 is 32768."""
    samples = (noise(wanted.clip_samples) * 32768).clamp(-32768, 32767).to(torch.int16)
    transform = LogMel(wanted)
    assert torch.equal(transform(samples), transform(samples.float() / 32768))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_result_may_be_written_to_a_tensor(dtype):
    """To one row of a larger tensor; other rows are not changed."""
    wanted = feature_settings()
    rows = torch.full((3, wanted.n_mels, wanted.n_frames), 7.0, dtype=dtype)
    LogMel(wanted)(noise(wanted.clip_samples), out=rows[1])
    assert (rows[0] == 7).all()
    assert (rows[2] == 7).all()
    assert torch.equal(rows[1], LogMel(wanted)(noise(wanted.clip_samples)).to(dtype))


# Empty bands


@pytest.mark.parametrize(
    ("sample_rate", "n_fft", "n_mels", "count"),
    [(44100, 1024, 64, 0), (44100, 1024, 128, 1), (16000, 400, 128, 4), (8000, 256, 128, 6)],
)
def test_empty_bands_are_those_without_a_fourier_bin(sample_rate, n_fft, n_mels, count):
    """Known cases; with noise, exactly these bands have the floor."""
    wanted = FeatureSettings(
        clip_length=0.25, sample_rate=sample_rate, hop_length=160, n_fft=n_fft, n_mels=n_mels
    )
    bands = empty_bands(wanted)
    assert len(bands) == count
    log_mel = LogMel(wanted)(noise(wanted.clip_samples))
    silent = torch.nonzero((log_mel <= SILENCE + 1e-3).all(dim=1)).flatten().tolist()
    assert silent == bands


def test_the_filters_have_one_column_per_band():
    wanted = feature_settings(n_fft=401, n_mels=7)
    assert filterbank(wanted).shape == (201, 7)
    assert filterbank(wanted).min() >= 0
