"""`--engine ray`: the parts of a store as tasks of a Ray cluster, whose machines share a file system with the command.

driver   what the command does: it maps parts to tasks, and tries those that fail again, elsewhere
cluster  Ray itself, which is imported here alone
tasks    what a task does, on whichever machine; the store and its bytes are those of one process
"""

from ddx.data.precompute.on_ray.driver import precompute_on_ray

__all__ = ["precompute_on_ray"]
