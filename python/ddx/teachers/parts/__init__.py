"""What families have in common: processes and their schedulers, text encoders, packed latents."""
