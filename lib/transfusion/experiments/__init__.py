"""Experiments: what each chapter needs run, what is measured of it, and the claims that it decides.

`plan` makes runs of knobs, `tables` a Dataset of results. A theme has a file with its effects and
its claims (`accuracy`, `learning`, `features`, `filters`, `alternatives`), which `claims` joins.
Beside them: `tuning`, `baselines`, the numbers of the `paper`, and what `deciding` takes.
"""

from transfusion.experiments.plan import runs
from transfusion.experiments.tables import knobs_of

__all__ = ["knobs_of", "runs"]
