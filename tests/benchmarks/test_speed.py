"""Speed, beside a plainer way to do the same. ``make bench`` runs and prints it; no test here asserts seconds.

Each benchmark measures the book's way; ``extra_info`` holds the seconds of the plain way (the best of three, measured
just after) and the ratio. A ratio is asserted only where it is large enough not to depend on the machine's mood.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

from vqa_core.data import scenes
from vqa_core.data.text import Vocabulary, encode_questions
from vqa_core.data.types import Sample
from vqa_core.evaluation.baselines import lookup
from vqa_core.evaluation.statistics import seeds_and_questions
from vqa_core.experiments.fusion import Model, build
from vqa_core.fusion.blocks import MultiHeadAttention
from vqa_core.fusion.stages import TokenFusion
from vqa_core.fusion.vector import FiLM
from vqa_core.training.feed import Feed


@pytest.fixture
def against(benchmark):
    """Return a function that measures ``fast`` and keeps in ``extra_info`` how much longer ``plain`` takes.

    ``against(fast, plain, at_least=1.5)`` also asserts the ratio. Without ``--benchmark-enable`` nothing is measured.
    """

    def best(work: Callable, times: int) -> float:
        seconds = []
        for _ in range(times):
            start = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - start)
        return min(seconds)

    def measure(fast: Callable, plain: Callable, rounds: int = 5, at_least: float = 0.0) -> None:
        benchmark.pedantic(fast, rounds=rounds, warmup_rounds=1)
        if benchmark.enabled:
            slow = best(plain, 3)
            ratio = slow / best(fast, rounds)
            benchmark.extra_info.update(plain_seconds=round(slow, 5), ratio=round(ratio, 2))
            assert ratio >= at_least

    return measure


# -------------------------------------------------------------------------------------------------------------- data


def test_scenes_with_eight_questions_each(benchmark):
    """Pictures drawn and asked about, per second of one core's time."""
    made = benchmark.pedantic(lambda: scenes.generate(512, seed=5), rounds=3, warmup_rounds=1)
    assert len(made) == 512 * 8
    if benchmark.enabled:
        start = time.process_time()
        scenes.generate(2048, seed=6)
        benchmark.extra_info["pictures_per_core_second"] = round(2048 / (time.process_time() - start))


def test_import_of_the_package(benchmark):
    """Seconds that ``import vqa_core`` adds to an empty interpreter."""

    def start(program: str) -> None:
        subprocess.run([sys.executable, "-c", program], check=True)

    benchmark.pedantic(start, args=("import vqa_core",), rounds=5, warmup_rounds=1)
    if benchmark.enabled:
        begin = time.perf_counter()
        for _ in range(5):
            start("pass")
        alone = (time.perf_counter() - begin) / 5
        benchmark.extra_info["seconds_over_empty_interpreter"] = round(benchmark.stats.stats.mean - alone, 3)


def test_feed_against_collating_samples(against):
    """Batches cut from tensors, or put together sample by sample as a DataLoader does."""
    found = scenes.generate(128, seed=6)
    words, answers = Vocabulary.of_words(s.question for s in found), Vocabulary.of_answers(s.answer for s in found)
    index = [found.picture_index(s.picture_id) for s in found]
    feed = Feed.of(found, found.images, index, words, answers)

    def one(i: int):
        ids, mask = encode_questions([found[i].question], words)
        picture = torch.from_numpy(found.images[index[i]]).permute(2, 0, 1).float() / 127.5 - 1
        return picture, torch.from_numpy(ids[0]), torch.from_numpy(mask[0]), answers.id(found[i].answer)

    def collate(rows):
        pictures, ids, masks, labels = zip(*rows)
        pad = torch.nn.utils.rnn.pad_sequence
        return torch.stack(pictures), pad(ids, True), pad(masks, True), torch.tensor(labels)

    loader = DataLoader([*range(len(found))], 256, collate_fn=lambda rows: collate([one(i) for i in rows]))
    for ours, theirs in zip(feed.batches(256), loader):  # the same batches
        assert all(torch.allclose(a.float(), b.float(), atol=1e-6) for a, b in zip(ours, theirs))
    against(lambda: [*feed.batches(256)], lambda: [*loader], at_least=1.5)


# ------------------------------------------------------------------------------------------------------------ fusion


