"""Memory that is known before a run: steps on tensors without data, counted storage by storage."""
