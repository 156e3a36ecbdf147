import pytest
from pydantic import ValidationError

from sentei.budget import Budget
from sentei.errors import InputError
from sentei.plan import BlockShape, ModelShape
from sentei.protect import Protect
from sentei.schema import parse


@pytest.mark.parametrize(
    ("key", "written", "meant"),
    [
        ("sparsity", "20%", 0.2),
        ("sparsity", " 0.3 ", 0.3),
        ("sparsity", "12.5 %", 0.125),
        ("params", "100k", 100_000),
        ("params", "100M", 100_000_000),
        ("params", "1.5B", 1_500_000_000),
        ("params", "106_202_880", 106_202_880),
        ("params", "1e6", 1_000_000),
        ("bytes", "200MB", 200_000_000),
        ("bytes", "1.5 GiB", 3 * 2**29),
        ("bytes", "4096", 4096),
        ("flops", "50%", 0.5),
        ("flops", "100M", 1e8),
        ("flops", "0.5", 0.5),
        ("target_engine", "llama.cpp", "gguf"),
        ("target_engine", "MLX_LM", "mlx"),
        ("target_engine", "vllm", "vllm"),
    ],
)
def test_amounts_and_engines_are_understood_as_people_write_them(key, written, meant):
    size = {} if key in ("sparsity", "params", "bytes", "flops") else {"sparsity": 0.2}
    assert getattr(Budget(**size, **{key: written}), key) == pytest.approx(meant)


@pytest.mark.parametrize(
    ("key", "written", "answer"),
    [
        ("sparsity", 20, "for 20 % say 0.2 or 20%"),
        ("sparsity", "20", "for 20 % say 0.2 or 20%"),
        ("sparsity", "100%", "less than 1"),
        ("sparsity", "-0.1", "greater than or equal to 0"),
        ("sparsity", "many", "valid number"),
        ("flops", "50", "for 50 % say 0.5 or 50%"),
        ("flops", "inf", "finite"),
        ("params", "100 kilos", "write it as 100k, 80M or 1.5B"),
        ("params", "1e99999", "more than any machine holds"),
        ("params", "9" * 5000, "more than any machine holds"),
        ("params", "-5k", "greater than or equal to 1"),
        ("bytes", "20 apples", "write it as 200MB or 190MiB"),
    ],
)
def test_what_cannot_be_meant_is_answered_with_the_right_form(key, written, answer):
    with pytest.raises(InputError, match=answer) as caught:
        parse(Budget, {key: written}, "budget")
    assert str(caught.value).startswith(f"budget: {key}: ") and len(str(caught.value)) < 200


def test_an_unknown_engine_is_refused():
    with pytest.raises(ValidationError, match="gguf"):
        Budget(sparsity=0.2, target_engine="abacus")


@pytest.mark.parametrize("text", ["none", "first:4,last:2", "attention:1", "attention:all", "first:0.125,last:0.0625"])
def test_protection_is_read_as_it_is_written(text):
    assert str(Protect.model_validate(text)) == text
    assert Protect.model_validate(Protect.model_validate(text).model_dump(mode="json")) == Protect.model_validate(text)


@pytest.mark.parametrize(
    ("text", "answer"),
    [("frist:4", "did you mean 'first'"), ("first", "for example first:1"), ("last:-1", ""), ("attention:some", "")],
)
def test_protection_that_is_none_is_refused(text, answer):
    with pytest.raises(ValidationError, match=answer):
        Protect.model_validate(text)


def test_what_is_protected():
    def parts(text, heads_per_group=2, blocks=8):
        kept = Protect.model_validate(text)
        return [
            "".join(p[0] for p in ("attention", "ffn") if kept.holds(p, i, blocks, heads_per_group))
            for i in range(blocks)
        ]

    assert parts("first:2,last:1") == ["af", "af", "", "", "", "", "", "af"]
    assert parts("first:25%,last:12.5%") == parts("first:2,last:1")
    assert parts("attention:2") == ["a", "a", *[""] * 6]
    assert parts("attention:all") == parts("attention:grouped") == ["a"] * 8
    assert parts("attention:grouped", heads_per_group=1) == [""] * 8


def test_a_sliding_window_bounds_cache_and_attention():
    full = BlockShape(kv_groups=2, heads_per_group=3, ffn=16)
    facts = {"hidden": 8, "head_dim": 4, "vocab": 10, "tied": True}
    plain = ModelShape(**facts, blocks=(full, full))
    mixed = ModelShape(**facts, blocks=(full, full.model_copy(update={"window": 100})))
    assert mixed.flops(80) == plain.flops(80) and mixed.cache_bytes(2, 80) == plain.cache_bytes(2, 80)
    # beyond the window one block of two goes on: 4 · heads · head_dim FLOPs and 2 · groups · head_dim numbers a token
    assert plain.flops(500) - mixed.flops(500) == 4 * 6 * 4 * 400
    assert plain.cache_bytes(3, 500) - mixed.cache_bytes(3, 500) == 2 * 2 * 4 * 400 * 3 * 2


def test_bytes_are_those_of_the_dtype_that_is_stored():
    block = BlockShape(kv_groups=1, heads_per_group=1, ffn=4)
    two = ModelShape(hidden=4, head_dim=4, vocab=10, tied=True, blocks=(block,))
    four = two.model_copy(update={"itemsize": 4})
    assert four.bytes(1, 7) == 2 * two.bytes(1, 7) == 4 * (two.params() + 2 * 4 * 7)
    assert Budget(bytes=10).cost(four) == four.bytes(1, 1024)
