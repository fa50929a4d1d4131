"""A DeepLab v3 as torchvision users have it, written by hand in PyTorch, and what the trace says of its faults."""

from __future__ import annotations

import json

import common
import torch
from torch import nn
from torch.nn import functional

import deeplabzoo as dz
from deeplabzoo.backends.torch.build import build
from deeplabzoo.core.architectures import build_graph
from deeplabzoo.core.graph import Graph
from deeplabzoo.zoo.presets.torchvision import template

RATES = (1, 2, 3)
SPEC = template("resnet50", 5, aux=True).narrowed(16)
SPEC = SPEC.replace(aspp=SPEC.aspp.replace(rates=RATES))
WEIGHTS = common.lively(SPEC, "backbone.stage2.block2.bn1")
STEM, ASPP = 4, 16


def unit(channels, out, kernel=1, *, rate=1):
    padding = rate * (kernel // 2)
    conv = nn.Conv2d(channels, out, kernel, padding=padding, dilation=rate, bias=False)
    return [conv, nn.BatchNorm2d(out), nn.ReLU(inplace=True)]


class Bottleneck(nn.Module):
    def __init__(self, channels, planes, stride, rate, first):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, rate, rate, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, 4 * planes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * planes)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if first:
            short = nn.Conv2d(channels, 4 * planes, 1, stride, bias=False)
            self.downsample = nn.Sequential(short, nn.BatchNorm2d(4 * planes))

    def forward(self, x):
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, STEM, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        channels = STEM
        # The first block of a dilated stage keeps the rate of the stage before.
        for number, (count, stride, first, rate) in enumerate(
            ((3, 1, 1, 1), (4, 2, 1, 1), (6, 1, 1, 2), (3, 1, 2, 4)), 1
        ):
            planes, blocks = STEM * 2 ** (number - 1), []
            for n in range(count):
                blocks.append(Bottleneck(channels, planes, stride if n == 0 else 1, rate if n else first, n == 0))
                channels = 4 * planes
            setattr(self, f"layer{number}", nn.Sequential(*blocks))

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        third = self.layer3(self.layer2(self.layer1(x)))
        return third, self.layer4(third)


class Pooling(nn.Sequential):
    def __init__(self, channels):
        super().__init__(nn.AdaptiveAvgPool2d(1), *unit(channels, ASPP))

    def forward(self, x):
        return functional.interpolate(super().forward(x), size=x.shape[-2:], mode="bilinear", align_corners=False)


class Pyramid(nn.Module):
    def __init__(self, channels):
        super().__init__()
        branches = [nn.Sequential(*unit(channels, ASPP, 3, rate=rate)) for rate in RATES]
        self.convs = nn.ModuleList([nn.Sequential(*unit(channels, ASPP)), *branches, Pooling(channels)])
        self.project = nn.Sequential(*unit(5 * ASPP, ASPP), nn.Dropout(0.5))

    def forward(self, x):
        return self.project(torch.cat([conv(x) for conv in self.convs], 1))


