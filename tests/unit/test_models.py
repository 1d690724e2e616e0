from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from raysound.models import MODELS, build
from raysound.models.classifier import pad_to
from raysound.models.combined import Ensemble, MeanOfCrops, crop_starts

SIZES = {
    "cnn": (2_486_410, 128),
    "cnn6": (1_145_322, 256),
    "cnn10": (1_241_002, 256),
    "alexnet": (44_448_714, 4096),
    "vggish": (72_142_474, 128),
    "resnetish18": (11_293_130, 512),
    "resnetish34": (21_401_290, 512),
    "resnetish50": (23_993_290, 2048),
}
Shapes = Iterator[tuple[str, tuple[int, ...]]]
State = dict[str, Tensor]


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


def panns(kernel: int, depth: int) -> Shapes:
    """Four blocks of convolutions without bias, two linear layers."""
    inputs = 1
    for number, outputs in enumerate((32, 64, 128, 256)):
        for place in range(depth):
            yield f"blocks.{number}.{3 * place}.weight", (outputs, inputs, kernel, kernel)
            yield from norm(f"blocks.{number}.{3 * place + 1}", outputs)
            inputs = outputs
    yield from layer("hidden", 256, 256)
    yield from layer("fc", 10, 256)


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
    "cnn6": lambda: panns(5, 1),
    "cnn10": lambda: panns(3, 2),
    "alexnet": alexnet,
    "vggish": vggish,
    "resnetish18": lambda: resnetish((2, 2, 2, 2), bottleneck=False),
    "resnetish34": lambda: resnetish((3, 4, 6, 3), bottleneck=False),
    "resnetish50": lambda: resnetish((3, 4, 6, 3), bottleneck=True),
}


def conv(state: State, name: str, maps: Tensor, stride: int | tuple[int, int] = 1) -> Tensor:
    """A convolution padded to keep the size; AlexNet's first, of 11 × 11, by 2 alone."""
    weight = state[f"{name}.weight"]
    padding = {1: 0, 3: 1, 5: 2, 7: 3, 11: 2}[weight.shape[-1]]
    return functional.conv2d(maps, weight, state.get(f"{name}.bias"), stride, padding)


def normed(state: State, name: str, maps: Tensor) -> Tensor:
    """A batch norm with its stored statistics."""
    mean, variance, weight, bias = (
        state[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias")
    )
    return functional.batch_norm(maps, mean, variance, weight, bias)


def linear(state: State, name: str, values: Tensor) -> Tensor:
    """A linear layer over what is flattened to `(B, size)`."""
    return functional.linear(values.flatten(1), state[f"{name}.weight"], state[f"{name}.bias"])


def cnn_by_hand(state: State, maps: Tensor) -> tuple[Tensor, Tensor]:
    """The seed's small network, from its weights alone."""
    for index in range(1, 5):
        weight, bias = state[f"conv{index}.weight"], state[f"conv{index}.bias"]
        maps = functional.conv2d(maps, weight, bias).relu()
        maps = functional.max_pool2d(maps, 2) if index in (2, 4) else maps
    embedding = linear(state, "fc1", functional.adaptive_avg_pool2d(maps, 8)).relu()
    return linear(state, "fc2", embedding), embedding


def panns_by_hand(state: State, maps: Tensor) -> tuple[Tensor, Tensor]:
    """PANNs' blocks, from the weights alone."""
    for number in range(4):
        for place in range(0, 6, 3):
            if f"blocks.{number}.{place}.weight" in state:
                maps = conv(state, f"blocks.{number}.{place}", maps)
                maps = normed(state, f"blocks.{number}.{place + 1}", maps).relu()
        maps = functional.avg_pool2d(maps, 2)
    frames = maps.mean(dim=2)
    embedding = linear(state, "hidden", frames.amax(dim=2) + frames.mean(dim=2)).relu()
    return linear(state, "fc", embedding), embedding


def alexnet_by_hand(state: State, maps: Tensor) -> tuple[Tensor, Tensor]:
    """sound-clf-pytorch's AlexNet, from its weights alone."""
    for index in (0, 4, 8, 11, 14):
        maps = conv(state, f"features.{index}", maps, stride=1 if index else (1, 2))
        maps = normed(state, f"features.{index + 1}", maps).relu()
        maps = functional.max_pool2d(maps, 3, 2) if index in (0, 4, 14) else maps
    hidden = linear(state, "classifier.1", functional.adaptive_avg_pool2d(maps, (4, 6))).relu()
    embedding = linear(state, "classifier.4", hidden).relu()
    return linear(state, "classifier.6", embedding), embedding


def vggish_by_hand(state: State, maps: Tensor) -> tuple[Tensor, Tensor]:
    """sound-clf-pytorch's VGGish, from its weights alone."""
    for index in (0, 3, 6, 8, 11, 13):
        maps = conv(state, f"features.{index}", maps).relu()
        maps = functional.max_pool2d(maps, 2) if index in (0, 3, 8) else maps
    embedding = functional.adaptive_max_pool2d(maps, (4, 6))
    for index in (0, 2, 4):
        embedding = linear(state, f"embeddings.{index}", embedding).relu()
    return linear(state, "head", embedding), embedding


def resnetish_by_hand(state: State, maps: Tensor) -> tuple[Tensor, Tensor]:
    """sound-clf-pytorch's ResNetish, from its weights alone."""
    maps = normed(state, "bn1", conv(state, "conv1", maps)).relu()
    maps = functional.max_pool2d(maps, 3, stride=2, padding=1)
    blocks = dict.fromkeys(".".join(key.split(".")[:2]) for key in state if key[:5] == "layer")
    for block in blocks:
        convolutions = sum(f"{block}.conv{place}.weight" in state for place in (1, 2, 3))
        halved = block.endswith(".0") and not block.startswith("layer1")
        inner, past = maps, maps
        for place in range(1, convolutions + 1):
            # The 3×3 convolution that comes first has the stride.
            stride = 2 if halved and place == convolutions - 1 else 1
            inner = conv(state, f"{block}.conv{place}", inner, stride)
            inner = normed(state, f"{block}.bn{place}", inner)
            inner = inner.relu() if place < convolutions else inner
        if f"{block}.downsample.0.weight" in state:
            past = conv(state, f"{block}.downsample.0", maps, 2 if halved else 1)
            past = normed(state, f"{block}.downsample.1", past)
        maps = (inner + past).relu()
    pooled = functional.adaptive_avg_pool2d(maps, (4, 6))
    return linear(state, "fc", pooled), maps.mean(dim=(2, 3))


BY_HAND = {
    "cnn": cnn_by_hand,
    **dict.fromkeys(["cnn6", "cnn10"], panns_by_hand),
    "alexnet": alexnet_by_hand,
    "vggish": vggish_by_hand,
    **dict.fromkeys(["resnetish18", "resnetish34", "resnetish50"], resnetish_by_hand),
}


def test_every_model_is_tested_here() -> None:
    assert MODELS.keys() == SIZES.keys() == STATES.keys() == BY_HAND.keys()


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
def test_loaded_weights_give_the_original_outputs(name: str) -> None:
    """Outputs agree layer by layer; inputs of this size are not padded."""
    torch.manual_seed(0)
    model = build(name, 3)
    with torch.no_grad():
        # Statistics of real maps, and scales and offsets that a dropped norm would show.
        for _ in range(2):
            model(torch.randn(4, 1, 30, 46))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.3, 0.3)
        model.eval()
        for size in [(64, 101), (21, 35)]:
            log_mel = torch.randn(2, 1, *size)
            logits, embedding = model.logits_and_embedding(log_mel)
            logits_by_hand, embedding_by_hand = BY_HAND[name](model.state_dict(), log_mel)
            assert embedding.abs().max() > 0
            torch.testing.assert_close(logits, logits_by_hand)
            torch.testing.assert_close(embedding, embedding_by_hand)


