"""Samplers of a teacher: which solver takes its pictures out of noise. `own` is the family's."""
