"""One Keras layer for each op; stock layers wherever Keras has the op's exact meaning on each of its backends.

The others are subclasses that keep the stock class name, because Keras numbers the groups of a weight file by class.
They are registered: `keras.saving.load_model` finds them once this module is imported. All tensors are N, H, W, C.
"""

from __future__ import annotations

from typing import Any

import keras

from deeplabzoo.backends.keras import _sizes as sizes
from deeplabzoo.core import ops
from deeplabzoo.core.interpolation import interpolation_matrix

PACKAGE = "deeplabzoo"
LAST = "channels_last"
"""Always given: a user's Keras configuration may have another default."""


_FUNCTIONS = {"hard_swish": "hard_silu", "sigmoid": "sigmoid"}
"""Keras' names."""


def make_layer(op: ops.Op, *, name: str | None = None, dtype: str = "float32") -> Any:
    """The native layer of an op; merging layers take a list, `Resize` two arguments, the others one tensor.

    Raises:
        TypeError: an op that no backend should meet (`Input`).
    """
    common = {"name": name, "dtype": dtype}
    match op:
        case ops.Conv2d():
            return _conv(op, common)
        case ops.BatchNorm():
            return BatchNormalization(momentum=op.momentum, epsilon=op.epsilon, **common)
        case ops.Activation(function="relu"):
            return keras.layers.ReLU(**common)
        case ops.Activation(function="relu6"):
            return keras.layers.ReLU(max_value=6.0, **common)
        case ops.Activation(function="softmax"):
            return keras.layers.Softmax(axis=-1, **common)
        case ops.Activation(function="hard_sigmoid"):
            return Activation("hard_sigmoid", **common)
        case ops.Activation():
            return keras.layers.Activation(_FUNCTIONS[op.function], **common)
        case ops.MaxPool():
            return _max_pool(op, common)
        case ops.AvgPool():
            return _avg_pool(op, common)
        case ops.GlobalAvgPool():
            return GlobalAveragePooling2D(keepdims=True, data_format=LAST, **common)
        case ops.Add():
            return keras.layers.Add(**common)
        case ops.Multiply():
            return keras.layers.Multiply(**common)
        case ops.Concat():
            return keras.layers.Concatenate(axis=-1, **common)
        case ops.Resize():
            return Resize(op.align_corners, **common)
        case ops.Dropout():
            if op.channelwise:
                return keras.layers.SpatialDropout2D(op.rate, data_format=LAST, **common)
            return keras.layers.Dropout(op.rate, **common)
        case ops.Argmax():
            return Argmax(**common)
    raise TypeError(f"no Keras layer for op {op.kind!r}")


@keras.saving.register_keras_serializable(package=PACKAGE)
class Conv2D(keras.layers.Conv2D):
    """A convolution with explicit padding, or with stride and dilation together, which Keras' own layer refuses.

    Args:
        filters: output channels.
        kernel_size: of the window.
        strides: of the window.
        sides: zeros added (top, bottom, left, right), or `same`.
        **options: of `keras.layers.Conv2D`.
    """

    def __init__(
        self, filters: int, kernel_size: Any, strides: Any = 1, *, sides: Any = (0, 0, 0, 0), **options: Any
    ) -> None:
        super().__init__(filters, kernel_size, **options)
        self.strides = sizes.pair(strides)  # set late: the constructor refuses strides beside dilation
        self.sides = sizes.padding(sides)

    def convolution_op(self, inputs: Any, kernel: Any) -> Any:
        """Pad, convolve, and subsample where the stride could not be left to Keras."""
        x, strides, step = _prepare(self, inputs)
        y = keras.ops.conv(
            x, kernel, strides=strides, padding="valid", dilation_rate=self.dilation_rate, data_format=LAST
        )
        return _subsample(y, step)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Shape after padding and stride."""
        return (*sizes.window_shape(self, input_shape, self.kernel_size, self.dilation_rate[0]), self.filters)

    def get_config(self) -> dict[str, Any]:
        """All that the constructor takes."""
        return {**super().get_config(), "sides": self.sides}


@keras.saving.register_keras_serializable(package=PACKAGE)
class DepthwiseConv2D(keras.layers.DepthwiseConv2D):
    """A depthwise convolution with explicit padding, or with stride and dilation together; see `Conv2D`."""

    def __init__(self, kernel_size: Any, strides: Any = 1, *, sides: Any = (0, 0, 0, 0), **options: Any) -> None:
        super().__init__(kernel_size, **options)
        self.strides = sizes.pair(strides)
        self.sides = sizes.padding(sides)

    def call(self, inputs: Any) -> Any:
        """Pad, convolve, subsample, add the bias."""
        x, strides, step = _prepare(self, inputs)
        y = keras.ops.depthwise_conv(
            x, self.kernel, strides=strides, padding="valid", dilation_rate=self.dilation_rate, data_format=LAST
        )
        y = _subsample(y, step)
        return keras.ops.add(y, self.bias) if self.use_bias else y

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Shape after padding and stride."""
        shape = sizes.window_shape(self, input_shape, self.kernel_size, self.dilation_rate[0])
        return (*shape, input_shape[-1] * self.depth_multiplier)

    def get_config(self) -> dict[str, Any]:
        """All that the constructor takes."""
        return {**super().get_config(), "sides": self.sides}


