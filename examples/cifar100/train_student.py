"""Distils a teacher into a student with the loss r·CE + a·KD + b·(loss of features).

    python examples/cifar100/train_student.py --dataset cifar100 \\
        --path_t save/models/resnet32x4_vanilla/ckpt_epoch_240.pth \\
        --model_s resnet8x4 --distill rrd -r 1 -a 0 -b 1

--distill names the loss of features as the published script does, with the published weight for
-b; docs/distillation-methods.md has its formula. With -a 1 KD is added.

The name of the run's folder holds its settings, here
save/student_model/RRD_cifar100_S_resnet8x4_T_resnet32x4_r_1_a_0_b_1_trial_1.

To train in four processes, replace python by torchrun --nproc-per-node 4; each process takes an
equal part of every batch.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import options as flags
import processes
from engine import Step, Trainer, make_data, prepare
from features.make import make_feature_loss
from features.two_stages import TwoStageLoss, train_first_stage
from images.data import DATA_SETS, ImageSet
from losses import DistillationLoss
from methods import FEATURES, HINT_LAYER, INIT_EPOCHS, TWO_STAGES
from models import ImageClassifier, make_model
from rrd_kernels import ContrastSampler, CRDLoss, RRDLoss
from rrd_kernels.momentum.negatives import MODES
from run import Run
from teacher import architecture_of, load_teacher


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = flags.parser_of(__doc__)
    group = parser.add_argument_group("distillation")
    flags.add_architecture(group, "--model_s", "student's architecture", "resnet8")
    group.add_argument(
        "--path_t",
        type=Path,
        metavar="PATH",
        help="teacher's checkpoint, a .pth file; needed unless --distill is none",
    )
    flags.add_architecture(group, "--model_t", flags.MODEL_T)
    group.add_argument(
        "--distill",
        default="kd",
        choices=("kd", *FEATURES, "none"),
        metavar="METHOD",
        help="kd: CE and KD; none: CE alone, without a teacher; the others: CE and a loss of "
        f"features, and KD too with -a: "
        f"{', '.join(f'{name} ({each.name})' for name, each in FEATURES.items())}",
    )
    group.add_argument(
        "-r",
        "--gamma",
        default=1.0,
        type=float,
        metavar="R",
        help="weight r of the cross-entropy CE",
    )
    group.add_argument(
        "-a",
        "--alpha",
        type=float,
        metavar="A",
        help="weight a of KD (default: 1 with --distill kd, else 0)",
    )
    group.add_argument(
        "-b",
        "--beta",
        type=float,
        metavar="B",
        help="weight b of the loss of features (default: "
        f"{', '.join(f'{name} {each.b:g}' for name, each in FEATURES.items())}, else 0). After "
        "their first stage abound and fsp have no such loss, whatever B is",
    )
    group.add_argument(
        "--kd_T", default=4.0, type=float, metavar="T", help="temperature of KD, positive"
    )
    group.add_argument(
        "--projection_lr",
        type=flags.at_least(0, float),
        metavar="RATE",
        help="first learning rate of what the loss trains beside the student, projections and "
        "regressors, at least 0 (default: the student's)",
    )
    group.add_argument(
        "--hint_layer",
        type=int,
        choices=range(5),
        metavar="N",
        help=f"hint: the feature map, 0 to 4; 0 is the stem's (default: {HINT_LAYER})",
    )
    group.add_argument(
        "--init_epochs",
        type=flags.at_least(0),
        metavar="N",
        help=f"{', '.join(TWO_STAGES)}: epochs of the first stage, before --epochs, at least 0 "
        f"(default: {INIT_EPOCHS})",
    )
    group = parser.add_argument_group("relational loss (RRD), contrastive loss (CRD)")
    group.add_argument(
        "--feat_dim",
        default=128,
        type=int,
        metavar="D",
        help="width of the embeddings that the loss compares, also of correlation, at least 1",
    )
    group.add_argument(
        "--nce_k",
        default=16384,
        type=int,
        metavar="K",
        help="RRD with fifo: rows of the memory, at least --batch_size; with momentum, and CRD: "
        "negatives per image, at least 1",
    )
    group.add_argument(
        "--nce_t_s",
        type=float,
        metavar="T",
        help="RRD: student's temperature, positive (default: 0.1 with protocol 2025, 0.04 with "
        "2024)",
    )
    group.add_argument(
        "--nce_t_t",
        type=float,
        metavar="T",
        help="RRD: teacher's temperature, positive (default: 0.02 with protocol 2025, 0.1 with "
        "2024)",
    )
    group.add_argument(
        "--protocol",
        default="2025",
        choices=("2025", "2024"),
        help="RRD: published code to match: that of 2025, or that of July to September 2024",
    )
    group.add_argument(
        "--memory_type",
        default="fifo",
        choices=("fifo", "momentum"),
        help="RRD: fifo: the latest K teacher rows; momentum: a student and a teacher row for each "
        "training image, with protocol 2025 only. CRD always has such rows",
    )
    group.add_argument(
        "--nce_t",
        default=0.07,
        type=float,
        metavar="T",
        help="momentum memory and CRD: temperature of the exponential similarity, positive",
    )
    group.add_argument(
        "--nce_m",
        default=0.5,
        type=float,
        metavar="M",
        help="momentum memory and CRD: weight of the old row in an update, in [0, 1)",
    )
    group.add_argument(
        "--similarity",
        default="exponential",
        choices=("exponential", "cosine"),
        help="RRD with momentum: exponential, the published exp(s·m/T)/Z, or cosine, s·m",
    )
    group.add_argument(
        "--mode",
        default="exact",
        choices=MODES,
        help="momentum memory and CRD: the first column is the image itself (exact) or any image "
        "of its class (relax); the run's folder does not name it: give --trial too",
    )
    flags.add_data(parser, tuple(DATA_SETS))
    flags.add_optimization(parser)
    flags.add_run(parser)
    parser.set_defaults(trial="1")
    options = parser.parse_args(arguments)
    if options.alpha is None:
        options.alpha = float(options.distill == "kd")
    if options.beta is None:
        options.beta = FEATURES[options.distill].b if options.distill in FEATURES else 0.0
    # What other methods do not read is no setting of theirs.
    for name, value, methods in (
        ("hint_layer", HINT_LAYER, ("hint",)),
        ("init_epochs", INIT_EPOCHS, TWO_STAGES),
    ):
        given = getattr(options, name)
        value = value if given is None else given
        setattr(options, name, value if options.distill in methods else None)
    if options.distill == "none" and (options.alpha or options.beta):
        weights = f"-a {options.alpha:g} and -b {options.beta:g}"
        parser.error(f"--distill none takes no -a and no -b; got {weights}")
    if options.distill == "kd" and options.beta:
        parser.error(
            f"--distill kd takes no -b; got -b {options.beta:g}. The losses of features take -a "
            f"and -b"
        )
    memory = options.memory_type if options.distill == "rrd" and options.beta else None
    if memory == "fifo" and options.nce_k < options.batch_size:
        parser.error(
            f"--nce_k must be at least --batch_size, {options.batch_size}; got {options.nce_k}"
        )
    if memory == "momentum" and options.protocol == "2024":
        parser.error(
            "--protocol 2024 has no momentum memory; give --protocol 2025 or --memory_type fifo"
        )
    if options.distill != "none" and options.path_t is None:
        parser.error(
            f"--distill {options.distill} needs --path_t, the teacher's checkpoint; --distill none "
            f"trains without a teacher"
        )
    return options


def make_loss_of_features(
    options: argparse.Namespace,
    student: ImageClassifier,
    teacher: ImageClassifier,
    train: ImageSet,
    device: torch.device,
) -> tuple[RRDLoss | CRDLoss, ContrastSampler | None]:
    """RRD or CRD, and what draws the columns where there is a row for each image."""
    by_image = options.distill == "crd" or options.memory_type == "momentum"
    common: dict[str, Any] = {
        "s_dim": student.feature_dim,
        "t_dim": teacher.feature_dim,
        "n_data": len(train) if by_image else None,
        "device": "cpu",  # whose random numbers are the same wherever it trains
    }
    criterion: RRDLoss | CRDLoss
    if options.distill == "crd":
        criterion = CRDLoss(options, **common)
    else:
        # --similarity has a default here, and RRDLoss warns of one in opt, which it does not read.
        opt = {name: value for name, value in vars(options).items() if name != "similarity"}
        criterion = RRDLoss(
            argparse.Namespace(**opt),
            **common,
            protocol=options.protocol,
            similarity=options.similarity if by_image else None,
        )
        options.nce_t_s, options.nce_t_t = criterion.tau_s, criterion.tau_t
    sampler = None
    if by_image:
        sampler = ContrastSampler(train.labels, options.nce_k, mode=options.mode, device=device)
    return criterion.to(device), sampler


def make_step(
    student: nn.Module,
    teacher: ImageClassifier | None,
    criterion: nn.Module,
    sampler: ContrastSampler | None,
) -> Step:
    def step(
        images: Tensor, labels: Tensor, idx: Tensor
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        features, logits = student(images, is_feat=True)
        taught = None
        if teacher is not None:
            with torch.no_grad():
                teacher_features, teacher_logits = teacher(images, is_feat=True)
            taught = (teacher_features, teacher_logits)
        contrast_idx = sampler(idx) if sampler is not None else None
        loss, terms = criterion((features, logits), taught, labels, idx, contrast_idx)
        return loss, terms, logits

    return step


def folder_of(options: argparse.Namespace) -> Path:
    """Where a run with these options writes.

    Raises:
        ValueError: the teacher's architecture is neither given nor in its folder's name.
    """
    teacher = options.model_t
    if teacher is None and options.distill != "none":
        teacher = architecture_of(options.path_t)
    name = (
        f"{options.distill.upper()}_{options.dataset}_S_{options.model_s}_T_{teacher}"
        f"_r_{options.gamma:g}_a_{options.alpha:g}_b_{options.beta:g}_trial_{options.trial}"
    )
    return options.save_folder / "student_model" / name


def main(arguments: list[str] | None = None) -> Path:
    """Runs the script; the run's folder."""
    options = parse_arguments(arguments)
    joined = processes.size() > 1  # already, by whoever calls this
    device = prepare(options, together=True)
    try:
        return train_student(options, device)
    finally:
        if not joined:
            processes.stop()


