"""What records passes in place of a GPU."""


class Recorder:
    """Stands for a CUDA graph: results always lie in the tensors of the first call, and hold NaN until it is replayed."""

    def __init__(self):
        self.recorded, self.replayed = 0, 0

    def __call__(self, call):
        velocity, blocks = call()
        self.recorded += 1
        own = [velocity, *(block.frame for block in blocks), *(part for block in blocks for part in block.memory)]

        def replay():
            for tensor in own:
                tensor.fill_(float("nan"))
            velocity, blocks = call()
            new = [velocity, *(block.frame for block in blocks), *(part for block in blocks for part in block.memory)]
            for tensor, value in zip(own, new, strict=True):
                tensor.copy_(value)
            self.replayed += 1

        return replay, (velocity, blocks)
