"""Plans onto networks: quantizing in place, trying a plan out, measuring inputs, and networks that are quantized in files."""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..config import DiTConfig
from ..errors import CheckpointError, InputError
from ..models.dit import SanaStreamingDiT
from .formats import FORMATS, How
from .layer import CONF, INPUT_SCALE, WEIGHT_ENDS, QuantLinear
from .plan import UNQUANTIZED, Plan
from .probe import on_device
from .report import Report, report
from .units import FUSED_KINDS, FUSED_MODULE, KINDS, Unit, units

# Headroom of a stored input scale over the largest value that calibration saw: these are floating-point formats, which lose
# next to nothing by it, while values beyond the scale are cut off.
HEADROOM = 2.0


def apply_plan(
    model: SanaStreamingDiT,
    plan: Plan,
    how: How | None = None,
    device: torch.device | str | None = None,
    on_layer: Callable[[], None] = lambda: None,
    runs_on: torch.device | None = None,
) -> Report:
    """Quantizes the units of ``plan`` in place, weight by weight, and says what came of it.

    ``how`` forces the road of every product (default: in the format where the device does, else dequantized). ``device`` is
    where the network goes, without a copy of the quantized weights in full precision there. A fused network becomes split
    where the plan gives q, k, v and gate of a block different formats. Inputs of units without a calibrated amax are scaled
    by their own. ``on_layer`` is called before each layer is quantized; raising from it leaves the network between.
    ``runs_on`` is where a host moves the network to run, if that is not where it stays. Raises InputError for a plan of another
    network and for a network that is quantized.
    """
    plan.check(model.config, model.fingerprint)
    require_unquantized(model)
    before = network_bytes(model)
    if model.layout == "fused" and plan.layout(model.config) == "split":
        split_attention(model)
    for module, kind, amax in _modules(model, plan):
        on_layer()
        linear = model.get_submodule(module)
        assert isinstance(linear, nn.Linear)
        linear.to(device)
        model.set_submodule(module, quantized(linear.weight, linear.bias, kind, amax, how))
    model.to(device)
    prepare(model, runs_on)
    model.fingerprint = mixed_fingerprint(model.fingerprint, plan)
    return report(model, plan, before, network_bytes(model), runs_on)


def prepare(model: SanaStreamingDiT, runs_on: torch.device | None = None) -> None:
    """Has every quantized layer find out what its device, or ``runs_on``, does, and with which others it shares its input."""
    for parent in model.modules():
        # Small numbers that repeat from block to block: compiled code is made for each value that it sees.
        groups: dict[Any, int] = {}
        for layer in parent.children():
            if isinstance(layer, QuantLinear):
                layer.prepare(runs_on or layer.weight.device, model.dtype)
                layer.share_group = groups.setdefault((layer.kind.name, layer.scale_value, layer.how), len(groups))


def require_unquantized(model: nn.Module) -> None:
    if any(isinstance(module, QuantLinear) for module in model.modules()):
        raise InputError(
            "the network is quantized already; load the file that it was made from, and give the plan then"
        )


def network_bytes(model: nn.Module) -> int:
    """Of all parameters and buffers."""
    tensors = (*model.parameters(), *model.buffers())
    return sum(value.numel() * value.element_size() for value in tensors)


def mixed_fingerprint(base: str, plan: Plan) -> str:
    """The fingerprint of a network under a plan; its own where the plan changes nothing."""
    changes = any(kind != UNQUANTIZED for kind in plan.formats.values())
    return hashlib.sha256(f"{base} {plan.digest()}".encode()).hexdigest()[:16] if changes else base


def quantized(
    weight: Tensor, bias: Tensor | None, kind: str, amax: float | None = None, how: How | None = None
) -> QuantLinear:
    """The layer with a weight [N, K] in the format called ``kind``, whose inputs reach ``amax`` (None: not known)."""
    spec = FORMATS[kind]
    scale = None
    if amax is not None and spec.unit:
        scale = spec.input_scale(torch.tensor(amax * HEADROOM)).to(weight.device)
    detached = None if bias is None else bias.detach()
    with on_device(weight.device):
        return QuantLinear(spec.quantize(weight.detach()), detached, scale, how)


