"""What pictures are scored by: functions of their features, and the table of all metrics."""
