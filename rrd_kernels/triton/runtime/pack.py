"""Packs: kernels compiled ahead, looked up by their specialization, without Triton.

A pack is the folder of one card, such as ``FOLDER/sm_90``. It has machine code, compressed by zlib,
and a ``manifest.json``:

    format, arch, triton   the layout's version, the compute capability, the compiler's version
    sources                the digest of each kernel's source
    kernels                by key: file, name (of the function), shared_bytes, threads; and for
                           people: parameters (name and type, in order), specialization

A key is a digest of everything that machine code depends on, the kernel's source included.
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

#: Environment variable that names a folder of packs in place of the package's own.
VARIABLE = "RRD_KERNELS"
#: The package's own folder of packs; a wheel may contain one.
OWN = Path(__file__).parents[2] / "packs"
FORMAT = 1
#: Sources that machine code depends on besides the kernel's own.
COMPILER = [Path(__file__).with_name(name) for name in ("compiler.py", "fences.py")]
MANIFEST = "manifest.json"


class PackError(RuntimeError):
    """A pack that cannot be used as it is."""


@functools.cache
def source_digest(module: str) -> str:
    """Digest of a kernel module's source, of the modules it imports, and of :data:`COMPILER`."""
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
    """The kernel's key in the manifest of a pack for ``arch``."""
    parts = [FORMAT, arch, source_digest(specialization.kernel.module), specialization]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _file_name(code: bytes) -> str:
    """Named by the content, so that changed files show and equal code is stored once."""
    return f"{hashlib.sha256(code).hexdigest()[:32]}.cubin.z"


class Pack:
    """The kernels of one folder.

    Args:
        folder: named after the compute capability, such as ``sm_90``.

    Raises:
        PackError: the pack is missing, unreadable, for another card, or stale (sources changed).
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
            raise self._error(f"it has format {found!r}, but this version reads format {FORMAT}")
        if arch != folder.name:
            raise self._error(f"its kernels are for {arch}, but its folder is {folder.name}")
        if changed:
            raise self._error(
                f"it is stale: kernels have changed since it was compiled ({', '.join(changed)})"
            )

    def _error(self, reason: str) -> PackError:
        return PackError(
            f"rrd_kernels: the pack {self.folder} cannot be used: {reason}. Compile it again with "
            f"`python -m rrd_kernels.pack --arch {self.folder.name} --output {self.folder.parent}` "
            f"and the options it was compiled with. To run without it, remove it or unset "
            f"{VARIABLE}."
        )

    def find(self, specialization: Specialization) -> Binary | None:
        """The machine code for ``specialization``; ``None`` if the pack lacks it.

        Raises:
            PackError: the file of machine code is missing or corrupt.
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
        """The entries whose files are there and not corrupt."""
        found = {}
        for key, entry in self.kernels.items():
            with contextlib.suppress(PackError):
                self._code(entry)
                found[key] = entry
        return found


_opened = functools.cache(Pack)


def pack_for(arch: str) -> Pack | None:
    """The pack to use for ``arch``; ``None`` if there is none.

    Raises:
        PackError: the environment names a folder without one for this card, or it is unusable.
    """
    named = os.environ.get(VARIABLE)
    root = Path(named) if named else OWN
    if (root / arch).is_dir():
        return _opened(root / arch)
    if not named:
        return None
    others = ", ".join(sorted(path.parent.name for path in root.glob(f"*/{MANIFEST}"))) or "no card"
    raise PackError(
        f"rrd_kernels: {VARIABLE}={named} has no kernels for this card ({arch}); it has kernels "
        f"for {others}. Add them with `python -m rrd_kernels.pack --arch {arch} --output {named}`."
    )


class Written(NamedTuple):
    """What :func:`write` did."""

    kernels: int  # in the pack
    compiled: int  # by this call
    bytes: int  # of the pack, its manifest included
    refused: list[Specialization]  # need more than csrc/cuda provides


def write(
    specializations: Iterable[Specialization],
    arch: str,
    root: Path,
    *,
    workers: int | None = None,
    report: Callable[[int, int], None] = lambda done, wanted: None,
) -> Written:
    """Compiles kernels into the pack ``root / arch``; the card need not be present.

    Kernels that the pack already has are kept, unless they are stale or corrupt.

    Args:
        specializations: the kernels.
        arch: compute capability of an NVIDIA card, such as ``"sm_90"``.
        root: the folder of packs; created if it is missing.
        workers: number of processes; 1 compiles in this one. Default: one for each core.
        report: called after each kernel with the number done and the number wanted.
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
    finally:  # keep what has been compiled, even after an error
        _write_manifest(folder, kept)
    files = [folder / name for name in {MANIFEST, *(entry["file"] for entry in kept.values())}]
    size = sum(path.stat().st_size for path in files)
    return Written(len(kept), len(missing) - len(refused), size, refused)


def _write_manifest(folder: Path, kept: dict[str, dict[str, Any]]) -> None:
    """Writes the manifest atomically, then deletes machine code that it does not name."""
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
    """Writes a kernel's machine code, and returns its entry in the manifest."""
    file = _file_name(binary.code)
    # Keep the line information, two thirds of the code: without it instructions change order.
    (folder / file).write_bytes(zlib.compress(binary.code))
    return {
        "file": file,
        "name": binary.name,
        "shared_bytes": binary.shared_bytes,
        "threads": binary.threads,
        "parameters": specialization.passed,
        "specialization": specialization,
    }