@pytest.mark.parametrize("name", SIZES)
def test_any_input_size_gives_finite_logits_and_an_embedding(name: str) -> None:
    torch.manual_seed(0)
    model = build(name, 7).eval()

    for bands, frames in [(1, 1), (8, 7), (20, 34), (64, 1), (128, 7), (1, 501), (40, 51)]:
        with torch.inference_mode():
            log_mel = torch.randn(2, 1, bands, frames)
            logits, embedding = model.logits_and_embedding(log_mel)
            assert torch.equal(model(log_mel), logits)
        assert logits.shape == (2, 7)
        assert embedding.shape == (2, SIZES[name][1])
        assert logits.isfinite().all()
        assert embedding.isfinite().all()


@pytest.mark.parametrize("name", ["cnn", "cnn6", "cnn10", "alexnet", "vggish"])
def test_inputs_below_the_minimum_size_fail(name: str) -> None:
    """With one band or frame less the input of a layer is empty."""
    with torch.device("meta"):
        model = build(name, 3).eval()
        bands, frames = model.min_input_size
        model._logits_and_embedding(torch.randn(1, 1, bands, frames))
        for size in [(bands - 1, frames), (bands, frames - 1)]:
            with pytest.raises(RuntimeError, match=r"[Oo]utput size is too small"):
                model._logits_and_embedding(torch.randn(1, 1, *size))


def test_large_inputs_are_not_padded() -> None:
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


def test_cnn_applies_dropout_three_times_only_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def dropout(maps: Tensor, rate: float, training: bool) -> Tensor:
        calls.append((rate, training))
        return maps

    monkeypatch.setattr(functional, "dropout", dropout)
    model = build("cnn", 3)
    model.train()(torch.zeros(1, 1, 16, 16))
    model.eval()(torch.zeros(1, 1, 16, 16))

    rates = (0.25, 0.25, 0.5)
    assert calls == [(rate, training) for training in (True, False) for rate in rates]


