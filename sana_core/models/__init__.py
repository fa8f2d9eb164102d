"""The networks: hybrid diffusion transformer, causal video VAE, text encoder."""
