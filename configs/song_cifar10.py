"""CIFAR-10 as Song et al. trained it (arXiv 2011.13456, appendix H): DDPM, DDPM++ and NCSN++ on VP, sub-VP and VE.

Use: --config=configs/song_cifar10.py:MODEL --config.data.root=FOLDER; MODEL is one of ``MODELS`` below, "_deep" has
twice the residual blocks. The published VE networks see data on [0, 1]; here data are on [-1, 1] and sigma is doubled.
"""

from ml_collections import ConfigDict

from configs import default

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
    config = default.get_config()
    config.data.name = "cifar10"
    config.data.root = "cifar10"
    config.data.random_flip = True
    config.data.dequantize = False
    config.sde.name = process
    config.model.name = "ncsnpp"
    config.model.fir = ()
    if network == "ddpm":
        config.model.block = "ddpm"
        config.model.skip_rescale = False
        config.model.groups = 32
    else:
        config.model.res_blocks = 8 if deep else 4
    if network == "ncsnpp":
        config.sde.sigma_min, config.sde.sigma_max = 0.02, 100.0
        config.model.fir = (1, 3, 3, 1)
        config.model.progressive_input = "residual"
        config.model.embedding = "fourier"
        config.model.scale_by_sigma = True
        config.model.prediction = "score"
        config.model.conditioning = "log_sigma"
        config.training.ema_decay = 0.999
    config.training.steps = 950_000 if deep else 1_300_000
    config.sampling.steps = 1000
    if process == "ve":
        config.sampling.sampler = "pc"
        config.sampling.corrector = "langevin"
        config.sampling.snr = 0.16
    else:
        config.sampling.sampler = "ancestral" if network == "ddpm" else "euler_maruyama"
    config.likelihood.num_images = 256
    config.likelihood.batch_size = 64
    return config
