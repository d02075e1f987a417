"""Scikit-learn's handwritten digits by class, with classifier-free guidance: three minutes on two CPU cores.

Use: --config=configs/digits_classes.py, or digits_classes.py:PROCESS; to sample, --config.sampling.labels=3 and
--config.sampling.guidance=2.
"""

from ml_collections import ConfigDict

from configs import digits


def get_config(process: str = "vp") -> ConfigDict:
    """``digits`` with the class as condition, hidden from a tenth of the images."""
    config = digits.get_config(process)
    config.model.conditional = True
    config.training.label_dropout = 0.1
    config.sampling.num_images = 100
    config.sampling.batch_size = 100
    config.sampling.guidance = 1.5
    return config
