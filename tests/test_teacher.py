"""Loading checkpoints as teachers: published layouts, and files that must be refused."""

import argparse

import pytest
import torch
from torch.nn import DataParallel
from torch.optim.swa_utils import AveragedModel

from models import model_dict
from teacher import classes_of, load_teacher

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def save(folder, content, **settings):
    path = folder / "ckpt_epoch_240.pth"
    folder.mkdir(exist_ok=True)
    torch.save(content, path, **settings)
    return path


def trained(name="resnet8", num_classes=10):
    """A network whose norms have seen data, so that eval mode shows."""
    network = model_dict[name](num_classes=num_classes)
    network(IMAGES)
    return network.eval()


@pytest.mark.parametrize("name", ["resnet8", "resnet8x4", "wrn_16_2", "MobileNetV2"])
@pytest.mark.parametrize(
    "folder", ["{}", "{}_vanilla", "{}_cifar100_lr_0.05_trial_0", "cifar100_{}_trial_0"]
)
def test_the_folder_names_the_architecture(tmp_path, name, folder):
    network = trained(name)
    path = save(tmp_path / folder.format(name), {"model": network.state_dict()})
    teacher = load_teacher(path, num_classes=10)
    assert torch.equal(teacher(IMAGES), network(IMAGES))
    assert not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before PyTorch 1.6"])
def test_a_published_dict_loads(tmp_path, zipped):
    """With what else the training script wrote, from under DataParallel."""
    network = trained()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    content = {
        "epoch": 240,
        "model": DataParallel(network).state_dict(),
        "accuracy": torch.tensor(75.0),
        "optimizer": optimizer.state_dict(),
    }
    assert "module.fc.weight" in content["model"]
    path = save(tmp_path / "resnet8_vanilla", content, _use_new_zipfile_serialization=zipped)
    assert torch.equal(load_teacher(str(path), 10)(IMAGES), network(IMAGES))


def compiled_block(network):
    network.layer1[0] = torch.compile(network.layer1[0])
    return network


def parallel_block(network):
    network.layer1[0] = DataParallel(network.layer1[0])
    return network


def averaged_block(network):
    network.layer1 = AveragedModel(network.layer1)
    return network


def compiled(network):
    return torch.compile(network)


def recomputed_block(network):
    """As checkpoint_wrapper does, whose hooks usually take its name out again."""
    holder = torch.nn.Module()
    holder._checkpoint_wrapped_module = network.layer1[0]
    network.layer1[0] = holder
    return network


