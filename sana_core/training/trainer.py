"""The training loop: AdamW on float32 weights, averaged weights, progress, and checkpoints that survive a kill.

Knows parameters and a function that gives their losses. Knows no network, no data and no device. It keeps no state of a
random generator: whatever a step draws comes from :func:`seeded`, so a run that goes on repeats the run that never stopped.
"""

from __future__ import annotations

import hashlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import InputError
from .run_folder import Checkpoint, RunFolder

Losses = Callable[[int], Mapping[str, Tensor]]

_WEIGHTS, _AVERAGES, _ADAM = "weights.", "ema.", "adam."
_ADAM_SLOTS = ("step", "exp_avg", "exp_avg_sq")


class DivergedError(InputError):
    """A loss, a gradient or a weight is not finite. The checkpoint is that of a step before."""


@dataclass(frozen=True)
class TrainerOptions:
    """How to train. InputError for a value out of range.

    steps: of the whole run. warmup_steps: the learning rate rises linearly over them. schedule: what follows, ``constant``
    or ``cosine``, which falls to 0 at ``steps``. clip_norm: longest gradient, over all parameters; infinity for any.
    ema_decay: of the averaged weights, 0 for none; they start at the initial weights and remember about
    ``1 / (1 - ema_decay)`` steps, so that should be far below ``steps``. save_every: steps, and save_minutes: minutes, from
    one checkpoint to the next, whichever comes first. log_every: steps per progress line. seed: for :func:`seeded`.

    A run may go on with other ``steps``. Under ``cosine`` every later rate then follows the longer curve, so it jumps up
    where the run goes on: it is not the run that had these steps from the start.
    """

    steps: int
    learning_rate: float = 1e-4
    warmup_steps: int = 0
    schedule: Literal["constant", "cosine"] = "constant"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    ema_decay: float = 0.0
    save_every: int = 500
    save_minutes: float = 5.0
    log_every: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "save_every", "log_every"):
            self._require(name, getattr(self, name) >= 1, "1 or more")
        for name in ("learning_rate", "eps", "clip_norm", "save_minutes"):
            self._require(name, getattr(self, name) > 0, "above 0")
        for name in ("warmup_steps", "weight_decay"):
            self._require(name, getattr(self, name) >= 0, "0 or more")
        self._require("ema_decay", 0 <= self.ema_decay < 1, "0 or more and below 1")
        self._require("betas", all(0 <= beta < 1 for beta in self.betas), "two numbers, 0 or more and below 1")
        self._require("schedule", self.schedule in ("constant", "cosine"), "constant or cosine")

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return self.learning_rate
        progress = (step - self.warmup_steps) / (self.steps - self.warmup_steps)
        return self.learning_rate * (1 + math.cos(math.pi * progress)) / 2

    def _require(self, name: str, fulfilled: bool, accepted: str) -> None:
        if not fulfilled:
            raise InputError(f"{name} is {getattr(self, name)!r}; it must be {accepted}")


def seeded(seed: int, step: int, name: str = "") -> torch.Generator:
    """The generator (CPU) of a step: a pure function of its arguments, the same on every machine.

    ``name`` tells apart what is drawn in one step, such as data and noise, so that one does not shift the other.
    """
    digest = hashlib.sha256(f"{seed} {step} {name}".encode()).digest()
    # 63 bits: manual_seed takes more, but not in the same way on every version.
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


