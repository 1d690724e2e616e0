from collections.abc import Iterator

import pytest
import torch

from raysound.models import MODELS, build
from raysound.models.classifier import pad_to

SIZES = {
    "cnn": (2_486_410, 128),
    "alexnet": (44_448_714, 4096),
    "vggish": (72_142_474, 128),
    "resnetish18": (11_293_130, 512),
    "resnetish34": (21_401_290, 512),
    "resnetish50": (23_993_290, 2048),
}
Shapes = Iterator[tuple[str, tuple[int, ...]]]


def layer(name: str, *weight: int) -> Shapes:
    """A convolution or linear layer with its bias."""
    yield f"{name}.weight", weight
    yield f"{name}.bias", weight[:1]


def norm(name: str, width: int) -> Shapes:
    """A batch norm."""
    for key in ("weight", "bias", "running_mean", "running_var"):
        yield f"{name}.{key}", (width,)
    yield f"{name}.num_batches_tracked", ()


def cnn() -> Shapes:
    """The seed's small network."""
    for index, (inputs, outputs) in enumerate([(1, 32), (32, 64), (64, 128), (128, 256)]):
        yield from layer(f"conv{index + 1}", outputs, inputs, 3, 3)
    yield from layer("fc1", 128, 16384)
    yield from layer("fc2", 10, 128)


def alexnet() -> Shapes:
    """sound-clf-pytorch's AlexNet."""
    convolutions = {0: (64, 1, 11), 4: (192, 64, 5), 8: (384, 192, 3), 11: (256, 384, 3),
                    14: (256, 256, 3)}  # fmt: skip
    for index, (outputs, inputs, kernel) in convolutions.items():
        yield from layer(f"features.{index}", outputs, inputs, kernel, kernel)
        yield from norm(f"features.{index + 1}", outputs)
    for index, weight in {1: (4096, 6144), 4: (4096, 4096), 6: (10, 4096)}.items():
        yield from layer(f"classifier.{index}", *weight)


def vggish() -> Shapes:
    """sound-clf-pytorch's VGGish."""
    convolutions = {0: (64, 1), 3: (128, 64), 6: (256, 128), 8: (256, 256), 11: (512, 256),
                    13: (512, 512)}  # fmt: skip
    for index, (outputs, inputs) in convolutions.items():
        yield from layer(f"features.{index}", outputs, inputs, 3, 3)
    for index, weight in {0: (4096, 12288), 2: (4096, 4096), 4: (128, 4096)}.items():
        yield from layer(f"embeddings.{index}", *weight)
    yield from layer("head", 10, 128)


def resnetish(depths: tuple[int, ...], bottleneck: bool) -> Shapes:
    """sound-clf-pytorch's ResNetish."""
    yield "conv1.weight", (64, 1, 7, 7)
    yield from norm("bn1", 64)
    inputs, expansion = 64, 4 if bottleneck else 1
    for number, depth in enumerate(depths, start=1):
        width = 32 * 2**number
        kernels = [(1, width), (3, width), (1, 4 * width)] if bottleneck else [(3, width)] * 2
        for index in range(depth):
            block, channels = f"layer{number}.{index}", inputs
            for place, (kernel, outputs) in enumerate(kernels, start=1):
                yield f"{block}.conv{place}.weight", (outputs, channels, kernel, kernel)
                yield from norm(f"{block}.bn{place}", outputs)
                channels = outputs
            if index == 0 and (number > 1 or bottleneck):
                yield f"{block}.downsample.0.weight", (width * expansion, inputs, 1, 1)
                yield from norm(f"{block}.downsample.1", width * expansion)
            inputs = width * expansion
    yield from layer("fc", 10, inputs * 24)


STATES = {
    "cnn": cnn,
    "alexnet": alexnet,
    "vggish": vggish,
    "resnetish18": lambda: resnetish((2, 2, 2, 2), bottleneck=False),
    "resnetish34": lambda: resnetish((3, 4, 6, 3), bottleneck=False),
    "resnetish50": lambda: resnetish((3, 4, 6, 3), bottleneck=True),
}


