"""Kernels compiled ahead: what a pack holds, what is loaded out of it, and what is refused.

Launches go through a driver that only keeps what it is given, which cannot show what they compute.
"""

import itertools
import json
import re
import shutil
import zlib
from pathlib import Path
from types import SimpleNamespace

import pytest
import stub_driver
import torch

pytest.importorskip("triton")
import pack_case
from emulated import EMULATED

from rrd_kernels import pack as command
from rrd_kernels.triton.fifo.launches import FifoSettings, step_launches
from rrd_kernels.triton.runtime import launch as launching
from rrd_kernels.triton.runtime import pack as packs
from rrd_kernels.triton.runtime import run
from rrd_kernels.triton.runtime.compiler import binary_of, compile_kernel, nvidia_target
from rrd_kernels.triton.runtime.launch import (
    Argument,
    Binary,
    Kernel,
    Launch,
    Specialization,
    describe,
    specialize,
)
from rrd_kernels.triton.runtime.pack import Pack, PackError, key_of, pack_for, write

pytestmark = pytest.mark.skipif(EMULATED, reason="not of what is emulated")

ARCH = "sm_90"


def advance(num_warps: int = 1, size: int = 16) -> Specialization:
    """The smallest kernel."""
    ptr = torch.empty(1, dtype=torch.int64, device="meta")
    arguments = {"ptr": ptr, "batch": 4, "size": size}
    return specialize(
        Launch(
            Kernel("fifo.kernels.enqueue", "advance"),
            (1,),
            arguments,
            {"NEWEST_FIRST": False},
            num_warps,
        )
    )


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """A folder with a pack of one kernel."""
    root = tmp_path_factory.mktemp("packs")
    assert write([advance(), advance()], ARCH, root, workers=1)[:2] == (1, 1)
    return root


@pytest.fixture
def root(small, tmp_path, monkeypatch) -> Path:
    """A copy of it, which is named by the environment."""
    copy = tmp_path / "packs"
    shutil.copytree(small, copy)
    monkeypatch.setenv(packs.VARIABLE, str(copy))
    return copy


def change(root: Path, **entries) -> None:
    path = root / ARCH / packs.MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def multiplies() -> Specialization:
    """A kernel with products, and fences where its compiler leaves them out."""
    settings = FifoSettings(0.1, 0.02, True, False, False, "bfloat16", 1, True)
    z_s, z_t, memory = (
        torch.empty(rows, 32, dtype=torch.bfloat16, device="meta") for rows in (8, 8, 512)
    )
    return specialize(step_launches(z_s, z_t, memory, None, settings, pack_case.HARDWARE)[1][1])


@pytest.mark.parametrize("specialization", [advance(), multiplies()], ids=lambda s: s.kernel.name)
def test_what_is_found_is_what_triton_would_launch(specialization, root):
    write([specialization], ARCH, root, workers=1)
    found = Pack(root / ARCH).find(specialization)
    own = binary_of(compile_kernel(specialization, nvidia_target(ARCH)))
    assert found == own


def test_what_differs_is_not_found(root):
    pack = Pack(root / ARCH)
    assert pack.find(advance(num_warps=4)) is None
    assert pack.find(advance(size=2**40)) is None  # int64


@pytest.mark.parametrize(
    ("value", "argument"),
    [
        (32, Argument("i32", aligned=True)),
        (40, Argument("i32")),  # 8 elements more than whole vectors
        (1, Argument("constexpr", constant=1)),
        (2**31, Argument("i64", aligned=True)),
        (2**31 + 8, Argument("i64")),
    ],
)
def test_what_a_stride_is_compiled_for(value, argument):
    """Whole vectors are loaded from rows that begin at multiples of sixteen elements alone."""
    launch = Launch(Kernel("momentum.kernels.update", "update"), (1,), {"memory_row": value}, {}, 1)
    assert describe(launch, "memory_row") == argument


