"""The losses of solo-learn that compare with a queue, under solo-learn's names.

The change in ``solo/methods/mocov2plus.py`` or ``solo/methods/ressl.py`` is the import::

    from rrd_kernels.integrations.solo_learn import mocov2plus_loss_func
"""

from torch import Tensor

from rrd_kernels.functional import relational_loss

__all__ = ["mocov2plus_loss_func", "ressl_loss_func"]


def mocov2plus_loss_func(
    query: Tensor, key: Tensor, queue: Tensor, temperature: float = 0.1
) -> Tensor:
    """InfoNCE of ``query`` against its ``key`` and a queue.

    Args:
        query: [N, D] embeddings of one view. Normalised again here; solo-learn's function does not.
        key: [N, D] embeddings of the other view. Normalised again here; solo-learn's function does
            not. Gets no gradient, also where solo-learn's function would give it one; its method
            asks for none.
        queue: [D, K] earlier keys, unit columns.
        temperature: positive. Default 0.1.

    Returns:
        The mean loss, a scalar.

    Raises:
        TypeError, ValueError: as :func:`rrd_kernels.functional.relational_loss`.

    Source: solo-learn at 9187ea3, ``solo/losses/mocov2plus.py``. Until 1.0.4, and so in 1.0.2 on
    PyPI, it is ``moco_loss_func`` of ``solo/losses/moco.py``, with the same arguments and numbers.

    Example:
        >>> import torch
        >>> q, k, queue = torch.randn(8, 16), torch.randn(8, 16), torch.randn(16, 64)
        >>> mocov2plus_loss_func(q, k, queue).shape
        torch.Size([])
    """
    return relational_loss(
        query, key, queue.T, tau_s=temperature, tau_t=0.0, own_pair=True, unit_memory=True
    )


def ressl_loss_func(
    q: Tensor,
    k: Tensor,
    queue: Tensor,
    temperature_q: float = 0.1,
    temperature_k: float = 0.04,
) -> Tensor:
    """Cross-entropy of ``q``'s relations to a queue against ``k``'s.

    Args:
        q: [N, D] embeddings of one view. Normalised again here; solo-learn's function does not.
        k: [N, D] embeddings of the other view. Normalised again here; solo-learn's function does
            not. Gets no gradient.
        queue: [K, D] earlier keys, unit rows.
        temperature_q: positive. Default 0.1.
        temperature_k: positive. Default 0.04.

    Returns:
        The mean loss, a scalar.

    Raises:
        TypeError, ValueError: as :func:`rrd_kernels.functional.relational_loss`.

    Source: solo-learn at 9187ea3, ``solo/losses/ressl.py``; the same in 1.0.2 on PyPI.

    Example:
        >>> import torch
        >>> q, k, queue = torch.randn(8, 16), torch.randn(8, 16), torch.randn(64, 16)
        >>> ressl_loss_func(q, k, queue).shape
        torch.Size([])
    """
    return relational_loss(q, k, queue, tau_s=temperature_q, tau_t=temperature_k, unit_memory=True)
