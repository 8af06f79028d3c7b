"""Packs: kernels compiled ahead, found by what they are compiled for, without Triton.

A pack is a folder for each card, ``FOLDER/sm_90``, with the machine code, compressed by zlib, and a
``manifest.json``:

    format, arch, triton   the layout's version, the compute capability, the compiler's version
    sources                the digest of each kernel's source
    kernels                by key: file, name (of the function), shared_bytes, threads; and to be
                           read: parameters (name and type, in order), specialization

A key is a digest of all that machine code depends on, the kernel's source included.
"""

import contextlib
import functools
import hashlib
import json
import os
import re
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

from rrd_kernels.triton.runtime.launch import Binary, Specialization, source_of

#: Names a folder of packs in place of the package's own.
VARIABLE = "RRD_KERNELS"
#: Where a wheel may bring some.
OWN = Path(__file__).parents[2] / "packs"
FORMAT = 1
#: What decides on a kernel's machine code beside its source.
COMPILER = [Path(__file__).with_name(name) for name in ("compiler.py", "fences.py")]
MANIFEST = "manifest.json"


class PackError(RuntimeError):
    """A pack that cannot be used as it is."""


@functools.cache
def source_digest(module: str) -> str:
    """Of a module of kernels, of those that it imports, and of what compiles them."""
    modules = [module]
    sources = {path.name: path.read_text() for path in COMPILER}
    while modules:
        name = modules.pop()
        if name not in sources:
            sources[name] = source_of(name).read_text()
            modules += re.findall(r"^from rrd_kernels\.triton\.([\w.]+) ", sources[name], re.M)
    return hashlib.sha256(json.dumps(sources, sort_keys=True).encode()).hexdigest()


def _has_changed(module: str, digest: str) -> bool:
    return not source_of(module).exists() or source_digest(module) != digest


def key_of(specialization: Specialization, arch: str) -> str:
    """The name under which a pack for ``arch`` has the kernel."""
    parts = [FORMAT, arch, source_digest(specialization.kernel.module), specialization]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _file_name(code: bytes) -> str:
    """After its content, which shows what has been changed and keeps equal code once."""
    return f"{hashlib.sha256(code).hexdigest()[:32]}.cubin.z"


