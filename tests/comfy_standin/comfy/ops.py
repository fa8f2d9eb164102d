"""Layers of torch, counted, so that tests see that the nodes asked for ComfyUI's."""

import torch


class disable_weight_init:
    class Linear(torch.nn.Linear):
        pass

    class Conv2d(torch.nn.Conv2d):
        pass

    class Conv3d(torch.nn.Conv3d):
        pass


def pick_operations(weight_dtype, compute_dtype):
    return disable_weight_init
