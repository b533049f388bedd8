"""``python -m vqa_core train-clip``: train the small CLIP once, alone or in several processes that share each batch.

Under a launcher that sets ``RANK``, ``WORLD_SIZE``, ``MASTER_ADDR`` and ``MASTER_PORT`` every process embeds its part
of the batch, and sees the embeddings of all others as negatives::

    torchrun --nproc-per-node 2 -m vqa_core train-clip --profile cpu
    accelerate launch --multi_gpu --num_processes 2 -m vqa_core train-clip --profile gpu

``--multi_gpu`` makes accelerate start several processes; without CUDA they talk through gloo.
"""

from __future__ import annotations

import argparse
import os
from contextlib import contextmanager
from pathlib import Path


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the ``train-clip`` sub-command; its handler is ``arguments.run(arguments)`` and returns the exit code."""
    parser = subparsers.add_parser("train-clip", help="train a small CLIP on scenes, also under torchrun or accelerate")
    parser.add_argument("--profile", default="auto", help="smoke, cpu, gpu or auto (default): sizes and data")
    parser.add_argument("--batch-size", type=int, help="pairs in a step, of all processes together")
    parser.add_argument("--pairs-seen", type=int, help="pairs in all steps together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="file for the weights (safetensors)")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    found = train(args.profile, args.batch_size, args.pairs_seen, args.seed, args.out)
    if found is not None:
        print(
            f"{found['processes']} process(es), {found['steps']} steps of {found['batch_size']} pairs: "
            f"loss {found['loss']:.4f}, R@1 {found['r1']:.4f} of {found['queries']} queries"
        )
    return 0


@contextmanager
def process_group():
    """(rank, number of processes) of this process; joins the group of the launcher for as long as it is needed."""
    import torch
    import torch.distributed as dist

    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes == 1:
        yield 0, 1
        return
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield dist.get_rank(), processes
    finally:
        dist.destroy_process_group()


def train(
    profile: str = "auto",
    batch_size: int | None = None,
    pairs_seen: int | None = None,
    seed: int = 0,
    out: Path | None = None,
) -> dict[str, float] | None:
    """Train unit ``small`` of experiment ``clip`` and look at its gallery.

    However many processes share a batch, the same pairs are in it and the same weights come out, up to rounding.

    Parameters
    ----------
    profile
        ``smoke``, ``cpu``, ``gpu`` or ``auto``.
    batch_size
        Pairs in a step, over all processes; by default that of the recipe.
    pairs_seen
        Pairs in all steps together; by default those of the recipe.
    seed
        Of the weights at the start and the order of the pairs.
    out
        Where the first process puts the weights; nowhere by default.

    Returns
    -------
    dict
        ``processes``, ``steps``, ``batch_size``, ``loss`` (of the last step), ``r1``, ``queries``; None in all
        processes but the first.

    Raises
    ------
    ValueError
        When the processes can't share the batch equally.
    """
    from dataclasses import replace

    import torch
    from safetensors.torch import save_file

    from vqa_core.experiments import clip, resolve_profile
    from vqa_core.experiments.clip_material import gallery, told
    from vqa_core.training.contrastive import average_gradients, distributed_clip_loss
    from vqa_core.training.loop import pick_device
    from vqa_core.training.pairs import fit_pairs

    spec = next(s for s in clip.specs(resolve_profile(profile)) if s.unit == "small")
    given = {"batch_size": batch_size, "pairs_seen": pairs_seen}
    recipe = replace(spec.training, **{k: v for k, v in given.items() if v is not None})
    with process_group() as (rank, processes):
        if recipe.batch_size % processes:
            raise ValueError(
                f"{processes} processes can't share a batch of {recipe.batch_size}; give --batch-size a multiple"
            )
        known = told(spec.data.pictures)
        torch.manual_seed(seed)  # every process starts from the same weights
        model = clip.build(spec.model, known).to(pick_device())
        several = {}
        if processes > 1:
            several = {
                "loss": lambda m, image, text: distributed_clip_loss(image, text, m.scale()),
                "share": lambda rows: rows.chunk(processes)[rank],
                "synchronise": average_gradients,
            }
        history = fit_pairs(model, known.pairs, recipe, seed, **several)
        loss = torch.tensor(history[-1]["loss"], device=model.log_scale.device)
        if processes > 1:
            torch.distributed.all_reduce(loss)
    if rank:
        return None
    hits = clip.retrieve(model.cpu(), known.words, gallery(spec.data.pictures, "test")).hits
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, out)
    return {
        "processes": processes,
        "steps": len(history),
        "batch_size": recipe.batch_size,
        "loss": loss.item() / processes,
        "r1": float(hits.mean()),
        "queries": hits.size,
    }