@pytest.mark.parametrize(
    ("wrappers", "key"),
    [
        ([compiled], "_orig_mod.fc.weight"),
        ([compiled, DataParallel], "module._orig_mod.fc.weight"),
        ([DataParallel, compiled], "_orig_mod.module.fc.weight"),
        ([compiled, DataParallel, compiled], "_orig_mod.module._orig_mod.fc.weight"),
        ([DataParallel, DataParallel], "module.module.fc.weight"),
        ([compiled_block], "layer1.0._orig_mod.conv1.weight"),
        ([parallel_block], "layer1.0.module.conv1.weight"),
        ([recomputed_block], "layer1.0._checkpoint_wrapped_module.conv1.weight"),
        ([compiled_block, DataParallel], "module.layer1.0._orig_mod.conv1.weight"),
        ([AveragedModel], "n_averaged"),
        ([compiled, AveragedModel], "module._orig_mod.fc.weight"),
        ([AveragedModel, compiled], "_orig_mod.n_averaged"),
        ([averaged_block], "layer1.n_averaged"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_network_loads_whatever_wrapped_it(wrappers, key, tmp_path):
    network = trained()
    wanted, wrapped = network(IMAGES), network
    for wrap in wrappers:
        wrapped = wrap(wrapped)
    state = wrapped.state_dict()
    assert key in state
    path = save(tmp_path / "resnet8_vanilla", {"model": state})
    assert classes_of(path) == 10
    assert torch.equal(load_teacher(path, 10)(IMAGES), wanted)


def test_a_state_of_two_networks_is_told(tmp_path):
    state = trained().state_dict()
    state |= {f"_orig_mod.{key}": value for key, value in state.items()}
    path = save(tmp_path / "resnet8_vanilla", {"model": state})
    with pytest.raises(ValueError, match=r"resnet8_vanilla.* has conv1\.weight more than once"):
        load_teacher(path, 10)


def test_a_counter_that_no_averaged_model_has_written_is_told(tmp_path):
    state = trained().state_dict() | {"n_averaged": torch.tensor(3)}
    path = save(tmp_path / "resnet8_vanilla", {"model": state})
    with pytest.raises(ValueError, match=r"1 unexpected \(n_averaged\)"):
        load_teacher(path, 10)


def test_a_published_last_checkpoint_loads(tmp_path):
    """Which holds the script's options."""
    network = trained()
    options = argparse.Namespace(model="resnet8", lr_decay_epochs=[150, 180, 210], trial=0)
    path = save(
        tmp_path / "cifar100_resnet8_trial_0", {"opt": options, "model": network.state_dict()}
    )
    assert torch.equal(load_teacher(path, 10)(IMAGES), network(IMAGES))


def test_the_architecture_can_be_given(tmp_path):
    network = trained()
    path = save(tmp_path / "resnet110_vanilla", {"model": network.state_dict()})
    assert torch.equal(load_teacher(path, 10, model="resnet8")(IMAGES), network(IMAGES))


def test_a_relative_path_has_a_folder_too(tmp_path, monkeypatch):
    path = save(tmp_path / "resnet8_vanilla", {"model": trained().state_dict()})
    monkeypatch.chdir(path.parent)
    assert load_teacher(path.name, 10).feature_dim == 64


def test_a_missing_file_is_told_with_the_layout(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"resnet32x4_vanilla/ckpt_epoch_240\.pth"):
        load_teacher(tmp_path / "resnet8_vanilla" / "ckpt_epoch_240.pth", 10)
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        load_teacher(tmp_path, 10)


def test_unknown_architectures_are_told_with_the_known(tmp_path):
    path = save(tmp_path / "resnet9_vanilla", {"model": trained().state_dict()})
    with pytest.raises(ValueError, match=r"'resnet9_vanilla' .*--model_t.*: resnet8, .*ShuffleV2"):
        load_teacher(path, 10)
    with pytest.raises(ValueError, match=r"'resnet9'; known .*: resnet8, .*ShuffleV2"):
        load_teacher(path, 10, model="resnet9")


def test_a_wrong_architecture_is_told_in_short(tmp_path):
    path = save(tmp_path / "resnet8x4_vanilla", {"model": trained("resnet14").state_dict()})
    with pytest.raises(ValueError, match=r"does not fit resnet8x4 with 10 classes") as caught:
        load_teacher(path, 10)
    for part in ("6 missing (layer1.0.downsample.0.weight; ", "36 unexpected (layer1.1.conv1"):
        assert part in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 600


def test_a_wrong_number_of_classes_is_told(tmp_path):
    path = save(tmp_path / "resnet8_vanilla", {"model": trained(num_classes=10).state_dict()})
    wanted = r"100 classes: 2 of another shape \(fc.weight \[10, 64\], not \[100, 64\]; fc.bias"
    with pytest.raises(ValueError, match=wanted):
        load_teacher(path, 100)


class Malicious:
    """A pickle of it makes a folder where it is loaded."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        import os

        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before PyTorch 1.6"])
def test_a_program_in_the_pickle_is_refused(tmp_path, zipped):
    mark = tmp_path / "mark"
    content = {"model": trained().state_dict(), "accuracy": Malicious(mark)}
    path = save(tmp_path / "resnet8_vanilla", content, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match="damaged or holds more than tensors"):
        load_teacher(path, 10)
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists(), "the file is as harmful as meant"


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"state_dict": {}}, r"got \['state_dict'\]"),
        (torch.zeros(3), "got Tensor"),
        ({"model": {"fc.weight": "text"}}, r"got \['model'\]"),
    ],
    ids=["no model", "a tensor", "text in it"],
)
def test_other_contents_are_told(tmp_path, content, found):
    path = save(tmp_path / "resnet8_vanilla", content)
    with pytest.raises(ValueError, match=f"a state_dict under 'model'; {found}"):
        load_teacher(path, 10)


@pytest.mark.parametrize("keep", [0, 10, 1000, -1000])
def test_damaged_files_are_told(tmp_path, keep):
    path = save(tmp_path / "resnet8_vanilla", {"model": trained().state_dict()})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="damaged or holds more than tensors"):
        load_teacher(path, 10)


def test_other_files_are_told(tmp_path):
    path = save(tmp_path / "resnet8_vanilla", {})
    for content in (b"<html>404</html>", bytes(1000), torch.randn(1000).numpy().tobytes()):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="damaged or holds more than tensors"):
            load_teacher(path, 10)