def train_student(options: argparse.Namespace, device: torch.device) -> Path:
    options.device = device.type  # which of several is no part of the run
    options.learning_rate = flags.learning_rate_of(options.model_s, options.learning_rate)
    if processes.size() > 1:
        if options.distill in TWO_STAGES:
            raise ValueError(
                f"--distill {options.distill} has two stages, which train in one process; start "
                f"it with python, not torchrun"
            )
        options.processes = processes.size()
    train, loaders = make_data(options, device)
    classes = len(train.classes)
    student = make_model(options.model_s, classes).to(device)
    teacher = None
    if options.distill != "none":
        teacher = load_teacher(options.path_t, classes, options.model_t).to(device)
        options.model_t = options.model_t or architecture_of(options.path_t)
        options.teacher_digest = flags.digest_of(teacher)
    loss: nn.Module | None = None
    sampler = None
    if teacher is not None and options.distill in FEATURES:
        if options.distill not in ("rrd", "crd"):
            loss = make_feature_loss(options, student, teacher).to(device)
        elif options.beta:
            loss, sampler = make_loss_of_features(options, student, teacher, train, device)
    has_own = loss is not None and next(loss.parameters(), None) is not None
    if options.projection_lr is not None and not has_own:
        raise ValueError("--projection_lr: this loss trains nothing beside the student")
    first = loss if isinstance(loss, TwoStageLoss) else None
    of_features: dict[str, Any] = {}
    if loss is not None and options.beta and (first is None or first.in_second_stage):
        of_features[options.distill] = loss
    weights = (options.gamma, options.alpha, options.beta)
    criterion = DistillationLoss(*weights, options.kd_T, **of_features).to(device)
    if processes.rank() > 0:  # the same weights in all processes, but negatives of its own in each
        torch.manual_seed(options.seed + processes.rank())

    run = Run(folder_of(options), options.model_s, resume=options.resume)
    flags.apply_to_model(options, student)
    if teacher is not None and options.channels_last:
        teacher = teacher.to(memory_format=torch.channels_last)

    if first is not None and teacher is not None:
        train_first_stage(options, run, first, (student, teacher), loaders[0], device)
    modules = {"model": student, "criterion": criterion}
    together = processes.together(student), processes.together(criterion)
    taught = teacher if options.alpha or of_features else None
    step = make_step(together[0], taught, together[1], sampler)
    rates = options.learning_rate, options.projection_lr
    trainer = Trainer(options, run, student, modules, step, loaders, device, *rates)
    best = trainer.fit()
    if run.writes:
        print(f"best test accuracy {best:.2f} %, checkpoint {run.best}")
    return run.folder


if __name__ == "__main__":
    flags.run_script(main)
