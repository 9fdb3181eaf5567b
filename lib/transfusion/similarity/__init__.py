"""How alike layers are: second moments of activations, measures on them, networks compared.

`second_moments` is the door; `sums` adds up, `measures` reads off. `activations` takes them from a
network or from what is `stored`; `comparison` compares the networks of a study. Below: training.
"""

from transfusion.similarity.second_moments import (
    SecondMoments,
    Similarity,
    independent,
    jackknife,
    mean_cca,
)

__all__ = ["SecondMoments", "Similarity", "independent", "jackknife", "mean_cca"]