def _modules(model: SanaStreamingDiT, plan: Plan) -> Iterator[tuple[str, str, float | None]]:
    """(module, format, amax of its input) of each module that the plan quantizes."""
    members: dict[str, list[Unit]] = {}
    for unit in units(model.config):
        if plan.format_of(unit) != UNQUANTIZED:
            members.setdefault(unit.module_in(model.layout), []).append(unit)
    for module, of_one in members.items():
        yield module, plan.format_of(of_one[0]), shared_amax(plan.input_amax, of_one[0])


def shared_amax(amax: Mapping[str, float], unit: Unit) -> float | None:
    """What the unit's input reaches; q, k, v and gate read one input."""
    kinds = FUSED_KINDS if unit.kind in FUSED_KINDS else (unit.kind,)
    known = [amax[name] for kind in kinds if (name := f"blocks.{unit.block}.{kind}") in amax]
    return max(known, default=None)


def split_attention(model: SanaStreamingDiT) -> None:
    """Turns the fused layout into the split one, in place, block after block."""
    if model.layout == "split":
        return
    for block in model.blocks:
        attn: Any = block.get_submodule("attn")
        weights, gate_bias = attn.qkvg.weight.chunk(4), attn.qkvg.bias.chunk(4)[-1]
        for kind, weight in zip(FUSED_KINDS, weights, strict=True):
            # Copies, so that the fused weight goes when its rows are quantized.
            bias = gate_bias.clone() if KINDS[kind].bias else None
            attn.add_module(KINDS[kind].module.rpartition(".")[2], linear_of(weight.clone(), bias))
        del attn.qkvg
        attn.layout = "split"
    model.layout = "split"


def twin(model: SanaStreamingDiT, dtype: torch.dtype | None = None, *, split: bool = False) -> SanaStreamingDiT:
    """A network with the weights and kernels of ``model``, which stays as it is whatever is quantized in the twin.

    In the dtype of ``model``, the default, both hold the very same tensors. ``split``: of the split layout.
    """
    dtype = dtype or model.dtype
    made = SanaStreamingDiT(model.config, layout=model.layout, device="meta", dtype=dtype)
    made.load_state_dict({name: value.to(dtype) for name, value in model.state_dict().items()}, assign=True)
    first: Any = model.blocks[0]
    made.eval().requires_grad_(False).use_kernels(first.kernels)
    if split:
        split_attention(made)
    made.fingerprint = model.fingerprint
    return made


