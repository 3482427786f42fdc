"""The store between precompute and training: making it, opening it, reading random batches from it.

making    precompute calls plan, create, pictures (or fetched), encode_parts and part_writer; then retry and dedup
layout    layout (arrays), rows (rows.parquet), fingerprint, part (one of them in memory), ranks (who writes what)
reading   store, loader
looking   ledger, statistics, report with its plots
"""
