from pathlib import Path

from pipelines import make_sana

EXACT = False  # the pipeline runs the instruction with every caption, and pads all to one length


def make(folder: Path) -> Path:
    return make_sana(folder)
