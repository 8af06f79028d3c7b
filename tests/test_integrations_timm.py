"""The task of rrd_kernels.integrations.timm, alone and on two ranks."""

import copy
import warnings

import pytest
import torch
from ranks import message_of, on_ranks
from torch import nn

timm = pytest.importorskip("timm")
from timm.layers import SelectAdaptivePool2d  # noqa: E402
from timm.optim import create_optimizer_v2  # noqa: E402
from timm.task import load_task_ema_checkpoint, resume_task_checkpoint  # noqa: E402
from timm.utils import CheckpointSaver, ModelEmaV3  # noqa: E402

from rrd_kernels import CRDLoss, RRDLoss  # noqa: E402
from rrd_kernels.integrations.timm import RRDDistillationTask  # noqa: E402

CRITERION = nn.CrossEntropyLoss()


class Small(nn.Module):
    """What a task needs of a model of timm."""

    num_classes, in_chans = 3, 3

    def __init__(self, width, mean=0.5):
        super().__init__()
        self.num_features = width
        self.pretrained_cfg = {"mean": (mean,) * 3, "std": (0.25,) * 3, "classifier": "head"}
        self.body, self.norm = nn.Conv2d(3, width, 3), nn.GroupNorm(1, width)
        self.pool, self.head = SelectAdaptivePool2d(flatten=True), nn.Linear(width, 3)

    def forward_features(self, images):
        return torch.tanh(self.norm(self.body(images)))

    def forward_head(self, maps, pre_logits=False):
        return self.pool(maps) if pre_logits else self.head(self.pool(maps))

    def forward(self, images):
        return self.forward_head(self.forward_features(images))

    def group_matcher(self, coarse=False):
        return {"stem": "body", "rest": "norm"}


SIZES = {"nce_k": 64, "feat_dim": 8}  # so many rows that each one's norm is below 1 from the start


def make(seed=0, teacher=None, **options):
    torch.manual_seed(seed)
    teacher = teacher or Small(12, mean=0.25)
    if "rrd" not in options:
        options = {"rrd_kwargs": SIZES} | options
    return RRDDistillationTask(Small(6), teacher, CRITERION, verbose=False, **options)


def optimizer_of(task, **options):
    options = {"opt": "adamw", "lr": 0.01, "weight_decay": 0.05} | options
    return create_optimizer_v2(task.get_trainable_module(), **options)


def batch_of(seed, size=4):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(size, 3, 8, 8, generator=generator)
    return images, torch.randint(3, (size,), generator=generator)


def train(task, optimizer, seeds):
    task.train()
    for seed in seeds:
        result = task(*batch_of(seed))
        optimizer.zero_grad()
        result["loss"].backward()
        optimizer.step()
        task.update_ema()


def state_of(task):
    """All tensors, without the wrappers' names."""
    return {
        name.replace("_orig_mod.", "").replace("trainable_module.module.", "trainable_module."): (
            value.detach().clone()
        )
        for name, value in task.state_dict().items()
        if not name.startswith("eval_model")
    }


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.parametrize(
    ("weights", "of_task", "of_rrd"),
    [
        ({}, 1.0, 1.0),
        ({"task_loss_weight": 0.25}, 0.25, 0.75),
        ({"distill_loss_weight": 5.0}, 1.0, 5.0),
    ],
    ids=["neither", "complementary", "independent"],
)
def test_the_loss_is_that_of_its_terms(weights, of_task, of_rrd):
    task = make(**weights)
    images, labels = batch_of(1)
    student = task.get_eval_model()
    logits, maps = student(images), student.forward_features(images)
    again = (images * 0.25 + 0.5 - 0.25) / 0.25  # from the student's mean to the teacher's
    teacher_maps = task.teacher.model.forward_features(again)
    f_s, f_t = (student.pool(each).detach() for each in (maps, teacher_maps))
    kd_loss = copy.deepcopy(task.rrd)(f_s, f_t)
    result = task(images, labels)
    # The same operations in the same order: the same bits.
    assert torch.equal(result["output"], logits)
    assert torch.equal(result["kd_loss"], kd_loss)
    assert torch.equal(result["task_loss"], CRITERION(logits, labels))
    assert torch.equal(result["loss"], of_task * result["task_loss"] + of_rrd * kd_loss)


