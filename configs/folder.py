"""Your own images: any folder, nested or flat.

Use: --config=configs/folder.py:FOLDER, or --config=configs/folder.py --config.data.root=FOLDER.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(root: str = "images") -> ConfigDict:
    """Images at 64x64; the argument is the folder."""
    config = default.get_config()
    config.data.name = "folder"
    config.data.root = root
    config.data.dequantize = False
    config.model.prediction = "edm"
    config.model.conditioning = "log_snr"
    config.model.sigma_data = 1.0  # above theirs, about 0.5: then other projects can run the network (--mode=export)
    config.training.time_law = "logistic"
    config.training.steps = 200_000
    config.training.batch_size = 32
    config.sampling.batch_size = 16
    config.likelihood.num_images = 64
    config.likelihood.batch_size = 16
    return config