def linear_of(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A frozen nn.Linear that holds these very tensors."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    linear.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)  # type: ignore[assignment]
    return linear.eval()


@contextlib.contextmanager
def trial(model: SanaStreamingDiT, plan: Plan, how: How = "simulated") -> Iterator[None]:
    """The units of ``plan`` quantized inside, the model as before afterwards. InputError unless it is split and whole."""
    plan.check(model.config, model.fingerprint)
    if model.layout != "split":
        raise InputError("a plan can be tried on the split layout only; load the network with layout split")
    originals: dict[str, nn.Module] = {}
    try:
        for module, kind, amax in _modules(model, plan):
            linear = model.get_submodule(module)
            if not isinstance(linear, nn.Linear):
                raise InputError(f"{module} is quantized already; load the file that the network was made from")
            model.set_submodule(module, quantized(linear.weight, linear.bias, kind, amax, how))
            originals[module] = linear
        yield
    finally:
        for module, linear in originals.items():
            model.set_submodule(module, linear)


def calibrate(model: SanaStreamingDiT, run: Callable[[], Any]) -> dict[str, float]:
    """The largest absolute input of each unit, by name, while ``run`` uses ``model`` (not quantized, either layout)."""
    require_unquantized(model)
    seen: dict[str, Tensor] = {}

    def look(names: list[str], module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        amax = inputs[0].detach().abs().amax().float()
        for name in names:
            seen[name] = torch.maximum(seen[name], amax) if name in seen else amax

    names: dict[str, list[str]] = {}
    for unit in units(model.config):
        names.setdefault(unit.module_in(model.layout), []).append(unit.name)
    hooks = [
        model.get_submodule(module).register_forward_pre_hook(functools.partial(look, of_one))
        for module, of_one in names.items()
    ]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    if absent := [unit.name for unit in units(model.config) if unit.name not in seen]:
        raise InputError(
            f"calibration never ran {absent[0]} nor {len(absent) - 1} others; run whole passes of the network"
        )
    return {name: value.item() for name, value in seen.items()}


def is_quantized(keys: Any) -> bool:
    """Whether a state dict has layers in formats of fewer bits."""
    return any(str(key).endswith(f".{CONF}") for key in keys)


def quantized_state(model: SanaStreamingDiT) -> dict[str, Tensor]:
    """The weights as a file holds them: ComfyUI's keys of each quantized layer, the network's own of the others."""
    state = {}
    for key, value in model.state_dict().items():
        # Not every reader of safetensors knows the dtype of these scales.
        state[key] = value.view(torch.uint8) if value.dtype == torch.float8_e8m0fnu else value
    return state


def build_quantized(
    state: Mapping[str, Tensor],
    config: DiTConfig,
    source: Any,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    operations: Any = None,
    runs_on: torch.device | None = None,
) -> SanaStreamingDiT:
    """The network of a quantized state dict whose other weights are shaped as Linears, frozen, in evaluation mode.

    Never holds a quantized weight in full precision. ``operations`` are a host's, which read the keys themselves. ``runs_on``
    as in :func:`apply_plan`. Raises CheckpointError that names ``source`` and the layer for anything that does not fit.
    """
    layout = "fused" if any(f".{FUSED_MODULE}." in key for key in state) else "split"
    skeleton = SanaStreamingDiT(config, layout=layout, device="meta", dtype=dtype)  # type: ignore[arg-type]
    plain = {key: value for key, value in state.items() if not _of_layer(key, state)}
    layers = {key.removesuffix(f".{CONF}") for key in state if key.endswith(f".{CONF}")}
    allowed = {unit.module_in(skeleton.layout) for unit in units(config)}
    for name in sorted(layers):
        if name not in allowed:
            raise CheckpointError(
                f"{source} quantizes {name}, which is no unit of this network; convert the original again"
            )
        linear = skeleton.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        found = {key.removeprefix(f"{name}."): state[key].to(device) for key in state if key.startswith(f"{name}.")}
        if ("bias" in found) != (linear.bias is not None):
            raise CheckpointError(
                f"{source}: {name} has {'a' if 'bias' in found else 'no'} bias; convert the original again"
            )
        shape = (linear.out_features, linear.in_features)
        skeleton.set_submodule(name, QuantLinear.from_state(found, shape, dtype, f"{source}: {name}"))
    expected = {key: value for key, value in skeleton.state_dict().items() if not _of_layer(key, state)}
    if plain.keys() != expected.keys() or any(plain[key].shape != value.shape for key, value in expected.items()):
        odd = sorted(plain.keys() ^ expected.keys()) or [k for k, v in expected.items() if plain[k].shape != v.shape]
        raise CheckpointError(f"{source} does not fit the network of its config: {odd[0]}; convert the original again")
    if operations is not None:
        return _built_by_host(state, config, skeleton, device, dtype, operations)
    skeleton.load_state_dict({key: value.to(device, dtype) for key, value in plain.items()}, strict=False, assign=True)
    prepare(skeleton, runs_on)
    return skeleton.eval().requires_grad_(False)


def _of_layer(key: str, state: Mapping[str, Tensor]) -> bool:
    """Whether the key belongs to a quantized layer."""
    name, _, end = key.rpartition(".")
    return f"{name}.{CONF}" in state and end in (*WEIGHT_ENDS, INPUT_SCALE, CONF, "bias")


def _built_by_host(
    state: Mapping[str, Tensor],
    config: DiTConfig,
    skeleton: SanaStreamingDiT,
    device: torch.device | str,
    dtype: torch.dtype,
    operations: Any,
) -> SanaStreamingDiT:
    model = SanaStreamingDiT(config, layout=skeleton.layout, operations=operations, device=device, dtype=dtype)
    cast = {k: v if _of_layer(k, state) and not k.endswith(".bias") else v.to(dtype) for k, v in state.items()}
    model.load_state_dict(cast, strict=True)
    return model.eval().requires_grad_(False)
