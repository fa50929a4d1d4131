"""Arithmetic on sizes that may be numbers, or tensors where TensorFlow traces a graph for images of any size."""

from __future__ import annotations

from typing import Any

import keras

from deeplabzoo.core.ops import same_padding


def pair(value: Any) -> tuple[int, int]:
    """A number for both axes, or one for each (a list where it comes from a configuration)."""
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def padding(value: Any) -> Any:
    """`same`, or (top, bottom, left, right) as a tuple."""
    return value if value == "same" else tuple(value)


def resolve(sides: Any, size: Any, kernel: int, stride: int, dilation: int) -> tuple[Any, Any, Any, Any]:
    """(top, bottom, left, right) of `sides` for an input of `size` (height, width)."""
    if sides != "same":
        top, bottom, left, right = sides
        return top, bottom, left, right
    top, bottom = _same(size[0], kernel, stride, dilation)
    left, right = _same(size[1], kernel, stride, dilation)
    return top, bottom, left, right


def widen_for_ceil(sides: tuple[Any, ...], size: Any, kernel: int, stride: int) -> tuple[Any, Any, Any, Any]:
    """`sides` with what the last windows of a pooling need beyond them when its sizes are rounded up."""
    top, bottom, left, right = sides
    return (
        top,
        bottom + _missing(size[0], top, bottom, kernel, stride),
        left,
        right + _missing(size[1], left, right, kernel, stride),
    )


def window_shape(
    layer: Any, shape: Any, kernel: tuple[int, int], dilation: int, ceil_mode: bool = False
) -> tuple[int | None, ...]:
    """N, H, W of a window layer's output; `None` where it is free.

    Raises:
        ValueError: the input is smaller than the window.
    """
    stride = layer.strides[0]
    made: list[int | None] = []
    for size, sides in ((shape[1], slice(0, 2)), (shape[2], slice(2, 4))):
        if size is None:
            made.append(None)
        elif layer.sides == "same":
            made.append(-(-size // stride))
        else:
            before, after = layer.sides[sides]
            if ceil_mode:
                after += _missing(size, before, after, kernel[0], stride)
            made.append((size + before + after - dilation * (kernel[0] - 1) - 1) // stride + 1)
        if made[-1] is not None and made[-1] < 1:
            raise ValueError(f"layer {layer.name}: an input of {shape[1]}x{shape[2]} is too small for its window")
    return (shape[0], *made)


def accumulator(dtype: str) -> str:
    """The type to sum in: half precision would overflow or lose its last digits."""
    return "float32" if dtype in ("float16", "bfloat16") else dtype


def index_dtype() -> str:
    """int64, but int32 on JAX while its 64-bit types are switched off."""
    if keras.backend.backend() == "jax":
        import jax  # only there where it is the Keras backend

        return "int64" if jax.config.jax_enable_x64 else "int32"
    return "int64"


def more_than_one(x: Any, values: Any, layer: str) -> Any:
    """`x`, once it is sure that it has more than one value a channel.

    Raises:
        ValueError: it has not. A graph traced for free sizes raises TensorFlow's `InvalidArgumentError` when it runs.
    """
    message = (
        f"layer {layer}: expected more than 1 value a channel in training, received 1: use a batch of at least 2, "
        "or freeze the layer with trainable = False"
    )
    if isinstance(values, int):
        if values <= 1:
            raise ValueError(message)
        return x
    import tensorflow as tf  # only its graphs have sizes that are not known

    with tf.control_dependencies([tf.debugging.assert_greater(values, 1, message=message)]):
        return tf.identity(x)


def interpolation_matrix(source: Any, target: Any, align_corners: bool) -> Any:
    """`core.interpolation.interpolation_matrix` where a size is a tensor; float64.

    Points i and j of target and source share max(1 - |at(i) - j|, 0), which is the same number without a scatter.
    """
    source, target = keras.ops.cast(source, "float64"), keras.ops.cast(target, "float64")
    index = keras.ops.arange(target, dtype="float64")
    if align_corners:
        at = index * (source - 1) / keras.ops.maximum(target - 1, 1)
    else:
        at = (index + 0.5) * source / target - 0.5
        at = keras.ops.minimum(keras.ops.maximum(at, 0), source - 1)
    distance = keras.ops.abs(at[:, None] - keras.ops.arange(source, dtype="float64")[None])
    return keras.ops.maximum(1 - distance, 0)


def _same(size: Any, kernel: int, stride: int, dilation: int) -> tuple[Any, Any]:
    if isinstance(size, int):
        return same_padding(size, kernel, stride, dilation)
    out = (size + stride - 1) // stride
    total = keras.ops.maximum((out - 1) * stride + dilation * (kernel - 1) + 1 - size, 0)
    return total // 2, total - total // 2


def _missing(size: Any, before: int, after: int, kernel: int, stride: int) -> Any:
    """Points that a pooling with sizes rounded up reads beyond its padding, after the last."""
    minimum, maximum = (min, max) if isinstance(size, int) else (keras.ops.minimum, keras.ops.maximum)
    padded = size + before + after
    windows = (padded - kernel + stride - 1) // stride + 1
    # A last window that would start beyond the input and its leading padding is left out.
    windows = minimum(windows, (size + before + stride - 1) // stride)
    return maximum((windows - 1) * stride + kernel - padded, 0)