def test_the_criterion_has_the_initial_weights_of_its_seed():
    """timm's own projection would draw first."""
    torch.manual_seed(0)
    student, teacher = Small(6), Small(12)
    torch.manual_seed(5)
    task = RRDDistillationTask(student, teacher, rrd_kwargs={"nce_k": 16}, verbose=False)
    torch.manual_seed(5)
    assert_same(task.rrd.state_dict(), RRDLoss(s_dim=6, t_dim=12, nce_k=16).state_dict())
    assert task.get_trainable_module().projection is None


@pytest.mark.parametrize("layer_decay", [None, 0.5])
def test_the_optimizer_and_clipping_have_the_projection(layer_decay):
    task = make()
    optimizer = optimizer_of(task, layer_decay=layer_decay)
    groups = {id(w): group for group in optimizer.param_groups for w in group["params"]}
    weight, bias = task.rrd.embed_s.weight, task.rrd.embed_s.bias
    assert groups[id(weight)]["weight_decay"] == 0.05
    assert groups[id(bias)]["weight_decay"] == 0
    assert groups[id(weight)].get("lr_scale", 1) == 1
    assert not any(id(w) in groups for w in task.rrd.embed_t.parameters())
    if layer_decay:
        assert groups[id(task.get_eval_model().body.weight)]["lr_scale"] < 1
    student = list(task.get_eval_model().parameters())
    own = list(task.rrd.parameters())
    for exclude, wanted in ((False, student + own), (True, student[:-2] + own)):
        found = task.get_clip_parameters(exclude_head=exclude)
        assert list(map(id, found)) == list(map(id, wanted))
    before = weight.detach().clone()
    train(task, optimizer, [1])
    assert not torch.equal(weight, before)


def test_modes():
    task = make()
    teacher = state_of(task.teacher)
    assert not task.teacher.model.training
    task(*batch_of(1))
    assert task.rrd.queue_ptr.item() == 4
    rows = task.rrd.queue.clone()
    task.eval()
    task(*batch_of(2))
    assert task.rrd.queue_ptr.item() == 4
    assert torch.equal(task.rrd.queue, rows)
    task.get_trainable_module().train()  # as train.py calls it
    assert not task.teacher.model.training
    train(task, optimizer_of(task), [3])
    assert task.rrd.queue_ptr.item() == 8
    assert_same(state_of(task.teacher), teacher)
    assert all(weight.grad is None for weight in task.teacher.parameters())


def save(task, optimizer, folder):
    model = task.get_trainable_module()
    CheckpointSaver(model, optimizer, task=task, checkpoint_dir=str(folder)).save_checkpoint(0)
    return str(folder / "last.pth.tar")


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("kind", ["fifo", "crd"])
def test_a_resumed_run_is_the_uninterrupted_one(kind, compiled, tmp_path):
    def begin(seed, compiled):
        rrd = RRDLoss(s_dim=6, t_dim=12, **SIZES)
        if kind == "crd":
            rrd = CRDLoss(s_dim=6, t_dim=12, feat_dim=8, nce_k=4, n_data=8)
        task = make(seed, teacher, rrd=rrd)
        if compiled:
            task.compile(backend="eager")
        return task, optimizer_of(task)

    def run(task, optimizer, seeds):
        task.train()
        for seed in seeds:
            idx = torch.arange(4) + seed % 2 * 4
            contrast = torch.randint(8, (4, 5), generator=torch.Generator().manual_seed(seed))
            contrast[:, 0] = idx
            optimizer.zero_grad()
            task(*batch_of(seed), idx, contrast)["loss"].backward()
            optimizer.step()

    teacher = Small(12)
    task, optimizer = begin(0, compiled)
    run(task, optimizer, range(3))
    path = save(task, optimizer, tmp_path)
    saved = torch.load(path, weights_only=True)
    assert saved["state_dict"].keys() == Small(6).state_dict().keys()
    assert_same(saved["task_state"]["rrd"], task.rrd.state_dict())
    run(task, optimizer, range(3, 5))

    other, optimizer = begin(1, compiled)
    assert resume_task_checkpoint(other, path, optimizer) == 1
    run(other, optimizer, range(3, 5))
    assert_same(state_of(other), state_of(task))
    plain, _ = begin(2, False)  # whether compiled or not is no matter
    resume_task_checkpoint(plain, path)
    assert_same(plain.rrd.state_dict(), saved["task_state"]["rrd"])


