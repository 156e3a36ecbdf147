from __future__ import annotations

import errno
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file

from recover.recovering import damaged, random_samples, sample, shaken, small_model
from sentei.data.chat import Sample
from sentei.errors import InputError
from sentei.families.streamed import streamed_blocks
from sentei.models.load import load
from sentei.models.save import save
from sentei.recover.select import damage
from sentei.recover.select.damage import jensen_shannon, score
from sentei.recover.select.scores import Scores, read_scores
from sentei.recover.teacher import Teacher

LENGTHS = [12, 3, 30, 7, 7, 21, 2, 16]


@pytest.fixture(scope="module")
def dense() -> Any:
    return small_model()


@pytest.fixture(scope="module")
def pruned(dense: Any) -> Any:
    return shaken(dense)


def test_divergence_equals_its_definition_in_float64() -> None:
    from scipy.spatial.distance import jensenshannon

    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(20, 500, generator=generator) * 4 for _ in "ab")
    p, q = (z.double().softmax(1).numpy() for z in (a, b))
    np.testing.assert_allclose(jensen_shannon(a, b), jensenshannon(p, q, axis=1) ** 2, rtol=2e-5, atol=1e-7)
    assert jensen_shannon(a, a).max() < 1e-6
    torch.testing.assert_close(jensen_shannon(a, b), jensen_shannon(b, a))


def test_divergence_of_certain_predictions_is_finite() -> None:
    sure, other = torch.zeros(1, 9), torch.zeros(1, 9)
    sure[0, 0] = other[0, 1] = 1e4
    assert jensen_shannon(sure, other).item() == pytest.approx(math.log(2), abs=1e-6)
    assert jensen_shannon(sure, sure).item() == 0


def reference(model: Any, sample: Sample) -> torch.Tensor:
    """Log-probabilities of all tokens at the targets, in float64, from stock transformers."""
    with torch.no_grad():
        logits = model(torch.from_numpy(sample.ids.astype(np.int64))[None]).logits[0, :-1]
    return logits[torch.from_numpy(sample.response[1:])].double().log_softmax(1)


def test_scores_are_means_over_the_response_as_stock_transformers_sees_it(
    dense: Any, pruned: Any, tmp_path: Path
) -> None:
    samples = random_samples(LENGTHS)
    found = score(dense, pruned, samples, tmp_path, alone=True, tokens=64, top=5)
    teacher = Teacher(tmp_path)
    for row, one in enumerate(samples):
        p, q = reference(dense, one), reference(pruned, one)
        targets = torch.from_numpy(one.ids[1:][one.response[1:]].astype(np.int64))[:, None]
        middle = torch.logaddexp(p, q) - math.log(2)
        jsd = ((p.exp() * (p - middle)).sum(1) + (q.exp() * (q - middle)).sum(1)).mean() / 2
        bare = sample([int(one.ids[0]), *one.ids[one.response].tolist()], 1)
        alone = -reference(dense, bare).gather(1, targets).mean()
        assert found.jsd[row] == pytest.approx(jsd.item(), rel=1e-4)
        assert found.dense_nll[row] == pytest.approx(-p.gather(1, targets).mean().item(), rel=1e-4)
        assert found.pruned_nll[row] == pytest.approx(-q.gather(1, targets).mean().item(), rel=1e-4)
        assert found.ifd[row] == pytest.approx(math.exp(-p.gather(1, targets).mean().item() - alone.item()), rel=1e-3)
        assert row in teacher and teacher.count(row) == len(targets)
    assert (found.jsd > 0.01).all() and (found.jsd < math.log(2)).all()


