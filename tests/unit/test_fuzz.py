"""Decodes thousands of damaged files."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from raysound.audio.decode import Decoder, Reject
from raysound.features.probe import find_crashing_clips
from raysound.settings.features import FeatureSettings
from tests.fuzzer import KINDS, RARE_KINDS, damaged_files

COUNT = 2000
SETTINGS = FeatureSettings(
    clip_length=0.25, sample_rate=8000, hop_length=80, n_fft=256, n_mels=20, f_max=4000
)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kinds", [KINDS, RARE_KINDS], ids=["common", "rare"])
def test_damaged_files_do_not_crash_the_decoder(
    tmp_path: Path, kinds: tuple[tuple[str, str, str, int], ...]
) -> None:
    """A child process decodes them first, because a crash would end the tests."""
    names = []
    for name, data in damaged_files(COUNT, seed=7, kinds=kinds):
        (tmp_path / name).write_bytes(data)
        names.append(name)
    nothing = pa.nulls(COUNT, pa.int64())
    paths = [str(tmp_path / name) for name in names]
    clips = pa.table({"clip_id": names, "path": paths, "offset": nothing, "size": nothing})

    assert find_crashing_clips(clips, SETTINGS, timeout=20.0) == {}

    decoder = Decoder(SETTINGS)
    reasons = []
    for path in paths:
        try:
            for source, window in decoder.read(path):
                assert window.shape == (2000,), path
                assert np.isfinite(window).all(), path
                assert 0 < source.duration < 3600, path
        except Reject as reject:
            reasons.append(str(reject))
    assert COUNT / 4 < len(reasons) < 3 * COUNT / 4
    assert all(reason.isprintable() for reason in reasons)
