"""Matching: speed and memory beside a plainer way. ``make bench`` measures; without it only that both ways agree.

Like in ``test_speed.py``, ``extra_info`` holds the plain way's seconds (the best of three) and the ratio, and no test
asserts seconds.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from vqa_core.fusion.cross_attention import VERSIONS
from vqa_core.training.matching import CHUNK_BYTES, Matcher, fit_together, pairwise_cosines

MIB = 2**20


@pytest.fixture
def against(benchmark):
    """Return a function that measures ``fast`` and keeps in ``extra_info`` how much longer ``plain`` takes.

    ``against(fast, plain, at_least=1.5)`` also asserts the ratio. Without ``--benchmark-enable`` nothing is measured.
    """

    def best(work: Callable) -> float:
        seconds = []
        for _ in range(3):
            start = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - start)
        return min(seconds)

    def measure(fast: Callable, plain: Callable, at_least: float = 0.0) -> None:
        benchmark.pedantic(fast, rounds=3, warmup_rounds=1)
        if benchmark.enabled:
            slow = best(plain)
            ratio = slow / best(fast)
            benchmark.extra_info.update(plain_seconds=round(slow, 5), ratio=round(ratio, 2))
            assert ratio >= at_least

    return measure


def made(version: str, dim: int, seed: int = 0, dropout: float = 0.0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return VERSIONS[version](dim, dropout=dropout)


# ------------------------------------------------------------------------------------------------------------- speed


@pytest.mark.parametrize("version", ["v2", "v9"])
def test_all_pairs_at_once_against_a_loop_over_pairs(against, version):
    """64 pictures with 64 captions, one token each: one call with leading axes that broadcast, or 4,096 calls."""
    module = made(version, 64).eval()
    image, text = torch.randn(64, 1, 64), torch.randn(64, 1, 64)

    def loop(n: int = 64) -> torch.Tensor:
        scores = torch.empty(n, n)
        for i in range(n):
            for j in range(n):
                one = module(image[i : i + 1], text[j : j + 1])
                scores[i, j] = F.cosine_similarity(one.image.mean(1), one.text.mean(1))[0]
        return scores

    with torch.inference_mode():
        torch.testing.assert_close(pairwise_cosines(module, image, text)[:6, :6], loop(6), atol=1e-5, rtol=1e-4)
        against(lambda: pairwise_cosines(module, image, text), loop, at_least=10)


@pytest.mark.parametrize("scoring", ["in_batch", "pairwise"])
@pytest.mark.parametrize("version", ["v2", "v9"])
def test_five_seeds_in_one_pass_against_one_after_the_other(against, version, scoring):
    """Stacked weights under ``vmap``, or five trainings, at the sizes of the experiment (batch 24, 64 features)."""
    steps, seeds = 20, 5
    image, text = torch.randn(steps, seeds, 24, 1, 19), torch.randn(steps, seeds, 24, 1, 64)

    def train(matchers: list[Matcher], which: slice) -> None:
        batch = lambda step: (image[step, which], text[step, which], None, None)  # noqa: E731
        fit_together(matchers, batch, steps, scoring, 1e-3, 0.01)

    def matchers() -> list[Matcher]:
        return [Matcher(19, 64, made(version, 64, s)) for s in range(seeds)]

    def together() -> list[Matcher]:
        every = matchers()
        train(every, slice(None))
        return every

    def one_by_one() -> list[Matcher]:
        every = matchers()
        for s, matcher in enumerate(every):
            train([matcher], slice(s, s + 1))
        return every

    for a, b in zip(together(), one_by_one()):
        torch.testing.assert_close(dict(a.named_parameters()), dict(b.named_parameters()), atol=2e-4, rtol=1e-3)
    against(together, one_by_one, at_least=1.2 if scoring == "in_batch" else 0)  # v9 pair by pair is all arithmetic


# ------------------------------------------------------------------------------------------------------------ memory


PROGRAM = """
import json, resource, sys, time
import torch
from torch.nn import functional as F
from vqa_core.fusion.cross_attention import VERSIONS
from vqa_core.training.matching import pairwise_cosines