def test_streamed_models_score_the_same_and_are_read_once_for_several_shards(
    dense: Any, pruned: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(damage, "SHARD_TOKENS", 24)
    samples = random_samples(LENGTHS)
    wanted = {"top": 3, "alone": True, "strangers": {1: 4, 5: 2}, "tokens": 32}
    whole = score(dense, pruned, samples, tmp_path / "whole", **wanted)
    models = [
        load(save(model, tmp_path / name), dtype="float32", memory=10**12).model
        for name, model in (("dense", dense), ("pruned", pruned))
    ]
    reads: list[int] = []
    blocks = streamed_blocks(models[0])
    assert blocks is not None
    read = blocks.read
    blocks.read = lambda index: (reads.append(index), read(index))[1]
    streamed = score(*models, samples, tmp_path / "streamed", **wanted)
    for name in ("jsd", "dense_nll", "pruned_nll", "alone_nll", "rival_nll"):
        np.testing.assert_array_equal(getattr(streamed, name), getattr(whole, name))
    shards = sorted(file.name for file in (tmp_path / "whole").iterdir())
    assert shards == sorted(file.name for file in (tmp_path / "streamed").iterdir()) and len(shards) > 2
    for name in shards:
        one, other = (load_file(tmp_path / place / name) for place in ("whole", "streamed"))
        assert all(np.array_equal(one[key], other[key], equal_nan=True) for key in one)
    assert reads == list(range(len(blocks.blocks)))
    monkeypatch.setattr(damage, "WALK_TOKENS", 1)
    (tmp_path / "streamed" / shards[1]).unlink()
    (tmp_path / "streamed" / shards[2]).unlink()
    score(*models, samples, tmp_path / "streamed", **wanted)
    assert reads == 3 * list(range(len(blocks.blocks))), "what is there is not done again; each shard is a pass"


def test_padding_and_company_do_not_matter(dense: Any, pruned: Any, tmp_path: Path) -> None:
    samples = random_samples(LENGTHS)
    together = score(dense, pruned, samples, tmp_path / "together", tokens=1000)
    for row, one in enumerate(samples):
        single = score(dense, pruned, [one], tmp_path / str(row))
        for name in ("jsd", "dense_nll", "pruned_nll"):
            assert getattr(single, name)[0] == pytest.approx(getattr(together, name)[row], rel=1e-4)


def test_the_same_model_has_no_damage_and_a_prompt_counts_nothing(dense: Any, tmp_path: Path) -> None:
    samples = random_samples(LENGTHS)
    assert (score(dense, dense, samples, tmp_path / "same").jsd < 1e-6).all()
    # what only follows the answer cannot be seen from it
    one = sample([5, 6, 7, 100, 101], 3)
    kept = Sample(one.ids[:3], np.array([False, True, True]), False)
    shown = Sample(one.ids, np.array([False, True, True, False, False]), False)
    hurt = damaged(dense)  # tokens from 64 on
    found = score(dense, hurt, [kept, shown, one], tmp_path / "prompt")
    assert max(found.jsd[:2]) < 1e-6 and found.jsd[2] > 0.01


def test_a_row_without_a_response_has_no_scores(dense: Any, pruned: Any, tmp_path: Path) -> None:
    empty = Sample(np.array([4, 5], np.int32), np.zeros(2, bool), False)
    found = score(dense, pruned, [empty, *random_samples([5])], tmp_path)
    assert np.isnan(found.jsd).tolist() == [True, False] and np.isnan(found.alone_nll).all()
    assert 0 not in Teacher(tmp_path) and 1 in Teacher(tmp_path)
    nothing = score(dense, pruned, [empty], tmp_path / "nothing")
    assert np.isnan(nothing.dense_nll).all()


def test_responses_are_also_read_after_other_prompts(dense: Any, pruned: Any, tmp_path: Path) -> None:
    samples = random_samples([12, 9, 15, 7], seed=2)
    alone = score(dense, pruned, samples, tmp_path / "alone", alone=True)
    np.testing.assert_allclose(alone.unlikely, alone.dense_nll - alone.alone_nll)
    some = score(dense, pruned, samples, tmp_path / "some", strangers={1: 2, 3: 0})
    assert np.isnan(some.alone_nll).all() and np.isnan(some.rival_nll).tolist() == [True, False, True, False]
    np.testing.assert_allclose(some.unlikely[[0, 2]], some.dense_nll[[0, 2]])
    np.testing.assert_allclose(some.unlikely[[1, 3]], (some.dense_nll - some.rival_nll)[[1, 3]])
    for at, other in ((1, 2), (3, 0)):
        start, end = (int(samples[i].response.argmax()) for i in (at, other))
        ids = np.concatenate([samples[other].ids[max(0, end - start) : end], samples[at].ids[start:]])
        begun = len(ids) - len(samples[at].ids) + start
        swapped = Sample(ids, np.arange(len(ids)) >= begun, False)
        again = score(dense, None, [swapped], tmp_path / f"swapped{at}")
        np.testing.assert_allclose(some.rival_nll[at], again.dense_nll[0], rtol=1e-5)


def test_scores_of_several_samples_of_a_row_are_means_over_its_tokens(dense: Any, pruned: Any, tmp_path: Path) -> None:
    samples = random_samples([12, 9, 15], seed=2)
    parts = score(dense, pruned, samples, tmp_path)
    assert parts.of_rows(np.arange(3), 3) is parts
    rows = parts.of_rows(np.array([0, 0, 2]), 3)
    assert np.isnan(rows.jsd[1]) and rows.jsd[2] == parts.jsd[2] and np.isnan(rows.alone_nll).all()
    assert rows.counts[0] == parts.counts[0] + parts.counts[1]
    np.testing.assert_allclose(rows.jsd[0], np.average(parts.jsd[:2], weights=parts.counts[:2]), rtol=1e-6)


def test_predictions_are_compared_over_the_tokens_that_both_models_have(dense: Any, tmp_path: Path) -> None:
    import copy

    import torch

    padded, samples = copy.deepcopy(dense), random_samples([12, 9])
    size = dense.get_input_embeddings().weight.shape[0]
    with torch.no_grad():
        padded.resize_token_embeddings(size + 7, mean_resizing=False)
        padded.get_output_embeddings().weight[size:] = 9.0
    found = score(padded, dense, samples, tmp_path / "both")
    assert (found.jsd < 1e-6).all()
    np.testing.assert_allclose(found.dense_nll, found.pruned_nll, rtol=1e-5)
    score(padded, None, samples, tmp_path / "teacher", vocab=size)
    soft = Teacher(tmp_path / "teacher").soft(pad_all(samples), [0, 1])
    assert soft.ids.max() < size


def pad_all(samples: list[Sample]) -> Any:
    from sentei.data.batches import pad

    return pad(samples, range(len(samples)))


def test_the_teachers_tokens_are_the_models_likeliest(dense: Any, tmp_path: Path) -> None:
    from sentei.data.batches import pad

    samples = random_samples(LENGTHS)
    found = score(dense, None, samples, tmp_path, top=4)
    assert np.isnan(found.jsd).all() and np.isfinite(found.dense_nll).all()
    order = [5, 0, 2]
    soft = Teacher(tmp_path).soft(pad(samples, order), order)
    wanted = torch.cat([reference(dense, samples[row]) for row in order]).topk(4, dim=1)
    assert torch.equal(soft.ids, wanted.indices)
    torch.testing.assert_close(soft.logp, wanted.values.float(), rtol=2e-3, atol=2e-3)  # kept as fp16


def test_the_teacher_refuses_what_it_was_not_asked(dense: Any, tmp_path: Path) -> None:
    from sentei.data.batches import pad

    samples = random_samples([9, 8, 7])
    score(dense, None, samples[:2], tmp_path, top=4)
    teacher = Teacher(tmp_path)
    with pytest.raises(InputError, match="has not read row 2"):
        teacher.soft(pad(samples, [2]), [2])
    with pytest.raises(InputError, match="score them again with this tokenizer"):
        teacher.soft(pad([sample([1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9], 1)], [0]), [0])
    score(dense, None, samples, tmp_path / "none", top=0)
    with pytest.raises(InputError, match="holds no teacher's tokens"):
        Teacher(tmp_path / "none")
    path = damage.shard_path(tmp_path, 0)
    path.write_bytes(path.read_bytes()[:50])
    for read in (lambda: Teacher(tmp_path), lambda: read_scores(tmp_path, 2)):
        with pytest.raises(InputError, match=r"scores-00000\.safetensors is truncated"):
            read()


def equal(a: Scores, b: Scores) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name), equal_nan=True) for name in vars(a))


