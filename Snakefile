# units -> results -> notebooks -> book.   `make book` runs this with a plan, progress and a lock; `snakemake -j2` works too.
#
# Inputs are fingerprints of code (book/pipeline/prepare.py), so that comments, prose and layout rerun nothing, and a
# change in vqa_core reruns only what uses it.
import os
import re
import sys

sys.path.insert(0, workflow.basedir)
from book.pipeline import PROFILES, data_state, kept_state, notebooks, parameters
from book.pipeline.prepare import refresh
from book.pipeline.publish import forget_if_figures_changed, site_sources

PROFILE = config.get("profile", "cpu")
if PROFILE not in PROFILES:
    raise ValueError(f"profile is {PROFILE!r}; allowed are {', '.join(PROFILES)}")
NOTEBOOKS = notebooks()
WANTED = {x.zfill(2) for x in re.findall(r"\d+", str(config.get("chapters", "")))}  # Snakemake makes numbers of "03"
CHAPTERS = [n for n in NOTEBOOKS if not WANTED or n[:2] in WANTED]
DATA = {e: sorted({d for x in NOTEBOOKS.values() if e in x["experiments"] for d in x["data"]})
        for x in NOTEBOOKS.values() for e in x["experiments"]}
BUILD = f"build/{PROFILE}"
PYTHON = f"OMP_NUM_THREADS={{threads}} {sys.executable} -m"

if "VQA_BUILD" not in os.environ:  # not started by book.pipeline.build, which has done this
    refresh()
forget_if_figures_changed(PROFILE)

wildcard_constraints:
    notebook=r"\d\d_\w+",
    experiment=r"\w+",

localrules: all, book

rule all:
    input: f"{BUILD}/book.json"

rule results:
    input: expand("results/{profile}/{experiment}/index.json", profile=PROFILE, experiment=DATA)

# The command resumes from the units that earlier runs have written, so only its list of them is an output here.
rule experiment:
    input: "build/fingerprints/experiment-{experiment}.json"
    output: f"results/{PROFILE}/{{experiment}}/index.json"
    params: data=lambda w: data_state(DATA[w.experiment])
    log: f"{BUILD}/logs/experiment-{{experiment}}.log"
    threads: workflow.cores or 1
    resources: gpu=int(PROFILE == "gpu")
    shell:
        PYTHON + " book.pipeline.measure " + PROFILE + " experiment-{wildcards.experiment} --log {log} --"
        " {sys.executable} -m vqa_core run {wildcards.experiment} --profile " + PROFILE

rule notebook:
    input:
        code="build/code/{notebook}.ipynb",
        fingerprint="build/fingerprints/notebook-{notebook}.json",
        results=lambda w: [f"results/{PROFILE}/{e}/index.json" for e in NOTEBOOKS[w.notebook]["experiments"]],
    output: f"{BUILD}/executed/{{notebook}}.ipynb"
    params: values=lambda w: parameters(NOTEBOOKS[w.notebook], PROFILE), data=lambda w: data_state(NOTEBOOKS[w.notebook]["data"]) | kept_state(NOTEBOOKS[w.notebook]["kept"], PROFILE)
    log: f"{BUILD}/logs/notebook-{{notebook}}.log"
    threads: 1
    resources: gpu=int(PROFILE == "gpu")
    shell:
        PYTHON + " book.pipeline.measure " + PROFILE + " notebook-{wildcards.notebook} --log {log} --"
        " {sys.executable} -m book.pipeline.execute {wildcards.notebook} --profile " + PROFILE

rule book:
    input:
        executed=expand(f"{BUILD}/executed/{{notebook}}.ipynb", notebook=CHAPTERS),
        full=expand("build/notebooks/{notebook}.ipynb", notebook=NOTEBOOKS),
        sources=site_sources(),
    output: f"{BUILD}/book.json"
    log: f"{BUILD}/logs/book.log"
    threads: 1
    shell:
        PYTHON + " book.pipeline.publish " + PROFILE + " --log {log} --executed {CHAPTERS}"
