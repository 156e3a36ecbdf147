"""Zeros change nothing, and the file that is streamed is a safetensors file."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from sentei.families.modeling_sentei import LowRankLinear
from sentei.models.writing import Lazy, write_safetensors
from sentei.plan import BlockShape
from sentei.ship.nemotron_nas import legal_blocks
from sentei.ship.tensors import dense_weight


@pytest.mark.parametrize("pivoted", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_the_dense_matrix_of_a_low_rank_pair_is_what_it_computes(pivoted, bias):
    torch.manual_seed(0)
    linear = LowRankLinear(10, 14, 4, bias, pivoted)
    if pivoted:
        linear.order.copy_(torch.randperm(14))
    if bias:
        torch.nn.init.normal_(linear.bias)
    x = torch.randn(5, 10)
    wanted = torch.nn.functional.linear(x, dense_weight(linear), linear.bias)
    torch.testing.assert_close(linear(x), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_streamed_files_are_safetensors(dtype, tmp_path):
    tensors = {"a": torch.randn(3, 5), "norm": torch.randn(7).bfloat16(), "t": torch.randn(4, 6).T}
    lazy = {name: Lazy(tuple(value.shape), lambda value=value: value) for name, value in tensors.items()}
    written = write_safetensors(tmp_path / "m.safetensors", lazy, dtype)
    found = load_file(tmp_path / "m.safetensors")
    assert list(found) == sorted(tensors) and written == sum(t.numel() * dtype.itemsize for t in found.values())
    for name, value in tensors.items():
        assert torch.equal(found[name], value.to(dtype).contiguous())


blocks = st.builds(BlockShape, kv_groups=st.integers(0, 5), heads_per_group=st.integers(1, 4), ffn=st.integers(0, 2000))


@given(st.lists(blocks, min_size=1, max_size=6))
@settings(max_examples=200, deadline=None)
def test_legal_sizes_hold_the_model_and_are_no_larger_than_they_must_be(sizes):
    sizes = [BlockShape(kv_groups=2, heads_per_group=3, ffn=300), *sizes]
    legal = legal_blocks(sizes)
    heads = {b.kv_groups * b.heads_per_group for b in legal if b.kv_groups}
    assert len(heads) == 1  # the schema has one query-head count
    for old, new in zip(sizes, legal, strict=True):
        assert new.ffn % 256 == 0 and 0 <= new.ffn - old.ffn < 256
        assert (new.kv_groups == 0) == (old.kv_groups == 0)
        if old.kv_groups:
            assert new.kv_groups >= old.kv_groups and new.heads_per_group >= old.heads_per_group
    alike = [b for b in sizes if not b.kv_groups or (b.kv_groups, b.heads_per_group) == (2, 3)]
    assert [b.kv_groups for b in legal_blocks(alike)] == [b.kv_groups for b in alike]  # nothing to pad