@keras.saving.register_keras_serializable(package=PACKAGE)
class MaxPooling2D(keras.layers.MaxPooling2D):
    """Max pooling with explicit padding by minus infinity, and with sizes rounded up where `ceil_mode` says so."""

    def __init__(
        self,
        pool_size: Any,
        strides: Any = None,
        *,
        sides: Any = (0, 0, 0, 0),
        ceil_mode: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(pool_size, strides, **options)
        self.sides = sizes.padding(sides)
        self.ceil_mode = ceil_mode

    def call(self, inputs: Any) -> Any:
        """Pad, then pool."""
        kernel, stride = self.pool_size[0], self.strides[0]
        sides = sizes.resolve(self.sides, keras.ops.shape(inputs)[1:3], kernel, stride, 1)
        if self.ceil_mode and self.sides != "same":
            sides = sizes.widen_for_ceil(sides, keras.ops.shape(inputs)[1:3], kernel, stride)
        x = _pad(inputs, sides, float("-inf"))
        return keras.ops.max_pool(x, self.pool_size, self.strides, padding="valid", data_format=LAST)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Shape after padding and stride."""
        return (*sizes.window_shape(self, input_shape, self.pool_size, 1, self.ceil_mode), input_shape[-1])

    def get_config(self) -> dict[str, Any]:
        """All that the constructor takes."""
        return {**super().get_config(), "sides": self.sides, "ceil_mode": self.ceil_mode}


@keras.saving.register_keras_serializable(package=PACKAGE)
class AveragePooling2D(keras.layers.AveragePooling2D):
    """Average pooling with explicit padding by zeros, counted or not, and with sizes rounded up; see `MaxPooling2D`."""

    def __init__(
        self,
        pool_size: Any,
        strides: Any = None,
        *,
        sides: Any = (0, 0, 0, 0),
        ceil_mode: bool = False,
        count_padding: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(pool_size, strides, **options)
        self.sides = sizes.padding(sides)
        self.ceil_mode = ceil_mode
        self.count_padding = count_padding

    def call(self, inputs: Any) -> Any:
        """Pad, then divide the mean of each window by the share of it that counts."""
        size = keras.ops.shape(inputs)[1:3]
        whole = self.sides
        if self.ceil_mode:
            whole = sizes.widen_for_ceil(self.sides, size, self.pool_size[0], self.strides[0])
        x = keras.ops.cast(inputs, sizes.accumulator(self.compute_dtype))
        y = self._means(_pad(x, whole, 0.0))
        if self.ceil_mode or not self.count_padding:
            counted = keras.ops.ones((1, *size, 1), dtype=x.dtype)
            counted = _pad(counted, self.sides, float(self.count_padding))
            beyond = tuple(after - before for before, after in zip(self.sides, whole, strict=True))
            y = y / self._means(_pad(counted, beyond, 0.0))
        return keras.ops.cast(y, self.compute_dtype)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Shape after padding and stride."""
        return (*sizes.window_shape(self, input_shape, self.pool_size, 1, self.ceil_mode), input_shape[-1])

    def get_config(self) -> dict[str, Any]:
        """All that the constructor takes."""
        own = {"sides": self.sides, "ceil_mode": self.ceil_mode, "count_padding": self.count_padding}
        return {**super().get_config(), **own}

    def _means(self, x: Any) -> Any:
        return keras.ops.average_pool(x, self.pool_size, self.strides, padding="valid", data_format=LAST)


@keras.saving.register_keras_serializable(package=PACKAGE)
class GlobalAveragePooling2D(keras.layers.GlobalAveragePooling2D):
    """The mean in the layer's own precision: Keras' means are float32 on some of its backends whatever goes in."""

    def call(self, inputs: Any) -> Any:
        """Sum over count."""
        shape = keras.ops.shape(inputs)
        x = keras.ops.cast(inputs, sizes.accumulator(self.compute_dtype))
        total = keras.ops.sum(x, axis=(1, 2), keepdims=self.keepdims)
        return keras.ops.cast(total / keras.ops.cast(shape[1] * shape[2], total.dtype), self.compute_dtype)


@keras.saving.register_keras_serializable(package=PACKAGE)
class BatchNormalization(keras.layers.BatchNormalization):
    """Batch normalisation over N, H, W as `core.ops.BatchNorm` says: unbiased running variance, own precision."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        if self.synchronized or getattr(self, "renorm", False):
            raise ValueError(f"layer {self.name}: synchronized and renorm are not supported, expected neither")
        # XLA drops the check below, and TensorFlow would use XLA by itself where every layer allows it.
        self.supports_jit = keras.backend.backend() != "tensorflow"

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Normalise; in training by the statistics of the batch, which also move the running ones."""
        x = keras.ops.cast(inputs, sizes.accumulator(self.compute_dtype))
        mean, variance = (keras.ops.cast(v, x.dtype) for v in (self.moving_mean, self.moving_variance))
        if training and self.trainable:
            mean, variance = self._move_statistics(x, mean, variance)
        y = keras.ops.batch_normalization(
            x,
            mean,
            variance,
            axis=self.axis,
            offset=keras.ops.cast(self.beta, x.dtype) if self.center else None,
            scale=keras.ops.cast(self.gamma, x.dtype) if self.scale else None,
            epsilon=self.epsilon,
        )
        return keras.ops.cast(y, self.compute_dtype)

    def _move_statistics(self, x: Any, running_mean: Any, running_variance: Any) -> tuple[Any, Any]:
        shape = keras.ops.shape(x)
        values = shape[0] * shape[1] * shape[2]
        x = sizes.more_than_one(x, values, self.name)
        count = keras.ops.cast(values, x.dtype)
        mean = keras.ops.sum(x, axis=(0, 1, 2)) / count
        squares = keras.ops.sum(keras.ops.square(x - mean), axis=(0, 1, 2))
        kept = self.momentum
        self.moving_mean.assign(running_mean * kept + mean * (1 - kept))
        self.moving_variance.assign(running_variance * kept + squares / (count - 1) * (1 - kept))
        return mean, squares / count


@keras.saving.register_keras_serializable(package=PACKAGE)
class Resize(keras.layers.Layer):
    """Bilinear resize of the first input to the height and width of the second, as two matrix products.

    Keras' own resize has no `align_corners` and computes in float32, and TensorFlow's is wrong under XLA.
    """

    def __init__(self, align_corners: bool, **options: Any) -> None:
        super().__init__(**options)
        self.align_corners = align_corners

    def call(self, x: Any, target: Any) -> Any:
        """Resize."""
        n, h, w, channels = keras.ops.shape(x)
        _, target_h, target_w, _ = keras.ops.shape(target)
        if _equal(h, 1) and _equal(w, 1):  # constant under every convention
            return keras.ops.broadcast_to(x, (n, target_h, target_w, channels))
        # The operator, not keras.ops.matmul: that one computes in float32 on torch whatever goes in.
        if not _equal(h, target_h):
            x = self._matrix(h, target_h) @ keras.ops.reshape(x, (n, h, w * channels))
            x = keras.ops.reshape(x, (n, target_h, w, channels))
        return x if _equal(w, target_w) else self._matrix(w, target_w) @ x

    def compute_output_shape(self, x_shape: Any, target_shape: Any) -> Any:
        """N, C of the first input, H, W of the second."""
        return (x_shape[0], *target_shape[1:3], x_shape[3])

    def get_config(self) -> dict[str, Any]:
        """All that the constructor takes."""
        return {**super().get_config(), "align_corners": self.align_corners}

    def _matrix(self, source: Any, target: Any) -> Any:
        if isinstance(source, int) and isinstance(target, int):
            matrix = interpolation_matrix(source, target, align_corners=self.align_corners)
            return keras.ops.convert_to_tensor(matrix, dtype=self.compute_dtype)
        return keras.ops.cast(sizes.interpolation_matrix(source, target, self.align_corners), self.compute_dtype)


@keras.saving.register_keras_serializable(package=PACKAGE)
class Activation(keras.layers.Activation):
    """`hard_sigmoid`, in float64 written out: on torch the gradient of Keras' own is that of a float32 1/6."""

    def call(self, inputs: Any) -> Any:
        """Apply it to each value."""
        if self.compute_dtype != "float64":
            return super().call(inputs)
        return keras.ops.relu6(inputs + 3) / 6


@keras.saving.register_keras_serializable(package=PACKAGE)
class Argmax(keras.layers.Layer):
    """Index of the largest channel, N, H, W, 1; int64, but int32 on JAX while its 64-bit types are switched off."""

    def call(self, x: Any) -> Any:
        """Argmax over the channels."""
        # Keras' argmax ranks 0.0 above -0.0; everywhere else they are equal and the lower index wins.
        x = keras.ops.where(x == 0, keras.ops.zeros_like(x), x)
        return keras.ops.cast(keras.ops.argmax(x, axis=-1, keepdims=True), sizes.index_dtype())


def _conv(op: ops.Conv2d, common: dict[str, Any]) -> Any:
    options = {"dilation_rate": op.dilation, "use_bias": op.bias, "data_format": LAST, **common}
    module: Any = keras.layers
    if op.stride > 1 and op.dilation > 1:
        options["sides"] = op.padding
    elif (word := _stock_padding(op)) is not None:
        options["padding"] = word
    else:
        options["sides"] = op.padding
    if "sides" in options:
        module = _OWN
    if op.depthwise:
        multiplier = op.out_channels // op.in_channels
        return module.DepthwiseConv2D(op.kernel, op.stride, depth_multiplier=multiplier, **options)
    return module.Conv2D(op.out_channels, op.kernel, op.stride, groups=op.groups, **options)


class _OWN:
    """The subclasses above by their stock names."""

    Conv2D = Conv2D
    DepthwiseConv2D = DepthwiseConv2D


def _stock_padding(op: ops.Conv2d) -> str | None:
    """`same` or `valid` where one of them means the op's padding at every size of input."""
    if op.padding == "same":
        return "same"
    if op.padding == (0, 0, 0, 0):
        return "valid"
    whole = op.dilation * (op.kernel - 1)
    centred = set(op.padding) == {whole // 2} and whole % 2 == 0
    return "same" if op.stride == 1 and centred else None


def _max_pool(op: ops.MaxPool, common: dict[str, Any]) -> Any:
    options = {"data_format": LAST, **common}
    if op.padding == "same":
        return keras.layers.MaxPooling2D(op.kernel, op.stride, padding="same", **options)
    if op.padding == (0, 0, 0, 0) and not op.ceil_mode:
        return keras.layers.MaxPooling2D(op.kernel, op.stride, padding="valid", **options)
    return MaxPooling2D(op.kernel, op.stride, sides=op.padding, ceil_mode=op.ceil_mode, **options)


def _avg_pool(op: ops.AvgPool, common: dict[str, Any]) -> Any:
    options = {"data_format": LAST, **common}
    rounds_up = op.ceil_mode and op.stride > 1
    if op.padding == (0, 0, 0, 0) and not rounds_up:
        return keras.layers.AveragePooling2D(op.kernel, op.stride, padding="valid", **options)
    # Only at stride 1: on torch Keras counts what it has padded unevenly for `same`.
    centred = op.kernel % 2 == 1 and set(op.padding) == {op.kernel // 2}
    if op.stride == 1 and centred and not op.count_padding:
        return keras.layers.AveragePooling2D(op.kernel, 1, padding="same", **options)
    own: dict[str, Any] = {"sides": op.padding, "ceil_mode": rounds_up, "count_padding": op.count_padding}
    return AveragePooling2D(op.kernel, op.stride, **own, **options)


def _prepare(layer: Any, x: Any) -> tuple[Any, Any, int]:
    """The padded input, the strides that Keras may apply, and the step of the subsampling that it may not."""
    stride, dilation = layer.strides[0], layer.dilation_rate[0]
    sides = sizes.resolve(layer.sides, keras.ops.shape(x)[1:3], layer.kernel_size[0], stride, dilation)
    split = stride > 1 and dilation > 1
    return _pad(x, sides, 0.0), 1 if split else layer.strides, stride if split else 1


def _pad(x: Any, sides: Any, value: float) -> Any:
    top, bottom, left, right = sides
    return keras.ops.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=value)


def _subsample(x: Any, step: int) -> Any:
    return x[:, ::step, ::step] if step > 1 else x


def _equal(a: Any, b: Any) -> bool:
    return isinstance(a, int) and isinstance(b, int) and a == b
