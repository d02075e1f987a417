"""CelebA faces at 64x64 that know their attributes: ``celeba64`` with all 40 of them as conditions.

Use: --config=configs/celeba64_attributes.py --config.data.root=FOLDER, or celeba64_attributes.py:PROCESS; to sample,
--config.sampling.labels=Smiling=1,Eyeglasses=0 and --config.sampling.guidance=2.
"""

from ml_collections import ConfigDict

from configs import celeba64


def get_config(process: str = "vp") -> ConfigDict:
    """A tenth of the images is trained on without attributes, and half with only some, so any of them may be given."""
    config = celeba64.get_config(process)
    config.data.attributes = "all"
    config.model.conditional = True
    config.training.label_dropout = 0.1
    config.training.attribute_dropout = 0.5
    return config
