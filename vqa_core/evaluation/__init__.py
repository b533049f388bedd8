"""Answers in, numbers with intervals out: accuracy, baselines that see no picture, statistics, the claims ledger.

Import what you need from the module that owns it, for instance
``from vqa_core.evaluation.statistics import wilson``; the package itself imports nothing.
"""
