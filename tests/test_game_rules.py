"""The game's rules: which strokes are allowed, what the partner sees, scores and maps."""

import math

import numpy as np
import pytest

from gala_cuda.game.rules import (
    MOST_BUBBLES,
    RULES,
    UNTIMED,
    PointsError,
    check_points,
    click_map,
    noise_seed,
    reveal,
    score,
    squares,
)

WIDTH, HEIGHT = 100, 60


def stroke(count, step=16, ms=50):
    return [[step * i, 0, ms * i] for i in range(count)]


def test_rules_are_those_of_the_wire():
    assert RULES._asdict() == {"bubble": 14, "step": 7, "interval_ms": 50, "limit_ms": 7000, "every": 10}


@pytest.mark.parametrize(
    "points",
    [
        [],
        [[0, 0, 0]],
        [[16 * WIDTH, 16 * HEIGHT, 0]],
        stroke(MOST_BUBBLES, 5),
        [[0, 0, 0], [114, 0, 50]],  # a step of 7 pixels and the eighth that rounding may add
        [[0, 0, 0], [16, 0, 7000]],
    ],
    ids=["none", "corner", "far-corner", "most", "longest-step", "at-the-limit"],
)
def test_allowed(points):
    assert check_points(points, WIDTH, HEIGHT) == tuple(map(tuple, points))


@pytest.mark.parametrize(
    ("points", "said"),
    [
        ("0 0 0", "expected a list"),
        ({"0": 1}, "expected a list"),
        ([[0, 0]], r"points\[0\] is \[0, 0\]; expected \[x16, y16, ms\] of whole numbers"),
        ([[0, 0, 0.0]], "whole numbers"),
        ([[0, 0, True]], "whole numbers"),
        ([[0, 0, None]], "whole numbers"),
        ([[math.nan, 0, 0]], "whole numbers"),
        ([[10**4000, 0, 0]], "expected 0 to 1600"),
        ([[0, 0, 10**4000]], "expected 0 to 600000"),
        ([[-1, 0, 0]], "expected 0 to 1600 and 0 to 960"),
        ([[0, 961, 0]], "expected 0 to 1600 and 0 to 960"),
        ([[0, 0, 1]], "time begins with the first bubble"),
        ([[0, 0, 0], [16, 0, 49]], "49 ms after the one before; expected at least 50"),
        ([[0, 0, 0], [115, 0, 50]], "7.19 pixels from the one before; expected at most 7"),
        ([[0, 0, 0], [81, 81, 50]], "7.16 pixels"),
        ([[8, 8, 0], [8, 8, 50]], "repeats the one before"),
        ([[0, 0, 0], [16, 0, 7001]], "ends at 7001 ms; expected at most 7000"),
        (stroke(MOST_BUBBLES + 1, 5), "141 bubbles; expected at most 140"),
    ],
)
def test_refused(points, said):
    with pytest.raises(PointsError, match=said):
        check_points(points, WIDTH, HEIGHT)


def test_message_of_a_deep_value_is_short():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(PointsError) as caught:
        check_points([deep], WIDTH, HEIGHT)
    assert len(str(caught.value)) < 200


def test_untimed_round_may_last():
    assert check_points([[0, 0, 0], [16, 0, 60_000]], WIDTH, HEIGHT, UNTIMED)


@pytest.mark.parametrize("side", [14, 18, 21])
def test_squares_are_centred(side):
    """By the formula in floating point, which is exact for sixteenths."""
    for x in range(0, 16 * 40 + 1):
        ((rows, columns),) = squares(((x, 320, 0),), side, 40, 40)
        left = math.floor(x / 16 - side / 2 + 0.5)
        assert (columns.start, columns.stop) == (max(left, 0), min(left + side, 40))
        assert rows.stop - rows.start == side


def test_corner_click_is_clipped():
    """Neither lost nor wrapped round to the other border."""
    made = click_map(((0, 0, 0),), HEIGHT, WIDTH)
    assert made[:9, :9].min() == 1
    assert made.sum() == 81


def test_map_is_the_sum_of_boxes():
    points = tuple((x, y, 50 * k) for k, (x, y) in enumerate([(0, 0), (80, 80), (1600, 960), (800, 480), (810, 490)]))
    made = click_map(points, HEIGHT, WIDTH, box=18)
    counted = np.zeros((HEIGHT, WIDTH))
    for x, y, _ in points:
        for row in range(HEIGHT):
            for column in range(WIDTH):
                counted[row, column] += -9.5 < column - x / 16 <= 8.5 and -9.5 < row - y / 16 <= 8.5
    np.testing.assert_array_equal(made, (counted / counted.max()).astype(np.float32))
    assert made.dtype == np.float32
    assert not click_map((), HEIGHT, WIDTH).any()


def test_view_shows_bubbles_and_hides_the_rest():
    image = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    view = reveal(image, ((480, 480, 0),), noise_seed("round", 1))
    clear = image.astype(np.float32) / np.float32(255)
    shown = np.zeros((HEIGHT, WIDTH), bool)
    shown[20:41, 20:41] = True
    np.testing.assert_array_equal(view[shown], clear[shown])
    assert view.dtype == np.float32
    assert view.min() == 0 <= view.max() <= 1
    grey = reveal(np.full((300, 300, 3), 255, np.uint8), (), 3)  # 1 + N(0, 0.4) - 0.5 before it is clipped
    assert abs(np.median(grey) - 0.5) < 0.01
    assert abs((grey == 1).mean() - 0.1056) < 0.005  # P(N > 1.25)


def test_view_is_made_again_by_round_and_n():
    image = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    views = [reveal(image, (), noise_seed(number, n)) for number, n in [("a", 10), ("a", 10), ("a", 20), ("b", 10)]]
    assert np.array_equal(views[0], views[1])
    assert not np.array_equal(views[0], views[2])
    assert not np.array_equal(views[0], views[3])
    assert noise_seed("a", 10) == 3824528838141416424
    known = [[0.5080, 0.1788, 0.1797], [0.3458, 0.1048, 0.0]]  # whatever the machine and the version of NumPy
    np.testing.assert_allclose(reveal(np.full((1, 2, 3), 128, np.uint8), (), 5)[0], known, atol=6e-5)


def test_score():
    assert score(0) == 100
    assert score(3500) == 12.5
    assert score(450) == pytest.approx(100 * (1 - 0.45 / 7) ** 3)
    assert score(7000) == score(600_000) == 0
