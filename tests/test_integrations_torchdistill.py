"""torchdistill's box with the registered loss and wrapper."""

import copy

import pytest
import torch
import torch.distributed as dist
from ranks import on_ranks
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset, SequentialSampler

from rrd_kernels import RRDLoss

pytest.importorskip("torchdistill")

NAME = "rrd_kernels.integrations.torchdistill"
SETTINGS = {"s_dim": 16, "t_dim": 48, "feat_dim": 8, "nce_k": 64}
MOMENTUM = SETTINGS | {"memory_type": "momentum", "nce_k": 12, "n_data": 32}
PATHS = {"student_module_path": "model.body", "teacher_module_path": "body"}
CROSS_ENTROPY = {
    "criterion": {"key": "CrossEntropyLoss", "kwargs": {}},
    "criterion_wrapper": {
        "key": "SimpleLossWrapper",
        "kwargs": {
            "input": {"is_from_teacher": False, "module_path": ".", "io": "output"},
            "target": {"uses_label": True},
        },
    },
    "weight": 1.0,
}


class Network(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.body, self.head = nn.Linear(12, width), nn.Linear(width, 4)

    def forward(self, images):
        return self.head(self.body(images))


class Samples(Dataset):
    """With what CRDDatasetWrapper reads."""

    classes, targets = range(4), [index % 4 for index in range(32)]
    images = torch.randn(32, 12, generator=torch.Generator().manual_seed(5))

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return self.images[index], self.targets[index]


def configure(
    settings=SETTINGS,
    *,
    loss=None,
    optimizer=None,
    student=None,
    loader=None,
    wrapped=True,
):
    wrapper = {"auxiliary_model_wrapper": {"key": "Student4RRD", "kwargs": dict(settings)}}
    loss = {"key": "RRDLoss", "kwargs": dict(PATHS)} if loss is None else loss
    terms = {"ce": CROSS_ENTROPY, "rrd": {"criterion": loss, "weight": 0.5}}
    return {
        "num_epochs": 1,
        "train_data_loader": {
            "dataset_id": "train",
            "sampler": {"class_or_func": SequentialSampler},
            "kwargs": {"batch_size": 8},
            **(loader or {}),
        },
        "teacher": {
            "forward_proc": "forward_batch_only",
            "forward_hook": {"output": ["body"]},
            "requires_grad": False,
        },
        "student": {
            "forward_proc": "forward_batch_only",
            "forward_hook": {"output": ["model.body" if wrapped else "body"]},
            **(wrapper if wrapped else {}),
            **(student or {}),
        },
        "optimizer": optimizer or {"key": "SGD", "kwargs": {"lr": 0.1}},
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": terms}},
    }


def make_box(config=None, networks=None, distributed=False):
    from torchdistill.common.main_util import import_dependencies
    from torchdistill.core.distillation import get_distillation_box

    import_dependencies([NAME])
    with torch.random.fork_rng():  # every rank has the same teacher
        torch.manual_seed(7)
        teacher = Network(48).eval()
    networks = networks or (teacher, Network(16))
    run_on = {"device": torch.device("cpu"), "device_ids": None, "distributed": distributed}
    data = {"train": Samples()}
    box = get_distillation_box(*networks, data, config or configure(), **run_on, lr_factor=1)
    box.pre_epoch_process(epoch=0)
    return box


def train(box):
    losses = []
    for images, targets, supp_dict in box.train_data_loader:
        losses.append(box.forward_process(images, targets, supp_dict))
        box.post_forward_process(loss=losses[-1])
    box.post_epoch_process()
    return losses


def moved(module, before):
    return [not torch.equal(now, before[name]) for name, now in module.state_dict().items()]


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_the_names_are_registered():
    from torchdistill.losses.registry import get_mid_level_loss
    from torchdistill.models.registry import AUXILIARY_MODEL_WRAPPER_DICT

    box = make_box()
    plug = __import__(NAME, fromlist=["Student4RRD"])
    loss = get_mid_level_loss({"key": "RRDLoss", "kwargs": PATHS})
    assert isinstance(loss, plug.MidLevelRRDLoss)
    assert list(loss.parameters()) == list(loss.buffers()) == []
    assert "student='model.body' output, teacher='body' output" in str(box.criterion)
    assert isinstance(box.student_model, AUXILIARY_MODEL_WRAPPER_DICT["Student4RRD"])
    assert isinstance(box.student_model.rrd, RRDLoss)


def test_the_projection_is_trained_and_saved():
    box = make_box()
    rrd = box.student_model.rrd
    before, projection = state(rrd), state(rrd.embed_s)
    train(box)
    assert all(moved(rrd.embed_s, projection))
    assert rrd.queue_ptr.item() == 32
    saved = box.student_model.state_dict()
    assert {f"criterion.{name}" for name in before} <= saved.keys()
    box.student_model.eval()
    rows = rrd.queue.clone()
    box.forward_process(*next(iter(box.train_data_loader)))
    assert torch.equal(rrd.queue, rows)


class InTheLoss(nn.Module):
    """The trap: a loss with a criterion of its own."""

    def __init__(self):
        super().__init__()
        self.criterion = RRDLoss(**SETTINGS)

    def forward(self, student, teacher, targets):
        return self.criterion(student["body"]["output"], teacher["body"]["output"])


def test_a_projection_in_the_loss_is_not_trained():
    """Which is why the registered loss has none; the page says so."""
    loss = InTheLoss()
    box = make_box(configure(loss=loss, wrapped=False))
    before, student = state(loss.criterion.embed_s), state(box.student_model)
    train(box)
    assert not any(moved(loss.criterion.embed_s, before))
    assert all(moved(box.student_model, student))
    assert "criterion" not in "".join(box.student_model.state_dict())


def test_a_plain_criterion_as_a_term_raises():
    box = make_box(configure(loss=RRDLoss(**SETTINGS), wrapped=False))
    with pytest.raises(TypeError, match="f_s"):
        train(box)


@pytest.mark.parametrize("settings", [SETTINGS, MOMENTUM], ids=["fifo", "momentum"])
def test_the_loss_is_that_of_the_criterion(settings):
    """On the same features: the same calls, so the same bits."""
    kwargs = {"num_negative_samples": 12, "mode": "exact", "ratio": 1.0}
    with_indices = {"dataset_wrapper": {"key": "CRDDatasetWrapper", "kwargs": kwargs}}
    student = {"forward_proc": "forward_batch_supp_dict"}
    box = make_box(configure(settings, loader=with_indices, student=student))
    twin = copy.deepcopy(box.student_model.rrd)
    student, teacher = copy.deepcopy(box.student_model.model), box.teacher_model
    images, targets, supp_dict = next(iter(box.train_data_loader))
    assert supp_dict["contrast_idx"].shape == (8, 13)
    found = box.forward_process(images, targets, supp_dict)
    indices = (supp_dict["pos_idx"], supp_dict["contrast_idx"])
    relations = twin(student.body(images), teacher.body(images), *indices)
    wanted = nn.functional.cross_entropy(student(images), targets) + 0.5 * relations
    assert torch.equal(found, wanted)
    wanted.backward()
    box.post_forward_process(loss=found)
    with torch.no_grad():
        stepped = twin.embed_s.weight - 0.1 * twin.embed_s.weight.grad
    torch.testing.assert_close(box.student_model.rrd.embed_s.weight, stepped)
    for own, other in zip(box.student_model.rrd.buffers(), twin.buffers(), strict=True):
        assert torch.equal(own, other)


def test_a_momentum_memory_needs_the_indices():
    with pytest.raises((TypeError, ValueError), match="idx"):
        train(make_box(configure(MOMENTUM)))


def test_settings_in_the_loss_are_refused():
    with pytest.raises(TypeError, match=r"does not take s_dim, nce_k: no optimizer .* Student4RRD"):
        make_box(configure(loss={"key": "RRDLoss", "kwargs": PATHS | {"s_dim": 16, "nce_k": 64}}))


@pytest.mark.parametrize("wraps", [False, True])
def test_a_student_without_the_wrapper_is_refused(wraps):
    box = make_box(configure(wrapped=wraps))
    if wraps:  # as wrapper: DataParallel on a GPU
        box.student_model = nn.DataParallel(box.student_model)
    with pytest.raises(RuntimeError, match=r"RRDLoss needs a student with auxiliary_model_wrapper"):
        train(box)


OPTIMIZERS = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.0, "foreach": False}),
    ("AdamW", {"lr": 0.1, "fused": True}),
]


