import numpy as np
import pytest
import torch

from raysound.audio.griffin_lim import log_mel_to_waveform
from raysound.audio.log_mel import LogMel
from raysound.features.bands import empty_bands
from raysound.settings.features import FeatureSettings

RATE = 16000
SETTINGS = FeatureSettings(
    clip_length=0.5, sample_rate=RATE, hop_length=160, n_fft=512, n_mels=40, f_max=RATE / 2
)


def tone(pitch: float, settings: FeatureSettings = SETTINGS) -> torch.Tensor:
    """A sine with faint noise, like a recording."""
    time = torch.arange(settings.clip_samples) / settings.sample_rate
    hiss = torch.randn(len(time), generator=torch.Generator().manual_seed(5))
    return 0.3 * torch.sin(2 * torch.pi * pitch * time) + 0.003 * hiss


def loudest(waveform: torch.Tensor, rate: int = RATE) -> float:
    """The frequency (Hz) with most power."""
    spectrum = np.abs(np.fft.rfft(waveform.numpy() * np.hanning(len(waveform))))
    return float(spectrum.argmax() * rate / len(waveform))


@pytest.mark.parametrize("pitch", [440.0, 1000.0, 2500.0])
def test_a_reconstructed_tone_keeps_its_pitch(pitch):
    """Within a mel band, and with a much smaller log-mel error than noise of the same power."""
    original = LogMel(SETTINGS)(tone(pitch))
    waveform = log_mel_to_waveform(original, SETTINGS, 16, seed=0)
    assert loudest(waveform) == pytest.approx(pitch, rel=0.11)
    hiss = torch.randn(SETTINGS.clip_samples, generator=torch.Generator().manual_seed(1))
    hiss *= tone(pitch).square().mean().sqrt()
    distance, of_noise = (
        (LogMel(SETTINGS)(sound) - original).abs().mean() for sound in (waveform, hiss)
    )
    assert distance < 0.5 * of_noise


def test_more_iterations_reduce_the_error():
    """The sound is noise, whose log-mel does not depend on the phase."""
    hiss = 0.1 * torch.randn(SETTINGS.clip_samples, generator=torch.Generator().manual_seed(2))
    original = LogMel(SETTINGS)(hiss)
    distances = [
        (LogMel(SETTINGS)(log_mel_to_waveform(original, SETTINGS, n, seed=0)) - original)
        .abs()
        .mean()
        for n in (1, 32)
    ]
    assert distances[1] < 0.5 * distances[0]


def test_the_seed_determines_the_waveform():
    """The same seed yields the same bytes, another seed another phase."""
    log_mel = LogMel(SETTINGS)(tone(440))
    one, again, other = (log_mel_to_waveform(log_mel, SETTINGS, 2, seed) for seed in (1, 1, 2))
    assert one.numpy().tobytes() == again.numpy().tobytes()
    assert not torch.allclose(one, other, atol=1e-3)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"clip_length": 0.3337},
        {"hop_length": 131},
        {"n_fft": 400, "f_min": 300.0, "f_max": 5000.0},
        {"clip_length": 0.017},
    ],
)
def test_the_waveform_has_the_length_of_a_clip(changes):
    """Also if the clip is not a multiple of the hop."""
    wanted = SETTINGS.model_copy(update=changes)
    waveform = log_mel_to_waveform(LogMel(wanted)(tone(440, wanted)), wanted, 2, seed=0)
    assert waveform.shape == (wanted.clip_samples,)
    assert waveform.dtype == torch.float32
    assert torch.isfinite(waveform).all()


@pytest.mark.filterwarnings("ignore:At least one mel filterbank:UserWarning")
def test_mel_bands_without_a_fourier_bin_are_allowed():
    """Extraction warns about them; the tone is still reconstructed."""
    wanted = FeatureSettings(
        clip_length=0.5, sample_rate=8000, hop_length=80, n_fft=256, n_mels=128, f_max=4000
    )
    assert empty_bands(wanted)
    waveform = log_mel_to_waveform(LogMel(wanted)(tone(1000, wanted)), wanted, 16, seed=0)
    assert torch.isfinite(waveform).all()
    assert loudest(waveform, 8000) == pytest.approx(1000, rel=0.11)


def test_silence_is_reconstructed_as_silence():
    waveform = log_mel_to_waveform(LogMel(SETTINGS)(torch.zeros(8000)), SETTINGS, 4, seed=0)
    assert waveform.abs().max() < 1e-4


def test_the_global_random_state_does_not_change():
    log_mel = LogMel(SETTINGS)(tone(440))
    before = torch.random.get_rng_state()
    log_mel_to_waveform(log_mel, SETTINGS, 2, seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)