@pytest.mark.parametrize("name", ["cnn6", "cnn10"])
def test_panns_cnns_apply_dropout_twice(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []

    def dropout(values: Tensor, rate: float, training: bool) -> Tensor:
        rates.append(rate)
        return values

    monkeypatch.setattr(functional, "dropout", dropout)
    build(name, 3)(torch.randn(2, 1, 32, 32))

    assert rates == [0.2, 0.2]


def test_alexnet_applies_dropout_before_its_first_two_linear_layers() -> None:
    with torch.device("meta"):
        layers = build("alexnet", 3).get_submodule("classifier").named_children()

    drops = {name: layer.p for name, layer in layers if isinstance(layer, nn.Dropout)}
    assert drops == {"0": 0.5, "3": 0.5}


def test_resnetish_has_kaiming_initialisation() -> None:
    """The initialisation is normal (He et al.) with variance 2 / fan-out."""
    torch.manual_seed(0)
    for key, weight in build("resnetish18", 3).named_parameters():
        if weight.ndim == 4:
            fan_out = weight.shape[0] * weight.shape[2] * weight.shape[3]
            assert weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05), key


@pytest.mark.parametrize("name", SIZES)
def test_a_gradient_reaches_every_parameter(name: str) -> None:
    torch.manual_seed(0)
    model = build(name, 3).train()

    model(torch.randn(2, 1, 24, 40)).square().sum().backward()

    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().sum() > 0, key


def test_crops_are_averaged_as_probabilities_and_embeddings() -> None:
    """Three crops of 20 frames of 50 start at 0, 15 and 30."""
    torch.manual_seed(0)
    model = build("cnn6", 3).eval()
    log_mel = torch.randn(2, 1, 16, 50)

    with torch.inference_mode():
        logits, embedding = MeanOfCrops(model, 20, 3).logits_and_embedding(log_mel)
        found = [model.logits_and_embedding(log_mel[..., s : s + 20]) for s in (0, 15, 30)]

    mean = torch.stack([logits.softmax(dim=1) for logits, _ in found]).mean(dim=0)
    torch.testing.assert_close(logits.softmax(dim=1), mean)
    torch.testing.assert_close(embedding, torch.stack([one for _, one in found]).mean(dim=0))


@pytest.mark.parametrize(
    ("before", "after", "width", "starts"),
    [
        (0, 0, 20, (0, 30)),
        (5, 10, 20, (5, 20)),
        # The sound is shorter than the crop: each crop has all of it.
        (20, 20, 15, (15, 20)),
        (0, 40, 20, (0, 0)),
        (40, 0, 20, (30, 30)),
        # A single frame at an end may be anything.
        (1, 1, 20, (0, 30)),
        # The crop is wider than the clip.
        (5, 10, 60, (-10, 0)),
    ],
)
def test_crops_contain_as_much_of_the_sound_as_they_can(
    before: int, after: int, width: int, starts: tuple[int, int]
) -> None:
    log_mel = torch.randn(1, 4, 50)
    log_mel[..., :before] = -3
    log_mel[..., 50 - after :] = -4

    low, high = crop_starts(log_mel, width)

    assert (int(low), int(high)) == starts


def test_a_silent_clip_is_cropped_anywhere() -> None:
    low, high = crop_starts(torch.zeros(3, 4, 50), 20)
    assert low.tolist() == [[0]] * 3
    assert high.tolist() == [[30]] * 3


def test_crops_that_are_averaged_are_those_of_the_sound() -> None:
    """Frames 10 to 39 are sound; two crops of 20 frames start at 10 and 20."""
    model = build("cnn6", 3).eval()
    log_mel = torch.randn(1, 1, 16, 50)
    log_mel[..., :10] = log_mel[..., 40:] = -2

    with torch.inference_mode():
        embedding = MeanOfCrops(model, 20, 2).logits_and_embedding(log_mel)[1]
        found = [model.logits_and_embedding(log_mel[..., s : s + 20])[1] for s in (10, 20)]

    torch.testing.assert_close(embedding, (found[0] + found[1]) / 2)


def test_a_clip_of_the_width_of_a_crop_is_seen_once() -> None:
    model = build("cnn6", 3).eval()
    log_mel = torch.randn(2, 1, 16, 20)

    with torch.inference_mode():
        assert torch.equal(MeanOfCrops(model, 20, 10)(log_mel), model(log_mel))


def test_an_ensemble_has_the_mean_probabilities_and_the_first_embedding() -> None:
    torch.manual_seed(0)
    models = [build("cnn6", 3).eval() for _ in range(3)]
    log_mel = torch.randn(2, 1, 16, 20)

    with torch.inference_mode():
        logits, embedding = Ensemble(models).logits_and_embedding(log_mel)
        mean = torch.stack([model(log_mel).softmax(dim=1) for model in models]).mean(dim=0)

    torch.testing.assert_close(logits.softmax(dim=1), mean)
    assert torch.equal(embedding, models[0].logits_and_embedding(log_mel)[1])


def test_an_unknown_model_raises_with_the_known_names() -> None:
    known = "cnn, cnn6, cnn10, alexnet, vggish, resnetish18, resnetish34, resnetish50"
    with pytest.raises(ValueError, match=f"unknown model 'resnet'; choose one of {known}$"):
        build("resnet", 10)
