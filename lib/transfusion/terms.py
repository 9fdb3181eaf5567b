"""Tables of networks and inits: what each takes and is compared with, its title and its look."""

from __future__ import annotations

from typing import NamedTuple

NULL = "#666666"


class Network(NamedTuple):
    """What the book says of a network; `networks.models` builds it by its name."""

    title: str
    small: bool = True  # as those are that the paper sets against ResNet-50
    starts_from: str = ""  # the network whose pretrained weights it takes, as far as they fit


SLIM = "resnet50_slim"
# Others go by their own names.
NETWORKS = {
    "cbr_tiny": Network("CBR-Tiny"),
    "cbr_small": Network("CBR-Small"),
    "cbr_large_t": Network("CBR-LargeT"),
    "cbr_large_w": Network("CBR-LargeW"),
    "resnet18": Network("ResNet-18"),
    "resnet50": Network("ResNet-50", small=False),
    "inception_v3": Network("Inception-v3", small=False),
    SLIM: Network("slim ResNet-50", small=False, starts_from="resnet50"),
}


# Names for timm's: those by which torchvision builds the same function, and short ones.
SPELT = {
    "mobilenet_v2": "mobilenetv2_100",
    **{"regnet_y_400mf": "regnety_004", "regnet_y_1_6gf": "regnety_016"},
    **{"regnet_y_3_2gf": "regnety_032", "regnet_y_8gf": "regnety_080_tv"},
    **{"regnet_y_16gf": "regnety_160", "regnet_y_32gf": "regnety_320"},
    **{"regnet_x_400mf": "regnetx_004_tv", "regnet_x_800mf": "regnetx_008"},
    **{"regnet_x_1_6gf": "regnetx_016", "regnet_x_3_2gf": "regnetx_032"},
    **{"regnet_x_8gf": "regnetx_080", "regnet_x_16gf": "regnetx_160"},
    "regnet_x_32gf": "regnetx_320",
    **{"vit_b_16": "vit_base_patch16_224", "vit_b_32": "vit_base_patch32_224"},
    **{"vit_l_16": "vit_large_patch16_224", "vit_l_32": "vit_large_patch32_224"},
    **dict.fromkeys(("swin_t", "swin_tiny"), "swin_tiny_patch4_window7_224"),
    **dict.fromkeys(("swin_s", "swin_small"), "swin_small_patch4_window7_224"),
    **dict.fromkeys(("swin_b", "swin_base"), "swin_base_patch4_window7_224"),
    **{"maxvit_tiny": "maxvit_tiny_tf_224", "mobilenetv3_small": "mobilenetv3_small_100"},
    **{f"deit_{size}": f"deit_{size}_patch16_224" for size in ("tiny", "small", "base")},
}


def spelt(model: str) -> str:
    """The name under which a network is built and kept; what follows a blank, as an arm's init
    does, stays."""
    name, blank, rest = model.partition(" ")
    return SPELT.get(name, name) + blank + rest


class Start(NamedTuple):
    """How a network may start: all that there is to enter of an init, but for its function in
    `networks.inits`, which has the init's name unless `does` says another."""

    title: str  # of an init by block with {} for the block
    marker: str
    color: str = ""  # of an init by block that of the block
    takes: str = "all"  # of its source's tensors: see `inits.needed`
    blocks: str = "all"  # whose tensors: all, or where a block is named, "up to" it and so on
    does: str = ""
    # Whose learning rate it takes where it was not tuned itself: what it is compared with. Most
    # keep pretrained weights in their places, and so are compared with transfer.
    rated_as: str = "transfer"


# What ends in a colon is written with a block of the network: `transfusion:block2`.
INITS = {
    "random": Start("random", "circle", "#0072b2", takes="nothing", rated_as="random"),
    "transfer": Start("transfer", "diamond", "#d55e00"),
    "mean_var": Start("Mean Var", "triangle", "#009e73", takes="weights", rated_as="mean_var"),
    # Controls, which take Mean Var apart (E14).
    "mean_var_bn_copied": Start(
        "Mean Var with batch norm", "inverted_triangle", "#56b4e9", rated_as="mean_var"
    ),
    "mean_var_bn_redrawn": Start(
        "Mean Var, batch norm redrawn",
        "inverted_triangle",
        "#e69f00",
        takes="trained",
        rated_as="mean_var",
    ),
    "permuted": Start("permuted", "square", "#cc79a7", takes="weights", rated_as="mean_var"),
    "scale_matched": Start("scale matched", "hex", "#8c6d31", takes="weights", rated_as="mean_var"),
    "batch_norm": Start(
        "batch norm alone", "square_x", "#000000", takes="all but weights", rated_as="mean_var"
    ),
    "gabor": Start("synthetic Gabors", "square", "#e69f00", takes="first weights"),
    "transfusion:": Start("up to {}", "square", blocks="up to"),
    "suffix:": Start("from {} on", "inverted_triangle", blocks="from", does="transfusion"),
    "only:": Start("{} alone", "hex", blocks="alone", does="transfusion"),
    "frozen:": Start("frozen up to {}", "square_x", does="transfer"),
    "mean_var:": Start("Mean Var up to {}", "triangle", takes="weights", blocks="up to"),
}
# A colour for the block, dark to light from the lowest.
BLOCKS = {
    **{"conv1": "#440154", "block1": "#3b528b", "block2": "#21918c"},
    **{"block3": "#4fa845", "block4": "#b5a200", "block5": "#e0a100"},
}
DRAWN = {
    "fundus": ("#d55e00", "square"),
    "cxr": ("#0072b2", "circle"),
    "objects": ("#009e73", "triangle"),
}
MEASURES = {"cca": "mean CCA", "svcca": "SVCCA", "cka": "linear CKA"}
TITLES = {
    "source": "source",
    "statistics": "18 statistics",
    "thumbnail": "thumbnail 8×8",
    "probe:random": "frozen random features",
    "probe:transfer": "frozen pretrained features",
    "fundus": "retinas",
    "cxr": "chest films",
    "R2": "R²",
}


def start(init: str) -> Start:
    """The row of an init, `transfer` or `transfusion:block2`; KeyError for an unknown one."""
    kind, colon, _ = init.partition(":")
    return INITS[kind + colon]


def about(name: str) -> Network:
    return NETWORKS.get(name, Network(name))


def title(name: str) -> str:
    """A name in code as the paper writes it, or in plain words."""
    kind, colon, block = name.partition(":")
    if kind + colon in INITS:
        return INITS[kind + colon].title.format(block)
    return TITLES.get(name) or about(name).title


def look(name: str) -> tuple[str, str]:
    """Colour and marker."""
    if name in DRAWN:
        return DRAWN[name]
    _, colon, block = name.partition(":")
    row = start(name)
    return (BLOCKS.get(block, NULL) if colon else row.color), row.marker