@pytest.mark.parametrize("offset", [0, 1, 4])
def test_what_an_address_is_compiled_for(offset):
    numbers = torch.empty(64)
    assert numbers.data_ptr() % 16 == 0
    launch = Launch(
        Kernel("momentum.kernels.update", "update"), (1,), {"memory": numbers[offset:]}, {}, 1
    )
    assert describe(launch, "memory") == Argument("*fp32", aligned=offset != 1)


def test_a_specialization_survives_json(root):
    [entry] = Pack(root / ARCH).kernels.values()
    assert Specialization.from_json(entry["specialization"]) == advance()
    assert entry["parameters"] == [["ptr", "*i64"], ["batch", "i32"], ["size", "i32"]]


def test_what_is_there_is_not_compiled_again(root):
    again = write([advance(), advance(num_warps=2)], ARCH, root, workers=1)
    assert again[:2] == (2, 1)
    assert Pack(root / ARCH).find(advance()) is not None
    for name in ("left over.cubin.z", "of the user's"):
        (root / ARCH / name).write_text("")
    assert write([advance()], ARCH, root, workers=1)[:2] == (2, 0)
    assert not (root / ARCH / "left over.cubin.z").exists()
    assert (root / ARCH / "of the user's").exists()


def test_what_is_damaged_is_compiled_again(root):
    [path] = (root / ARCH).glob("*.cubin.z")
    path.write_bytes(b"?")
    assert write([advance()], ARCH, root, workers=1)[:2] == (1, 1)
    assert Pack(root / ARCH).find(advance()) is not None


def test_what_has_been_compiled_stays_when_something_fails(root):
    broken = advance()._replace(num_warps=3)  # no power of two
    with pytest.raises(Exception, match="power of 2"):
        write([advance(num_warps=8), broken], ARCH, root, workers=1)
    assert Pack(root / ARCH).find(advance(num_warps=8)) is not None


def test_threads_are_the_compiled_kernel_s():
    """It may have more warps than were asked for."""
    target = SimpleNamespace(warp_size=32)
    scratch = {"global_scratch_size": 0, "profile_scratch_size": 0, "num_ctas": 1}
    metadata = SimpleNamespace(name="f", shared=16, num_warps=12, target=target, **scratch)
    kernel = SimpleNamespace(metadata=metadata, asm={"cubin": b"code"})
    assert binary_of(kernel) == Binary(b"code", "f", 16, 384)
    metadata.global_scratch_size = 128
    assert binary_of(kernel) is None


def test_another_compiler_s_pack_is_made_anew(root):
    change(root, triton="3.0.0")
    assert write([advance(num_warps=2)], ARCH, root, workers=1)[:2] == (1, 1)


