"""CIFAR-10 as Song et al. trained it (arXiv 2011.13456, appendix H): DDPM, DDPM++ and NCSN++ on VP, sub-VP and VE.

Use: --config=configs/song_cifar10.py:MODEL --config.data.root=FOLDER; MODEL is one of ``MODELS`` below, "_deep" has
twice the residual blocks. DDPM is on the chain of 1000 steps; the others are in continuous time.
"""

from ml_collections import ConfigDict

from configs import cifar10

MODELS = (
    "vp_ddpm",
    "vp_ddpmpp",
    "vp_ddpmpp_deep",
    "subvp_ddpmpp",
    "subvp_ddpmpp_deep",
    "ve_ncsnpp",
    "ve_ncsnpp_deep",
)


def get_config(model: str = "vp_ddpmpp") -> ConfigDict:
    """A recipe of the paper."""
    if model not in MODELS:
        raise ValueError(f"unknown model {model!r} of configs/song_cifar10.py; choose from {', '.join(MODELS)}")
    process, network, *deep = model.split("_")
    config = cifar10.get_config()
    config.sde.name = process
    config.model.name = "ncsnpp"
    if network == "ddpm":
        config.model.block = "ddpm"
        config.model.skip_rescale = False
        config.model.groups = 32
        config.training.loss = "ddpm"
        config.training.ddpm_steps = 1000
        config.sampling.variance = "beta"
    else:
        config.model.res_blocks = 8 if deep else 4
        config.sampling.sampler = "euler_maruyama"
    if deep:
        config.training.steps = 950_000
    if process != "ve":
        config.model.fir = ()
        return config
    config.data.low = 0.0
    config.model.centered = False
    config.model.progressive_input = "residual"
    config.model.embedding = "fourier"
    config.model.scale_by_sigma = True
    config.model.prediction = "score"
    config.model.conditioning = "log_sigma"
    # the published loss is half the sum over the 3 x 32 x 32 values; ours, their mean, has gradients so much smaller
    config.training.grad_clip *= 2 / 3072
    config.training.eps *= 2 / 3072
    config.training.ema_decay = 0.999
    config.sampling.sampler = "pc"
    config.sampling.corrector = "langevin"
    config.sampling.corrector_first = True
    config.sampling.t_end = 1e-5
    return config
