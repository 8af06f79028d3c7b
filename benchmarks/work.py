"""What a step, or a part of one, takes at least: operations, and bytes with nothing in cache."""

from dataclasses import dataclass

from benchmarks.cases import AnyCase, Case, MomentumCase
from benchmarks.step_parts import BACKWARD, ENQUEUE, FORWARD, UPDATE

#: Of a gradient that forward has left for backward, which only scales it.
SAVED_BYTES = 4


@dataclass(frozen=True)
class Work:
    """``operations`` is ``None`` of what multiplies nothing."""

    operations: int | None
    bytes: int


def of_step(case: AnyCase) -> Work:
    return Work(case.operations, case.bytes)


def of_part(case: Case, part: str, gradient_in_forward: bool = False) -> Work:
    """Of one part alone.

    The step's operations are shared out among its halves as attention has them: the similarities in
    forward; in backward what the gradient needs beyond them. A part's bytes are the rows that it
    needs, each once, and its inputs and results.

    Args:
        case: the size.
        part: of ``step_parts``.
        gradient_in_forward: forward computes the gradient too, and backward scales it.
    """
    assert case.operations is not None
    vector = case.dim * case.dtype.itemsize
    if part in (ENQUEUE, UPDATE):
        return Work(None, _written_bytes(case, vector))
    if gradient_in_forward:
        saved = case.batch * case.dim * SAVED_BYTES
        gradient = case.batch * vector
        halves = {
            FORWARD: Work(case.operations, case.bytes - gradient + saved),
            BACKWARD: Work(None, saved + gradient),
        }
        return halves[part]
    # Of 6·B·D·(K + 1), or of 8·B·D·K.
    similarities = 4 * case.operations // (6 if isinstance(case, MomentumCase) else 8)
    gradient = case.batch * vector
    if part == FORWARD:
        return Work(similarities, case.bytes - gradient)
    # The rows that the student is compared with, its embeddings and the gradient.
    rows = _rows_bytes(case, vector)
    return Work(case.operations - similarities, rows + 2 * gradient)


def _written_bytes(case: Case, vector: int) -> int:
    """Rows come and go; those of the momentum memories, two, are read and found by index too."""
    if isinstance(case, MomentumCase):
        return case.batch * (2 * 3 * vector + 8)
    return case.batch * 2 * vector


def _rows_bytes(case: Case, vector: int) -> int:
    if isinstance(case, MomentumCase):
        return round(case.drawn_rows) * vector + 8 * case.batch * (case.rows + 1)
    return case.rows * vector
