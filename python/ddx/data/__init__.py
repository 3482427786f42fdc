"""The store between precompute and training: making it, opening it, reading random batches from it.

store, loader   an opened store; random batches of it
layout, rows    its arrays; rows.parquet. segments: what was added at a time; buckets: sizes of pictures; float8: text
fingerprint     what shapes its bytes; ranks: who may write and read; verify: is it what was written
precompute/     making it. merge: a store of the parts of others
inspection/     looking into it
"""
