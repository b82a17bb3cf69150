"""Two stages, a teacher, mixup, averaged weights: what each does, and that runs with them resume exactly."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from models.convnet import ConvNetConfig
from models.hourglass import HourglassConfig
from models.latent import BinaryConv2d, LatentConfig, PlainLatent, ste_sign
from models.networks import build, start_from
from models.packing.pack import PackingError, pack_checkpoint
from models.quantized import set_pixels
from models.resnet import ResNetConfig
from tests.helpers.training import Raw, assert_same_weights, recipe_of, signal_at, with_model
from training import train as training
from training.classification import draw_mix
from training.errors import TrainingError
from training.evaluate import evaluate
from training.signs import latent_weights
from training.teacher import imitation, load_teacher, start

SOURCES = ({"real": True}, {"binarize": "activations"}, {"latent": LatentConfig(kind="tucker")})


def network_of(path: Path) -> torch.nn.Module:
    """The network of a checkpoint."""
    return load_teacher([path], torch.load(path, weights_only=True)["hyper_parameters"]).teachers[0]


def small(**changes: Any) -> torch.nn.Module:
    return build(ResNetConfig(width=0.125, **changes))


def trained_a_little(network: torch.nn.Module) -> torch.nn.Module:
    """With statistics, gains, slopes and distances of W that no fresh network has; in evaluation mode."""
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_()
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
            elif isinstance(module, torch.nn.PReLU):
                module.weight.uniform_(0, 1)
            elif isinstance(module, BinaryConv2d):  # none so near 0 that rounding decides its sign
                module.latent = PlainLatent(module.binary_weight())
    return network.eval()


def same_signs(wide: torch.nn.Module, narrow: torch.nn.Module, times: int) -> bool:
    """Whether each weight of `narrow` is `times` x `times` weights of its sign in `wide`."""
    pairs = zip(latent_weights(wide), latent_weights(narrow), strict=True)
    return all(
        torch.equal(ours >= 0, (theirs >= 0).repeat_interleave(times, 0).repeat_interleave(times, 1))
        for (_, ours), (_, theirs) in pairs
    )


@pytest.mark.parametrize("kind", ["plain", "matrix", "tucker", "holistic"])
@pytest.mark.parametrize("source", SOURCES)
def test_a_network_starts_with_the_signs_of_another(kind: Any, source: Raw) -> None:
    theirs, ours = small(**source), small(latent=LatentConfig(kind=kind, init="random"))
    with torch.no_grad():
        theirs.get_parameter("head.weight").fill_(0.5)
        theirs.get_buffer("stem.1.running_mean").fill_(0.25)
    start_from(ours, theirs)
    modules = dict(theirs.named_modules())
    for name, weight in latent_weights(ours):
        module = modules[name]
        expected = module.weight if isinstance(module, torch.nn.Conv2d) else module.latent.to_tensor()
        assert torch.equal(weight >= 0, expected >= 0)
        fan_in = weight[0].numel()
        assert weight.square().mean().sqrt() == pytest.approx((2 / fan_in) ** 0.5, rel=1e-3)
    assert torch.all(ours.get_parameter("head.weight") == 0.5)
    assert torch.all(ours.get_buffer("stem.1.running_mean") == 0.25)
    assert len(ours.holistic) == len(small(latent=LatentConfig(kind=kind)).holistic)
    ours(torch.randn(2, 3, 32, 32)).sum().backward()
    assert all(parameter.grad is not None for parameter in ours.parameters())


def test_an_rprelu_starts_as_the_prelu_of_its_source() -> None:
    theirs, ours = small(activation="prelu").eval(), small(activation="rprelu").eval()
    with torch.no_grad():
        for module in theirs.modules():
            if isinstance(module, torch.nn.PReLU):
                module.weight.uniform_(0, 1)
    start_from(ours, theirs)
    x = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(ours(x), theirs(x))


WIDER = ({"scale": "channel"}, {"scale": "rank1"}, {"stem": "imagenet", "shortcut": "binary"})


@pytest.mark.parametrize("kind", ["plain", "holistic"])
@pytest.mark.parametrize("changes", WIDER)
@pytest.mark.parametrize("times", [2, 3])
def test_a_wider_network_starts_as_the_same_function(changes: Raw, times: int, kind: Any) -> None:
    config = ResNetConfig(width=0.125, **changes)
    theirs = trained_a_little(build(config))
    ours = build(config.model_copy(update={"width": 0.125 * times, "latent": LatentConfig(kind=kind)})).eval()
    start_from(ours, theirs)
    x = torch.randn(16, 3, 32, 32)
    assert (ours(x) - theirs(x)).abs().median() < 1e-3 * theirs(x).std()
    assert same_signs(ours, theirs, times)


def test_copies_of_a_channel_are_told_apart() -> None:
    """Copies of a weight have one sign and different sizes, so that the same step does not turn them all."""
    theirs, ours = trained_a_little(small()), build(ResNetConfig(width=0.25)).eval()
    start_from(ours, theirs)
    for _, weight in latent_weights(ours):
        first, second = weight[0::2], weight[1::2]
        assert torch.equal(first >= 0, second >= 0)
        assert (first / second).abs().log().std() > 0.5
        assert weight.square().mean().sqrt() == pytest.approx((2 / weight[0].numel()) ** 0.5, rel=1e-3)


def test_an_hourglass_starts_from_a_narrower_one() -> None:
    config = HourglassConfig(width=32, depth=1, stacks=2, input_size=32, keypoints=3)
    theirs, ours = trained_a_little(build(config)), build(config.model_copy(update={"width": 64})).eval()
    start_from(ours, theirs)
    x = torch.randn(4, 3, 32, 32)
    for made, expected in zip(ours(x), theirs(x), strict=True):
        assert (made - expected).abs().median() < 1e-3 * expected.std()


@pytest.mark.parametrize("activation", ["prelu", "rprelu"])
def test_a_source_of_another_shape_is_refused(activation: Any) -> None:
    with pytest.raises(ValueError, match=r"blocks\.0\.first\.2: has weights of shape .* the source has weights"):
        start_from(small(activation=activation), build(ResNetConfig(width=0.25)))
    with pytest.raises(ValueError, match=r"blocks\.0\.first\.2: has weights of shape .* the source has weights"):
        start_from(build(ResNetConfig(width=0.375)), build(ResNetConfig(width=0.25)))


REAL_SOURCES = (
    (ResNetConfig(width=0.125, real=True, depth=34), ResNetConfig(width=0.125, real=True), "blocks.2.first.2.weight"),
    (ResNetConfig(width=0.125), ResNetConfig(width=0.125, real=True), "blocks.0.first.2.weight"),
    (ResNetConfig(width=0.125, stem="imagenet"), ResNetConfig(width=0.125), "stem.0.weight"),
    (ConvNetConfig(width=0.375), ConvNetConfig(width=0.25), "pairs.0.first.weight"),
    (
        HourglassConfig(width=16, depth=1, input_size=32, real=True),
        HourglassConfig(width=16, depth=1, input_size=32, real=True, stacks=2),
        "stacks.1.0.beside.first.0.weight",
    ),
)


@pytest.mark.parametrize(("theirs", "ours", "name"), REAL_SOURCES)
def test_a_source_whose_real_layers_are_others_is_refused(theirs: Any, ours: Any, name: str) -> None:
    with pytest.raises(ValueError, match=rf"^{re.escape(name)}: has the shape \(.*; the source has (the shape|none)"):
        start_from(build(ours), build(theirs))


def test_what_depends_on_the_outputs_may_be_another() -> None:
    config = HourglassConfig(width=16, depth=1, stacks=2, input_size=32, keypoints=3)
    theirs, ours = build(config), build(config.model_copy(update={"keypoints": 5}))
    start_from(ours, theirs)
    assert torch.equal(ours.get_parameter("features_back.0.weight"), theirs.get_parameter("features_back.0.weight"))
    theirs, ours = small(real=True), small(real=True, classes=3)
    start_from(ours, theirs)
    assert torch.equal(ours.get_parameter("stem.0.weight"), theirs.get_parameter("stem.0.weight"))


def test_a_network_reads_the_pixels_of_its_own_data() -> None:
    """Not those of the data that its source was trained on; else it could not be packed."""
    theirs, ours = small(real_weights="int8"), small(real_weights="int8")
    set_pixels(theirs, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    set_pixels(ours, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    start_from(ours, theirs)
    assert ours.get_buffer("stem.0.pixel_mean").tolist() == [0.5] * 3
    assert ours.get_buffer("stem.0.pixel_std").tolist() == [0.25] * 3
    assert torch.equal(ours.get_parameter("stem.0.weight"), theirs.get_parameter("stem.0.weight"))


def test_annealed_estimators_follow_the_schedule_and_resume_exactly(
    raw: Raw, cifar_batches: Path, tmp_path: Path
) -> None:
    recipe = recipe_of(with_model(raw, weight_ste="annealed", activation_ste="annealed"), epochs=2)
    whole = training.train(recipe, data_root=cifar_batches, output=tmp_path / "whole").last
    state = torch.load(whole, weights_only=True)["state_dict"]
    found = {name: float(value) for name, value in state.items() if name.endswith(".temperature")}
    assert {name.rpartition(".")[0][-1] for name in found} == {"1", "2"}  # signs of activations, and of weights
    assert list(found.values()) == pytest.approx([0.1 * 100 ** (7 / 8)] * len(found))  # the last of 8 steps
    with signal_at("train", 1, 2):
        assert training.train(recipe, data_root=cifar_batches, output=tmp_path / "parts").signal == 15
    resumed = training.train(recipe, data_root=cifar_batches, output=tmp_path / "parts", resume="auto").last
    assert_same_weights(whole, resumed)
    packed = pack_checkpoint(whole, tmp_path / "m.safetensors").path
    ours, theirs = (evaluate(path, data_root=cifar_batches).top1 for path in (packed, whole))
    assert ours == pytest.approx(theirs, abs=3.4)  # one of 30 pictures


def test_weights_of_the_first_stage_are_real_and_of_the_size_of_signs() -> None:
    layer = BinaryConv2d(4, 6, 3, real_weights=True)
    x = ste_sign(torch.randn(2, 4, 5, 5))
    weight = layer.latent.to_tensor().detach()
    size = weight.abs().mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(layer(x), F.conv2d(x, weight / size) * layer.scale.alpha[:, None, None])


def test_the_window_of_the_gradient_is_recus_quantile() -> None:
    layer = BinaryConv2d(64, 64, 3, clamp_quantile=0.95)
    with torch.no_grad():  # Laplace weights of any size: 10 % lie outside the 95 % quantile on both sides together
        layer.latent.weight.copy_(torch.distributions.Laplace(0.0, 7.0).sample(layer.latent.shape))
    layer.binary_weight().sum().backward()
    grad = layer.latent.weight.grad
    assert set(grad.unique().tolist()) == {0.0, 1.0}
    assert (grad == 0).float().mean() == pytest.approx(0.1, abs=0.01)
    assert torch.equal(layer.binary_weight(), ste_sign(layer.latent.weight))


def test_imitation_is_the_divergence_and_pulls_towards_the_teacher() -> None:
    ours, theirs = torch.randn(8, 5, requires_grad=True), torch.randn(8, 5)
    p, q = (theirs / 3).softmax(1), (ours / 3).softmax(1)
    expected = 9 * (p * (p.log() - q.log())).sum(1).mean()
    torch.testing.assert_close(imitation(ours, theirs, 3.0), expected)
    assert imitation(theirs, theirs, 3.0) == pytest.approx(0, abs=1e-6)


def test_shares_of_a_mix_are_beta_and_depend_on_the_key_alone() -> None:
    shares = torch.tensor([draw_mix(2, 0.4, (0, 0, n))[0] for n in range(2000)])
    assert shares.mean() == pytest.approx(0.5, abs=0.03)
    assert shares.var() == pytest.approx(1 / (4 * (2 * 0.4 + 1)), abs=0.01)
    share, order = draw_mix(9, 0.4, (3, 1, 2))
    again, same = draw_mix(9, 0.4, (3, 1, 2))
    assert share == again
    assert torch.equal(order, same)
    assert sorted(order.tolist()) == list(range(9))


@pytest.fixture(scope="module")
def raw() -> Raw:
    return {
        "name": "tiny",
        "model": {"architecture": "resnet", "width": 0.125, "latent": {"kind": "holistic"}},
        "data": {"name": "cifar10"},
        "training": {"epochs": 1, "batch_size": 20, "precision": "32-true", "threads": 1, "validation_batch_size": 8},
    }


@pytest.fixture(scope="module")
def stages(raw: Raw, cifar_batches: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Checkpoints of a teacher and of a first stage that started from it."""
    root = tmp_path_factory.mktemp("stages")
    teacher = training.train(recipe_of(with_model(raw, real=True)), data_root=cifar_batches, output=root / "teacher")
    first = recipe_of(with_model(raw, binarize="activations"), start_from=str(teacher.last), teacher=str(teacher.last))
    return teacher.last, training.train(first, data_root=cifar_batches, output=root / "first").last


