"""The mathematics: processes, prediction types, losses, ODE integration, likelihood, exact oracles."""

from sde_lib.bounds import BoundResult, ddpm_bound, elbo
from sde_lib.chains import CHAINS, chain_alphas_cumprod
from sde_lib.cosine import CosineVPSDE
from sde_lib.edm import EDMSDE
from sde_lib.likelihood import LikelihoodResult, bits_per_dim, log_likelihood
from sde_lib.losses import TIME_LAWS, WEIGHTINGS, TimeLaw, ddpm_loss, dsm_loss, relative_density, sample_time
from sde_lib.mixture import GaussianMixture
from sde_lib.ode import METHODS, IntegrationError, ODESolution, integrate
from sde_lib.prediction import PREDICTIONS, Coefficients
from sde_lib.probability_flow import transport
from sde_lib.registry import lookup
from sde_lib.schedule import DDPMSchedule, ddpm_schedule
from sde_lib.sde import SDE, ReverseSDE, ScoreFn, match_dims
from sde_lib.subvp import SubVPSDE
from sde_lib.ve import VESDE
from sde_lib.vp import VPSDE

SDES: dict[str, type[SDE]] = {
    "vp": VPSDE,
    "subvp": SubVPSDE,
    "ve": VESDE,
    "cosine": CosineVPSDE,
    "edm": EDMSDE,
}

__all__ = [
    "CHAINS",
    "EDMSDE",
    "METHODS",
    "PREDICTIONS",
    "SDE",
    "SDES",
    "TIME_LAWS",
    "VESDE",
    "VPSDE",
    "WEIGHTINGS",
    "BoundResult",
    "Coefficients",
    "CosineVPSDE",
    "DDPMSchedule",
    "GaussianMixture",
    "IntegrationError",
    "LikelihoodResult",
    "ODESolution",
    "ReverseSDE",
    "ScoreFn",
    "SubVPSDE",
    "TimeLaw",
    "bits_per_dim",
    "chain_alphas_cumprod",
    "ddpm_bound",
    "ddpm_loss",
    "ddpm_schedule",
    "dsm_loss",
    "elbo",
    "integrate",
    "log_likelihood",
    "lookup",
    "match_dims",
    "relative_density",
    "sample_time",
    "transport",
]
