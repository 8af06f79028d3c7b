"""Published checkpoints as frozen teachers."""

import argparse
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from checkpoint import unwrapped
from models import ImageClassifier, make_model, model_dict

LAYOUT = "resnet32x4_vanilla/ckpt_epoch_240.pth"


def load_teacher(path: str | Path, num_classes: int, model: str | None = None) -> ImageClassifier:
    """The network of a checkpoint: on the CPU, in eval mode, without gradients.

    Args:
        path: a file of ``torch.save`` with a dict that has the state_dict under ``model``; of a
            network that was compiled, wrapped or averaged too, as :func:`checkpoint.unwrapped`
            says. No code in it is run.
        num_classes: the number of classes that it was trained for.
        model: its architecture, a key of ``model_dict``; by default read from the folder's name,
            which is ``<arch>`` or begins with ``<arch>_``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the architecture is unknown, or the file is not a checkpoint of it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"no checkpoint at {path}; give the path of a .pth file, such as .../{LAYOUT}"
        )
    architecture = architecture_of(path) if model is None else model
    if architecture not in model_dict:
        raise ValueError(f"no architecture is called {architecture!r}; {_known()}")
    state = _read_state(path)
    teacher = make_model(architecture, num_classes)
    mismatch = _mismatch(state, teacher.state_dict())
    if mismatch:
        raise ValueError(
            f"{path} does not fit {architecture} with {num_classes} classes: {mismatch}. Check the "
            f"architecture (--model_t, --model_s) and the number of classes (--dataset, --classes)"
        )
    teacher.load_state_dict(state)
    return teacher.eval().requires_grad_(False)


def classes_of(path: str | Path) -> int:
    """How many classes a checkpoint was trained for: the width of its last bias.

    Raises:
        FileNotFoundError, ValueError: as :func:`load_teacher`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    biases = [value for key, value in _read_state(path).items() if key.endswith(".bias")]
    if not biases:
        raise ValueError(f"{path} holds no network: no key of its state_dict ends in .bias")
    return len(biases[-1])


def architecture_of(path: Path) -> str:
    """The architecture that the name of the checkpoint's folder begins with, after that of a data
    set where there is one; of a student's folder the one after ``_S_``."""
    folder = path.absolute().parent.name
    if "_S_" in folder:
        folder = folder.split("_S_", 1)[1]
    folder = folder.removeprefix("cifar100_").removeprefix("cifar10_")
    for architecture in model_dict:
        # With the underscore: resnet8 is not resnet8x4.
        if f"{folder}_".startswith(f"{architecture}_"):
            return architecture
    raise ValueError(
        f"cannot read the architecture of {path} from the name of its folder: {folder!r} does not "
        f"begin with an architecture. Give it with --model_t ARCH (a teacher), or name the folder "
        f"as in .../{LAYOUT}; {_known()}"
    )


def _known() -> str:
    return f"known architectures: {', '.join(model_dict)}"


def _read_state(path: Path) -> dict[str, Tensor]:
    try:
        # The published scripts leave their options beside the last weights.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:
        # Damage can raise anything; anything but tensors and plain values could be a program.
        raise ValueError(
            f"{path} is damaged or holds more than tensors and plain values. If you trust it, save "
            "its state_dict again: torch.save({'model': state_dict}, path)"
        ) from error
    state = content.get("model") if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        found = list(content) if isinstance(content, Mapping) else type(content).__name__
        raise ValueError(f"{path} must hold a dict with a state_dict under 'model'; got {found}")
    try:
        return unwrapped(state)
    except ValueError as error:
        raise ValueError(f"{path} is not the state of one network: {error}") from error


def _mismatch(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """What hinders loading, in short: a wrong architecture differs in hundreds of keys."""
    shapes = [
        f"{key} {list(state[key].shape)}, not {list(value.shape)}"
        for key, value in wanted.items()
        if key in state and state[key].shape != value.shape
    ]
    kinds = {
        "missing": [key for key in wanted if key not in state],
        "unexpected": [key for key in state if key not in wanted],
        "of another shape": shapes,
    }
    return "; ".join(
        f"{len(keys)} {kind} ({'; '.join(keys[:3])}{'; ...' if len(keys) > 3 else ''})"
        for kind, keys in kinds.items()
        if keys
    )
