"""Whether machine code keeps the PTX's order of copies, products and barriers.

Before cp.async fills a buffer again, the products that read it must be complete, and then a barrier
must tell all threads so. Which of a pipeline's buffers is meant is in the addresses, which machine
code computes far away. The PTX, however, is executed elsewhere, with its addresses. So the two are
compared as automata: whatever path is taken through the machine code, there must be one through
the PTX with the same events in the same order. Conditions of branches are left out on both sides.

Waiting more than the PTX does is a difference too: products that ptxas has serialised (C7515).
"""

import re
from collections.abc import Sequence

from hgmma import parse, successors

#: Events: what they are in PTX, in machine code, and a name with what stands in brackets there.
#: ptxas adds LDS RZ, [RZ], whose result goes nowhere.
_EVENTS = (
    (r"cp\.async\.c[ag]\.shared", r"LDGSTS\b", "copy"),
    (r"cp\.async\.commit_group", r"LDGDEPBAR", "copies end"),
    (r"cp\.async\.wait_group\s+(\d+)", r"DEPBAR\.LE SB0, 0x(\d+)", "copies but {}"),
    (r"(?:ld|st)\.shared|(?:ld|st)matrix", r"(?:LDSM?|STSM?)\b(?! RZ, \[RZ\])", "access"),
    (r"bar\.sync\s+(\d+)", r"BAR\.SYNC\S* 0x(\d+)", "barrier {}"),
    (r"fence\.proxy\.async", r"FENCE\.VIEW\.ASYNC", "proxy fence"),
    (r"wgmma\.fence", r"WARPGROUP\.ARRIVE", "fence"),
    (r"wgmma\.mma_async\S+m64n(\d+)k(\d+)", r"HGMMA\.64x(\d+)x(\d+)", "product {}x{}"),
    (r"wgmma\.commit_group", r"gsb0", "products end"),
    (r"wgmma\.wait_group\S*\s+(\d+)", r"WARPGROUP\.DEPBAR\.LE gsb0, 0x(\d+)", "products but {}"),
    # What would be an event if it were known.
    (r"(?:mbarrier|bar(rier)?|cp\.async)\b", r"(?:BAR|SYNCS|ARRIVES|U(TMA|BLK)\w*)\b", ""),
)
#: A statement's event, whether a thread may pass it by, and the statements that may follow.
Step = tuple[str, bool, list[int]]


def _event(statement: str, column: int) -> str:
    for row in _EVENTS:
        if match := re.match(row[column], statement):
            if not row[2]:
                raise ValueError(f"unknown event: {statement}")
            return row[2].format(*match.groups())
    return ""


def _steps_of_ptx(ptx: str) -> list[Step]:
    lines = [line.split("//")[0].strip() for line in ptx.splitlines()]
    labels = {line[:-1]: place for place, line in enumerate(lines) if line.endswith(":")}
    steps = []
    for place, line in enumerate(lines):
        predicate, statement = re.fullmatch(r"(@!?%\w+\s+)?(.*)", line).groups("")
        following = [place + 1] * (place + 1 < len(lines))
        if branch := re.match(r"bra(?:\.uni)?\s+([\w$]+);", statement):
            following = [labels[branch[1]]] + following * bool(predicate)
        elif re.match(r"(ret|exit);", statement):
            following *= bool(predicate)
        elif re.match(r"(bra|brx|call|trap)\b", statement):
            raise ValueError(f"unknown control flow: {line}")
        steps.append((_event(statement, 0), bool(predicate), following))
    return steps


def _next(steps: Sequence[Step]) -> dict[int, set[int]]:
    """For each event, and for -1, the start, those that may be next."""

    def first(rest: list[int]) -> set[int]:
        seen = set()
        while rest:
            place = rest.pop()
            event, skipped, following = steps[place]
            if place not in seen and (skipped or not event):
                rest += following
            seen.add(place)
        return {place for place in seen if steps[place][0]}

    events = {place: following for place, (event, _, following) in enumerate(steps) if event}
    return {place: first([*following]) for place, following in (events | {-1: [0]}).items()}


def unknown_order(sass: str, ptx: str) -> list[str]:
    """Where the machine code, on some path, has an event that the PTX has on no path on which the
    same events come before; with the events that the PTX has instead."""
    code, there = parse(sass), _steps_of_ptx(ptx)
    flow = zip(code, successors(code), strict=True)
    here = [(_event(one.text, 1), bool(one.predicate), following) for one, following in flow]
    next_here, next_there = _next(here), _next(there)
    # A thread's last event, and all in the PTX that may be last after the same events.
    start = (-1, frozenset({-1}))
    seen, rest, unknown = {start}, [start], {}
    while rest:
        last, others = rest.pop()
        candidates = set().union(*(next_there[other] for other in others))
        for place in next_here[last]:
            event = here[place][0]
            same = frozenset(other for other in candidates if there[other][0] == event)
            if not same:
                instead = sorted({there[other][0] for other in candidates})
                unknown[place] = f"{code[place].address:04x} {event}, not {' or '.join(instead)}"
            elif (place, same) not in seen:
                seen.add((place, same))
                rest.append((place, same))
    return list(unknown.values())
