"""A convolution that is a matrix product where a CPU is faster at it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SMALL_MAP = 4  # pixels; up to here a bfloat16 convolution is faster as a product, measured


def quicken(net: nn.Module) -> nn.Module:
    """Let the network's plain convolutions be of this kind: same tensors under the same names."""
    for module in net.modules():
        if type(module) is nn.Conv2d and _is_plain(module):
            module.__class__ = Convolution
    return net


class Convolution(nn.Conv2d):
    """A convolution that is a matrix product where this is faster: on the CPU, 1x1 or a small map.

    There oneDNN's gradient of the weights fills its tiles with little but padding: a training step
    of ResNet-50 takes 0.6 of the time at 32 px, 0.8 at 64 px. The same function to rounding.
    """

    def forward(self, images: Tensor) -> Tensor:
        kernel, stride, padding = self.kernel_size[0], self.stride[0], int(self.padding[0])
        size, reduced = images.shape[2:], torch.is_autocast_enabled("cpu")
        small = reduced and size.numel() <= SMALL_MAP
        if images.is_cuda or (kernel > 1 and not small):
            return super().forward(images)
        if kernel == 1:
            patches = images[:, :, ::stride, ::stride].permute(0, 2, 3, 1)
        else:
            patches = F.unfold(images, kernel, padding=padding, stride=stride).mT
        height, width = ((pixels + 2 * padding - kernel) // stride + 1 for pixels in size)
        rows, weight = patches.flatten(0, -2), self.weight.flatten(1)
        product = F.linear(rows, weight) if reduced else _float_product(rows, weight)
        return product.reshape(-1, height, width, len(weight)).permute(0, 3, 1, 2)


def _float_product(rows: Tensor, weight: Tensor) -> Tensor:
    """rows (N, in) times weight (out, in) as one long 1x1 convolution: `linear` would leave oneDNN
    for MKL, which is slow on the processors of others than its maker."""
    line = rows.view(1, 1, *rows.shape).permute(0, 3, 1, 2)  # one image in channels_last
    return F.conv2d(line, weight[:, :, None, None]).permute(0, 2, 3, 1)


def _is_plain(conv: nn.Conv2d) -> bool:
    """Square, undilated, ungrouped, padded with zeros by less than its kernel, without a bias."""
    square = all(len(set(pair)) == 1 for pair in (conv.kernel_size, conv.stride, conv.padding))
    plain = conv.groups == 1 and conv.dilation == (1, 1) and conv.padding_mode == "zeros"
    padded = not isinstance(conv.padding, str) and conv.padding[0] < conv.kernel_size[0]
    return square and plain and padded and conv.bias is None
