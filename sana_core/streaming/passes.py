"""Passes of the network over one chunk after another: what does not change between them is formed or captured once.

Knows the network's tensors and CUDA graphs; does not know what the passes are for.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch

from ..models.attention import Window
from ..models.cuda_graph import record
from ..models.dit import BlockState, Modulation, PromptContext, SanaStreamingDiT
from ..models.rope import Rotary

logger = logging.getLogger(__name__)

Result = tuple[torch.Tensor, list[BlockState]]
Call = Callable[[], Result]
Capture = Callable[[Call], tuple[Callable[[], None], Result]]
"""Records a call: gives what repeats it, and the tensors in which each repetition leaves its results."""

# Calls of a kind before it is recorded: as many as a chunk has, which compile kernels and choose algorithms.
PLAIN_CALLS = 5
MOST_KINDS = 16
# Timesteps whose part is kept: far more than a stream uses, unless its steps are changed again and again.
MOST_TIMESTEPS = 64


class _Arguments(NamedTuple):
    """Of :meth:`SanaStreamingDiT.velocity`, but for the state."""

    x: torch.Tensor
    modulation: Modulation
    source: torch.Tensor
    prompt: PromptContext
    positions: Rotary


class Passes:
    """The network, called pass by pass for one stream or several with the same weights.

    The timestep's part is formed once per timestep. Weights must not change while an object of this class is in use.
    """

    def __init__(self, model: SanaStreamingDiT) -> None:
        self.model = model
        self._modulations: dict[tuple[float, int, torch.device], Modulation] = {}

    def __call__(
        self,
        x: torch.Tensor,
        timestep: float,
        source: torch.Tensor,
        prompt: PromptContext,
        state: Sequence[BlockState] | None,
        positions: Rotary,
    ) -> Result:
        """As :meth:`SanaStreamingDiT.forward`. The result may be overwritten by the next call, for whichever stream."""
        arguments = _Arguments(x, self._modulation(timestep, x), source, prompt, positions)
        return self._run(arguments, state)

    def release(self) -> None:
        """Lets go of everything that is kept."""
        self._modulations.clear()

    def _run(self, arguments: _Arguments, state: Sequence[BlockState] | None) -> Result:
        x, modulation, source, prompt, positions = arguments
        return self.model.velocity(x, modulation, source, prompt, state, positions)

    def _modulation(self, timestep: float, x: torch.Tensor) -> Modulation:
        if torch.is_grad_enabled():
            return self.model.modulation(torch.full((len(x),), timestep, device=x.device))
        key = timestep, len(x), x.device
        if key not in self._modulations:
            if len(self._modulations) == MOST_TIMESTEPS:
                self._modulations.clear()
            self._modulations[key] = self.model.modulation(torch.full((len(x),), timestep, device=x.device))
        return self._modulations[key]


class GraphedPasses(Passes):
    """Passes of which the steady ones are one CUDA graph.

    A pass is recorded when its like has run :data:`PLAIN_CALLS` times: the same shapes, and a state in the same place, as that
    of a stream is once its window is full. Others, and chunks whose sink was turned, run plainly. A graph reads what changes
    from tensors of its own, and the stream's memory and the weights where they lie: do not move the weights. Graphs of the
    :data:`MOST_KINDS` likes last used are kept.
    """

    def __init__(self, model: SanaStreamingDiT, capture: Capture | None = None) -> None:
        super().__init__(model)
        self._capture = capture or CudaCapture()
        # Recording failed once.
        self._refused = False
        # Calls so far, or the graph, by likeness, the last used at the end.
        self._kinds: OrderedDict[Any, int | _Graph] = OrderedDict()

    def _run(self, arguments: _Arguments, state: Sequence[BlockState] | None) -> Result:
        if state is None or torch.is_grad_enabled() or not all(map(_in_place, state)):
            return super()._run(arguments, state)
        key = _likeness(arguments, state)
        kind = self._kinds.get(key, 0)
        if isinstance(kind, int):
            kind = kind + 1 if kind < PLAIN_CALLS or self._refused else self._recorded(arguments, state)
        self._kinds[key] = kind
        self._kinds.move_to_end(key)
        if len(self._kinds) > MOST_KINDS:
            self._kinds.popitem(last=False)
        return super()._run(arguments, state) if isinstance(kind, int) else kind.run(arguments)

    def _recorded(self, arguments: _Arguments, state: Sequence[BlockState]) -> int | _Graph:
        """The graph; the number of plain calls goes on where it could not be recorded, which is not tried again."""
        try:
            return _Graph(self._capture, super()._run, arguments, list(state))
        except RuntimeError as error:
            self._refused = True
            logger.warning("the transformer runs without a CUDA graph, which could not be recorded: %s", error)
            return PLAIN_CALLS + 1

    def release(self) -> None:
        super().release()
        self._kinds.clear()
        if isinstance(self._capture, CudaCapture):
            # A pool of memory whose graphs are all gone takes no more of them.
            self._capture = CudaCapture()


def default_passes(model: SanaStreamingDiT, device: torch.device) -> Passes:
    """Recorded on a GPU, plain elsewhere."""
    return GraphedPasses(model) if device.type == "cuda" else Passes(model)


class _Graph:
    """One recorded pass, and the tensors it reads."""

    def __init__(
        self,
        capture: Capture,
        run: Callable[[_Arguments, Sequence[BlockState] | None], Result],
        arguments: _Arguments,
        state: list[BlockState],
    ) -> None:
        # The state is held, so that nothing else comes to lie where the graph reads.
        self._state = state
        self._own = _cloned(arguments)
        self._prompt = arguments.prompt
        self._replay, self._result = capture(lambda: run(self._own, state))

    def run(self, arguments: _Arguments) -> Result:
        new = arguments._replace(prompt=self._own.prompt) if arguments.prompt is self._prompt else arguments
        for own, value in zip(_tensors(self._own), _tensors(new), strict=True):
            if own is not value:
                own.copy_(value)
        self._prompt = arguments.prompt
        self._replay()
        return self._result


class CudaCapture:
    """Records calls as CUDA graphs that share one pool of memory, on the GPU that is current at the first."""

    def __init__(self) -> None:
        self._pool: Any = None
        self._stream: torch.cuda.Stream | None = None

    def __call__(self, call: Call) -> tuple[Callable[[], None], Result]:
        # A stream of its own: that of torch.cuda.graph is of the GPU on which the process captured first, and memory of a
        # pool is used again within one stream alone.
        self._stream = self._stream or torch.cuda.Stream()
        graph, result = record(call, self._stream, self._pool)
        self._pool = self._pool or graph.pool()
        return graph.replay, result


def _tensors(arguments: _Arguments) -> Iterator[torch.Tensor]:
    """All tensors, in order."""
    yield arguments.x
    yield from arguments.modulation
    yield arguments.source
    yield from arguments.positions
    for keys, values in arguments.prompt.keys_values:
        yield keys
        yield values
    if arguments.prompt.bias is not None:
        yield arguments.prompt.bias


def _cloned(arguments: _Arguments) -> _Arguments:
    """The same in tensors of its own."""
    keys_values = tuple((keys.clone(), values.clone()) for keys, values in arguments.prompt.keys_values)
    bias = arguments.prompt.bias
    return _Arguments(
        arguments.x.clone(),
        Modulation(*(part.clone() for part in arguments.modulation)),
        arguments.source.clone(),
        PromptContext(keys_values, None if bias is None else bias.clone()),
        Rotary(*(part.clone() for part in arguments.positions)),
    )


def _likeness(arguments: _Arguments, state: Sequence[BlockState]) -> Any:
    """Equal for two passes that one graph can serve."""
    shapes = tuple((value.shape, value.dtype, value.device) for value in _tensors(arguments))
    places = tuple(
        (block.frame.data_ptr(), block.memory[0].data_ptr(), block.memory[1].data_ptr(), _used(block))
        for block in state
    )
    return shapes, places


def _in_place(block: BlockState) -> bool:
    """Whether what the block reads lies in a stream's page, and not in copies: of a softmax block a Window, of others all."""
    return isinstance(block.memory, Window) or block.tensors[0].shape != block.tensors[1].shape


def _used(block: BlockState) -> int:
    return block.memory.used if isinstance(block.memory, Window) else 0