def test_all_options_together_resume_exactly_and_pack(
    raw: Raw, stages: tuple[Path, Path], cifar_batches: Path, tmp_path: Path
) -> None:
    teacher, first = stages
    teachers = [str(teacher), str(first)]
    options = {"start_from": str(first), "teacher": teachers, "mixup_alpha": 0.4, "ema_decay": 0.6, "epochs": 2}
    options["optimizer"] = "muon"
    recipe = recipe_of(with_model(raw, weight_clamp=0.99), **options)
    whole = training.train(recipe, data_root=cifar_batches, output=tmp_path / "whole")
    with signal_at("train", 1, 2):
        assert training.train(recipe, data_root=cifar_batches, output=tmp_path / "parts").signal == 15
    resumed = training.train(recipe, data_root=cifar_batches, output=tmp_path / "parts", resume="auto")
    assert_same_weights(whole.last, resumed.last)
    content = torch.load(whole.last, weights_only=True)
    averaged, current = content["state_dict"], content["current_model_state"]
    assert not torch.equal(averaged["network.head.weight"], current["network.head.weight"])
    assert not any("teacher" in name for name in averaged)
    # The figure that was logged is that of the averaged weights, and the packed file has it.
    packed = pack_checkpoint(whole.last, tmp_path / "m.safetensors").path
    for path in (whole.last, packed):
        found = evaluate(path, data_root=cifar_batches)
        assert found.top1 == pytest.approx(content["metrics"]["val_top1"], abs=3.4)  # one of 30 pictures


