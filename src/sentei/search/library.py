"""The library: every entry of the menus as a module; candidates are evaluated by switching modules in place.

Entries are fitted in closed form from the profile's Gram matrices, with the dense model's inputs; factors are nested:
one decomposition per matrix serves all its ranks. Nothing is built again for a candidate, and its evaluation costs a
forward pass; what the cut does better (fitting each part for what the cut parts before it give) comes on top.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from sentei.algebra.lowrank import Factors, factors
from sentei.algebra.solve import solve
from sentei.families import family_of
from sentei.families.modeling_sentei import LowRankLinear, Removed, resize_attention
from sentei.families.parts import PARTS
from sentei.families.separate import twin
from sentei.families.surgery import sliced
from sentei.measure.profile import Profile
from sentei.measure.ranking import attention_columns
from sentei.metrics.score import Outcome, Prepared
from sentei.plan import BlockPlan
from sentei.prune.menu import Entry, Menus
from sentei.prune.space import Genome, Space

RIDGE = 1e-2  # of each input's energy, in the refit of an output matrix
MEMORY = 2.0  # modules that are kept, in sizes of the dense model's blocks


class Coding(Protocol):
    """What genomes mean: the menus' own levels, or one gene per matrix (`sentei.prune.matrices`)."""

    @property
    def space(self) -> Space:
        """Of the genomes."""
        ...

    def entries(self, genome: Genome) -> list[Entry]:
        """One entry per part of the menus."""
        ...