def test_a_checkpoint_without_the_criterion_is_said(tmp_path):
    task = make()
    path = save(task, optimizer_of(task), tmp_path)
    saved = torch.load(path, weights_only=True)
    del saved["task_state"]
    torch.save(saved, path)
    other = make(1)
    before = other.rrd.embed_s.weight.clone()
    with pytest.warns(UserWarning, match="no state of the criterion") as caught:
        resume_task_checkpoint(other, path)
    assert caught[0].filename == __file__
    assert torch.equal(other.get_eval_model().head.weight, task.get_eval_model().head.weight)
    assert torch.equal(other.rrd.embed_s.weight, before)


def test_another_memory_is_refused(tmp_path):
    task = make()
    path = save(task, optimizer_of(task), tmp_path)
    with pytest.raises(RuntimeError, match="queue"):
        resume_task_checkpoint(make(rrd_kwargs={**SIZES, "nce_k": 32}), path)


@pytest.mark.parametrize("options", [{}, {"exclude_buffers": True, "stochastic_rounding": False}])
def test_the_average_is_that_of_the_student(options, tmp_path):
    task = make()
    task.setup_ema(decay=0.5, **options)
    alone = ModelEmaV3(task.get_eval_model(), decay=0.5)
    optimizer = optimizer_of(task)
    for seed in range(3):
        train(task, optimizer, [seed])
        alone.update(task.get_eval_model())
    averaged = task.get_eval_model(ema=True)
    assert_same(averaged.state_dict(), alone.module.state_dict())
    assert not torch.equal(averaged.body.weight, task.get_eval_model().body.weight)
    assert not any("rrd" in name for name in task.trainable_module_ema.state_dict())

    path = save(task, optimizer, tmp_path)
    saved = torch.load(path, weights_only=True)
    assert "task_state_ema" not in saved
    assert_same(saved["state_dict_ema"], averaged.state_dict())
    other = make(1)
    resume_task_checkpoint(other, path)
    other.setup_ema(decay=0.5)
    load_task_ema_checkpoint(other, path)
    assert_same(state_of(other.trainable_module), state_of(task.trainable_module))
    assert_same(other.get_eval_model(ema=True).state_dict(), averaged.state_dict())


def test_an_average_begins_from_a_checkpoint_without_one(tmp_path):
    """timm then loads the student, and offers the criterion's state."""
    task = make()
    path = save(task, optimizer_of(task), tmp_path)
    other = make(1)
    other.setup_ema()
    before = state_of(other.rrd)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_task_ema_checkpoint(other, path)
    averaged, student = other.get_eval_model(ema=True), task.get_eval_model()
    assert_same(averaged.state_dict(), student.state_dict())
    assert_same(state_of(other.rrd), before)


def test_the_student_of_a_checkpoint_is_a_plain_model_of_timm(tmp_path):
    student, teacher = (
        timm.create_model(name, num_classes=3) for name in ("test_efficientnet_gn", "test_resnet")
    )
    task = RRDDistillationTask(student, teacher, rrd_kwargs={"nce_k": 16}, verbose=False)
    images, labels = batch_of(1)
    images = nn.functional.interpolate(images, 32)
    optimizer = optimizer_of(task)
    task(images, labels)["loss"].backward()
    optimizer.step()
    path = save(task, optimizer, tmp_path)
    plain = timm.create_model("test_efficientnet_gn", num_classes=3, checkpoint_path=path)
    assert torch.equal(plain.eval()(images), student.eval()(images))


