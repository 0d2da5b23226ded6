"""References for several tests: sliding windows, batch normalization and derivatives as plain numpy loops."""

import itertools

import numpy as np


def pixel_pairs(size, kernel, strides, padding):
    """((top, bottom), (left, right)) of a padding rule; "SAME" gives ceil(size / stride) outputs."""
    if padding == "VALID":
        return ((0, 0), (0, 0))
    if padding != "SAME":
        return padding
    total = [max((-(-n // s) - 1) * s + k - n, 0) for n, k, s in zip(size, kernel, strides, strict=True)]
    return tuple((t // 2, t - t // 2) for t in total)


def windows(padded, kernel, strides):
    """Yields (output row, output column, slices of the input rows and columns that it reads)."""
    counts = [(n - k) // s + 1 for n, k, s in zip(padded.shape[1:3], kernel, strides, strict=True)]
    for row, col in itertools.product(*map(range, counts)):
        top, left = row * strides[0], col * strides[1]
        yield row, col, (slice(None), slice(top, top + kernel[0]), slice(left, left + kernel[1]))


def pad(x, pairs, value=0.0):
    return np.pad(x, ((0, 0), *pairs, (0, 0)), constant_values=value)


def crop(padded, pairs, size):
    """Removes the padding."""
    (top, _), (left, _) = pairs
    return padded[:, top : top + size[0], left : left + size[1]]


def image(pixels):
    """{(row, column): float[N, C]} -> float[N, rows, columns, C]."""
    rows, cols = np.max(list(pixels), axis=0) + 1
    values = np.stack([pixels[place] for place in np.ndindex(rows, cols)], axis=1)  # [N, rows columns, C]
    return values.reshape(len(values), rows, cols, -1)


def conv(x, kernel, strides, pairs):
    """A regular convolution: every output pixel is its window times the kernel[kh, kw, in, out]."""
    padded, out = pad(x, pairs), {}
    for row, col, window in windows(padded, kernel.shape[:2], strides):
        out[row, col] = np.einsum("nijc,ijcd->nd", padded[window], kernel)
    return image(out)


def conv_gradients(x, kernel, strides, pairs, dy):
    """Adjoints: every output pixel sends dy * kernel to its window, and dy * window to the kernel."""
    padded = pad(x, pairs)
    dx, dkernel = np.zeros_like(padded), np.zeros_like(kernel)
    for row, col, window in windows(padded, kernel.shape[:2], strides):
        dx[window] += np.einsum("nd,ijcd->nijc", dy[:, row, col], kernel)
        dkernel += np.einsum("nijc,nd->ijcd", padded[window], dy[:, row, col])
    return crop(dx, pairs, x.shape[1:3]), dkernel


def dense(kernel):
    """The regular kernel[kh, kw, C, C] with the same effect as the depthwise kernel[kh, kw, 1, C]."""
    return np.einsum("ijc,cd->ijcd", kernel[:, :, 0], np.eye(kernel.shape[-1]))


def depthwise_conv(x, kernel, strides, pairs):
    return conv(x, dense(kernel), strides, pairs)


def depthwise_gradients(x, kernel, strides, pairs, dy):
    dx, dkernel = conv_gradients(x, dense(kernel), strides, pairs, dy)
    return dx, np.einsum("ijcc->ijc", dkernel)[:, :, None]


def max_pool(x, window, strides, pairs):
    """The largest value of each window; padding is less than every value."""
    padded = pad(x, pairs, -np.inf)
    return image({(row, col): padded[part].max((1, 2)) for row, col, part in windows(padded, window, strides)})


def max_pool_gradient(x, window, strides, pairs, dy):
    """Every output pixel sends its gradient to the first of the largest values, row by row."""
    padded = pad(x, pairs, -np.inf)
    dx = np.zeros_like(padded)
    for row, col, part in windows(padded, window, strides):
        values = padded[part].reshape(len(x), -1, x.shape[-1])  # [N, kh kw, C]
        won = np.arange(values.shape[1])[:, None] == values.argmax(1)[:, None]
        dx[part] += (won * dy[:, row, col][:, None]).reshape(padded[part].shape)
    return crop(dx, pairs, x.shape[1:3])


def avg_pool(x, window, strides, pairs):
    """The mean of each window's pixels inside the image."""
    padded, inside = pad(x, pairs), pad(np.ones_like(x), pairs)
    parts = windows(padded, window, strides)
    return image({(row, col): padded[part].sum((1, 2)) / inside[part].sum((1, 2)) for row, col, part in parts})


def avg_pool_gradient(x, window, strides, pairs, dy):
    """Every output pixel sends its gradient, in equal parts, to its window's pixels inside the image."""
    dx, inside = np.zeros_like(pad(x, pairs)), pad(np.ones_like(x), pairs)
    for row, col, part in windows(dx, window, strides):
        dx[part] += (dy[:, row, col] / inside[part].sum((1, 2)))[:, None, None]
    return crop(dx, pairs, x.shape[1:3])


def normalize(groups, scale, bias, epsilon):
    """(y like groups[G, ..., C], means [G, C], biased variances [G, C]), in float64."""
    outputs, means, variances = [], [], []
    for group in np.asarray(groups, np.float64):
        rows = group.reshape(-1, group.shape[-1])
        mean = rows.sum(0) / len(rows)
        var = ((rows - mean) ** 2).sum(0) / len(rows)
        outputs.append((group - mean) / np.sqrt(var + epsilon) * scale + bias)
        means.append(mean)
        variances.append(var)
    return np.array(outputs), np.array(means), np.array(variances)


def numeric_gradient(function, value, step=1e-5):
    """Central differences of a scalar function, in float64."""
    gradient = np.zeros_like(value)
    for index in np.ndindex(value.shape):
        shift = np.zeros_like(value)
        shift[index] = step
        gradient[index] = (function(value + shift) - function(value - shift)) / (2 * step)
    return gradient
