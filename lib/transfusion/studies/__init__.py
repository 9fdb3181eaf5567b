"""Studies: their parameter files, their groups of runs, what is computed, collected and rendered.

`params` reads the files, `schedule` computes what is missing, `collected` has the results,
`batch` is `transfusion run`, `render` makes one page, `status` tells. Below: experiments.
"""

from transfusion.studies.collected import collect, results
from transfusion.studies.grouping import compute, groups
from transfusion.studies.params import knobs as parameters

__all__ = ["collect", "compute", "groups", "parameters", "results"]
