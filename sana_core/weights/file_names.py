"""How weight files are told apart by name."""

TORCH_SUFFIXES = (".pth", ".pt", ".bin")
INDEX_SUFFIX = ".safetensors.index.json"
# Of what this package writes: weights, and their config beside them.
WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "config.json"