@pytest.mark.parametrize(("key", "kwargs"), OPTIMIZERS)
@pytest.mark.parametrize("accumulated", [1, 2])
def test_an_optimizer_without_the_projection_is_refused(key, kwargs, accumulated):
    def box_of(*modules, **student):
        optimizer = {"key": key, "kwargs": dict(kwargs), "grad_accum_step": accumulated}
        configs = [{"module": module, "kwargs": dict(kwargs)} for module in modules]
        optimizer["module_wise_configs"] = configs
        return make_box(configure(optimizer=optimizer, student=student))

    box = box_of("model")
    with pytest.raises(RuntimeError, match=r"not its projection criterion\.embed_s"):
        train(box)
    assert box.stage_grad_count == accumulated  # before the first update
    train(box_of("model", "criterion"))
    train(box_of("model", "criterion.embed_s"))
    train(box_of())
    train(box_of("criterion"))
    train(box_of("model", frozen_modules=["criterion"]))


def test_each_stage_has_its_criterion():
    """And the check of the optimizer is for the wrapper in use, where several hold one student."""
    unused = make_box()
    student, teacher = unused.student_model.model, unused.teacher_model
    box = make_box({"stage1": configure(), "stage2": configure()}, networks=(teacher, student))
    first = box.student_model
    train(box)
    assert box.stage_number == 2
    second = box.student_model
    assert first.model is second.model is student
    assert not torch.equal(first.rrd.embed_s.weight, second.rrd.embed_s.weight)
    before = state(second.rrd.embed_s)
    train(box)
    assert all(moved(second.rrd.embed_s, before))
    assert first.rrd.queue_ptr.item() == second.rrd.queue_ptr.item() == 32


