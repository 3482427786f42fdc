"""The Triton kernels of glumbconv_mid: walks along the rows of `[B, H, W, channels]` with columns in registers.

A program holds BLOCK_C channels of a strip of ROWS rows. A column is a tuple of its pixels, one under another, each
`[BLOCK_C]` float32; of a GLU both halves are held, the channels c and c + C. Forward, each column is read and activated
once (the rows around a strip again by the neighbours) and added to the three columns of the output that it belongs to,
so that a walk carries two begun columns and no window of its input: nine activations an element, or the usual `exp` and
division, would make the special function units or the issue of instructions the limit, not memory. The transposed
convolution carries a window instead, which the gradient of the weights needs too. Products are added with `fma`, since
kernels are compiled without fusing.
"""

# Triton's functions are typed by what compiles them; tuples grow in their loops.
# mypy: disable-error-code="untyped-decorator, no-untyped-def, assignment"

from __future__ import annotations

import triton
import triton.language as tl

from ddx.kernels.launch import Kernel


@triton.jit
def place(H, W, C: tl.constexpr, BLOCK_C: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """(tile, image, first row, first column, channels, lanes) of this program, in int64.

    lanes: (0, 1, ..., BLOCK_C - 1; how many of them are channels that exist). Masks compare these two: other
    conditions are scalars, which set the count to zero.
    """
    program = tl.program_id(0).to(tl.int64)
    blocks: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    first = program % blocks * BLOCK_C
    lanes = (tl.arange(0, BLOCK_C), C - first)
    tile = program // blocks
    segments = tl.cdiv(W, COLUMNS)
    strip = tile // segments
    strips = tl.cdiv(H, ROWS)
    return tile, strip // strips, strip % strips * ROWS, tile % segments * COLUMNS, first + lanes[0], lanes


@triton.jit
def load_taps(weight_ptr, channels, lanes):
    """The nine weights of each channel, entry 3 * row + column."""
    taps = ()
    for tap in tl.static_range(9):
        taps += (tl.load(weight_ptr + channels * 9 + tap, mask=lanes[0] < lanes[1], other=0.0).to(tl.float32),)
    return taps


@triton.jit
def load_bias(bias_ptr, channels, lanes, BIASED: tl.constexpr):
    """The bias of each channel, or zeros."""
    bias = tl.zeros_like(channels).to(tl.float32)
    if BIASED:
        bias = tl.load(bias_ptr + channels, mask=lanes[0] < lanes[1], other=0.0).to(tl.float32)
    return bias


@triton.jit
def load_column(x_ptr, strides, row, column, H, W, lanes, ROWS: tl.constexpr):
    """The ROWS pixels from (row, column) down, zero outside of the image; strides: of images, rows and columns."""
    pixels = ()
    count = tl.where((column >= 0) & (column < W), lanes[1], 0)
    x_ptr += column * strides[2]
    for step in tl.static_range(ROWS):
        seen = lanes[0] < tl.where((row + step >= 0) & (row + step < H), count, 0)
        pixels += (tl.load(x_ptr + (row + step) * strides[1], mask=seen, other=0.0).to(tl.float32),)
    return pixels


@triton.jit
def sigmoid(column, ROWS: tl.constexpr):
    """The logistic function of a column: five instructions a value, where `exp` and a division would be fifteen."""
    gates = ()
    for step in tl.static_range(ROWS):
        root = tl.rsqrt(1.0 + tl.exp2(column[step] * -1.4426950408889634))
        gates += (root * root,)
    return gates


@triton.jit
def silu(column, ROWS: tl.constexpr):
    """SiLU of a column."""
    gates = sigmoid(column, ROWS)
    values = ()
    for step in tl.static_range(ROWS):
        values += (column[step] * gates[step],)
    return values


@triton.jit
def silu_and_slope(column, ROWS: tl.constexpr):
    """(SiLU of a column, its derivative there)."""
    gates = sigmoid(column, ROWS)
    values = ()
    slopes = ()
    for step in tl.static_range(ROWS):
        value = column[step] * gates[step]
        values += (value,)
        slopes += (tl.fma(value, 1.0 - gates[step], gates[step]),)
    return values, slopes


@triton.jit
def times(column, other, ROWS: tl.constexpr):
    """The product of two columns."""
    products = ()
    for step in tl.static_range(ROWS):
        products += (column[step] * other[step],)
    return products


@triton.jit
def spread(column, left, middle, bias, taps, ROWS: tl.constexpr):
    """Add a column of ROWS + 2 pixels to the outputs around it: (left, now whole; middle; right, begun)."""
    whole = ()
    grown = ()
    begun = ()
    for step in tl.static_range(ROWS):
        at_left, here, at_right = left[step], middle[step], bias
        for line in tl.static_range(3):
            at_left = tl.fma(column[step + line], taps[3 * line + 2], at_left)
            here = tl.fma(column[step + line], taps[3 * line + 1], here)
            at_right = tl.fma(column[step + line], taps[3 * line], at_right)
        whole += (at_left,)
        grown += (here,)
        begun += (at_right,)
    return whole, grown, begun


@Kernel
def forward_kernel(
    x_ptr,
    g_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    H,
    W,
    x_strides,
    g_strides,
    C: tl.constexpr,
    BIASED: tl.constexpr,
    BACKWARD: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """BLOCK_C channels of both halves in ROWS x COLUMNS pixels: y, or for BACKWARD the gradient of h."""
    _, image, row, first, channels, lanes = place(H, W, C, BLOCK_C, ROWS, COLUMNS)
    taps_a, bias_a = load_taps(weight_ptr, channels, lanes), load_bias(bias_ptr, channels, lanes, BIASED)
    taps_b, bias_b = load_taps(weight_ptr, channels + C, lanes), load_bias(bias_ptr, channels + C, lanes, BIASED)
    x_ptr += image * x_strides[0] + channels
    g_ptr += image * g_strides[0] + channels
    out_ptr += image * H * W * (2 * C if BACKWARD else C) + channels
    start, stop = tl.maximum(first - 1, 0), tl.minimum(first + COLUMNS, W)
    coming_a = load_column(x_ptr, x_strides, row - 1, start, H, W, lanes, ROWS + 2)
    coming_b = load_column(x_ptr + C, x_strides, row - 1, start, H, W, lanes, ROWS + 2)
    coming_g = ()
    if BACKWARD:
        coming_g = load_column(g_ptr, g_strides, row, start - 1, H, W, lanes, ROWS)
    left_a = (bias_a,) * ROWS
    left_b = (bias_b,) * ROWS
    middle_a, middle_b = left_a, left_b
    for column in range(start, tl.minimum(stop + 1, W)):
        # A register is free for the next column once this one's is used; loads do not move up past a store.
        now_g = coming_g
        a, left_a, middle_a = spread(silu(coming_a, ROWS + 2), left_a, middle_a, bias_a, taps_a, ROWS)
        coming_a = load_column(x_ptr, x_strides, row - 1, column + 1, H, W, lanes, ROWS + 2)
        b, left_b, middle_b = spread(silu(coming_b, ROWS + 2), left_b, middle_b, bias_b, taps_b, ROWS)
        coming_b = load_column(x_ptr + C, x_strides, row - 1, column + 1, H, W, lanes, ROWS + 2)
        if BACKWARD:
            coming_g = load_column(g_ptr, g_strides, row, column, H, W, lanes, ROWS)
        _finish(out_ptr, a, b, now_g, row, column - 1, H, W, column > first, lanes, C, BACKWARD, ROWS)
    # Nothing lies right of the image: its last column is whole already.
    _finish(out_ptr, left_a, left_b, coming_g, row, W - 1, H, W, stop == W, lanes, C, BACKWARD, ROWS)


@triton.jit
def _finish(
    out_ptr, a, b, g, row, column, H, W, wanted, lanes, C: tl.constexpr, BACKWARD: tl.constexpr, ROWS: tl.constexpr
):
    """Write a column of y, or of the gradient of h."""
    gated, slope = silu_and_slope(b, ROWS)
    for step in tl.static_range(ROWS):
        seen = lanes[0] < tl.where(wanted & (row + step < H), lanes[1], 0)
        pixel = (row + step) * W + column
        if BACKWARD:
            da = g[step] * gated[step]
            db = g[step] * a[step] * slope[step]
            tl.store(out_ptr + pixel * 2 * C, da.to(out_ptr.dtype.element_ty), mask=seen)
            tl.store(out_ptr + pixel * 2 * C + C, db.to(out_ptr.dtype.element_ty), mask=seen)
        else:
            y = a[step] * gated[step]
            tl.store(out_ptr + pixel * C, y.to(out_ptr.dtype.element_ty), mask=seen)


@Kernel
def transposed_kernel(
    dh_ptr,
    x_ptr,
    weight_ptr,
    dx_ptr,
    parts_ptr,
    H,
    W,
    x_strides,
    C: tl.constexpr,
    WEIGHT_GRADIENT: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """BLOCK_C of all channels, here C, in ROWS x COLUMNS pixels: dx, and their part of the sums over pixels."""
    tile, image, row, first, channels, lanes = place(H, W, C, BLOCK_C, ROWS, COLUMNS)
    taps = load_taps(weight_ptr, channels, lanes)
    of_bias = tl.zeros_like(taps[0])
    of_taps = (of_bias,) * 9
    strides = (0, W * C, C)  # of dh and dx; that of images might need 64 bits
    dh_ptr += image * H * W * C + channels
    x_ptr += image * x_strides[0] + channels
    dx_ptr += image * H * W * C + channels
    left = load_column(dh_ptr, strides, row - 1, first - 1, H, W, lanes, ROWS + 2)
    middle = load_column(dh_ptr, strides, row - 1, first, H, W, lanes, ROWS + 2)
    coming = load_column(dh_ptr, strides, row - 1, first + 1, H, W, lanes, ROWS + 2)
    coming_x = load_column(x_ptr, x_strides, row, first, H, W, lanes, ROWS)
    for column in range(first, tl.minimum(first + COLUMNS, W)):
        right, x = coming, coming_x
        coming = load_column(dh_ptr, strides, row - 1, column + 2, H, W, lanes, ROWS + 2)
        coming_x = load_column(x_ptr, x_strides, row, column + 1, H, W, lanes, ROWS)
        value, slope = silu_and_slope(x, ROWS)
        columns = (right, middle, left)  # tap (i, j) took this pixel to the one 1 - i below and 1 - j to the right
        for step in tl.static_range(ROWS):
            ds = tl.zeros_like(of_bias)
            for tap in tl.static_range(9):
                ds = tl.fma(taps[tap], columns[tap % 3][step + 2 - tap // 3], ds)
            offset = (row + step) * strides[1] + column * strides[2]
            seen = lanes[0] < tl.where(row + step < H, lanes[1], 0)
            tl.store(dx_ptr + offset, (ds * slope[step]).to(dx_ptr.dtype.element_ty), mask=seen)
        if WEIGHT_GRADIENT:
            of_taps, of_bias = _add_pixels(of_taps, of_bias, value, columns, ROWS)
        left, middle = middle, right
    if WEIGHT_GRADIENT:
        parts_ptr += tile * 10 * C + channels
        for tap in tl.static_range(9):
            tl.store(parts_ptr + tap * C, of_taps[tap], mask=lanes[0] < lanes[1])
        tl.store(parts_ptr + 9 * C, of_bias, mask=lanes[0] < lanes[1])


@triton.jit
def _add_pixels(of_taps, of_bias, value, columns, ROWS: tl.constexpr):
    """Add what a column of SiLUs and the gradients around it give the gradients of weights and bias."""
    grown = ()
    for tap in tl.static_range(9):
        total = of_taps[tap]
        for step in tl.static_range(ROWS):
            total = tl.fma(value[step], columns[tap % 3][step + 2 - tap // 3], total)
        grown += (total,)
    for step in tl.static_range(ROWS):
        of_bias += columns[1][step + 1]
    return grown, of_bias


@Kernel
def dual_kernel(
    x_ptr,
    dx_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    dy_ptr,
    H,
    W,
    x_strides,
    dx_strides,
    C: tl.constexpr,
    BIASED: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """BLOCK_C channels of both halves in ROWS x COLUMNS pixels: y and its tangent."""
    _, image, row, first, channels, lanes = place(H, W, C, BLOCK_C, ROWS, COLUMNS)
    taps_a, bias_a = load_taps(weight_ptr, channels, lanes), load_bias(bias_ptr, channels, lanes, BIASED)
    taps_b, bias_b = load_taps(weight_ptr, channels + C, lanes), load_bias(bias_ptr, channels + C, lanes, BIASED)
    zero = tl.zeros_like(bias_a)
    x_ptr += image * x_strides[0] + channels
    dx_ptr += image * dx_strides[0] + channels
    y_ptr += image * H * W * C + channels
    dy_ptr += image * H * W * C + channels
    start, stop = tl.maximum(first - 1, 0), tl.minimum(first + COLUMNS, W)
    coming_a = load_column(x_ptr, x_strides, row - 1, start, H, W, lanes, ROWS + 2)
    coming_b = load_column(x_ptr + C, x_strides, row - 1, start, H, W, lanes, ROWS + 2)
    coming_da = load_column(dx_ptr, dx_strides, row - 1, start, H, W, lanes, ROWS + 2)
    coming_db = load_column(dx_ptr + C, dx_strides, row - 1, start, H, W, lanes, ROWS + 2)
    left_a, left_b = (bias_a,) * ROWS, (bias_b,) * ROWS
    left_da, left_db = (zero,) * ROWS, (zero,) * ROWS
    middle_a, middle_b, middle_da, middle_db = left_a, left_b, left_da, left_db
    for column in range(start, tl.minimum(stop + 1, W)):
        now, slope = silu_and_slope(coming_a, ROWS + 2)
        a, left_a, middle_a = spread(now, left_a, middle_a, bias_a, taps_a, ROWS)
        now = times(coming_da, slope, ROWS + 2)
        da, left_da, middle_da = spread(now, left_da, middle_da, zero, taps_a, ROWS)
        coming_a = load_column(x_ptr, x_strides, row - 1, column + 1, H, W, lanes, ROWS + 2)
        coming_da = load_column(dx_ptr, dx_strides, row - 1, column + 1, H, W, lanes, ROWS + 2)
        now, slope = silu_and_slope(coming_b, ROWS + 2)
        b, left_b, middle_b = spread(now, left_b, middle_b, bias_b, taps_b, ROWS)
        now = times(coming_db, slope, ROWS + 2)
        db, left_db, middle_db = spread(now, left_db, middle_db, zero, taps_b, ROWS)
        coming_b = load_column(x_ptr + C, x_strides, row - 1, column + 1, H, W, lanes, ROWS + 2)
        coming_db = load_column(dx_ptr + C, dx_strides, row - 1, column + 1, H, W, lanes, ROWS + 2)
        _finish_dual(y_ptr, dy_ptr, a, b, da, db, row, column - 1, H, W, column > first, lanes, C, ROWS)
    _finish_dual(y_ptr, dy_ptr, left_a, left_b, left_da, left_db, row, W - 1, H, W, stop == W, lanes, C, ROWS)


@triton.jit
def _finish_dual(y_ptr, dy_ptr, a, b, da, db, row, column, H, W, wanted, lanes, C: tl.constexpr, ROWS: tl.constexpr):
    """Write a column of y and of its tangent."""
    gated, slope = silu_and_slope(b, ROWS)
    for step in tl.static_range(ROWS):
        y = a[step] * gated[step]
        dy = tl.fma(da[step], gated[step], a[step] * db[step] * slope[step])
        seen = lanes[0] < tl.where(wanted & (row + step < H), lanes[1], 0)
        offset = ((row + step) * W + column) * C
        tl.store(y_ptr + offset, y.to(y_ptr.dtype.element_ty), mask=seen)
        tl.store(dy_ptr + offset, dy.to(dy_ptr.dtype.element_ty), mask=seen)
