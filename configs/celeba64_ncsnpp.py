"""CelebA faces at 64x64 with NCSN++ on VE as Song et al. trained it (arXiv 2011.13456, appendix H), in continuous time.

Use: --config=configs/celeba64_ncsnpp.py --config.data.root=FOLDER.
"""

from ml_collections import ConfigDict

from configs import song_cifar10


def get_config() -> ConfigDict:
    """The network of configs/song_cifar10.py:ve_ncsnpp under more noise, of which it is told by place, not by size."""
    config = song_cifar10.get_config("ve_ncsnpp")
    config.data.name = "celeba"
    config.data.root = "celeba"
    config.data.crop = "celeba140"
    config.sde.sigma_max = 90.0
    config.model.embedding = "positional"
    config.model.scale_by_sigma = False  # the published output divided by sigma is the score: before, it is the noise
    config.model.prediction = "eps"
    config.model.conditioning = "time_left"
    config.training.grad_clip /= 4  # an image has four times the values of CIFAR-10's
    config.training.eps /= 4
    config.sampling.snr = 0.17
    config.sampling.batch_size = 16
    config.likelihood.num_images = 64
    config.likelihood.batch_size = 16
    return config
