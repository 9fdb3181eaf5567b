"""A study that travels: packed for a machine without network, computed there, and merged again.

`pack` makes a box, `work` computes in it with a `crew` of processes that `serve`, `outbox` is what
comes back, `box` its format. Nothing here needs HoloViews, papermill or Snakemake.
"""
