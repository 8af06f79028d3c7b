"""--graph: the training step of examples/cifar100 as one CUDA graph.

Where there is no GPU, on the stand-in: a capture runs nothing, refuses what waits for the device,
and notes the operators, which a replay does again in the same memory. That shows what is copied
into a graph, when it is captured, and that a replay does a whole step. It cannot show that CUDA
captures each kernel, streams, or where a graph's memory comes from.
"""

import json

import pytest
import stand_in_gpu
import torch

for package in ("PIL", "rich", "sklearn", "tensorboard", "torchvision"):
    pytest.importorskip(package)

from test_cifar import SMALL, as_a_process_of_its_own, assert_equal, state_of, teacher

import engine
import graphed
import speed
import train_student
import train_teacher
from models import make_model
from rrd_kernels import RRDLoss

# Fixtures.
__all__ = ["as_a_process_of_its_own", "teacher"]

#: Two epochs of four full batches and one that is smaller, at two learning rates.
OPTIONS = [*SMALL, "--images", "18", "--batch_size", "4", "--lr_decay_epochs", "1"]
OPTIONS += ["--device", "cuda", "--deterministic", "--nce_k", "10"]
FULL, SMALLER, RATES = 8, 2, 2
KINDS = {
    "rrd and kd": ["--distill", "rrd", "-a", "1", "--amp", "bf16"],
    "momentum": ["--distill", "rrd", "--memory_type", "momentum"],
    "crd": ["--distill", "crd", "--mode", "relax", "--channels_last"],
}


@pytest.fixture(scope="module", autouse=True)
def gpu(teacher):  # which is trained on the CPU
    if torch.cuda.is_available():
        yield
    else:
        with stand_in_gpu.in_place():
            yield


def run_of(teacher, folder, kind, *options):
    paths = ["--path_t", str(teacher), "--save_folder", str(folder)]
    return train_student.main([*paths, *OPTIONS, *KINDS[kind], *options])


@pytest.fixture(scope="module")
def eager(teacher, tmp_path_factory):
    """The state after a run without graphs, by kind."""
    found = {}

    def state(kind):
        if kind not in found:
            found[kind] = state_of(run_of(teacher, tmp_path_factory.mktemp("eager"), kind))
        return found[kind]

    return state


@pytest.fixture
def steps(monkeypatch):
    """One entry for each step that Python goes through."""
    real, calls = engine.Trainer._update, []

    def counted(self, *arguments):
        calls.append(arguments)
        return real(self, *arguments)

    monkeypatch.setattr(engine.Trainer, "_update", counted)
    return calls


@pytest.mark.parametrize("kind", KINDS)
def test_a_cuda_graph_trains_to_the_same_bits(kind, teacher, tmp_path, eager, steps):
    wanted = eager(kind)
    steps.clear()
    found = run_of(teacher, tmp_path, kind, "--graph")
    assert_equal(state_of(found), wanted)
    assert len(steps) == graphed.WARM_UP + RATES + SMALLER < FULL + SMALLER


@pytest.mark.parametrize("stop", [2, 7])
def test_a_cuda_graph_s_run_that_is_cut_off_goes_on(stop, teacher, tmp_path, eager, monkeypatch):
    """In the warm-up, and after the second capture."""
    real, calls = engine.Trainer._train_batch, []

    def interrupted(self, *arguments):
        if len(calls) == stop:
            raise KeyboardInterrupt
        calls.append(1)
        return real(self, *arguments)

    options = ("--graph", "--save_steps", "1")
    with monkeypatch.context() as patch:
        patch.setattr(engine.Trainer, "_train_batch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_of(teacher, tmp_path, "momentum", *options)
    resumed = run_of(teacher, tmp_path, "momentum", *options, "--resume")
    assert_equal(state_of(resumed), eager("momentum"))


def not_copied(number):
    real = graphed.GraphedStep._copy_in

    def copy_in(self, *batch):
        kept = self._inputs and self._inputs[number].clone()
        real(self, *batch)
        if self._graph is not None:
            self._inputs[number].copy_(kept)

    return "_copy_in", copy_in


def of_the_first_rate(self):
    return []


@pytest.mark.parametrize(
    "mistake",
    [*(not_copied(number) for number in range(3)), ("_settings", of_the_first_rate)],
    ids=("images", "labels", "idx", "learning rate"),
)
def test_a_cuda_graph_that_misses_something_is_found_out(
    mistake, teacher, tmp_path, eager, monkeypatch
):
    monkeypatch.setattr(graphed.GraphedStep, *mistake)
    found = state_of(run_of(teacher, tmp_path, "momentum", "--graph"))
    with pytest.raises(AssertionError):
        assert_equal(found["model"], eager("momentum")["model"])


def test_a_step_that_waits_for_the_device_is_refused():
    weight = torch.nn.Parameter(torch.ones(3, device="cuda"))

    def step(images, labels, idx):
        return (weight * images).sum().item()

    optimizer = torch.optim.SGD([weight], lr=0.1)
    whole = graphed.GraphedStep(step, 3, optimizer, torch.device("cuda"))
    batch = (torch.ones(3, device="cuda"),) * 3
    for _ in range(graphed.WARM_UP):
        assert whole(*batch) == 3.0
    with pytest.raises(ValueError, match=r"^--graph cannot capture .* step: .*capturing"):
        whole(*batch)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--device", "cpu"], "needs a GPU; the device is cpu"),
        (["--amp", "fp16"], "takes no --amp fp16.*; give --amp bf16"),
        (["--accumulate", "2"], "takes no --accumulate"),
        (["--compile"], "takes no --compile"),
        (["--distill", "rkd"], "takes no --distill rkd, whose loss waits for the GPU"),
        ([], "runs in one process; start the script with python, not torchrun"),
    ],
    ids=str,
)
def test_what_a_graph_cannot_be_had_with(options, text, teacher, tmp_path, monkeypatch):
    if not options:
        monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=f"^--graph {text}"):
        run_of(teacher, tmp_path, "crd", "--graph", *options)
    assert not list(tmp_path.iterdir())