class TestRefused:
    def test_stale(self, root, monkeypatch):
        digest = packs.source_digest("fifo.kernels.enqueue")
        monkeypatch.setattr(packs, "source_digest", lambda module: f"not {digest}")
        with pytest.raises(
            PackError, match=r"stale: kernels .* \(fifo.kernels.enqueue\).*rrd_kernels\.pack"
        ):
            Pack(root / ARCH)

    def test_a_kernel_that_is_gone(self, root):
        change(root, sources={"no_such_kernel": ""})
        with pytest.raises(PackError, match="stale"):
            Pack(root / ARCH)

    def test_corrupt_machine_code(self, root):
        [path] = (root / ARCH).glob("*.cubin.z")
        for content, said in ((zlib.compress(b"other"), "corrupt"), (b"?", "cannot be read")):
            path.write_bytes(content)
            with pytest.raises(PackError, match=said):
                Pack(root / ARCH).find(advance())
        path.unlink()
        with pytest.raises(PackError, match="cannot be read"):
            Pack(root / ARCH).find(advance())

    @pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"kernels": 1}'])
    def test_corrupt_manifest(self, text, root):
        (root / ARCH / packs.MANIFEST).write_text(text)
        with pytest.raises(PackError, match="cannot be read"):
            Pack(root / ARCH)

    def test_another_format(self, root):
        change(root, format=packs.FORMAT + 1)
        with pytest.raises(PackError, match="format"):
            Pack(root / ARCH)

    def test_another_card(self, root):
        with pytest.raises(PackError, match=r"card \(sm_80\); it has kernels for sm_90"):
            pack_for("sm_80")
        (root / ARCH).rename(root / "sm_80")
        with pytest.raises(PackError, match="its kernels are for sm_90"):
            pack_for("sm_80")

    def test_no_folder(self, monkeypatch):
        monkeypatch.setenv(packs.VARIABLE, "/no/such/folder")
        with pytest.raises(PackError, match="it has kernels for no card"):
            pack_for(ARCH)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: change(folder.parent, sources={"fifo.kernels.enqueue": ""}), "stale"),
        (lambda folder: next(folder.glob("*.cubin.z")).write_text("?"), "cannot be read"),
        (lambda folder: folder.rename(folder.with_name("sm_80")), "it has kernels for sm_80"),
    ],
)
def test_a_launch_is_refused_before_it_is_made(spoil, said, root, monkeypatch):
    monkeypatch.setattr(run, "arch_of", lambda device: ARCH)
    spoil(root / ARCH)
    ptr = torch.zeros(1, dtype=torch.int64)
    arguments = {"ptr": ptr, "batch": 4, "size": 16}
    with pytest.raises(PackError, match=said):
        run.run(
            [
                Launch(
                    Kernel("fifo.kernels.enqueue", "advance"),
                    (1,),
                    arguments,
                    {"NEWEST_FIRST": False},
                    1,
                )
            ]
        )
    assert ptr.item() == 0


def test_without_the_variable_the_package_s_own_counts(small, monkeypatch):
    monkeypatch.delenv(packs.VARIABLE, raising=False)
    monkeypatch.setattr(packs, "OWN", small)
    assert pack_for(ARCH).find(advance()) is not None
    assert pack_for("sm_80") is None


def test_a_key_depends_on_card_source_and_all_else(monkeypatch):
    keys = {key_of(advance(), ARCH), key_of(advance(), "sm_80"), key_of(advance(2), ARCH)}
    digest = packs.source_digest("fifo.kernels.enqueue")
    monkeypatch.setattr(packs, "source_digest", lambda module: f"not {digest}")
    assert len(keys | {key_of(advance(), ARCH)}) == 4


def test_a_digest_is_of_what_is_imported_too(tmp_path, monkeypatch):
    modules = ("fifo.kernels.combine", "momentum.kernels.normalizers")
    before = [packs.source_digest(module) for module in modules]
    shutil.copytree(launching.TRITON, tmp_path / "triton")
    with (tmp_path / "triton" / "common" / "kernels" / "rows.py").open("a") as rows:
        rows.write("# changed\n")
    monkeypatch.setattr(launching, "TRITON", tmp_path / "triton")
    packs.source_digest.cache_clear()
    try:
        assert all(
            packs.source_digest(module) != digest
            for module, digest in zip(modules, before, strict=True)
        )
    finally:
        packs.source_digest.cache_clear()


