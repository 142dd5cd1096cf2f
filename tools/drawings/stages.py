"""Drawings of what is computed: the block, its forward pass and its backward pass in three stages."""

from .canvas import GRADIENT, LARGE, MUTED, PLAIN, SAVED, SMALL, STAGE, Canvas


def block() -> Canvas:
    """The paper's two paths, from x to out."""
    c = Canvas(760, 292, "The GALA block: a global path and a local path make one attention, which multiplies x")
    c.box(20, 110, 80, 64, ["x", "[C, H, W]"], LARGE)
    c.heading(125, 34, "global path: what")
    c.box(125, 46, 92, 56, ["mean", "over pixels"], STAGE)
    c.box(243, 46, 50, 56, ["p", "[C]"], SMALL)
    c.box(319, 46, 128, 56, ["w_shrink, ReLU,", "w_expand"], STAGE)
    c.box(473, 46, 50, 56, ["g", "[C]"], SMALL)
    c.heading(125, 268, "local path: where")
    c.box(125, 188, 168, 56, ["v_shrink, ReLU", "a 1x1 convolution to R"], STAGE)
    c.box(319, 188, 128, 56, ["v_collapse", "R channels to 1"], STAGE)
    c.box(465, 188, 66, 56, ["s", "[H, W]"], SMALL)
    c.box(557, 98, 92, 88, ["A = tanh(", "a (g + s)", "+ m (g s) )", "[C, H, W]"], STAGE)
    c.box(676, 110, 68, 64, ["out", "= x A"], LARGE)
    c.arrow((60, 110), (60, 74), (125, 74))
    c.arrow((60, 174), (60, 216), (125, 216))
    for x0, x1 in ((217, 243), (293, 319), (447, 473)):
        c.arrow((x0, 74), (x1, 74))
    c.arrow((293, 216), (319, 216))
    c.arrow((447, 216), (465, 216))
    c.arrow((523, 74), (603, 74), (603, 98))
    c.arrow((531, 216), (603, 216), (603, 186))
    c.arrow((649, 142), (676, 142))
    c.arrow((100, 142), (557, 142), dashed=True)
    c.text(330, 135, "x itself, to be multiplied", 12, colour=MUTED)
    return c


def forward() -> Canvas:
    """gather, gate and scale: what each reads and writes, and what is kept."""
    c = Canvas(760, 400, "The forward pass: gather, gate and scale, with what each reads, writes and keeps")
    c.note(20, 30, "Tensors as large as x")
    c.box(60, 42, 140, 44, ["x", "read"], LARGE)
    c.box(490, 42, 110, 44, ["x", "read again"], LARGE)
    c.box(620, 42, 110, 44, ["out", "written"], LARGE)
    c.box(40, 130, 172, 84, ["gather", "sums over pixels;", "product with v_shrink"], STAGE)
    c.box(268, 130, 144, 84, ["gate", "two small products", "for each image"], STAGE)
    c.box(512, 130, 218, 84, ["scale", "out = x · tanh(alpha + beta s)", "+ residual, ReLU"], STAGE)
    c.arrow((130, 86), (130, 130))
    c.arrow((545, 86), (545, 130))
    c.arrow((675, 130), (675, 86))
    c.arrow((212, 160), (268, 160))
    c.text(240, 152, "p", 13, bold=True)
    c.arrow((412, 160), (512, 160))
    c.text(461, 152, "alpha, beta", 13, bold=True)
    c.text(461, 178, "[N, C]", 11, colour=MUTED)
    c.text(240, 178, "[N, C]", 11, colour=MUTED)
    for x, width, lines in (
        (40, 150, ["relu_mask", "1 bit for each", "hidden unit and pixel"]),
        (206, 104, ["s", "1 number", "for each pixel"]),
        (326, 104, ["p", "C numbers", "for each image"]),
        (446, 104, ["z", "R numbers", "for each image"]),
    ):
        c.box(x, 276, width, 66, lines, SAVED)
    c.arrow((100, 214), (100, 276))
    c.arrow((190, 214), (190, 246), (258, 246), (258, 276))
    c.arrow((258, 246), (580, 246), (580, 214))
    c.text(500, 240, "s", 13, bold=True)
    c.arrow((345, 214), (345, 276), dashed=True)
    c.arrow((390, 214), (390, 262), (498, 262), (498, 276), dashed=True)
    c.legend(40, 378, (LARGE, "as large as x"), (STAGE, "a stage"), (SAVED, "kept for the backward pass"))
    return c