def test_what_is_logged(caplog):
    student, teacher = Small(6), Small(12)
    with caplog.at_level("INFO"):
        RRDDistillationTask(student, teacher, CRITERION, task_loss_weight=0.25, rrd_kwargs=SIZES)
    (record,) = [record.getMessage() for record in caplog.records]
    assert "loss = 0.25 * task_loss + 0.75 * kd_loss, with RRDLoss(" in record


def test_what_is_refused():
    rrd = RRDLoss(s_dim=6, t_dim=12, **SIZES)
    with pytest.raises(TypeError, match=r"rrd or rrd_kwargs, not both.*\['nce_k'\]"):
        make(rrd=rrd, rrd_kwargs={"nce_k": 16})
    assert make(rrd=rrd).rrd is rrd
    student = Small(6)
    del student.num_features
    with pytest.raises(ValueError, match="Cannot auto-detect feature dimension"):
        RRDDistillationTask(student, Small(12), CRITERION, verbose=False)
    task = RRDDistillationTask(student, Small(12), CRITERION, verbose=False, student_feature_dim=6)
    assert task.rrd.embed_s.in_features == 6


STEPS = (10, 20, 30)


def on_two_ranks(rank, folder):
    found = {}
    torch.manual_seed(7)
    teacher = Small(12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # DDP that copies the memory is one
        task = make(rank, teacher)
        optimizer = optimizer_of(task)
        task.prepare_distributed()
        first, *others = STEPS
        with task.no_sync():
            task(*batch_of(first + rank))["loss"].backward()
        train(task, optimizer, [seed + rank for seed in others])
    found["keys"] = state_of(task)
    if rank == 0:
        save(task, optimizer, folder)
    torch.distributed.barrier()
    resumed = make(9, teacher)
    resume_task_checkpoint(resumed, str(folder / "last.pth.tar"))
    found["resumed"] = state_of(resumed)
    with torch.no_grad():
        f_t = [
            teacher.forward_head(teacher.forward_features(batch_of(seed + r)[0]), pre_logits=True)
            for seed in STEPS
            for r in range(2)
        ]
        found["rows"] = nn.functional.normalize(task.rrd.embed_t(torch.cat(f_t)))

    compiled = make(rank)
    compiled.compile(backend="eager")  # compiles nothing before the first step
    compiled.prepare_distributed()
    copied = {id(buffer) for buffer in compiled.trainable_module.modules_buffers}
    found["copied"] = [n for n, b in compiled.rrd.named_buffers() if id(b) in copied]

    spread = make(rank, teacher, rrd_kwargs={**SIZES, "gather": "shard"})
    spread.prepare_distributed()
    train(spread, optimizer_of(spread), [20 + rank])
    found["shard"] = state_of(spread.rrd.embed_s)
    found["refused"] = message_of(spread.get_checkpoint_state)
    return found


def test_two_ranks(tmp_path):
    ranks = on_ranks(2, on_two_ranks, tmp_path)
    one, other = (found["keys"] for found in ranks)
    assert_same(one, other)
    assert_same(ranks[0]["shard"], ranks[1]["shard"])
    for found in ranks:
        assert_same(found["resumed"], one)
        assert found["copied"] == []
        assert found["refused"].startswith("RuntimeError: with gather='shard' each rank has a part")
    # A row is a sum of 12 products, of which each rounds, divided by its norm.
    memory, rows = one["trainable_module.rrd.memory.queue"], ranks[0]["rows"]
    assert one["trainable_module.rrd.memory.queue_ptr"].item() == len(rows) == 3 * 2 * 4
    torch.testing.assert_close(memory[:24], rows, rtol=0, atol=16 * torch.finfo().eps)
