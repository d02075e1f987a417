"""Scikit-learn's handwritten digits, 8x8: trains in three minutes on two CPU cores.

Use: --config=configs/digits.py, or digits.py:PROCESS with vp, subvp, ve, cosine or edm.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(process: str = "vp") -> ConfigDict:
    """The default main job; the argument chooses the process."""
    config = default.get_config()
    config.data.workers = 0  # all of it is in memory
    config.sde.name = process
    config.threads = 1  # operations this small gain little from a second thread, and lose much to a busy neighbour

    config.model.channels = 24
    config.model.channel_mult = (1, 2)
    config.model.res_blocks = 1
    config.model.attention_resolutions = (4,)
    config.model.prediction = "edm"
    config.model.conditioning = "log_snr"
    config.model.sigma_data = 1.0  # above theirs, 0.75: then other projects can run the network (--mode=export)

    config.training.steps = 2200
    config.training.batch_size = 32
    config.training.learning_rate = 8e-3
    config.training.warmup_steps = 100
    config.training.decay = "linear"
    config.training.ema_decay = 0.998
    config.training.time_law = "logistic"
    config.training.checkpoint_every = 500
    config.training.sample_every = 1000
    config.training.heldout_every = 500
    config.training.heldout_images = 100
    config.training.time_limit = 3.0

    config.likelihood.batch_size = 100
    config.evaluation.num_images = 1500  # as many as there are to compare with
    return config
