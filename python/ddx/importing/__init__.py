"""Students that others published, as folders of ours: their weights are read as data."""