def backward() -> Canvas:
    """The three stages from the end to the beginning."""
    c = Canvas(760, 440, "The backward pass: the stages of scale, gate and gather, from the end to the beginning")
    c.note(20, 30, "Tensors as large as x")
    c.box(30, 42, 82, 44, ["d out", "read"], GRADIENT)
    c.box(120, 42, 86, 44, ["x", "read"], LARGE)
    c.box(498, 42, 78, 44, ["d out", "read again"], GRADIENT)
    c.box(582, 42, 78, 44, ["x", "read again"], LARGE)
    c.box(666, 42, 76, 44, ["d x", "written"], GRADIENT)
    c.box(30, 130, 176, 84, ["scale's backward", "A anew from alpha, beta, s;", "sums over pixels, channels"], STAGE)
    c.box(306, 130, 140, 84, ["gate's backward", "small products", "for each image"], STAGE)
    lines = ["gather's backward", "d x = d out · A + dp / HW + local part;", "products with the bits"]
    c.box(498, 130, 244, 84, lines, STAGE)
    for x in (71, 163):
        c.arrow((x, 86), (x, 130))
    for x in (537, 621):
        c.arrow((x, 86), (x, 130))
    c.arrow((704, 130), (704, 86))
    c.arrow((206, 160), (306, 160))
    c.text(255, 152, "d alpha, d beta", 12, bold=True)
    c.arrow((446, 160), (498, 160))
    c.text(471, 152, "dp", 12, bold=True)
    c.arrow((170, 214), (170, 240), (552, 240), (552, 214))
    c.text(240, 234, "ds [N, HW]", 12, bold=True)
    c.box(30, 290, 60, 44, "s", SAVED)
    c.box(98, 290, 60, 44, "z", SAVED)
    c.box(284, 290, 70, 44, "p, z", SAVED)
    c.box(498, 290, 46, 44, "s", SAVED)
    c.box(554, 290, 92, 44, "relu_mask", SAVED)
    c.arrow((60, 290), (60, 214))
    c.arrow((128, 290), (128, 214))
    c.arrow((325, 290), (325, 214))
    c.arrow((521, 290), (521, 214))
    c.arrow((606, 290), (606, 214))
    c.box(364, 290, 114, 60, ["d w_shrink, d a,", "d w_expand, d m"], GRADIENT)
    c.box(656, 290, 92, 60, ["d v_shrink,", "d v_collapse"], GRADIENT)
    c.arrow((420, 214), (420, 290))
    c.arrow((702, 214), (702, 290))
    c.legend(
        30,
        384,
        (GRADIENT, "a gradient"),
        (LARGE, "as large as x"),
        (STAGE, "a stage"),
        (SAVED, "kept from the forward pass"),
    )
    c.note(30, 416, "Nothing else of x's size is read or written: A is computed again, element by element.")
    return c


def sums() -> Canvas:
    """Sums of parts in a fixed order, beside sums in the order of arrival."""
    c = Canvas(760, 268, "Partial sums are written apart and added in a fixed order")
    c.text(190, 32, "Not here: atomic additions", 13, bold=True)
    c.text(570, 32, "Here: parts, added in order", 13, bold=True)
    c.line(380, 20, 380, 248)
    for i in range(4):
        c.box(40 + 78 * i, 52, 66, 40, f"tile {i + 1}", STAGE)
        c.arrow((73 + 78 * i, 92), (150 + 26 * i, 158))
        c.box(420 + 78 * i, 52, 66, 40, f"tile {i + 1}", STAGE)
        c.arrow((453 + 78 * i, 92), (453 + 78 * i, 118))
        c.box(420 + 78 * i, 118, 66, 34, f"part {i + 1}", SMALL)
        c.arrow((453 + 78 * i, 152), (453 + 78 * i, 180))
    c.box(134, 158, 110, 40, "one number", PLAIN)
    c.box(420, 180, 300, 40, "((part 1 + part 2) + part 3) + part 4", SMALL)
    c.text(190, 222, "Whoever comes first adds first, and rounding", 12, colour=MUTED)
    c.text(190, 239, "depends on the order: other last bits each run.", 12, colour=MUTED)
    c.text(570, 244, "The same order, so the same bits in every run.", 12, colour=MUTED)
    return c
