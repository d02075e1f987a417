"""iPNDM: Adams-Bashforth steps for the predicted noise (arXiv 2202.09778, 2204.13902)."""

from typing import Any

from samplers.deis import DEIS


class IPNDM(DEIS):
    """DEIS with eps_hat a polynomial in n = sigma / alpha itself (its variable "rho").

    On equal steps in n the weights are those of Adams and Bashforth, such as 55, -59, 37, -9 over 24, which the
    published method uses on any grid; here they follow the grid, and so keep their order on it. Order 1 is DDIM.

    Args:
        order: number of predictions that the polynomial passes through, 1 to 4.
        **options: of ``Sampler``.
    """

    natural_grid = "karras"

    def __init__(self, order: int = 4, **options: Any) -> None:
        super().__init__(order, "rho", **options)
