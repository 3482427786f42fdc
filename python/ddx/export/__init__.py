"""Students for other programs: copies, single files, low-rank files, and the hub."""