version, cells, words, dim = sys.argv[1], *map(int, sys.argv[2:5])
unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB on Linux
torch.manual_seed(0)
module = VERSIONS[version](dim)  # with its dropout, as in training

def forward_and_backward(pictures, captions, chunk):
    image = torch.randn(pictures, cells, dim, requires_grad=True)
    text = torch.randn(captions, words, dim, requires_grad=True)
    masks = torch.rand(pictures, cells) < 0.9, torch.rand(captions, words) < 0.9
    cosines = pairwise_cosines(module, image, text, *masks, chunk=chunk)  # (P, C)
    F.cross_entropy(cosines / 0.07, torch.arange(pictures)).backward()
    assert image.grad.any() and text.grad.any()

def measured(*sizes):
    start = time.perf_counter()
    forward_and_backward(*sizes)
    peak = unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"peak": peak, "seconds": time.perf_counter() - start}

found = [measured(2, 2, 1)]  # everything is loaded
for sizes in sys.argv[5:]:
    found.append(measured(*(int(n) or None for n in sizes.split(","))))
print(json.dumps(found))
"""


def memory_of(version: str, cells: int, words: int, *sizes: tuple[int, int, int]) -> list[dict[str, float]]:
    """Largest number of bytes that a fresh process has had, and seconds: at the start, and after each of ``sizes``.

    Sizes are pictures, captions and pictures at a time (0: the function's own choice), the least memory first. A shell
    stands between: a process inherits the peak of the one that it was forked from. The allocator is as it comes.
    """
    words_of = [sys.executable, "-c", PROGRAM, version, cells, words, 64, *(",".join(map(str, s)) for s in sizes)]
    call = ["sh", "-c", '"$@"; exit $?', "sh", *map(str, words_of)]
    done = subprocess.run(call, check=True, stdout=subprocess.PIPE, text=True, timeout=1800)
    return json.loads(done.stdout)


def test_memory_of_chunks_that_are_computed_again_against_all_at_once(benchmark):
    """v9, forward and backward over all pairs: memory grows with the pictures of a chunk, not of the batch."""
    batch = 64 if benchmark.enabled else 32
    sizes = (batch, batch, batch // 8), (batch, batch, batch)
    start, parts, whole = benchmark.pedantic(lambda: memory_of("v9", 20, 12, *sizes), rounds=1)
    used = {"parts": parts["peak"] - start["peak"], "whole": whole["peak"] - start["peak"]}
    benchmark.extra_info.update({f"{name}_mib": round(value / MIB) for name, value in used.items()})
    benchmark.extra_info.update(
        ratio=round(used["whole"] / used["parts"], 2), slower=round(parts["seconds"] / whole["seconds"], 2)
    )
    assert used["whole"] > 2.5 * used["parts"]  # 8 by arithmetic, less what does not depend on it


def test_a_batch_of_256_with_49_cells_and_32_words_fits_into_8_gib(benchmark):
    """v9, forward and backward over 65,536 pairs; without bench only 10 of the 256 pictures, with all 256 captions.

    Five pictures go at a time. What one chunk needed the next one uses again, but for what glibc's heap fragments.
    """
    pictures = 256 if benchmark.enabled else 10
    sizes = (5, 256, 0), (pictures, 256, 0)
    start, chunk, found = benchmark.pedantic(lambda: memory_of("v9", 49, 32, *sizes), rounds=1)
    benchmark.extra_info.update(peak_mib=round(found["peak"] / MIB), seconds=round(found["seconds"], 1))
    assert found["peak"] < 8192 * MIB
    assert start["peak"] < chunk["peak"] < start["peak"] + 3 * CHUNK_BYTES
    if not benchmark.enabled:
        assert found["peak"] - chunk["peak"] < CHUNK_BYTES / 2  # the second chunk finds most of its memory there
