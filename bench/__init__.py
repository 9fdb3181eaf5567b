"""How fast this machine works, as ratios to the plain way in the same run: no part of the library.

`python -m bench --quick`, from the checkout. `reference` is the plain way, never to be made faster.
"""