@pytest.mark.skipif(stub_driver.compiler() is None, reason="no C compiler for the stub driver")
def test_trainings_out_of_a_pack_without_triton(tmp_path, monkeypatch):
    wanted = {specialize(launch) for launch in pack_case.launches()}
    written = write(wanted, ARCH, tmp_path / "packs")
    assert written[:2] == (len(wanted), len(wanted))
    assert not written.refused
    monkeypatch.setenv(packs.VARIABLE, str(tmp_path / "packs"))
    done = stub_driver.run_with_stub(Path(pack_case.__file__), tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert re.search(
        r"no pack has \w+ for .*'DIM': 24.*Triton.* is not installed", report.pop("missing")
    )
    counts = report.pop("counts")
    assert counts["compiled"] == 0
    assert 0 < counts["pack"] <= len(wanted)
    assert report == {
        "loaded": sorted({one.kernel.name for one in wanted}),
        "modes": [2],  # relaxed, so that a capture may load
        "launched": True,
    }


class TestCommand:
    def test_compiles_what_is_asked_for(self, tmp_path, capsys):
        sizes = ["--batch", "4", "--rows", "64", "--dim", "16", "--workers", "2"]
        assert command.main(["--arch", ARCH, "--output", str(tmp_path), *sizes]) == 0
        pack = Pack(tmp_path / ARCH)
        said = capsys.readouterr().out
        assert f"{len(pack.kernels)} kernels" in said
        assert f"{packs.VARIABLE}={tmp_path}" in said
        entries = pack.kernels.values()
        kernels = {entry["specialization"][0][1] for entry in entries}
        assert kernels == {
            *("prepare", "attend", "attend_loss", "combine", "merge", "enqueue", "advance"),
            "update",
        }

    def test_lists_the_queue_s_kernels(self):
        """Those of MoCo's preset but for the order of its rows."""
        form = ["--tau-t", "0", "--own-pair", "--divergence", "kl", "--enqueue", "after"]
        options = ["--arch", ARCH, "--output", "new", *form, "--newest-first"]
        chosen = command.parse_arguments(options)
        listed = {specialize(one) for one in command.launches(chosen, ARCH)}
        z_s, z_t = torch.empty(2, 64, 128, device="meta")
        memory = torch.empty(16384, 128, device="meta")
        ptr = torch.empty(1, dtype=torch.int64, device="meta")
        for need_grad in (True, False):
            terms = (0.1, 0.0, True, True, True, "float32", 1, need_grad, "after", True)
            needed = step_launches(z_s, z_t, memory, ptr, FifoSettings(*terms), pack_case.HARDWARE)
            assert listed >= set(map(specialize, needed[1]))

    def test_lists_every_combination(self):
        chosen = command.parse_arguments(
            [
                *("--arch", ARCH, "--output", "new", "--dtype", "float32", "bfloat16"),
                *("--dim", "64", "128", "--protocol", "2024", "2025"),
            ]
        )
        smaller = {
            specialize(one) for one in command.for_other_splits(command.launches(chosen, ARCH))
        }
        for batch, multiprocessors in itertools.product((1, 7, 63), (108, 148)):
            hardware = pack_case.HARDWARE._replace(multiprocessors=multiprocessors)
            dtypes = torch.float32, torch.float32, "float32", hardware
            for launch in command.fifo_launches(batch, 16384, 64, *dtypes):
                assert specialize(launch) in smaller
        attends = {
            (constants["OPERAND"], constants["DIM"])
            for launch in command.launches(chosen, ARCH)
            if launch.kernel.name == "attend"
            for constants in [launch.constants]
        }
        assert attends == set(itertools.product(("float32", "bfloat16"), (64, 128)))

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (["--arch", "sm_75"], "--arch must be sm_80 or later; got 'sm_75'"),
            (["--arch", "gfx942"], "--arch must be sm_80 or later; got 'gfx942'"),
            (["--batch", "0"], "--batch must be at least 1; got 0"),
            (["--dim", "4097"], "--dim must be at most 4096; got 4097"),
            (["--batch", "65", "--rows", "64"], "--batch must be at most --rows; got 65 and 64"),
            (["--momentum", "1"], "--momentum must be"),
            (["--tau-t", "0"], "--tau-t must be positive"),
            (["--output", __file__], "--output must be a folder"),
        ],
    )
    def test_refuses_what_it_cannot_do(self, options, said, capsys):
        with pytest.raises(SystemExit):
            command.parse_arguments(["--arch", ARCH, "--output", "new", *options])
        assert said in capsys.readouterr().err
