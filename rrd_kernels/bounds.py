"""Bounds on the logits of unit rows, and whether float32 holds the sums."""

import math

LOG2_E = math.log2(math.e)

#: How much longer than 1 a row may be for the bounded softmax: rounding a unit row to bfloat16
#: changes its length by at most 2^-8.
UNIT_SLACK = 2.0**-7

#: Factor on a logit's bound 1/tau, for a row that long and a query that is rounded too. It widens
#: the bounds of the sums as well. The same as in csrc/cpu/fifo/attention_pass.h.
SLACK = 1 + 2 * UNIT_SLACK


def fits_float32(tau: float, size: int) -> bool:
    """Whether float32 holds sums over ``size`` unit rows of 2^logit, and of the loss's terms."""
    bound = LOG2_E / tau * SLACK
    return bound + math.log2(size) + max(0.0, math.log2(bound)) <= 126
