"""A parquet file of the photographs that scikit-image comes with, as JPEGs with captions."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from skimage import data


def write_photographs(path: Path, *, copies: int = 1, caption_columns: tuple[str, ...] = ("caption",)) -> None:
    """Write four photographs, their short side 640 pixels, `copies` times, with the caption in each of the columns."""
    photographs = {
        "an astronaut in an orange suit": data.astronaut(),
        "a cup of coffee on a wooden table": data.coffee(),
        "a cat that looks into the camera": data.chelsea(),
        "the launch of a rocket": data.rocket(),
    }
    encoded = []
    for pixels in photographs.values():
        image = Image.fromarray(pixels)
        scale = 640 / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=92)
        encoded.append(buffer.getvalue())
    captions = list(photographs) * copies
    pq.write_table(pa.table({"image": encoded * copies, **{name: captions for name in caption_columns}}), path)
