"""The model, the stream, weights, video files and the command line. Knows kernels and torch; never ComfyUI."""
