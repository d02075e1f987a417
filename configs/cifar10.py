"""CIFAR-10 at 32x32 with DDPM's network and hyper-parameters (arXiv 2006.11239) on a continuous process.

Use: --config=configs/cifar10.py --config.data.root=FOLDER, or cifar10.py:PROCESS with vp, subvp, ve, cosine or edm.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(process: str = "vp") -> ConfigDict:
    """DDPM's 35.7 M parameter U-Net; the argument chooses the process."""
    config = default.get_config()
    config.data.name = "cifar10"
    config.data.root = "cifar10"
    config.data.random_flip = True
    config.data.dequantize = False
    config.sde.name = process
    if process in ("ve", "edm"):
        config.model.prediction = "edm"
        config.model.conditioning = "log_snr"
        config.training.time_law = "logistic"
    config.training.steps = 1_300_000
    config.sampling.sampler = "ancestral"
    config.sampling.steps = 1000
    config.likelihood.num_images = 256
    config.likelihood.batch_size = 64
    return config
