"""Two-dimensional distributions: to see what a process does, in a minute.

Use: --config=configs/toy2d.py, or toy2d.py:DISTRIBUTION with checkerboard, moons, rings, swissroll or gaussians.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(distribution: str = "checkerboard") -> ConfigDict:
    """An MLP on points in the plane; the argument chooses the distribution."""
    config = default.get_config()
    config.data.name = "toy"
    config.data.distribution = distribution
    config.data.workers = 0

    config.model.name = "mlp"
    config.model.dropout = 0.0
    config.model.prediction = "edm"
    config.model.conditioning = "log_snr"
    config.model.sigma_data = 1.0

    config.training.steps = 5000
    config.training.batch_size = 512
    config.training.learning_rate = 2e-3
    config.training.warmup_steps = 100
    config.training.decay = "linear"
    config.training.ema_decay = 0.998
    config.training.time_law = "logistic"
    config.training.checkpoint_every = 1000
    config.training.sample_every = 0
    config.training.heldout_every = 1000
    config.training.heldout_images = 2000

    config.sampling.num_images = 20_000
    config.sampling.batch_size = 20_000
    config.likelihood.num_images = 2000
    config.likelihood.batch_size = 2000
    config.likelihood.divergence = "exact"
    config.evaluation.num_images = 5000
    config.evaluation.reference_images = 5000  # precision and recall look at all pairs
    return config