class MyDeepLab(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = Backbone()
        self.classifier = nn.Sequential(Pyramid(32 * STEM), *unit(ASPP, ASPP, 3), nn.Conv2d(ASPP, 5, 1))
        self.aux_classifier = nn.Sequential(*unit(16 * STEM, ASPP, 3), nn.Dropout(0.1), nn.Conv2d(ASPP, 5, 1))
        self.corners, self.shift = False, 0.0

    def forward(self, x):
        third, last = self.backbone(x)
        scores = {"out": self.classifier(last + self.shift), "aux": self.aux_classifier(third)}
        return {name: self.resized(value, x.shape[-2:]) for name, value in scores.items()}

    def resized(self, value, size):
        return functional.interpolate(value, size=size, mode="bilinear", align_corners=self.corners)


class Lightning(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model, self.criterion = model, nn.CrossEntropyLoss(weight=torch.ones(5))


class Around(nn.Module):
    """What a product calls: the network, and something done with what it returns."""

    def __init__(self, net, after):
        super().__init__()
        self.net, self.after = net, after

    def forward(self, x):
        return self.after(self.net(x))


class AnotherTime(MyDeepLab):
    """Runs a module twice, and its auxiliary head never."""

    def forward(self, x):
        _, last = self.backbone(x)
        self.classifier[0].convs[0](last)
        return [self.resized(self.classifier(last), x.shape[-2:])]


def make(kind=MyDeepLab):
    model = kind().double()
    values = common.foreign(WEIGHTS, SPEC, "torchvision", "torch")
    model.load_state_dict({name: torch.from_numpy(array) for name, array in values.items()})
    return model


def dilation(model):
    conv = model.classifier[0].convs[2][0]
    conv.dilation = conv.padding = (3, 3)


def epsilon(model):
    model.backbone.layer3[1].bn2.eps = 1e-3


def bias(model):
    model.classifier[0].convs[1][0].bias = nn.Parameter(torch.full((ASPP,), 0.1, dtype=torch.float64))


def shift(model):
    model.shift = 0.01


def stride(model):
    block = model.backbone.layer2[0]
    block.conv1.stride, block.conv2.stride = (2, 2), (1, 1)


def corners(model):
    model.corners = True


def relu6(model):
    model.backbone.layer2[1].relu = nn.ReLU6(inplace=True)


def tensor(model):
    with torch.no_grad():
        model.classifier[4].weight[2] *= 1.0001


def our_own():
    """A model of this package, whose graph has another epsilon than its spec says."""
    spec = dz.spec("v3plus", backbone="mobilenet_v2", rates=(1, 2, 3)).narrowed(8)
    graph = build_graph(spec)
    data = graph.to_dict()
    next(node for node in data["nodes"] if node["name"] == "decoder.conv1.depthwise.bn")["epsilon"] = 0.01
    weights = common.lively(spec, "aspp.fusion.bn")
    models = []
    for one in (graph, Graph.from_dict(data)):
        model = build(one, dtype="float64")
        model.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()}, strict=False)
        models.append(common.attempt(model, spec=spec))
    return models


FAULTS = {
    "right": lambda model: None,
    "dilation": dilation,
    "epsilon": epsilon,
    "bias": bias,
    "shift": shift,
    "stride": stride,
    "corners": corners,
    "relu6": relu6,
    "float32": lambda model: model.float(),
    "float32 epsilon": lambda model: epsilon(model) or model.float(),
    "half": lambda model: model.half(),
    "half with a rate": lambda model: dilation(model) or model.half(),
    "wrapped": lambda model: nn.DataParallel(Lightning(model).model),
    "in a training module": Lightning,
    "around": lambda model: Around(model, lambda y: y),
    "doubled around": lambda model: Around(model, lambda y: {name: one * 2 for name, one in y.items()}),
    "softmax around": lambda model: Around(model, lambda y: y["out"].softmax(1)),
    "labels around": lambda model: Around(model, lambda y: y["out"].argmax(1)),
    "nothing around": lambda model: Around(model, lambda y: None),
    "fails around": lambda model: Around(model, lambda y: 1 / 0),
    "compiled": torch.compile,
}

results = common.each(make, FAULTS, spec=SPEC)
results["twice"] = common.attempt(make(AnotherTime), spec=SPEC)
results["ours"], results["ours wrong"] = our_own()

model = make()
results["published"] = common.attempt(model, size=(49, 57))
results["preset"] = common.attempt(model, size=(49, 57), spec="v3_resnet50.torchvision")
results["taps"] = common.attempt(
    relu6(model) or model,
    spec=SPEC,
    names={"backbone.layer2.0": "backbone.stage2.block1.relu", "classifier.0.project.2": "aspp.fusion.relu"},
)
model = make()
tensor(model)
results["weights"] = common.attempt(model, spec=SPEC, weights=WEIGHTS)
results["no module"] = common.attempt(model, spec=SPEC, names={"classifier.0.projekt": "aspp.fusion.relu"})
results["no node"] = common.attempt(model, spec=SPEC, names={"classifier.0.project": "aspp.fusion.rely"})
results["too narrow"] = common.attempt(nn.Sequential(model.backbone.conv1), spec=SPEC)
results["unknown names"] = common.attempt(
    nn.Sequential(model.backbone.conv1, model.backbone.bn1),
    spec=SPEC, weights=WEIGHTS, names={"0": "backbone.stem.conv", "1": "backbone.stem.bn"},
)  # fmt: skip
model.forward = lambda x: model.backbone(x[:, :2])
results["does not run"] = common.attempt(model, spec=SPEC)

model = make()
model.backbone.eval()
model.train()
model.backbone.bn1.eval()
common.attempt(model, spec=SPEC)
results["modes"] = [model.training, model.classifier.training, model.backbone.bn1.training]
results["hooks"] = sum(len(module._forward_hooks) for module in model.modules())
print(json.dumps(results))
