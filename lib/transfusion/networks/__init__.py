"""Networks, how they start, and the weights that they start from.

`models` builds by name, `others` what is of torchvision; `inits` has the paper's ways to start, on
pretrained `weights` or made `gabors`, which also see how filters move; `costs` needs no torch.
"""