def test_several_teachers_teach_the_mean_of_their_outputs(stages: tuple[Path, Path]) -> None:
    parameters = torch.load(stages[0], weights_only=True)["hyper_parameters"]
    x = torch.randn(4, 3, 32, 32)
    together = load_teacher(stages, parameters)
    expected = sum(network_of(path)(x) for path in stages) / 2
    torch.testing.assert_close(together(x), expected)
    assert not any(parameter.requires_grad for parameter in together.parameters())
    assert not any(module.training for module in together.modules())


def test_a_packed_model_teaches_what_its_checkpoint_does(
    raw: Raw, stages: tuple[Path, Path], cifar_batches: Path, tmp_path: Path
) -> None:
    taught = recipe_of(with_model(raw, real_weights="int8"))
    checkpoint = training.train(taught, data_root=cifar_batches, output=tmp_path / "teacher").last
    packed = pack_checkpoint(checkpoint, tmp_path / "m.safetensors").path
    parameters = torch.load(checkpoint, weights_only=True)["hyper_parameters"]
    spec, pixels = parameters["input"], torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8)
    x = ((pixels / 255 - torch.tensor(spec["mean"])) / torch.tensor(spec["std"])).permute(0, 3, 1, 2)
    torch.testing.assert_close(load_teacher([packed], parameters)(x), network_of(checkpoint)(x), rtol=0, atol=1e-4)

    teachers = [str(packed), str(stages[0])]
    recipe = recipe_of(raw, teacher=teachers, mixup_alpha=0.4, ema_decay=0.6, epochs=2)
    whole = training.train(recipe, data_root=cifar_batches, output=tmp_path / "whole").last
    with signal_at("train", 1, 2):
        assert training.train(recipe, data_root=cifar_batches, output=tmp_path / "parts").signal == 15
    resumed = training.train(recipe, data_root=cifar_batches, output=tmp_path / "parts", resume="auto").last
    assert_same_weights(whole, resumed)
    other = recipe_of(raw, teacher=teachers[1], mixup_alpha=0.4, ema_decay=0.6, epochs=2)
    alone = training.train(other, data_root=cifar_batches, output=tmp_path / "alone").last
    assert not all(map(torch.equal, network_of(alone).parameters(), network_of(whole).parameters()))