def test_every_model_is_tested_here() -> None:
    assert MODELS.keys() == SIZES.keys() == STATES.keys()


@pytest.mark.parametrize("name", SIZES)
def test_parameters_for_ten_classes(name: str) -> None:
    with torch.device("meta"):
        model = build(name, 10)

    assert sum(parameter.numel() for parameter in model.parameters()) == SIZES[name][0]


@pytest.mark.parametrize("name", SIZES)
def test_weights_trained_elsewhere_fit_key_by_key(name: str) -> None:
    with torch.device("meta"):
        state = build(name, 10).state_dict()

    assert {key: tuple(value.shape) for key, value in state.items()} == dict(STATES[name]())


@pytest.mark.parametrize("name", SIZES)
def test_any_input_size_gives_finite_logits_and_an_embedding(name: str) -> None:
    torch.manual_seed(0)
    model = build(name, 7).eval()

    for bands, frames in [(1, 1), (8, 7), (40, 51), (20, 34)]:
        with torch.inference_mode():
            log_mel = torch.randn(2, 1, bands, frames)
            logits, embedding = model.logits_and_embedding(log_mel)
            assert torch.equal(model(log_mel), logits)
        assert logits.shape == (2, 7)
        assert embedding.shape == (2, SIZES[name][1])
        assert logits.isfinite().all()
        assert embedding.isfinite().all()


@pytest.mark.parametrize("name", ["cnn", "alexnet", "vggish"])
def test_the_smallest_size_is_the_smallest(name: str) -> None:
    """One band or one frame less would leave a layer nothing to work on."""
    model = build(name, 3).eval()
    bands, frames = model.smallest

    with torch.inference_mode():
        model._judge(torch.randn(1, 1, bands, frames))
        for size in [(bands - 1, frames), (bands, frames - 1)]:
            with pytest.raises(RuntimeError, match=r"[Oo]utput size is too small"):
                model._judge(torch.randn(1, 1, *size))


def test_what_is_large_enough_is_not_padded() -> None:
    log_mel = torch.randn(2, 1, 20, 30)

    assert pad_to(log_mel, (20, 30)) is log_mel
    padded = pad_to(log_mel, (21, 35))
    assert padded.shape == (2, 1, 21, 35)
    assert torch.equal(padded[..., :20, :30], log_mel)
    assert padded.sum() == pytest.approx(log_mel.sum().item(), abs=1e-4)


def test_the_embedding_of_resnetish_is_the_mean_of_its_last_maps() -> None:
    torch.manual_seed(0)
    model = build("resnetish18", 3).eval()
    maps = []
    model.get_submodule("layer4").register_forward_hook(lambda *call: maps.append(call[2]))

    with torch.inference_mode():
        _, embedding = model.logits_and_embedding(torch.randn(2, 1, 32, 64))

    torch.testing.assert_close(embedding, maps[0].mean(dim=(2, 3)))


@pytest.mark.parametrize("name", ["cnn", "alexnet", "vggish"])
def test_the_last_layer_reads_the_embedding(name: str) -> None:
    torch.manual_seed(0)
    model = build(name, 3).eval()
    last = list(model.modules())[-1]

    with torch.inference_mode():
        logits, embedding = model.logits_and_embedding(torch.randn(2, 1, 40, 40))
        head = model.get_submodule("fc2") if name == "cnn" else last
        torch.testing.assert_close(head(embedding), logits)


@pytest.mark.parametrize("name", ["cnn", "alexnet", "vggish", "resnetish18", "resnetish50"])
def test_a_gradient_reaches_every_parameter(name: str) -> None:
    torch.manual_seed(0)
    model = build(name, 3).train()

    model(torch.randn(2, 1, 24, 40)).square().sum().backward()

    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().sum() > 0, key


def test_an_unknown_name_is_told_the_known_ones() -> None:
    with pytest.raises(ValueError, match="no model is called 'resnet'; there are cnn, alexnet"):
        build("resnet", 10)
