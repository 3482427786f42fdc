"""Watching a run: what its student draws on fixed prompts and noises, alarms, the best so far, and the page."""
