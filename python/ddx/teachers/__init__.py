"""Teachers: frozen diffusers pipelines behind one contract, one adapter per family."""
