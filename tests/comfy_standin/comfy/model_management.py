"""One device, a list of what was loaded, and a flag for Stop."""

import torch


class InterruptProcessingException(BaseException):
    pass


OOM_EXCEPTION = torch.OutOfMemoryError
loaded = []
freed = []
stop_after = None


def get_torch_device():
    return torch.device("cpu")


vae_device = text_encoder_device = unet_offload_device = vae_offload_device = intermediate_device = get_torch_device


def should_use_bf16(device):
    return True


def load_models_gpu(patchers, memory_required=0):
    loaded.append(([type(p.model).__name__ for p in patchers], memory_required))
    for patcher in patchers:
        patcher.patch()


def free_memory(num_bytes, device):
    freed.append(num_bytes)


def throw_exception_if_processing_interrupted():
    global stop_after
    if stop_after is not None:
        stop_after -= 1
        if stop_after < 0:
            stop_after = None
            raise InterruptProcessingException
