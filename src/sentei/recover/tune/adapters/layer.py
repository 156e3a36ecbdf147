"""`SparseLoraLinear`: peft's LoRA linear with a rank and a number of sparse entries of its own, both of which may be 0.

One LoraConfig adapter holds both parts, through peft's own way in for custom modules, so that everything that works on
a PeftModel does. In the saved file, `lora_A` and `lora_B` are as peft writes them (a purely low-rank adapter loads in
stock peft); `lora_S` [k] holds the sparse values and `lora_I` [k] where they are in the flattened weight.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import Tensor, nn

from sentei.recover.tune.effective import effective_linear, effective_weight

if TYPE_CHECKING:
    from peft import PeftModel

    from sentei.recover.tune.allocate import Share


class SparseLoraLinear(LoraLinear):
    """A linear with weight `W + scale · B A + S`; see `effective_linear`. Takes no dropout and no LoRA variant."""

    adapter_layer_names = (*LoraLinear.adapter_layer_names, "lora_S")
    other_param_names = (*LoraLinear.other_param_names, "lora_I")
    watch: Callable[[Tensor], None] | None = None  # is shown the gradient of the effective weight; see `regrow`

    def update_layer(
        self,
        adapter_name: str,
        r: int,
        lora_alpha: float,
        config: LoraConfig,
        *,
        target_name: str,
        shares: Mapping[str, Share] | None = None,
        **_: Any,
    ) -> None:
        """Makes the trainable parameters. The share's rank counts, not `r`; the scale is that of the config's r.

        Raises:
            ValueError: a second adapter on the same model, or a LoRA option that an effective weight does not have.
        """
        if shares is None:
            raise ValueError("one adapter a model: merge this one before another is added")
        if config.lora_dropout or config.use_dora or config.lora_bias:
            raise ValueError("an effective weight has no dropout, DoRA or bias; use peft's own LoRA layers for these")
        share = shares[target_name]
        self.lora_S, self.lora_I = nn.ParameterDict(), BufferDict(persistent=True)  # before super() goes over them
        if share.rank:
            alpha = lora_alpha * share.rank / config.r
            super().update_layer(adapter_name, share.rank, alpha, config, target_name=target_name)
            if share.basis is not None:
                self._point(adapter_name, share.basis)
        if len(share.indices):
            weight = self.get_base_layer().weight
            kind = torch.int32 if weight.numel() < 2**31 else torch.int64
            self.lora_S[adapter_name] = nn.Parameter(torch.zeros(len(share.indices), device=weight.device))
            self.lora_I[adapter_name] = share.indices.to(weight.device, kind)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    @torch.no_grad()
    def _point(self, adapter_name: str, basis: Tensor) -> None:
        """Starts A from orthonormal rows [r, in], at the length that rows of LoRA's own start have: 1 / √3."""
        self.lora_A[adapter_name].weight.copy_(basis / 3**0.5)

    def parts(self, adapter_name: str) -> tuple[Tensor, Tensor, float, Tensor, Tensor]:
        """A [r, in], B [out, r], scale, values [k] and indices [k] of an adapter; empty ones where there is none."""
        weight = self.get_base_layer().weight
        if adapter_name in self.lora_A:
            A, B = self.lora_A[adapter_name].weight, self.lora_B[adapter_name].weight
            scale = float(self.scaling[adapter_name])
        else:
            empty = functools.partial(torch.empty, dtype=torch.float32, device=weight.device)
            A, B, scale = empty(0, weight.shape[1]), empty(weight.shape[0], 0), 1.0
        if adapter_name in self.lora_S:
            return A, B, scale, self.lora_S[adapter_name], self.lora_I[adapter_name]
        return A, B, scale, A.new_empty(0), torch.empty(0, dtype=torch.int32, device=weight.device)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out]. An adapter that is generated with for long is better merged first."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        active = [name for name in self.active_adapters if name in self.lora_A or name in self.lora_S]
        if self.disable_adapters or self.merged or not active:
            return self.base_layer(x)
        base = self.get_base_layer()
        return effective_linear(x, base.weight, base.bias, *self.parts(active[0]), self.watch)

    def get_delta_weight(self, adapter: str) -> Tensor:
        """`scale · B A + S`, [out, in] fp32."""
        weight = self.get_base_layer().weight
        return effective_weight(torch.zeros(weight.shape, device=weight.device), *self.parts(adapter))

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Puts the effective weight in the place of the base weight; the function stays the same bit for bit."""
        for name in check_adapters_to_merge(self, adapter_names):
            base = self.get_base_layer()
            merged = effective_weight(base.weight, *self.parts(name))
            if safe_merge and not torch.isfinite(merged).all():
                raise ValueError(f"adapter {name!r} makes weights that are not finite")
            base.weight.data = merged
            self.merged_adapters.append(name)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Takes the change out of the base weight again, as nearly as the weight's dtype allows."""
        while self.merged_adapters:
            A, B, scale, values, indices = self.parts(self.merged_adapters.pop())
            base = self.get_base_layer()
            base.weight.data = effective_weight(base.weight, A, B, -scale, -values, indices)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Sparse entries have no small rank."""
        return adapter_name not in self.lora_S


def attach(model: nn.Module, config: LoraConfig, shares: Mapping[str, Share], *, seed: int) -> PeftModel:
    """Wraps exactly the linears that `shares` names.

    Args:
        model: changed in place: frozen, its linears wrapped.
        config: its `r` and `lora_alpha` give the scale of every module; `target_modules` is set here.
        shares: what each module gets.
        seed: of the random start of A.
    """
    config.target_modules = sorted(shares)
    config._register_custom_module({nn.Linear: functools.partial(SparseLoraLinear, shares=shares)})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return get_peft_model(model, config)