class Library:
    """One model whose parts are switched between entries.

    Args:
        model: the dense model; its parts are replaced while a candidate is evaluated, and put back by `restore`.
        profile: statistics of that model, with its Gram matrices.
        menus: of that profile.
        rows: what candidates are scored on; None where they are only switched.
        coding: what genomes mean; default: levels of the menus.

    Raises:
        InputError: the profile has no Gram matrices.
    """

    def __init__(
        self,
        model: nn.Module,
        profile: Profile,
        menus: Menus,
        rows: Prepared | None = None,
        coding: Coding | None = None,
    ) -> None:
        profile.check_grams()
        self.model, self.profile, self.menus, self.prepared = model, profile, menus, rows
        self.coding = coding or menus
        self.rows = 0 if rows is None else len(rows)
        self.family = family_of(cast(Any, model).config)
        self.dense = [{part: self.family.part(b, part) for part in PARTS} for b in self.family.blocks(model)]
        self.whole = [menu.entries[0] for menu in menus.parts]
        self.current = list(self.whole)
        self._modules: OrderedDict[tuple[int, Entry], nn.Module] = OrderedDict()
        self._bytes = 0
        self._most = MEMORY * sum(p.numel() * p.itemsize for p in self.family.blocks(model).parameters())
        self._factors: dict[tuple[int, str], Factors] = {}

    def __call__(self, genome: Genome, start: int, stop: int) -> Outcome:
        """Scores rows `start` to `stop` with the parts that the genome picks."""
        assert self.prepared is not None  # else nothing is asked for
        self.switch(self.coding.entries(genome))
        return self.prepared.score(self.model, start, stop)

    def switch(self, entries: Sequence[Entry]) -> None:
        """Puts these entries into the model, one per part."""
        for position, entry in enumerate(entries):
            if self.current[position] != entry:
                menu = self.menus.parts[position]
                block: Any = self.family.blocks(self.model)[menu.block]
                setattr(block, self.family.layout(menu.part).path, self._module(position, entry))
                self.current[position] = entry

    def restore(self) -> None:
        """The dense model again."""
        self.switch(self.whole)

    def _module(self, position: int, entry: Entry) -> nn.Module:
        menu = self.menus.parts[position]
        if entry == self.whole[position]:
            return cast(nn.Module, self.dense[menu.block][menu.part])
        key = (position, entry)
        if key not in self._modules:
            made = self.build(menu.block, menu.part, entry)
            self._modules[key] = made
            self._bytes += _size(made)
            while self._bytes > self._most and len(self._modules) > 1:
                self._bytes -= _size(self._modules.popitem(last=False)[1])
        self._modules.move_to_end(key)
        return self._modules[key]

    @torch.no_grad()
    def build(self, block: int, part: str, entry: Entry) -> nn.Module:
        """A part as an entry of its menu has it."""
        dense: Any = self.dense[block][part]
        plan, ranks = self._plan(block, part, entry), dict(entry.ranks)
        if not (plan.kv_groups or plan.ffn):
            return Removed(pair=part == "attention")
        new = twin(dense)
        if part == "attention":
            groups, layout = len(plan.kv_groups), self.family.layout(part).described()
            resize_attention(new, layout, cast(Any, self.model).config, groups * plan.heads_per_group, groups)
        paths = self.family.layout(part).matrices
        linears = self._linears(block, part)
        *_, output = linears
        grams = self.profile.blocks[block].part(part).whole()
        for name, linear in linears.items():
            if not entry.at and name not in ranks:
                continue
            shape = self.profile.shape
            weight, bias = sliced(linear, name, plan, shape.blocks[block].heads_per_group, shape.head_dim)
            gram = grams.gram if name == output else grams.input_gram
            assert gram is not None  # a profile with Gram matrices is of a model without experts
            if name == output and entry.at:
                weight, gram = self._refitted(weight, linear, gram, block, part, plan)
            if name not in ranks:
                _put(new, paths[name], _linear(weight, bias, linear))
                continue
            gram = gram.to(weight.device)  # profiles are on the CPU
            found = self._nested(block, name, weight, gram) if not entry.at else factors(weight, gram)
            _put(new, paths[name], _low_rank(found, ranks[name], bias, linear))
        return cast(nn.Module, new)

    def _linears(self, block: int, part: str) -> dict[str, nn.Linear]:
        """The dense matrices of a part, whatever is in the model now."""
        dense = self.dense[block][part]
        assert dense is not None  # a part that is not there has no menu
        paths = self.family.layout(part).matrices
        return {name: cast(nn.Linear, dense.get_submodule(at)) for name, at in paths.items()}

    def _plan(self, block: int, part: str, entry: Entry) -> BlockPlan:
        curves = self.menus.problem.curves[block]
        if part == "ffn":
            return BlockPlan(kv_groups=[], query_heads=[], ffn=sorted(curves.ffn_order[entry.at :]))
        option = curves.attention[entry.at]
        heads = [list(heads) for heads in option.query_heads]
        return BlockPlan(kv_groups=list(option.kv_groups), query_heads=heads, ffn=[])

    def _refitted(
        self, weight: Tensor, linear: nn.Linear, gram: Tensor, block: int, part: str, plan: BlockPlan
    ) -> tuple[Tensor, Tensor]:
        """The kept columns of an output matrix, refitted to the dense outputs, and their Gram matrix."""
        shape = self.profile.shape
        columns = (
            attention_columns(plan.kv_groups, plan.query_heads, shape.blocks[block], shape.head_dim)
            if part == "attention"
            else torch.tensor(plan.ffn)
        )
        full = linear.weight
        gram = gram.to(full.device)[columns]
        inner = gram[:, columns]
        damped = inner + torch.diag(RIDGE * inner.diagonal().clamp_min(torch.finfo(torch.float32).tiny))
        # argmin ‖W x − W' x_K‖² + ridge ‖W' − W_K‖²
        right = gram @ full.float().T + (damped - inner) @ weight.float().T
        return solve(damped, right).T.to(weight), inner

    def _nested(self, block: int, name: str, weight: Tensor, gram: Tensor) -> Factors:
        """Factors of a whole matrix: all its ranks."""
        if (block, name) not in self._factors:
            self._factors[block, name] = factors(weight, gram)
        return self._factors[block, name]


def _put(module: nn.Module, path: str, linear: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(module.get_submodule(parent), name, linear)


def _linear(weight: Tensor, bias: Tensor | None, like: nn.Linear) -> nn.Linear:
    new = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    new.weight = nn.Parameter(weight.to(like.weight), requires_grad=False)
    if bias is not None:
        new.bias = nn.Parameter(bias, requires_grad=False)
    return new


def _low_rank(found: Factors, rank: int, bias: Tensor | None, like: nn.Linear) -> LowRankLinear:
    """Two factors, also where the plan will store them pivoted: the product is the same."""
    with torch.device("meta"):
        new = LowRankLinear(found.v.shape[1], found.u.shape[0], rank, bias is not None, pivoted=False)
    new.a.weight = nn.Parameter(found.v[:rank].to(like.weight).contiguous(), requires_grad=False)
    new.b.weight = nn.Parameter(found.u[:, :rank].to(like.weight).contiguous(), requires_grad=False)
    if bias is not None:
        new.bias = nn.Parameter(bias, requires_grad=False)
    return new


def _size(module: nn.Module) -> int:
    return sum(p.numel() * p.itemsize for p in module.parameters())
