"""CelebA-HQ faces at 256x256, a folder of images: DDPM (arXiv 2006.11239) on VP, or NCSN++ (arXiv 2011.13456) on VE.

Use: --config=configs/celebahq256.py:NETWORK --config.data.root=FOLDER; NETWORK is ddpm or ncsnpp. Batches of
64 need some 130 and 165 GB in float32; --config.training.accumulation=4 cuts them into parts.
"""

from ml_collections import ConfigDict

from configs import cifar10, song_cifar10

NETWORKS = ("ddpm", "ncsnpp")


def get_config(network: str = "ddpm") -> ConfigDict:
    """The recipe of either paper; the argument chooses."""
    if network not in NETWORKS:
        raise ValueError(f"unknown network {network!r} of configs/celebahq256.py; choose from {', '.join(NETWORKS)}")
    if network == "ddpm":
        config = cifar10.get_config()
        config.model.channel_mult = (1, 1, 2, 2, 4, 4)
        config.model.downsample_padding = 0
        config.training.loss = "ddpm"
        config.training.ddpm_steps = 1000
        config.training.steps = 500_000
        config.training.learning_rate = 2e-5
        config.sampling.threshold = "clip"
    else:
        config = song_cifar10.get_config("ve_ncsnpp")
        config.sde.sigma_max = 348.0
        config.model.channel_mult = (1, 1, 2, 2, 2, 2, 2)
        config.model.res_blocks = 2
        config.model.progressive = "skip"
        config.model.progressive_input = "skip"
        config.training.grad_clip /= 64  # an image has 64 times the values of CIFAR-10's
        config.training.eps /= 64
        config.training.steps = 2_400_000
        config.sampling.snr = 0.075
        config.sampling.steps = 2000
    config.data.name = "folder"
    config.data.root = "celebahq"
    config.data.image_size = 256
    config.data.holdout = 0.01  # the published networks saw all images, and have no likelihood
    config.data.workers = 4
    config.model.dropout = 0.0
    config.training.batch_size = 64
    config.training.sample_every = 50_000
    config.sampling.num_images = 16
    config.sampling.batch_size = 16
    config.likelihood.num_images = 16
    config.likelihood.batch_size = 4
    return config
