"""Networks, how they start, and the weights that they start from.

`models` builds by name: the CBR family, `classics` of torchvision, `others` of timm; `parts` are
their blocks and what these put out, `freezing` keeps some as they are; `convolution` is a faster
one.
`inits` has the paper's ways to start, on pretrained `weights`, which `renaming` makes fit, or made
`gabors`, which also see how filters move; `costs` needs no torch.
"""
