"""What unit rows bound, and whether float32 holds it."""

import math

LOG2_E = math.log2(math.e)

#: How much longer than 1 a row may be for the bounded softmax: rounding a unit row to bfloat16
#: changes its length by at most 2^-8.
UNIT_SLACK = 2.0**-7

#: How far beyond 1/tau a logit may be, of such a row and a query that is rounded too, and its sums
#: beyond their bounds; as in csrc/cpu/fifo/attention_pass.h.
SLACK = 1 + 2 * UNIT_SLACK


def fits_float32(tau: float, size: int) -> bool:
    """Whether sums over ``size`` unit rows of 2^logit, the loss's included, stay within float32."""
    bound = LOG2_E / tau * SLACK
    return bound + math.log2(size) + max(0.0, math.log2(bound)) <= 126
