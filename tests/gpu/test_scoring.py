"""Scores on the GPU: those of the CPU, in memory that is given back."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from raysound.distributed.evaluation.score import score_corpora
from raysound.distributed.extraction.listing import finished_features
from raysound.distributed.training.runs import split_clips
from raysound.distributed.training.trainer import train_classifier
from raysound.errors import UserError
from raysound.evaluation.predictions import as_array, read_predictions
from raysound.models import MODELS, build
from raysound.settings.schema import Config
from raysound.training.inference import Normalisation, score

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]

NORM = Normalisation((-5.0,) * 64, (3.0,) * 64)


@pytest.mark.usefixtures("torch_flags")
@pytest.mark.parametrize("name", MODELS)
def test_every_model_scores_equally_on_cpu_and_gpu_and_frees_memory(
    name: str, device: torch.device
) -> None:
    # As distributed.score.load_classifier has it.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.manual_seed(0)
    model = build(name, 10).eval()
    log_mel = np.random.default_rng(0).normal(-5, 3, (32, 64, 201)).astype(np.float32)

    ours = score(model, NORM, log_mel, batch_size=32)
    theirs = score(model.to(device), NORM, log_mel, batch_size=32)

    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    assert kept < 128 << 20
    for on_cpu, on_gpu in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(on_gpu, on_cpu, rtol=1e-3, atol=1e-3 * np.abs(on_cpu).max())


def test_predictions_of_a_corpus_are_equal_on_cpu_and_gpu(
    tree: dict[str, Any], tmp_path: Path
) -> None:
    """The classifier was trained on the GPU; predictions agree to 1e-3."""
    config = Config.model_validate(tree | {"model": {"name": "resnetish18"}})
    folder, run = finished_features("real", config), train_classifier(config)
    clips = split_clips(config, folder)
    found = {}
    for use_gpu in (False, True):
        compute = config.compute.model_copy(update={"use_gpu": use_gpu})
        out = str(tmp_path / str(use_gpu))
        score_corpora(
            {"real": folder}, clips, run, config.model_copy(update={"compute": compute}), out
        )
        found[use_gpu] = pa.concat_tables(read_predictions(out, "real"))

    assert len(found[True]) == len(clips)
    for column in ("clip_id", "label", "prediction"):
        assert found[True][column].to_pylist() == found[False][column].to_pylist()
    probabilities = [as_array(found[use_gpu]["probabilities"]) for use_gpu in (True, False)]
    np.testing.assert_allclose(*probabilities, atol=1e-3)
    embeddings = [as_array(found[use_gpu]["embedding"]) for use_gpu in (True, False)]
    np.testing.assert_allclose(*embeddings, rtol=1e-3, atol=1e-3 * np.abs(embeddings[1]).max())


def test_a_batch_too_large_for_the_gpu_is_a_user_error(device: torch.device) -> None:
    """The first feature maps of 300 clips need 7 GB, and only 4 GB of the GPU is free."""
    left = 4 << 30
    free, _ = torch.cuda.mem_get_info(device)
    if free < left:
        pytest.skip("less than 4 GB of the GPU is free")
    model = build("resnetish18", 10).eval().to(device)
    log_mel, norm = np.zeros((300, 24, 4001), np.float32), Normalisation((0.0,) * 24, (1.0,) * 24)
    taken = torch.empty(free - left, dtype=torch.uint8, device=device)

    with pytest.raises(UserError, match=r"evaluation\.batch_size 300 windows at once: lower it"):
        score(model, norm, log_mel, batch_size=300)

    assert len(score(model, norm, log_mel, batch_size=4)[0]) == 300
    del taken
    torch.cuda.empty_cache()
