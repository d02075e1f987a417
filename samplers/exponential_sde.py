"""The exponential integrator of the reverse SDE: its linear part exact, x0_hat constant over a step."""

from typing import Any

from samplers.dpmpp_sde import SDEDPMSolverPP


class ExponentialSDE(SDEDPMSolverPP):
    """The family of reverse SDEs with eta times the variance of the reverse process's noise.

    x_s = (sigma_s / sigma_t) e^(-eta h) x_t + alpha_s (1 - e^(-(1 + eta) h)) x0_hat + sigma_s sqrt(1 - e^(-2 eta h)) z

    SDE-DPM-Solver++ of order 1 (arXiv 2211.01095). At eta = 0 it is DDIM, at eta = 1 ancestral sampling. (DDIM's own
    eta is the share of the standard deviation, and ends at 1.)

    Args:
        eta: 1 is the reverse SDE of the process; 0 to 10.
        **options: of ``Sampler``.
    """

    def __init__(self, eta: float = 1.0, **options: Any) -> None:
        super().__init__(1, eta, **options)
