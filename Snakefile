# Groups of runs -> chapters of the book, from a laptop to a cluster (book/guide/cluster.md).
# `transfusion run` calls this; so can you: snakemake --profile params/profiles/local -n
import shlex

from transfusion import machine, store
from transfusion.studies import grouping, params, render

machine.one_thread()
STUDY = config.get("study", "quick")
DONE = f"{store.root()}/groups/{{study}}/{{group}}.json"
PAGE = f"{render.BUILD}/executed/{{study}}/{{chapter}}.ipynb"
# `exec`, or a shell would be between this process and the one that is to end with it.
COMMAND = f"exec {shlex.join(machine.bound('transfusion'))}"


workdir: store.root()


localrules:
    all,


wildcard_constraints:
    study="[^/]+",
    group="[^/]+",
    chapter="[^/]+",


rule all:
    input:
        expand(PAGE, study=STUDY, chapter=params.chapters(STUDY)),


# Nothing but the small done-file is declared: Snakemake deletes what is before it tries again.
# All input is `ancient`: what is out of date is known by content, and has been removed; dates are
# those of many machines' clocks.
rule group:
    priority: 1  # pages last: they tell of all results
    input:
        lambda w: ancient(
            expand(DONE, study=w.study, group=grouping.groups(w.study)[w.group].needs)
        ),
    output:
        DONE,
    params:
        members=lambda w: [spec.key for spec in grouping.groups(w.study)[w.group].specs],
    log:
        DONE.replace(".json", ".log"),
    resources:
        gpu=lambda w: grouping.groups(w.study)[w.group].devices,
        runtime=lambda w: grouping.minutes(w.study, w.group),
    shell:
        "{COMMAND} group {wildcards.study:q} {wildcards.group:q} > {log:q} 2>&1"


rule chapter:
    input:
        notebook=ancient(f"{render.BOOK}/{{chapter}}.ipynb"),
        parameters=lambda w: ancient(params.files(w.study, w.chapter)),
        groups=lambda w: ancient(
            expand(DONE, study=w.study, group=grouping.groups_of(w.study, w.chapter))
        ),
    output:
        PAGE,
    log:
        PAGE.replace(".ipynb", ".log"),
    resources:
        runtime=30,
    shell:
        "{COMMAND} chapter {wildcards.study:q} {wildcards.chapter:q} > {log:q} 2>&1"
