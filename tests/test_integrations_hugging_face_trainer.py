"""What docs/packages/hugging-face-trainer.md says, in two processes, and of checkpoints."""

import os

import pytest
import torch
from launched import free_ports, leave_the_group
from ranks import message_of, on_ranks
from test_docs import run_script
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

pytest.importorskip("transformers")
pytest.importorskip("accelerate")
safetensors = pytest.importorskip("safetensors.torch")

PAGE = "docs/packages/hugging-face-trainer.md"


def the_page(rank, folder, port):
    """Of its script, which resumes a run: the states at the end, and those of sharded memories."""
    leave_the_group(rank, port)
    os.chdir(folder)
    page = run_script(PAGE)
    assert isinstance(page["trainer"].model_wrapped, DistributedDataParallel)
    states = [page[name].state_dict() for name in ("whole", "resumed")]
    for path in (None, "checkpoints/checkpoint-2"):
        distiller = page["Distiller"](gather="shard")
        trainer = page["trainer_of"](distiller, page["ShardedTrainer"])
        trainer.train(resume_from_checkpoint=path)
        state = distiller.state_dict()
        states.append(
            {key: v.to_local() if isinstance(v, DTensor) else v for key, v in state.items()}
        )
    return states


def same(state, other):
    return all(torch.equal(value, other[name]) for name, value in state.items())


def test_a_resumed_run_has_the_same_bits(tmp_path):
    ranks = on_ranks(2, the_page, tmp_path, *free_ports(1))
    for whole, resumed, sharded, sharded_resumed in ranks:
        assert whole["criterion.memory.queue_ptr"].item() == (2 * 48) % 64
        assert same(whole, resumed)
        assert same(sharded, sharded_resumed)
        assert len(sharded["criterion.memory.queue"]) == 32
    assert same(ranks[0][0], ranks[1][0])


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The script's names; what it has trained with, one process."""
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(tmp_path_factory.mktemp("page"))
        return run_script(PAGE)


@pytest.fixture
def train(page, tmp_path, monkeypatch):
    """Trains a model, and returns its Trainer."""
    monkeypatch.chdir(tmp_path)

    def run(model, path=None, data=page["data"], **settings):
        trainer = page["trainer_of"](model)
        trainer.train_dataset = data
        for name, value in settings.items():
            setattr(trainer.args, name, value)
        trainer.train(resume_from_checkpoint=path)
        return trainer

    return run


def test_what_saves_the_model_alone(page, train):
    whole, resumed = page["Distiller"](), page["Distiller"]()
    train(whole, save_only_model=True).save_model("model")
    message = message_of(train, resumed, "model")
    assert message.startswith("FileNotFoundError")
    train(resumed, "checkpoints/checkpoint-4")
    assert not same(whole.state_dict(), resumed.state_dict())  # a new optimizer
    queue, again = whole.criterion.queue, resumed.criterion.queue
    assert torch.equal(queue, again)


def test_the_dtype_of_the_memory_is_the_models(page, train):
    train(page["Distiller"]())
    resumed = page["Distiller"](memory_dtype=torch.bfloat16)
    train(resumed, "checkpoints/checkpoint-8")
    assert resumed.criterion.queue.dtype == torch.bfloat16
    trainer = train(page["Distiller"](), bf16_full_eval=True)
    message_of(trainer.evaluate)  # the images are float32
    assert trainer.model.criterion.queue.dtype == torch.bfloat16


def test_the_best_model_comes_with_its_memory(page, train):
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2}
    best |= {"metric_for_best_model": "loss", "greater_is_better": True}
    trainer = train(page["Distiller"](), **best)
    saved = safetensors.load_file(f"{trainer.state.best_model_checkpoint}/model.safetensors")
    assert same(saved, trainer.model.state_dict())
    assert trainer.state.best_global_step < trainer.state.global_step


class Tied:
    """Of a model with two names for one weight."""

    def tie(self):
        self.again = nn.Linear(32, 64)
        self.again.weight = self.student.weight
        return self


class Copies(Tied):
    def state_dict(self, *args, **kwargs):
        return {name: value.clone() for name, value in super().state_dict(*args, **kwargs).items()}


def test_tied_weights(page, train):
    message = message_of(train, type("Model", (Tied, page["Distiller"]), {})().tie())
    assert message.startswith("RuntimeError")
    assert "share memory" in message
    model = type("Model", (Copies, page["Distiller"]), {})
    whole, resumed = model().tie(), model().tie()
    train(whole)
    train(resumed, "checkpoints/checkpoint-2")
    assert same(whole.state_dict(), resumed.state_dict())


def test_a_checkpoint_without_the_criterion(page, train):
    model = page["Distiller"]()
    model.criterion = None
    page["trainer_of"](model).save_model("old")
    assert "_keys_to_ignore_on_save" in message_of(train, page["Distiller"](), "old")


@pytest.mark.parametrize("accepts", [False, True])
def test_a_forward_with_kwargs(accepts, page, train):
    gradients = []

    class Named(page["Distiller"]):
        def forward(self, images, labels=None):
            loss = super().forward(images)["loss"]
            loss.register_hook(lambda gradient: gradients.append(gradient.item()))
            return {"loss": loss}

    class Any(Named):
        def forward(self, images, labels=None, **kwargs):
            return super().forward(images)

    data = [{**row, "labels": torch.tensor(0)} for row in page["data"]]
    train((Any if accepts else Named)(), data=data, gradient_accumulation_steps=2, max_steps=1)
    assert gradients == [1.0 if accepts else 0.5] * 2
