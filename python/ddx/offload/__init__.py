"""Networks that are larger than the device: where their weights, tables and maps wait, and when they come in."""