class Pack:
    """The kernels of one folder.

    Args:
        folder: whose name is the compute capability, such as ``sm_90``.

    Raises:
        PackError: there is no pack, or not a whole one, or it is for another card or of other
            sources.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
            found, arch = self.manifest["format"], self.manifest["arch"]
            self.kernels: dict[str, dict[str, Any]] = dict(self.manifest["kernels"])
            changed = [
                name for name, d in self.manifest["sources"].items() if _has_changed(name, d)
            ]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._error(f"its {MANIFEST} cannot be read ({error!r})") from error
        if found != FORMAT:
            raise self._error(f"it has format {found!r}, and this version reads {FORMAT}")
        if arch != folder.name:
            raise self._error(f"its kernels are for {arch}")
        if changed:
            raise self._error(
                f"it is stale: kernels have changed since it was compiled ({', '.join(changed)})"
            )

    def _error(self, reason: str) -> PackError:
        return PackError(
            f"rrd_kernels: the pack {self.folder} cannot be used: {reason}. Compile it again with "
            f"`python -m rrd_kernels.pack --arch {self.folder.name} --output {self.folder.parent}` "
            f"and the options that it had, or do without it: remove it, or unset {VARIABLE}."
        )

    def find(self, specialization: Specialization) -> Binary | None:
        """The kernel; none where there is none for this.

        Raises:
            PackError: its machine code is not what was written.
        """
        entry = self.kernels.get(key_of(specialization, self.folder.name))
        if entry is None:
            return None
        return Binary(self._code(entry), entry["name"], entry["shared_bytes"], entry["threads"])

    def _code(self, entry: dict[str, Any]) -> bytes:
        try:
            code = zlib.decompress((self.folder / entry["file"]).read_bytes())
        except (OSError, zlib.error) as error:
            raise self._error(f"{entry['file']} cannot be read ({error})") from error
        if _file_name(code) != entry["file"]:
            raise self._error(f"{entry['file']} is corrupt")
        return code

    def whole(self) -> dict[str, dict[str, Any]]:
        """The entries whose machine code is what was written."""
        found = {}
        for key, entry in self.kernels.items():
            with contextlib.suppress(PackError):
                self._code(entry)
                found[key] = entry
        return found


_opened = functools.cache(Pack)


def pack_for(arch: str) -> Pack | None:
    """The pack that is to be used on a card, if there is one.

    Raises:
        PackError: the environment names a folder that has none for this card, or one that cannot
            be used.
    """
    named = os.environ.get(VARIABLE)
    root = Path(named) if named else OWN
    if (root / arch).is_dir():
        return _opened(root / arch)
    if not named:
        return None
    others = ", ".join(sorted(path.parent.name for path in root.glob(f"*/{MANIFEST}"))) or "no card"
    raise PackError(
        f"rrd_kernels: {VARIABLE}={named} has no kernels for this card, which is {arch}; it has "
        f"some for {others}. `python -m rrd_kernels.pack --arch {arch} --output {named}` adds them."
    )


class Written(NamedTuple):
    """What :func:`write` did."""

    kernels: int  # in the pack
    compiled: int  # of them by this call
    bytes: int  # of the pack, its manifest included
    refused: list[Specialization]  # that need more than csrc/cuda gives them


def write(
    specializations: Iterable[Specialization],
    arch: str,
    root: Path,
    *,
    workers: int | None = None,
    report: Callable[[int, int], None] = lambda done, wanted: None,
) -> Written:
    """Compiles kernels for a card, which need not be there, into ``root / arch``.

    What is there already stays, unless it is stale or corrupt.

    Args:
        specializations: which.
        arch: compute capability of an NVIDIA card, such as ``"sm_90"``.
        root: the folder of packs; made if it is not there.
        workers: processes, 1 for this one; default: one for each core.
        report: told after each kernel how many are done, of how many.
    """
    import triton

    folder = root / arch
    folder.mkdir(parents=True, exist_ok=True)
    kept: dict[str, dict[str, Any]] = {}
    with contextlib.suppress(PackError):
        pack = Pack(folder)
        if pack.manifest["triton"] == triton.__version__:
            kept = pack.whole()
    wanted = {key_of(one, arch): one for one in specializations}
    missing = {key: one for key, one in wanted.items() if key not in kept}
    refused = []
    try:
        with _pool(workers) as pool:
            futures = {pool.submit(_compile, one, arch): key for key, one in missing.items()}
            for done, future in enumerate(as_completed(futures), start=1):
                key, binary = futures[future], future.result()
                if binary is None:
                    refused.append(missing[key])
                else:
                    kept[key] = _written(missing[key], binary, folder)
                report(done, len(missing))
    finally:  # what has been compiled stays, whatever ends the rest
        _write_manifest(folder, kept)
    files = [folder / name for name in {MANIFEST, *(entry["file"] for entry in kept.values())}]
    size = sum(path.stat().st_size for path in files)
    return Written(len(kept), len(missing) - len(refused), size, refused)


def _write_manifest(folder: Path, kept: dict[str, dict[str, Any]]) -> None:
    """Whole or not at all; machine code that it does not name goes."""
    import triton

    modules = {entry["specialization"][0][0] for entry in kept.values()}
    manifest = {
        "format": FORMAT,
        "arch": folder.name,
        "triton": triton.__version__,
        "sources": {module: source_digest(module) for module in sorted(modules)},
        "kernels": kept,
    }
    unfinished = folder / f"{MANIFEST}.new"
    unfinished.write_text(json.dumps(manifest))
    unfinished.replace(folder / MANIFEST)
    used = {entry["file"] for entry in kept.values()}
    for path in folder.glob("*.cubin.z"):
        if path.name not in used:
            path.unlink()


def _pool(workers: int | None) -> Executor:
    if workers == 1:
        return ThreadPoolExecutor(1)
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"))


def _compile(specialization: Specialization, arch: str) -> Binary | None:
    from rrd_kernels.triton.runtime.compiler import binary_of, compile_kernel, nvidia_target

    return binary_of(compile_kernel(specialization, nvidia_target(arch)))


def _written(specialization: Specialization, binary: Binary, folder: Path) -> dict[str, Any]:
    """The manifest's entry of a kernel whose machine code is now in the folder."""
    file = _file_name(binary.code)
    # Two thirds of it are for debuggers; without them the compiler schedules otherwise.
    (folder / file).write_bytes(zlib.compress(binary.code))
    return {
        "file": file,
        "name": binary.name,
        "shared_bytes": binary.shared_bytes,
        "threads": binary.threads,
        "parameters": specialization.passed,
        "specialization": specialization,
    }
