"""CelebA faces at 128x128: DDPM's U-Net (arXiv 2006.11239) with the hyper-parameters of diffusers' training example.

Use: --config=configs/celeba128.py --config.data.root=FOLDER.
"""

from ml_collections import ConfigDict

from configs import celeba64


def get_config() -> ConfigDict:
    """Six levels with attention at the fifth, for 100 epochs."""
    config = celeba64.get_config()
    config.data.image_size = 128
    config.model.channel_mult = (1, 1, 2, 2, 4, 4)
    config.model.attention_resolutions = (8,)
    config.model.dropout = 0.0
    config.training.ddpm_steps = 1000
    config.training.epochs = 100
    config.training.batch_size = 16
    config.training.beta1 = 0.95
    config.training.weight_decay = 1e-6
    config.training.warmup_steps = 500
    config.training.decay = "cosine"
    config.sampling.threshold = "clip"
    config.sampling.steps = 1000
    config.likelihood.batch_size = 8
    return config
