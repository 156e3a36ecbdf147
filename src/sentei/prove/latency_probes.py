"""What a latency table is measured from: single parts of every size, on random numbers, taking turns."""

from __future__ import annotations

import inspect
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from sentei.errors import InputError
from sentei.families import family_of, modeling_sentei
from sentei.families.surgery import pruned_config
from sentei.inference.forward import evaluating, final_hidden, logits
from sentei.machine import processor
from sentei.plan import BlockShape, ModelShape
from sentei.progress import Progress
from sentei.prove.latency_table import Grid, LatencyTable, Protocol, Times

Stopwatch = Callable[[Callable[[], object]], float]
DECODES = 4  # decoding steps in a round: they are short, and vary more


@dataclass(frozen=True)
class _Probe:
    """Something to time: a prefill, and one decoding step after it; `share` of the time is what is looked for."""

    prefill: Callable[[], object]
    decode: Callable[[], object]
    share: float = 1.0


def protocol_of(model: Any, batch: int, prompt: int, rounds: int) -> Protocol:
    """What a table for this model, on this machine, is measured under."""
    family = family_of(model.config)
    return Protocol(
        machine=torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else processor(),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        dtype=str(model.dtype).removeprefix("torch."),
        attention=str(model.config._attn_implementation),
        family=family.name,
        dense=family.shape(model.config),
        batch=batch,
        prompt=prompt,
        rounds=rounds,
    )


def measure_table(
    model: Any, batch: int, prompt: int, rounds: int, stopwatch: Stopwatch | None, progress: Progress | None
) -> LatencyTable:
    """See `sentei.prove.latency.build`."""
    protocol = protocol_of(model, batch, prompt, rounds)
    shape = protocol.dense
    if any(block.experts for block in shape.blocks):
        raise InputError(
            "a latency table knows no experts: what they take depends on which are chosen; "
            "budget by params, bytes or flops"
        )
    groups, heads, ffn = (max(getattr(b, k) for b in shape.blocks) for k in ("kv_groups", "heads_per_group", "ffn"))
    widest = max(shape.hidden, ffn, groups * heads * shape.head_dim)
    axes: dict[str, tuple[tuple[int, ...], ...]] = {
        "attention": (_spread(groups, 4), _spread(heads, 4)),
        "ffn": (_spread(ffn, 7),),
        "products": (_spread(shape.hidden, 5), _spread(widest, 6)),
        "gather": (_spread(widest, 4),),
    }
    make = _Maker(model, shape, batch, prompt)
    probes = {
        (name, sizes): getattr(make, name)(*sizes) for name, axis in axes.items() for sizes in itertools.product(*axis)
    }
    probes |= {("around", ()): make.around(), ("whole", ()): make.whole()}
    with evaluating(model):
        taken = _take_turns(probes, rounds, stopwatch or _stopwatch(model.device), progress or Progress())
    grids: dict[str, Any] = {
        name: Grid(axes=axis, cells=tuple(taken[name, sizes] for sizes in itertools.product(*axis)))
        for name, axis in axes.items()
    }
    return LatencyTable(protocol=protocol, around=taken["around", ()], whole=taken["whole", ()], **grids)


def _take_turns(probes: dict[Any, _Probe], rounds: int, stopwatch: Stopwatch, progress: Progress) -> dict[Any, Times]:
    """The fastest of the rounds, the first not counted: what disturbs a short call can only make it slower.

    Probes take turns, so that a slow second of the machine spoils no size in all rounds, and so that each finds the
    caches full of another's weights, as a part of a real model does.
    """
    prefill: dict[Any, list[float]] = {key: [] for key in probes}
    decode: dict[Any, list[float]] = {key: [] for key in probes}
    with progress.stage("latency", total=rounds + 1, unit="rounds") as bar:
        for _ in range(rounds + 1):
            for key, probe in probes.items():
                prefill[key].append(stopwatch(probe.prefill))
            for _, (key, probe) in itertools.product(range(DECODES), probes.items()):
                decode[key].append(stopwatch(probe.decode))
            bar.advance()
    return {
        key: Times(
            prefill=probe.share * min(prefill[key][1:]),
            decode=probe.share * min(decode[key][DECODES:]),
        )
        for key, probe in probes.items()
    }


def _stopwatch(device: torch.device) -> Stopwatch:
    synchronize = torch.get_device_module(device).synchronize  # does nothing on the CPU

    def seconds(call: Callable[[], object]) -> float:
        synchronize()
        started = time.perf_counter()
        call()
        synchronize()
        return time.perf_counter() - started

    return seconds


