"""A DeepLab v3+ as PaddleSeg users have it, written by hand in Paddle, and what the trace says of its faults."""

from __future__ import annotations

import json

import common
import paddle
from paddle import nn
from paddle.nn import functional

from deeplabzoo.zoo.presets.paddleseg import template

RATES = (1, 2, 3)
SPEC = template("v3plus", "resnet50", 5).narrowed(16)
SPEC = SPEC.replace(aspp=SPEC.aspp.replace(rates=RATES))
WEIGHTS = common.lively(SPEC, "backbone.stage1.block1.bn1")
ASPP, LOW, DECODER = 16, SPEC.decoder.low_level_channels, SPEC.decoder.channels


class Unit(nn.Layer):
    def __init__(self, channels, out, kernel=1, *, act=True, bias=False, **options):
        super().__init__()
        padding = options.get("dilation", 1) * (kernel // 2)
        self._conv = nn.Conv2D(channels, out, kernel, padding=padding, bias_attr=None if bias else False, **options)
        self._batch_norm = nn.BatchNorm2D(out)
        self._act = nn.ReLU() if act else None

    def forward(self, x):
        x = self._batch_norm(self._conv(x))
        return x if self._act is None else self._act(x)


class Separable(nn.Layer):
    def __init__(self, channels, out, rate=1):
        super().__init__()
        self.depthwise_conv = Unit(channels, channels, 3, act=False, bias=True, groups=channels, dilation=rate)
        self.piontwise_conv = Unit(channels, out, bias=True)

    def forward(self, x):
        return self.piontwise_conv(self.depthwise_conv(x))


class Block(nn.Layer):
    def __init__(self, channels, planes, stride, rate, first):
        super().__init__()
        self.conv0 = Unit(channels, planes)
        self.conv1 = Unit(planes, planes, 3, stride=stride, dilation=rate)
        self.conv2 = Unit(planes, 4 * planes, act=False)
        self.short = Unit(channels, 4 * planes, act=False) if first else None
        self.pool = nn.AvgPool2D(2, 2, ceil_mode=True) if stride == 2 else None

    def forward(self, x):
        y = self.conv2(self.conv1(self.conv0(x)))
        if self.short is not None:
            x = self.short(x if self.pool is None else self.pool(x))
        return functional.relu(x + y)


class Backbone(nn.Layer):
    def __init__(self):
        super().__init__()
        self.conv1_1, self.conv1_2, self.conv1_3 = Unit(3, 2, 3, stride=2), Unit(2, 2, 3), Unit(2, 4, 3)
        self.pool = nn.MaxPool2D(3, 2, 1)
        channels, self.names = 4, []
        stages = ((3, 1, (1, 1, 1)), (4, 2, (1,) * 4), (6, 1, (2,) * 6), (3, 1, (4, 8, 16)))
        for number, (count, stride, rates) in enumerate(stages):
            for n in range(count):
                block = Block(channels, 4 * 2**number, stride if n == 0 else 1, rates[n], n == 0)
                self.add_sublayer(f"bb_{number}_{n}", block)
                self.names.append((f"bb_{number}_{n}", n == count - 1))
                channels = 16 * 2**number

    def forward(self, x):
        x, ends = self.pool(self.conv1_3(self.conv1_2(self.conv1_1(x)))), []
        for name, last in self.names:
            x = getattr(self, name)(x)
            ends += [x] if last else []
        return ends


def resized(x, like, corners=False):
    return functional.interpolate(x, like.shape[2:], mode="bilinear", align_corners=corners)


class Pyramid(nn.Layer):
    def __init__(self, channels):
        super().__init__()
        branches = [Separable(channels, ASPP, rate) for rate in RATES]
        self.aspp_blocks = nn.LayerList([Unit(channels, ASPP, bias=True), *branches])
        self.global_avg_pool = nn.Sequential(nn.AdaptiveAvgPool2D(1), Unit(channels, ASPP))
        self.conv_bn_relu = Unit(5 * ASPP, ASPP, bias=True)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x):
        maps = [block(x) for block in self.aspp_blocks]
        maps.append(resized(self.global_avg_pool(x), x))
        return self.dropout(self.conv_bn_relu(paddle.concat(maps, 1)))