def test_a_convnet_sees_images_first_and_teaches_a_binary_network(
    raw: Raw, cifar_batches: Path, tmp_path: Path
) -> None:
    convnet = {**raw, "model": {"architecture": "convnet", "width": 0.125}}
    recipe = recipe_of(convnet, optimizer="sgd", epochs=2)
    whole = training.train(recipe, data_root=cifar_batches, output=tmp_path / "whole").last
    with signal_at("train", 1, 2):
        assert training.train(recipe, data_root=cifar_batches, output=tmp_path / "parts").signal == 15
    resumed = training.train(recipe, data_root=cifar_batches, output=tmp_path / "parts", resume="auto").last
    assert_same_weights(whole, resumed)
    random = build(recipe.model).patches.weight
    patches = network_of(whole).patches.weight
    assert patches.abs().max() > 2 * random.abs().max()  # small variances, divided by
    assert torch.equal(patches[:12], -patches[12:])

    pupil = recipe_of(raw, teacher=str(whole))
    alone, taught = (
        training.train(one, data_root=cifar_batches, output=tmp_path / name).metrics["train_loss"]
        for name, one in (("alone", recipe_of(raw)), ("taught", pupil))
    )
    assert alone != taught
    with pytest.raises(PackingError, match=r"whole.*last\.ckpt: holds a convnet, a real-valued teacher; only binary"):
        pack_checkpoint(whole, tmp_path / "m.safetensors")