def in_two_processes(rank):
    torch.manual_seed(rank)  # DDP takes the weights of rank 0
    box = make_box(distributed=True)
    parts = box.student_model.model, box.student_model.criterion
    assert all(isinstance(part, DistributedDataParallel) for part in parts)
    assert not any(part.find_unused_parameters for part in parts)
    before = state(box.student_model)
    for images, targets in both():
        own = slice(4 * rank, 4 * rank + 4)
        box.post_forward_process(loss=box.forward_process(images[own], targets[own]))
    return before, state(box.student_model)


def both():
    data = Samples()
    return [(data.images[at : at + 8], torch.tensor(data.targets[at : at + 8])) for at in (0, 8)]


def own_memories(rank):
    """A memory for each rank, which a DDP around the whole model must not copy."""
    box = make_box(configure(SETTINGS | {"gather": "none"}), distributed=True)
    data = Samples()
    own = slice(8 * rank, 8 * rank + 8)
    loss = box.forward_process(data.images[own], torch.tensor(data.targets[own]))
    box.post_forward_process(loss=loss)
    rows = box.student_model.rrd.queue.clone()
    evaluated = DistributedDataParallel(box.student_model).eval()  # as torchdistill's script does
    evaluated(data.images)
    dist.barrier()
    return rows, box.student_model.rrd.queue.clone()


def test_two_processes_train_as_one():
    (before, after), (_, other) = on_ranks(2, in_two_processes)
    assert all(torch.equal(value, other[name]) for name, value in after.items())
    box = make_box()
    plain = {
        name.replace("model.module", "model").replace("criterion.module", "criterion"): value
        for name, value in before.items()
    }
    box.student_model.load_state_dict(plain)
    for images, targets in both():
        box.post_forward_process(loss=box.forward_process(images, targets))
    for (name, value), found in zip(
        box.student_model.state_dict().items(), after.values(), strict=True
    ):
        torch.testing.assert_close(found, value, msg=name)


def test_evaluation_in_ddp_leaves_the_memories_alone():
    ranks = on_ranks(2, own_memories)
    for before, after in ranks:
        assert torch.equal(before, after)
    assert not torch.equal(ranks[0][0], ranks[1][0])