class Trainer:
    """Trains parameters, in a folder that holds the run; a run that is there goes on.

    Args:
        folder: made if it is not there. It gets ``checkpoint.safetensors`` (weights, averages, moments of AdamW; metadata
            ``step`` and ``identity``), the one before as ``checkpoint.previous.safetensors``, and ``losses.jsonl``: one line
            per step with ``step``, ``losses``, ``learning_rate``, ``grad_norm`` (before clipping) and ``seconds``.
        parameters: float32, by name, each once; they take on the weights of the run that goes on.
        options: see :class:`TrainerOptions`.
        identity: JSON; a run goes on only if its identity was equal. ``steps`` has no place in it.
        log: takes each progress line.

    Attributes: ``step``, the next step to run, counted from 0.

    Raises InputError (CheckpointError) for parameters that are not float32 and for a run that cannot go on.
    """

    def __init__(
        self,
        folder: Path,
        parameters: Mapping[str, nn.Parameter],
        options: TrainerOptions,
        *,
        identity: Mapping[str, Any],
        log: Callable[[str], None] = print,
    ) -> None:
        for name, parameter in parameters.items():
            if parameter.dtype != torch.float32:
                raise InputError(f"{name} is {parameter.dtype}; only float32 weights are trained: convert it first")
        self.step = 0
        self.options = options
        self.parameters = dict(parameters)
        self._optimizer = torch.optim.AdamW(
            list(self.parameters.values()),
            lr=options.learning_rate,
            betas=options.betas,
            eps=options.eps,
            weight_decay=options.weight_decay,
        )
        self._averages: dict[str, Tensor] = self._copies() if options.ema_decay else {}
        self._log = log
        self._recent: list[dict[str, Any]] = []
        self._folder = RunFolder(Path(folder), identity, log)
        checkpoint = self._folder.load()
        if checkpoint is not None:
            self._restore(checkpoint)
            log(f"going on after step {self.step} of {options.steps}")
        self._saved_step, self._saved_at = self.step, time.monotonic()

    def run(self, losses: Losses, *, on_save: Callable[[], None] | None = None) -> None:
        """Trains up to ``options.steps``.

        ``losses(step)`` gives scalars by name; ``loss`` among them is minimised, the others are reported. It must depend
        on nothing but the weights and the step (:func:`seeded`). ``on_save`` is called after each checkpoint, and at the
        end even if no step was left to do.

        KeyboardInterrupt (Ctrl-C) is raised again after a checkpoint of the last finished step. DivergedError names step
        and term that are not finite. OSError when the folder cannot be written. Either way the last checkpoint stays.
        """
        self._folder.cut_losses(self.step)
        self._saved_at = time.monotonic()
        try:
            while self.step < self.options.steps:
                self._run_step(losses)
                if self._is_due():
                    self._save(on_save)
            self._save(on_save)
        except KeyboardInterrupt:
            if self.step > self._saved_step:
                self._save(on_save)
            raise

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the parameters hold the averaged weights; afterwards their own again. Without averages, their own."""
        if not self._averages:
            yield
            return
        own = self._copies()
        try:
            self._assign(self._averages)
            yield
        finally:
            with uninterrupted():
                self._assign(own)

    def _run_step(self, losses: Losses) -> None:
        began = time.perf_counter()
        self._optimizer.zero_grad()
        terms = losses(self.step)
        terms["loss"].backward()
        norm = nn.utils.clip_grad_norm_(self._optimizer.param_groups[0]["params"], self.options.clip_norm)
        # Read after everything is queued, so that a GPU is waited for once.
        values = {name: float(term.detach()) for name, term in terms.items()}
        grad_norm = float(norm)
        self._check_finite({**values, "gradient": grad_norm})
        rate = self.options.learning_rate_at(self.step)
        with uninterrupted():
            self._update(rate)
            record = {
                "step": self.step,
                "losses": values,
                "learning_rate": rate,
                "grad_norm": grad_norm,
                "seconds": time.perf_counter() - began,
            }
            self.step += 1
            self._folder.append_losses(record)
        self._report(record)

    @torch.no_grad()
    def _update(self, learning_rate: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()
        for name, average in self._averages.items():
            average.lerp_(self.parameters[name], 1 - self.options.ema_decay)

    def _report(self, record: dict[str, Any]) -> None:
        self._recent.append(record)
        if self.step % self.options.log_every == 0 or self.step == self.options.steps:
            self._log(progress_line(self._recent, self.options.steps))
            self._recent = []

    def _is_due(self) -> bool:
        """Whether to save now; the last step is saved in any case."""
        options = self.options
        late = time.monotonic() - self._saved_at >= 60 * options.save_minutes
        return self.step < options.steps and (late or self.step % options.save_every == 0)

    def _save(self, on_save: Callable[[], None] | None) -> None:
        if self.step > self._saved_step:
            with uninterrupted():
                self._folder.save(self.step, self._finite_tensors())
                self._saved_step, self._saved_at = self.step, time.monotonic()
            self._log(f"checkpoint of step {self.step} saved")
        if on_save is not None:
            on_save()

    def _finite_tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds, on the CPU. DivergedError that names a tensor that is not finite."""
        tensors: dict[str, Tensor] = {_WEIGHTS + name: value.detach() for name, value in self.parameters.items()}
        tensors |= {_AVERAGES + name: value for name, value in self._averages.items()}
        for name, parameter in self.parameters.items():
            slots = self._optimizer.state.get(parameter, {})
            tensors |= {f"{_ADAM}{slot}.{name}": value for slot, value in slots.items()}
        for key, value in tensors.items():
            if not torch.isfinite(value).all():
                raise DivergedError(f"{key} is not finite after step {self.step - 1}; {_REMEDY}")
        return {key: value.cpu().contiguous() for key, value in tensors.items()}

    def _restore(self, checkpoint: Checkpoint) -> None:
        from ..weights.checkpoint import check_keys, shapes

        tensors = checkpoint.tensors
        weights = {key.removeprefix(_WEIGHTS): value for key, value in tensors.items() if key.startswith(_WEIGHTS)}
        check_keys(shapes(dict(self.parameters)), shapes(weights), checkpoint.path)
        self._assign(weights)
        for name, average in self._averages.items():
            # Averages that are wanted only from here on start with the weights of here.
            average.copy_(tensors.get(_AVERAGES + name, weights[name]))
        # The optimizer counts its parameters; one that never had a gradient has no moments.
        moments = {
            index: {slot: tensors[f"{_ADAM}{slot}.{name}"] for slot in _ADAM_SLOTS}
            for index, name in enumerate(self.parameters)
            if f"{_ADAM}step.{name}" in tensors
        }
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": moments})
        self.step = checkpoint.step

    def _copies(self) -> dict[str, Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def _assign(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name])

    def _check_finite(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            if not math.isfinite(value):
                raise DivergedError(f"{name} is {value} at step {self.step}; {_REMEDY}")


_REMEDY = "lower learning_rate, raise warmup_steps or look at the data of this step; the last checkpoint is intact"


def progress_line(records: list[dict[str, Any]], steps: int) -> str:
    """One line about the steps since the last one: means of losses, of the gradient's norm and of the time per step."""
    done = records[-1]["step"] + 1
    names = dict.fromkeys(name for record in records for name in record["losses"])
    parts = [f"step {done}/{steps}"]
    parts += [f"{name} {_mean(r['losses'][name] for r in records if name in r['losses']):.4g}" for name in names]
    seconds = _mean(record["seconds"] for record in records)
    hours, rest = divmod(round(seconds * (steps - done)), 3600)
    parts.append(f"lr {records[-1]['learning_rate']:.2e}")
    parts.append(f"grad {_mean(record['grad_norm'] for record in records):.3g}")
    parts.append(f"{seconds:.3g} s/step")
    parts.append(f"ETA {hours}:{rest // 60:02}:{rest % 60:02}")
    return "  ".join(parts)


def _mean(values: Iterator[float]) -> float:
    found = list(values)
    return sum(found) / len(found)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C inside the block takes effect at its end."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    arrived: list[Any] = []
    signal.signal(signal.SIGINT, lambda *details: arrived.append(details))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if arrived:
        handler(*arrived[-1])
