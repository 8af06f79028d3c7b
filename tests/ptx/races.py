"""Which accesses to memory nothing orders: between warps of a block, and between blocks."""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from ptx.arithmetic import Array
from ptx.program import PtxError


class Warps:
    """Which warps of the running block have read and written each unit since its last barrier; of a
    block of one warp, which lanes, if ``shift`` is 0."""

    def __init__(self, units: int) -> None:
        self.shift = 5
        self._readers = np.zeros(units, np.uint32)
        self._writers = np.zeros(units, np.uint32)
        self._touched: list[Array] = []

    def read(self, units: Array, threads: Array) -> None:
        """``units`` [n, k] by ``threads`` [n]."""
        own = self._bits(threads)
        if (self._writers[units] & ~own).any():
            raise PtxError("race: reads what another warp has written since the last barrier")
        np.bitwise_or.at(self._readers, units, np.broadcast_to(own, units.shape))
        self._touched.append(units)

    def write(self, units: Array, threads: Array, alike: Array | bool = False) -> None:
        """``alike`` [n, k]: what is there already is what is written. Several warps may hold one
        value, and all store it."""
        own = self._bits(threads)
        if (self._readers[units] & ~own).any():
            raise PtxError("race: writes what another warp has read since the last barrier")
        if (((self._writers[units] & ~own) != 0) & ~np.asarray(alike)).any():
            raise PtxError("race: two warps write to one place without a barrier between them")
        np.bitwise_or.at(self._writers, units, np.broadcast_to(own, units.shape))
        self._touched.append(units)

    def _bits(self, threads: Array) -> Array:
        return (np.uint32(1) << (threads >> self.shift).astype(np.uint32))[:, None]

    def barrier(self) -> None:
        for units in self._touched:
            self._readers[units] = 0
            self._writers[units] = 0
        self._touched.clear()


class Moment(NamedTuple):
    """A thread between two barriers of its block."""

    thread: int
    barriers: int  # that its block has passed
    releases: int  # that its block has made

    def precedes(self, other: "Moment") -> bool:
        """Of one block, a release that comes later, or what an acquired one is looked up for."""
        ordered = self.thread == other.thread or self.barriers < other.barriers
        return ordered and self.releases < other.releases


@dataclass
class Who:
    """The running block, and what it knows of others."""

    block: int
    barriers: int = 0
    releases: int = 0
    #: Since when it knows that another block had released what it had done until then.
    acquired: list[tuple[Moment, dict[int, Moment]]] = field(default_factory=list)
    #: Whether a thread has not waited yet for the kernel before, which may be running.
    early: Array | None = None

    def sees(self, block: int, done: Moment, thread: int) -> bool:
        """Whether what another block has done is before what a thread does now."""
        now = Moment(thread, self.barriers, self.releases + 1)
        known = [released for since, released in self.acquired if since.precedes(now)]
        return any(done.precedes(released[block]) for released in known if block in released)

    def synchronise(self, location: dict[int, Moment], thread: int) -> None:
        """An atomic operation that acquires what was released at ``location``, and releases."""
        self.releases += 1
        now = Moment(thread, self.barriers, self.releases)
        self.acquired.append((now, dict(location)))
        for since, released in self.acquired:
            if since is now or since.precedes(now):
                location |= released
        location[self.block] = now


class Blocks:
    """Which blocks of the running launch have read and written each unit of an allocation."""

    NOBODY, SEVERAL, ATOMIC = 0, -1, -2

    def __init__(self, units: int) -> None:
        self._writer = np.zeros(units, np.int32)  # a block's number + 1
        self._reader = np.zeros(units, np.int32)
        self._moment = np.zeros((units, 3), np.int32)  # of the last write
        self._written_before = self._read_before = np.zeros(units, bool)

    def launch(self, dependent: bool, keep: bool) -> None:
        """A launch begins; a dependent one possibly before the one before it has ended, with
        ``keep`` also before the one before that."""
        written, read = self._writer != 0, self._reader != 0
        if keep:
            written, read = written | self._written_before, read | self._read_before
        self._written_before = written & dependent
        self._read_before = read & dependent
        self._writer[:] = self._reader[:] = self.NOBODY

    def _wait_for_predecessor(self, units: Array, threads: Array, who: Who, busy: Array) -> None:
        if who.early is not None and (busy[units] & who.early[threads][:, None]).any():
            raise PtxError("race: the kernel before may still be running (no griddepcontrol.wait)")

    def read(self, units: Array, threads: Array, who: Who) -> None:
        self._wait_for_predecessor(units, threads, who, self._written_before)
        self._after_writers(units, threads, who, "reads")
        own, reader = who.block + 1, self._reader[units]
        self._reader[units] = np.where((reader == 0) | (reader == own), own, self.SEVERAL)

    def atomic(self, units: Array) -> Array:
        return self._writer[units] == self.ATOMIC

    def write(self, units: Array, threads: Array, who: Who, atomic: bool = False) -> None:
        self._wait_for_predecessor(units, threads, who, self._written_before | self._read_before)
        own, reader = who.block + 1, self._reader[units]
        if ((reader != self.NOBODY) & (reader != own)).any():
            raise PtxError("race: writes what another block reads")
        if not atomic or not self.atomic(units).all():
            self._after_writers(units, threads, who, "writes")
        self._writer[units] = self.ATOMIC if atomic else own
        self._moment[units, 0] = threads[:, None]
        self._moment[units, 1:] = who.barriers, who.releases

    def _after_writers(self, units: Array, threads: Array, who: Who, does: str) -> None:
        writer = self._writer[units]
        foreign = (writer != self.NOBODY) & (writer != who.block + 1)
        for lane, part in np.argwhere(foreign):
            unit, block = units[lane, part], int(writer[lane, part]) - 1
            done = Moment(*map(int, self._moment[unit]))
            if block < 0 or not who.sees(block, done, int(threads[lane])):
                raise PtxError(f"race: {does} what another block has written and not released")
