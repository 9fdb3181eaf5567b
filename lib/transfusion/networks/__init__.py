"""Networks, how they start, and the weights that they start from.

`models` builds by name, `others` what is not ours; `inits` has the paper's ways to start, on
pretrained `weights` or made `gabors`; `costs` needs no torch. From below come `config` and `store`.
"""
