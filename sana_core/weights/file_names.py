"""How weight files are told apart by name."""

TORCH_SUFFIXES = (".pth", ".pt", ".bin")
INDEX_SUFFIX = ".safetensors.index.json"
