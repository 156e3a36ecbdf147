"""An FFN part with experts: each is fitted on the tokens that it computes.

What the experts of a token put out is added up, so none of them can be fitted alone. They are fitted one after the
other, each for what the others, as they are by then, leave missing at its own tokens (a sweep of block coordinate
descent). Which tokens these are is what the cut model's router says, which reads the cut model's stream.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

from torch import Tensor, nn

from sentei.data.windows import Where
from sentei.families.surgery import expert_plans, sliced
from sentei.measure.stream import tap, tap_tokens
from sentei.plan import BlockPlan
from sentei.prune.compensation import Compensation, Fit
from sentei.prune.parts import Part, Streams

Seen = dict[int, tuple[Tensor, Tensor]]  # by expert, which tokens it computes [n], and its last inputs [n, channels]


@dataclass(frozen=True)
class _Batch:
    """What is seen in a batch.

    Attributes:
        seen: by the experts of the cut model; by its dense forms where no weights are fitted.
        missing: `[tokens, hidden]` of what is aimed at, minus what the experts put out together.
        weight: what tokens count, or None.
    """

    seen: Seen
    missing: Tensor
    weight: Tensor | None


class Mixture(Part):
    """An FFN part with experts of both models."""

    @cached_property
    def plans(self) -> dict[int, BlockPlan]:
        """What the experts that stay keep, by their numbers in the dense model."""
        return expert_plans(self.block, [own["up_proj"].out_features for own in self.old_members])

    def _fit(self, streams: Streams, compensation: Compensation) -> None:
        windows = streams.windows
        batches = [self._batch(streams, where, compensation) for where in windows.batches()]
        for number, was in enumerate(self.plans):
            self._fit_expert(number, was, batches, compensation)
        for where in windows.batches():
            assert self.new is not None  # a part that was removed is not fitted
            streams.cut[where] += self._joins(self.new_block, self.new(streams.cut_read[where]))

    def _batch(self, streams: Streams, where: Where, compensation: Compensation) -> _Batch:
        """Runs both models over a batch, and moves the dense one's stream on."""
        assert self.old is not None and self.new is not None  # else nothing is fitted
        before = streams.dense[where]
        wanted, dense = self._seen(self.old_block, self.old, streams.dense_read[where])
        output, seen = self._seen(self.new_block, self.new, streams.cut_read[where])
        if not compensation.weights:  # the mean of what goes, in the dense model: see `BIAS`
            seen = {number: dense[was] for number, was in enumerate(self.plans) if was in dense}
        error = before.float() - streams.cut[where].float()
        missing = wanted.float() + self._residual(compensation) * error - output.float()
        streams.dense[where] = before + self._joins(self.old_block, wanted)
        weight = self._importance(wanted, streams.windows.weight(where, before.device))
        return _Batch(seen, missing.flatten(0, 1), weight)

    def _seen(self, block: nn.Module, run: Callable[[Tensor], Tensor], stream: Tensor) -> tuple[Tensor, Seen]:
        """The output of the part, and what each expert of it sees."""
        outputs = {str(i): own["down_proj"] for i, own in enumerate(self.family.members(block, "ffn"))}
        with tap(**outputs) as inputs, tap_tokens(self.family.experts(block)) as tokens:
            output = run(stream)
        return output, {number: (own, inputs[str(number)]) for number, own in tokens.items()}

    def _fit_expert(self, number: int, was: int, batches: list[_Batch], compensation: Compensation) -> None:
        """Fits an expert of the cut model; one that computes no token stays as it is. `was`: its number before."""
        output, full = self.new_members[number]["down_proj"], self.old_members[was]["down_proj"].weight
        own: Tensor | None = output.bias
        compensation = replace(compensation, bias=compensation.bias and own is not None)
        plan = self.plans[was]
        fit = Fit(compensation, sliced(self.old_members[was]["down_proj"], "down_proj", plan, 0, 0)[0].float())
        for batch in batches:
            if number not in batch.seen:
                continue
            tokens, x = batch.seen[number]
            if compensation.weights:
                target = batch.missing[tokens] + x.float() @ fit.weight.T
            else:
                target = x.float() @ full.float().T
                x = x[:, plan.ffn]
            fit.add(x, target, None if batch.weight is None else batch.weight[tokens])
        if not fit.seen:
            return
        found = fit.solve()
        output.weight.copy_(found.weight)
        if found.bias is not None:
            assert own is not None  # else none is fitted
            own.add_(found.bias)
        if not compensation.weights:
            return
        for batch in batches:
            if number in batch.seen:
                tokens, x = batch.seen[number]
                added = x.float() @ (output.weight.float() - fit.weight).T
                batch.missing[tokens] -= added if found.bias is None else added + found.bias.float()