def test_speed_has_steps_in_a_cuda_graph(tmp_path, monkeypatch):
    captures, capture, made, make = [], graphed.GraphedStep._capture, [], speed.make_step

    def captured(self):
        captures.append(self)
        capture(self)

    def made_step(options, networks, criterion, batch, *, graph=False):
        dtypes = set()
        hook = networks[0].register_forward_hook(lambda *call: dtypes.add(call[-1][1].dtype))
        step = make(options, networks, criterion, batch, graph=graph)
        step()
        hook.remove()
        assert dtypes == {torch.bfloat16}
        assert all(p.grad is None for p in networks[0].parameters())  # as a graph needs it
        made.append((type(criterion), graph))
        return step

    monkeypatch.setattr(graphed.GraphedStep, "_capture", captured)
    monkeypatch.setattr(speed, "make_step", made_step)
    record = tmp_path / "speed.json"
    options = ["--model_t", "resnet14", "--model_s", "resnet8", "--batch_size", "4"]
    options += ["--nce_k", "64", "--seconds", "0", "--device", "cuda", "--amp", "bf16"]
    speed.main([*options, "--graph", "--output", str(record)])
    assert len(captures) == 2  # before anything is timed, and never again
    rows = {row["step"]: row for row in json.loads(record.read_text())["rows"]}
    alone = speed.ALONE + speed.IN_A_GRAPH
    graphs = [alone, speed.FUSED + speed.IN_A_GRAPH]
    assert list(rows) == [speed.ALONE, speed.EAGER, speed.FUSED, *graphs]
    losses = [type(None), speed.PublishedRRD, RRDLoss, type(None), RRDLoss]
    assert [kind for kind, _ in made] == losses
    assert [graph for _, graph in made] == [False, False, False, True, True]
    assert rows[speed.ALONE]["loss_seconds"] == rows[alone]["loss_seconds"] == 0.0


def test_a_step_of_speed_in_a_cuda_graph_trains_as_one_without(monkeypatch):
    torch.use_deterministic_algorithms(True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    options = speed.parse_arguments(["--batch_size", "4", "--nce_k", "12", "--device", "cuda"])
    states = []
    for graph in (False, True):
        torch.manual_seed(0)
        student, teacher = (make_model("resnet8", 10).to("cuda") for _ in range(2))
        networks = (student, teacher.eval().requires_grad_(False))
        widths = {"s_dim": student.feature_dim, "t_dim": teacher.feature_dim}
        criterion = RRDLoss(**widths, nce_k=12).to("cuda")
        images, labels = torch.randn(4, 3, 32, 32), torch.randint(10, (4,))
        batch = tuple(part.to("cuda") for part in (images, labels, torch.arange(4)))
        trained = [*student.parameters(), *criterion.memory.embed_s.parameters()]
        start = [parameter.detach().clone() for parameter in trained]
        step = speed.make_step(options, networks, criterion, batch, graph=graph)
        done = graphed.WARM_UP + 1 if graph else 0
        for _ in range(graphed.WARM_UP + 4 - done):  # past the end of the queue
            step()
        assert not any(map(torch.equal, start, trained))
        states.append({**student.state_dict(), **criterion.state_dict()})
    assert_equal(*states)


def test_speed_without_a_gpu_has_no_graph(tmp_path):
    with pytest.raises(ValueError, match=r"^--graph needs a GPU; the device is cpu"):
        speed.main(["--graph", "--device", "cpu", "--output", str(tmp_path / "speed.json")])
    assert not list(tmp_path.iterdir())


def test_runs_that_were_begun_without_the_flag_have_its_default():
    assert train_student.parse_arguments(["--distill", "none"]).graph is None
    assert train_teacher.parse_arguments([]).graph is None
