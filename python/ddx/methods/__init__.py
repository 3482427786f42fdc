"""Distillation methods: one a file, each a frozen config and a step. They know neither the trainer nor the data."""
