"""The command line: ``python -m vqa_core run | plan | data | audit | ask | weights | train-clip``."""

from __future__ import annotations

import argparse
import json
import sys


def _run(args: argparse.Namespace) -> int:
    from vqa_core.experiments import module_of, resolve_profile
    from vqa_core.experiments.runner import run_experiment

    profile = resolve_profile(args.profile)
    records = run_experiment(args.experiment, profile, unit=args.unit, seed=args.seed, workers=args.workers)
    seconds = sum(r.seconds for r in records)
    print(f"{args.experiment} at profile {profile}: {len(records)} records, {seconds:.0f} s of computing in all")
    if args.unit:
        wanted = getattr(module_of(args.experiment), "HEADLINES", None)
        for r in records:
            found = {k: m.value for k, m in r.metrics.items() if wanted is None or k in wanted}
            print(f"{r.spec.unit}, seed {r.spec.seed}: " + ", ".join(f"{k} {v:.4g}" for k, v in found.items()))
    return 0


def _plan(args: argparse.Namespace) -> int:
    from vqa_core.experiments import resolve_profile
    from vqa_core.experiments.runner import plan

    print(json.dumps([plan(name, resolve_profile(args.profile)) for name in args.experiment], indent=1))
    return 0


def _audit(args: argparse.Namespace) -> int:
    from vqa_core.evaluation import leakage

    found = leakage.audit(args.name, args.root, pictures=not args.no_pictures)
    if args.json:
        print(json.dumps(leakage.as_json(found), indent=1))
    else:
        leakage.show(found)
    return 0


def parser() -> argparse.ArgumentParser:
    """All sub-commands with their options."""
    from vqa_core import ask
    from vqa_core.data import commands
    from vqa_core.encoders import conversion
    from vqa_core.experiments import clip_distributed

    top = argparse.ArgumentParser(
        prog="python -m vqa_core", description="Run, inspect and ask what the book is made of."
    )
    subparsers = top.add_subparsers(required=True, metavar="COMMAND")
    run = subparsers.add_parser("run", help="run the units of an experiment that are not on disk yet")
    run.add_argument("experiment")
    run.add_argument(
        "--unit",
        help="only these units (separated by commas, * and ? as in a shell), or package.module:Class of your own",
    )
    run.add_argument("--seed", type=int, help="only this seed")
    run.add_argument("--profile", default="auto", help="smoke, cpu, gpu or auto (default)")
    run.add_argument("--workers", type=int, help="processes; default: one per core, or one with CUDA")
    run.set_defaults(run=_run)
    plan = subparsers.add_parser("plan", help="say what would run")
    plan.add_argument("experiment", nargs="+")
    plan.add_argument("--profile", default="auto")
    plan.set_defaults(run=_plan)
    commands.add_parser(subparsers)
    audit = subparsers.add_parser("audit", help="say what leaks between the splits of a data set")
    audit.add_argument("name", metavar="NAME", help="a data set of `data list`")
    audit.add_argument("--root", help="folder that holds one folder per data set (default: VQA_DATA)")
    audit.add_argument("--json", action="store_true", help="print JSON instead of tables")
    audit.add_argument("--no-pictures", action="store_true", help="compare pictures by id only, open none")
    audit.set_defaults(run=_audit)
    ask.add_parser(subparsers)
    conversion.add_parser(subparsers)
    clip_distributed.add_parser(subparsers)
    return top


def main(words: list[str] | None = None) -> int:
    """Entry point; returns the exit code. Mistakes of the caller are one line on stderr, not a traceback."""
    args = parser().parse_args(words)
    try:
        return args.run(args)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; what was finished is kept, the same command goes on from there", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
