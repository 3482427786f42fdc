"""Training a small SANA teacher from nothing, on generated scenes: autoencoder, flow transformer, export."""