def test_token_film_against_a_question_copied_to_every_token(against):
    """The question is projected once and broadcast, or copied to all 64 cells and projected 64 times."""
    fusion = TokenFusion(FiLM(19, 60, 64), "sum")
    x, y = torch.randn(256, 64, 19), torch.randn(256, 1, 60)

    def copied():
        met = fusion.fusion.fuse(x, y.repeat(1, 64, 1)).fused  # (B, 64, D)
        return fusion.out_projection(met.relu().sum(1))

    with torch.inference_mode():
        torch.testing.assert_close(fusion(x, y).fused, copied(), atol=1e-3, rtol=1e-4)
        against(lambda: fusion(x, y), copied, at_least=1.1)


def test_fused_attention_against_explicit(against):
    """``scaled_dot_product_attention``, or softmax(QKᵀ/√d)V with the weights kept."""
    attention = MultiHeadAttention(128, 8).eval()
    tokens, mask = torch.randn(64, 96, 128), torch.rand(64, 96) < 0.8
    with torch.inference_mode():
        fast, plain = attention(tokens, tokens, mask)[0], attention(tokens, tokens, mask, need_weights=True)[0]
        torch.testing.assert_close(fast, plain, atol=1e-5, rtol=1e-5)
        against(lambda: attention(tokens, tokens, mask), lambda: attention(tokens, tokens, mask, need_weights=True))


# ---------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("unit", ["pool_film", "attend_film"])
def test_five_seeds_in_one_pass_against_one_after_the_other(against, unit):
    """Whether seeds should be trained together: stacked weights under ``vmap``, or five loops.

    The plain way is what the experiments do. A ratio below 1 says that they are right to do it.
    """
    seeds, steps, tokens = 5, 10, 64 if unit == "attend_film" else 1
    x, y = torch.randn(steps, 256, tokens, 19), torch.randn(steps, 256, 1, 60)
    mask, labels = torch.ones(256, 1, dtype=torch.bool), torch.randint(0, 20, (steps, 256))

    def models():
        made = []
        for seed in range(seeds):
            torch.manual_seed(seed)
            made.append(build(Model(unit, 256, 256), 19, 60, 20))
        return made

    def loss_of(model, weights, i):
        logits = torch.func.functional_call(model, weights, (x[i], y[i], mask)).logits
        return F.cross_entropy(logits, labels[i])

    def together():
        every = models()
        weights, _ = torch.func.stack_module_state(every)
        optimizer = torch.optim.AdamW(weights.values(), lr=1e-3, fused=True)
        for i in range(steps):
            losses = torch.vmap(loss_of, (None, 0, None))(every[0], weights, i)  # (seeds,)
            optimizer.zero_grad(set_to_none=True)
            losses.sum().backward()
            optimizer.step()
        return losses.detach()

    def one_by_one():
        last = []
        for model in models():
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
            for i in range(steps):
                loss = F.cross_entropy(model(x[i], y[i], mask).logits, labels[i])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
            last.append(loss.detach())
        return torch.stack(last)

    torch.testing.assert_close(together(), one_by_one(), atol=1e-3, rtol=1e-3)
    against(together, one_by_one, rounds=3)


# -------------------------------------------------------------------------------------------------------- evaluation


def test_bootstrap_of_seeds_and_questions_against_a_loop(against):
    """Resampling by weights and one product of matrices, or picture by picture in Python."""
    rng = np.random.default_rng(0)
    correct, pictures = rng.random((5, 2000)) < 0.7, np.repeat(np.arange(250), 8)
    average, rows_of = correct.mean(0), [np.flatnonzero(pictures == p) for p in range(250)]

    def loop(resamples: int = 10_000):
        spread, means = correct.mean(1).std(ddof=1) / 5**0.5, []
        for _ in range(resamples):
            chosen = np.concatenate([rows_of[p] for p in rng.integers(0, 250, 250)])
            means.append(average[chosen].mean() + rng.standard_t(4) * spread)
        return np.quantile(means, [0.025, 0.975])

    interval, (low, high) = seeds_and_questions(correct, pictures), loop()
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=0.002)
    against(lambda: seeds_and_questions(correct, pictures), loop, rounds=3, at_least=1.5)


def test_lookup_baseline(benchmark):
    """The nearest training question about the same picture, for 4,000 questions."""
    asked = [f"Is there a {a} {b} {c}?" for a in ("small", "large") for b in scenes.COLOURS for c in scenes.SHAPES]
    rng = np.random.default_rng(0)

    def draw(n: int):
        picks = zip(rng.integers(0, len(asked), n), rng.integers(0, 300, n), rng.integers(0, 2, n))
        return [Sample(str(i), str(p), asked[q], ("no", "yes")[a], "x", "closed") for i, (q, p, a) in enumerate(picks)]

    train, test = draw(4000), draw(4000)
    found = benchmark.pedantic(lambda: lookup(train, test), rounds=3)
    assert len(found.predictions) == 4000
