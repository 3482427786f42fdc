"""`ddx precompute`: images and captions into a store, by this process or by the tasks of a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ddx.data.config import PrecomputeConfig
from ddx.data.precompute.run import precompute_here
from ddx.progress import NullProgress

if TYPE_CHECKING:
    from ddx.data.precompute.keeping import EncodeKeeping
    from ddx.progress import Progress
    from ddx.workspace import Workspace


def precompute(
    config: PrecomputeConfig,
    sources: Sequence[str],
    *,
    workspace: Workspace | None = None,
    progress: Progress | None = None,
    keeping: EncodeKeeping | None = None,
) -> Path:
    """Encode every row of the sources, and return the path of the complete store.

    A row that fails is recorded and skipped. A part that is committed is kept, with `verify` if it is what was written:
    after a stop the same call goes on with the rest. Under torchrun the ranks take disjoint parts, and those of a rank
    that is gone are taken over. With `stage` "fetch" there are pictures at the store's place afterwards, and no store
    yet. `keeping` is where the teacher's networks are meanwhile (None: on the device).

    Raises UsageError when the store at that place was made with other settings (naming the first), DdxError when the
    input, the teacher or the disk fails. KeyboardInterrupt leaves what is finished.
    """
    run = precompute_here
    if config.engine == "ray":
        from ddx.data.precompute.on_ray import precompute_on_ray

        run = precompute_on_ray
    return run(config, sources, workspace=workspace, progress=progress or NullProgress(), keeping=keeping)
