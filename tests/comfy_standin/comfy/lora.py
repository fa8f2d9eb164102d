from .model_patcher import change


def calculate_weight(patches, weight, key):
    for patch in patches:
        change(weight, *patch)
    return weight
