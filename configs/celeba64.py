"""CelebA faces at 64x64 with DDPM's U-Net: batch 8, T = 500, learning rate 1e-4, 50 epochs.

Use: --config=configs/celeba64.py --config.data.root=FOLDER, or celeba64.py:PROCESS with vp, subvp, ve, cosine or edm.
The loss is DDPM's on its 500-step chain for vp, and score matching in continuous time for the others.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(process: str = "vp") -> ConfigDict:
    """The flagship recipe; the argument chooses the process."""
    config = default.get_config()
    config.data.name = "celeba"
    config.data.root = "celeba"
    config.data.image_size = 64
    config.data.crop = "celeba140"
    config.data.random_flip = True
    config.data.dequantize = False
    config.sde.name = process
    config.model.channel_mult = (1, 2, 2, 2, 4)
    if process == "vp":
        config.training.loss = "ddpm"
        config.training.ddpm_steps = 500
    elif process in ("ve", "edm"):
        config.model.prediction = "edm"
        config.model.conditioning = "log_snr"
        config.training.time_law = "logistic"
    config.training.epochs = 50
    config.training.batch_size = 8
    config.training.learning_rate = 1e-4
    config.training.heldout_every = 20_000  # one look costs as much as 170 steps of so small a batch
    config.sampling.sampler = "ancestral"
    config.sampling.steps = 500
    config.sampling.batch_size = 16
    config.likelihood.num_images = 64
    config.likelihood.batch_size = 16
    return config
