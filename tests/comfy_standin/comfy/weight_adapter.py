class LoRAAdapter:
    def __init__(self, loaded_keys, weights):
        self.loaded_keys, self.weights = loaded_keys, weights
