"""Patchers of one network: whoever was loaded last has its patches in the weights."""

import torch


def change(weight, key, adapter, strength):
    up, down, alpha, *_ = adapter.weights
    rows = weight if isinstance(key, str) else weight.narrow(*key[1])
    rows += (strength * alpha / len(down) * (up @ down)).reshape(rows.shape)


class ModelPatcher:
    def __init__(self, model, load_device, offload_device):
        self.model, self.load_device, self.offload_device = model, load_device, offload_device
        self.patches = []

    def clone(self):
        copy = type(self)(self.model, self.load_device, self.offload_device)
        copy.patches = self.patches[:]
        return copy

    def add_patches(self, patches, strength_patch=1.0):
        known = self.model.state_dict()
        taken = [key for key in patches if (key if isinstance(key, str) else key[0]) in known]
        self.patches += [(key, patches[key], strength_patch) for key in taken]
        return taken

    def get_key_patches(self):
        backup, patches = self.model.__dict__.get("standin_backup", {}), {}
        for key, *patch in self.patches:
            patches.setdefault(key if isinstance(key, str) else key[0], []).append((key, *patch))
        keep = lambda weight, **_: weight
        return {
            name: [(backup.get(name, weight), keep), *patches.get(name, [])]
            for name, weight in self.model.state_dict().items()
        }

    @torch.no_grad()
    def patch(self):
        backup = self.model.__dict__.setdefault("standin_backup", {})
        for name, weight in backup.items():
            self.model.get_parameter(name).copy_(weight)
        for key, adapter, strength in self.patches:
            name = key if isinstance(key, str) else key[0]
            weight = self.model.get_parameter(name)
            backup.setdefault(name, weight.clone())
            change(weight, key, adapter, strength)


class CoreModelPatcher(ModelPatcher):
    pass
