"""The checkpoints of a run: whatever number of processes wrote one, any other number reads it.

folder   step-N: complete or not there; which are there; saving alone, and loading
files    the tensors in it: which rank writes what, and how a rank finds its part
shares   what a rank holds of a tensor, and writing into it
"""
