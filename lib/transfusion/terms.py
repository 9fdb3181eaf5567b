"""Words of the field in the book: titles of networks and inits, their colours and markers."""

from __future__ import annotations

NULL = "#666666"

MARKS = {
    "random": ("#0072b2", "circle"),
    "mean_var": ("#009e73", "triangle"),
    "transfer": ("#d55e00", "diamond"),
    "mean_var_bn_copied": ("#56b4e9", "inverted_triangle"),
    "mean_var_bn_redrawn": ("#e69f00", "inverted_triangle"),
    "permuted": ("#cc79a7", "square"),
    "scale_matched": ("#8c6d31", "hex"),
    "batch_norm": ("#000000", "square_x"),
    "gabor": ("#e69f00", "square"),
    "fundus": ("#d55e00", "square"),
    "cxr": ("#0072b2", "circle"),
    "objects": ("#009e73", "triangle"),
}
# Inits by block: a marker for the kind, a colour for the block, dark to light from the lowest.
KINDS = {
    "transfusion": ("square", "up to {}"),
    "suffix": ("inverted_triangle", "from {} on"),
    "only": ("hex", "{} alone"),
    "frozen": ("square_x", "frozen up to {}"),
    "mean_var": ("triangle", "Mean Var up to {}"),
}
BLOCKS = {
    **{"conv1": "#440154", "block1": "#3b528b", "block2": "#21918c"},
    **{"block3": "#4fa845", "block4": "#b5a200", "block5": "#e0a100"},
}
TITLES = {
    "cbr_tiny": "CBR-Tiny",
    "cbr_small": "CBR-Small",
    "cbr_large_t": "CBR-LargeT",
    "cbr_large_w": "CBR-LargeW",
    "resnet18": "ResNet-18",
    "resnet50": "ResNet-50",
    "inception_v3": "Inception-v3",
    "resnet50_slim": "slim ResNet-50",
    "random": "random",
    "source": "source",
    "mean_var": "Mean Var",
    "transfer": "transfer",
    "mean_var_bn_copied": "Mean Var with batch norm",
    "mean_var_bn_redrawn": "Mean Var, batch norm redrawn",
    "scale_matched": "scale matched",
    "batch_norm": "batch norm alone",
    "gabor": "synthetic Gabors",
    "statistics": "18 statistics",
    "thumbnail": "thumbnail 8×8",
    "probe:random": "frozen random features",
    "probe:transfer": "frozen pretrained features",
    "fundus": "retinas",
    "cxr": "chest films",
    "R2": "R²",
}


def title(name: str) -> str:
    """A name in code as the paper writes it, or in plain words."""
    kind, colon, block = name.partition(":")
    return KINDS[kind][1].format(block) if colon and kind in KINDS else TITLES.get(name, name)


def look(name: str) -> tuple[str, str]:
    """Colour and marker."""
    kind, colon, block = name.partition(":")
    return (BLOCKS.get(block, NULL), KINDS[kind][0]) if colon else MARKS[name]