def _spread(largest: int, count: int) -> tuple[int, ...]:
    """At most `count` sizes from 1 to the largest: halves of it, and three quarters."""
    halves = [largest >> i for i in range(count - 2)]
    return tuple(sorted({size for size in (1, 3 * largest // 4, *halves) if size}))


class _Maker:
    """Makes probes for one model."""

    def __init__(self, model: Any, shape: ModelShape, batch: int, prompt: int) -> None:
        self.model, self.shape, self.prompt = model, shape, prompt
        self.family = family_of(model.config)
        generator = torch.Generator().manual_seed(0)
        self.ids = torch.randint(shape.vocab, (batch, prompt), generator=generator).to(model.device)
        self.hidden = torch.randn(batch, prompt, shape.hidden, generator=generator).to(model.device, model.dtype)

    def _block(self, block: BlockShape) -> nn.Module:
        """A block of that size with random weights."""
        config = pruned_config(
            self.model.config, self.shape.model_copy(update={"blocks": (block,) * len(self.shape.blocks)})
        )
        layer_class = modeling_sentei.layer_class(self.family.stock_class("Model"))
        return modeling_sentei.build_block(layer_class, config, 0).to(self.model.device, self.model.dtype).eval()

    def attention(self, kv_groups: int, heads_per_group: int) -> _Probe:
        """An attention part, its norm and the sum with the residual stream included, with its own KV cache."""
        block = self._block(BlockShape(kv_groups=kv_groups, heads_per_group=heads_per_group, ffn=0))
        family, config, step = self.family, self.model.config, self.hidden[:, -1:]
        part = family.attention(block)
        assert part is not None  # it has heads
        prefill_inputs = family.block_inputs(self.model, self.hidden, 0)
        decode_inputs = family.block_inputs(self.model, step, 0, first=self.prompt) | {
            "attention_mask": None
        }  # sees all
        cached = "layer_past" if "layer_past" in inspect.signature(part.forward).parameters else "past_key_values"
        cache = [DynamicCache()]

        def run(hidden: Tensor, inputs: dict[str, Any]) -> Tensor:
            inputs = {**inputs, cached: cache[0], "use_cache": True}
            output = part(hidden_states=family.reads(block, "attention", hidden), **inputs)[0]
            return hidden + family.joins(config, block, "attention", output)

        def prefill() -> Tensor:
            cache[0] = DynamicCache()
            return run(self.hidden, prefill_inputs)

        return _Probe(prefill, lambda: run(step, decode_inputs))

    def ffn(self, channels: int) -> _Probe:
        """An FFN part, its norm and the sum with the residual stream included."""
        block = self._block(BlockShape(kv_groups=0, heads_per_group=0, ffn=channels))
        family, config, part = self.family, self.model.config, self.family.ffn(block)
        assert part is not None  # it has channels

        def run(hidden: Tensor) -> Tensor:
            return hidden + family.joins(config, block, "ffn", part(family.reads(block, "ffn", hidden)))

        return self._plain(run, self.shape.hidden)

    def products(self, narrow: int, wide: int) -> _Probe:
        """One product: half of one in each direction, as a low-rank matrix has both."""
        into = nn.Linear(wide, narrow, bias=False).to(self.model.device, self.model.dtype)
        out = nn.Linear(narrow, wide, bias=False).to(self.model.device, self.model.dtype)
        return self._plain(lambda x: out(into(x)), wide, share=0.5)

    def gather(self, outputs: int) -> _Probe:
        """Joining the two halves of a pivoted matrix's outputs, and putting them into order."""
        order = torch.randperm(outputs, generator=torch.Generator().manual_seed(0)).to(self.model.device)
        return self._plain(lambda x: torch.cat(x.tensor_split(2, -1), -1)[..., order], outputs)

    def _plain(self, run: Callable[[Tensor], Tensor], width: int, share: float = 1.0) -> _Probe:
        """A probe of something that keeps nothing: it reads one token or all of them, each of `width` numbers."""
        x = torch.randn(*self.ids.shape, width, generator=torch.Generator().manual_seed(0))
        x = x.to(self.model.device, self.model.dtype)
        step = x[:, -1:].contiguous()
        return _Probe(lambda: run(x), lambda: run(step), share)

    def around(self) -> _Probe:
        """What stands around the blocks: embedding, positions and mask; final norm and head of the last token."""

        def run(ids: Tensor) -> Tensor:
            hidden = self.family.embed(self.model, ids)
            self.family.block_inputs(self.model, hidden, 0)
            return logits(self.model, self.family.final_norm(self.model)(hidden)[:, -1])

        return _Probe(lambda: run(self.ids), lambda: run(self.ids[:, -1:]))

    def whole(self) -> _Probe:
        """The whole model, as `sentei.prove.speed` runs it."""
        cache: list[Any] = [None]

        def run(ids: Tensor) -> Tensor:
            hidden, cache[0] = final_hidden(self.model, ids, cache[0], use_cache=True)
            return logits(self.model, hidden[:, -1])

        def prefill() -> Tensor:
            cache[0] = None
            return run(self.ids)

        return _Probe(prefill, lambda: run(self.ids[:, -1:]))
