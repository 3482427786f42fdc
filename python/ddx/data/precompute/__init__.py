"""`ddx precompute`: what makes a store, adds to it, and makes parts of it anew.

engine       what the command does, by one process or a cluster; run: by this process, start to end
plan         what will be done, before anything is; estimate shows it for --dry-run
create       the store's metadata, or its place in one that exists (append)
pictures     rows of the input as batches of pictures; fetched keeps them on disk for --stage encode
encode       the teacher's encoders; encode_parts puts pictures and captions through them
keeping      where the encoders wait while they do not compute
part         one part in memory; part_writer puts it on disk
on_ray       the same by tasks of a Ray cluster, for --engine ray
retry        failed rows again; dedup: equal pictures; repair: damaged parts; all of them through reopen
"""

from ddx.data.precompute.engine import precompute

__all__ = ["precompute"]
