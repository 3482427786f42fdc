"""Scoring teachers and students: the exact checker, distances in a fixed feature space, diversity, and the report."""