def test_a_first_stage_cannot_be_packed(stages: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(PackingError, match=r"blocks\.0\.first\.2: its weights are real: binarize is 'activations'"):
        pack_checkpoint(stages[1], tmp_path / "m.safetensors")


@pytest.mark.parametrize(("kind", "times"), [("plain", 1), ("holistic", 1), ("plain", 2)])
def test_training_goes_on_from_a_packed_model(
    kind: str, times: int, raw: Raw, cifar_batches: Path, tmp_path: Path
) -> None:
    """It starts as what the file computes, by whatever latent the file's network was trained, and wider if asked."""
    longer = {**raw["training"], "epochs": 3, "learning_rate": 0.01}
    before = training.train(recipe_of({**raw, "training": longer}), data_root=cifar_batches, output=tmp_path / "before")
    packed = pack_checkpoint(before.last, tmp_path / "m.safetensors").path
    wider = with_model(raw, latent={"kind": kind}, width=times * raw["model"]["width"])
    recipe = recipe_of(wider, start_from=str(packed), learning_rate=1e-12)
    after = training.train(recipe, data_root=cifar_batches, output=tmp_path / "after")
    theirs, ours = network_of(before.last), network_of(after.last)
    assert same_signs(ours, theirs, times)
    fresh = build(recipe.model).eval()
    x = torch.randn(64, 3, 32, 32)
    start(fresh, packed, lambda: x)
    assert (fresh(x) - theirs(x)).abs().median() < 0.02 * theirs(x).std()


def test_packed_models_of_other_classes_give_all_but_the_head(
    raw: Raw, picture_folder: Path, cifar_batches: Path, tmp_path: Path
) -> None:
    before = training.train(recipe_of(raw), data_root=cifar_batches, output=tmp_path / "before")
    packed = pack_checkpoint(before.last, tmp_path / "m.safetensors").path
    folder = {**raw, "data": {"name": "imagefolder", "image_size": 32}}
    recipe = recipe_of(folder, batch_size=5, start_from=str(packed), learning_rate=1e-12)
    after = training.train(recipe, data_root=picture_folder, output=tmp_path / "after")
    ours, theirs = network_of(after.last), network_of(before.last)
    assert ours.get_parameter("head.weight").shape != theirs.get_parameter("head.weight").shape
    pairs = zip(latent_weights(ours), latent_weights(theirs), strict=True)
    assert all(torch.equal(mine >= 0, other >= 0) for (_, mine), (_, other) in pairs)


def test_a_file_that_is_no_packed_model_is_named(raw: Raw, cifar_batches: Path, tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(b"no model at all")
    recipe = recipe_of(raw, start_from=str(tmp_path / "m.safetensors"))
    with pytest.raises(TrainingError, match=r"training\.start_from: .*m\.safetensors: header: "):
        training.train(recipe, data_root=cifar_batches, output=tmp_path / "run")


def test_teachers_that_do_not_fit_are_named(
    raw: Raw, stages: tuple[Path, Path], picture_folder: Path, cifar_batches: Path, tmp_path: Path
) -> None:
    folder = {**raw, "data": {"name": "imagefolder", "image_size": 32}}
    teacher, packed = str(stages[0]), "models/zoo/cifar10-resnet18-half/1/model.safetensors"
    (tmp_path / "bad.safetensors").write_bytes(b"no model at all")
    other, missing = recipe_of(folder, batch_size=5, teacher=[teacher]), recipe_of(raw, start_from="none.ckpt")
    second = recipe_of(raw, teacher=[teacher, "gone.ckpt"])
    shipped = recipe_of(folder, batch_size=5, teacher=packed)
    unsound = recipe_of(raw, teacher=str(tmp_path / "bad.safetensors"))
    wider = recipe_of(with_model(raw, width=0.3), start_from=teacher)
    for recipe, root, message in (
        (other, picture_folder, r"training\.teacher: .*last\.ckpt: has class_names 10 values; this run has \['blue'"),
        (shipped, picture_folder, r"training\.teacher: .*model\.safetensors: has class_names 10 values; this run has"),
        (unsound, cifar_batches, r"training\.teacher: .*bad\.safetensors: header: "),
        (missing, cifar_batches, r"^training\.start_from: none\.ckpt: no such checkpoint"),
        (second, cifar_batches, r"training\.teacher: gone\.ckpt: no such checkpoint"),
        (wider, cifar_batches, r"training\.start_from: .*: blocks\.0\.first\.2: has weights of shape"),
    ):
        with pytest.raises(TrainingError, match=message):
            training.train(recipe, data_root=root, output=tmp_path / recipe.data.name)