class Decoder(nn.Layer):
    def __init__(self):
        super().__init__()
        self.conv_bn_relu1 = Unit(16, LOW, bias=True)
        self.conv_bn_relu2 = Separable(ASPP + LOW, DECODER)
        self.conv_bn_relu3 = Separable(DECODER, DECODER)
        self.conv = nn.Conv2D(DECODER, 5, 1)
        self.corners = False

    def forward(self, x, low):
        low = self.conv_bn_relu1(low)
        x = paddle.concat([resized(x, low, self.corners), low], 1)
        return self.conv(self.conv_bn_relu3(self.conv_bn_relu2(x)))


class Head(nn.Layer):
    def __init__(self):
        super().__init__()
        self.aspp, self.decoder = Pyramid(128), Decoder()

    def forward(self, ends):
        return self.decoder(self.aspp(ends[-1]), ends[0])


class MyDeepLab(nn.Layer):
    def __init__(self):
        super().__init__()
        self.backbone, self.head = Backbone(), Head()
        self.corners = False

    def forward(self, x):
        return [resized(self.head(self.backbone(x)), x, self.corners)]


def make():
    model = MyDeepLab()
    model.to(dtype="float64")
    values = common.foreign(WEIGHTS, SPEC, "paddleseg", "paddle")
    state = model.state_dict()
    assert set(state) == set(values), sorted(set(state) ^ set(values))[:6]
    for name, array in values.items():
        state[name].set_value(paddle.to_tensor(array, dtype="float64"))
    model.train()
    return model


def dilation(model):
    conv = model.head.aspp.aspp_blocks[3].depthwise_conv._conv
    conv._dilation, conv._padding, conv._updated_padding = [2, 2], 2, [2, 2]


def epsilon(model):
    model.backbone.bb_2_3.conv1._batch_norm._epsilon = 1e-3


def bias(model):
    conv = model.backbone.bb_3_0.conv0._conv
    conv.bias = conv.create_parameter([conv.weight.shape[0]], dtype="float64", is_bias=True)
    conv.bias.set_value(paddle.full(conv.bias.shape, 0.1, "float64"))


def stride(model):
    block = model.backbone.bb_1_0
    block.conv0._conv._stride, block.conv1._conv._stride = [2, 2], [1, 1]


def corners(model):
    model.corners = True


def corners_of_decoder(model):
    model.head.decoder.corners = True


def relu6(model):
    model.backbone.bb_0_0.conv0._act = nn.ReLU6()


def scores(model):
    model.forward = lambda x: [model.head(model.backbone(x))]


class Around(nn.Layer):
    """What a product calls: the network, and something done with what it returns."""

    def __init__(self, net, factor):
        super().__init__()
        self.net, self.factor = net, factor

    def forward(self, x):
        return [one * self.factor for one in self.net(x)]


FAULTS = {
    "right": lambda model: None,
    "dilation": dilation,
    "epsilon": epsilon,
    "bias": bias,
    "stride": stride,
    "corners": corners,
    "corners of the decoder": corners_of_decoder,
    "relu6": relu6,
    "scores alone": scores,
    "wrapped": paddle.DataParallel,
    "around": lambda model: Around(model, 1),
    "doubled around": lambda model: Around(model, 2),
}
results = common.each(make, FAULTS, spec=SPEC)
model = make()
model.backbone.eval()
common.attempt(model, spec=SPEC)
results["modes"] = [model.training, model.backbone.training]
results["hooks"] = sum(len(layer._forward_post_hooks) for layer in model.sublayers(include_self=True))
print(json.dumps(results))
