"""Data: image sets, pictures and text.

Example:
    >>> digits = load_images("digits")
    >>> {name: len(part) for name, part in digits.split(seed=0).items()}
    {'train': 1438, 'val': 179, 'test': 180}
"""

from nfn_opt.data.images import ImageData
from nfn_opt.data.patches import load_photo_patches
from nfn_opt.data.pictures import read_image, write_animation, write_image
from nfn_opt.data.sources import load_images
from nfn_opt.data.text import TextData, load_text

__all__ = [
    "ImageData",
    "TextData",
    "load_images",
    "load_photo_patches",
    "load_text",
    "read_image",
    "write_animation",
    "write_image",
]