def test_a_killed_scoring_goes_on_and_does_nothing_twice(
    dense: Any, pruned: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = random_samples(LENGTHS * 3)
    monkeypatch.setattr(damage, "SHARD_TOKENS", 64)
    whole = score(dense, pruned, samples, tmp_path / "whole", tokens=32)
    real, calls = damage._score_batch, []

    def killed(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(damage, "_score_batch", killed)
    with pytest.raises(KeyboardInterrupt):
        score(dense, pruned, samples, tmp_path / "killed", tokens=32)
    kept = len(list((tmp_path / "killed").glob("scores-*")))
    assert 0 < kept < len(list((tmp_path / "whole").glob("scores-*")))
    calls.clear()
    monkeypatch.setattr(damage, "_score_batch", lambda *args: calls.append(args) or real(*args))
    again = score(dense, pruned, samples, tmp_path / "killed", tokens=32)
    assert equal(again, whole) and len(calls) < 24
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "killed" / path.name).read_bytes()
    calls.clear()
    assert equal(score(dense, pruned, samples, tmp_path / "killed", tokens=32), whole) and not calls


@pytest.mark.parametrize(
    "error",
    [SafetensorError("I/O error: No space left on device"), OSError(errno.ENOSPC, "No space left on device")],
)
def test_a_full_disk_leaves_whole_shards_only(
    dense: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    samples = random_samples(LENGTHS)
    real = damage.save_file
    monkeypatch.setattr(damage, "SHARD_TOKENS", 40)

    def full(tensors: Any, path: Path) -> None:
        if "00001" in path.name:
            path.write_bytes(b"half")
            raise error
        real(tensors, path)

    monkeypatch.setattr(damage, "save_file", full)
    with pytest.raises(InputError, match=r"cannot write .*scores-00001.*No space left on device.*; free space or"):
        score(dense, None, samples, tmp_path, tokens=32)
    (left,) = tmp_path.iterdir()
    assert left.name == "scores-00000.safetensors" and len(load_file(left)["rows"])


def test_a_model_that_overflows_is_named(dense: Any, tmp_path: Path) -> None:
    import copy

    broken = copy.deepcopy(dense)
    with torch.no_grad():
        broken.get_output_embeddings().weight[5] = float("nan")
    with pytest.raises(InputError, match="the pruned model's predictions for row 0 of the pool are not numbers"):
        score(dense, broken, random_samples([5]), tmp_path / "a")
    with pytest.raises(InputError, match="the dense model's predictions"):
        score(broken, None, random_samples([5]), tmp_path / "b")
    assert not list((tmp_path / "a").iterdir())
