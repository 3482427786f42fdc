"""The one of 512 pixels, which takes no sizes; tests/python/teachers/families/test_pixart.py has the other."""

from pathlib import Path

from diffusers import PixArtAlphaPipeline

from tiny.pixart_sigma import make_pixart

EXACT = False  # the pipeline pads every prompt, and masks the padding


def make(folder: Path) -> Path:
    return make_pixart(folder, PixArtAlphaPipeline, use_additional_conditions=None)
