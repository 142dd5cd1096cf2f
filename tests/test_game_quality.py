"""Quality of rounds: what counts, who paints off the object, who copies, how far people agree."""

import numpy as np
import pytest
import torch
from game_rounds import line, made

from gala_cuda.clickme import human_ceiling
from gala_cuda.game import quality
from gala_cuda.game.quality import Filters, Meter, alike_rounds, bubbles_inside, recognition_rate
from gala_cuda.game.rules import click_map


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, None),
        ({"outcome": "timeout", "recognised_n": None}, None),
        ({"outcome": "skip"}, "its outcome is skip"),
        ({"outcome": "interrupted"}, "its outcome is interrupted"),
        ({"kind": "practice"}, "a practice round"),
        ({"kind": "catch"}, "a catch round"),
        ({"attempt": 2}, "the person had the image before"),
        ({"untimed": True}, "played without the clock"),
        ({"points": ()}, "fewer than 1 bubbles"),
    ],
)
def test_the_rounds_of_the_paper_count(fields, reason):
    assert Filters().why_not(made(1, **{"points": None, **fields})) == reason


@pytest.mark.parametrize(
    ("filters", "fields", "reason"),
    [
        ({"outcomes": ("skip",)}, {"outcome": "skip"}, None),
        ({"outcomes": ("skip",)}, {}, "its outcome is recognised"),
        ({"repeats": True}, {"attempt": 2}, None),
        ({"untimed": True}, {"untimed": True}, None),
        ({"min_bubbles": 20}, {}, None),
        ({"min_bubbles": 21}, {}, "fewer than 21 bubbles"),
        ({"people": frozenset({"ann"})}, {}, "its person is excluded"),
        ({"people": frozenset({"bob"})}, {}, None),
        ({"images": frozenset({"cat/0.png"})}, {}, "its image is excluded"),
    ],
)
def test_filters_are_options(filters, fields, reason):
    assert Filters(**filters).why_not(made(1, **fields)) == reason


def test_a_bubble_is_inside_where_its_centre_is():
    mask = np.zeros((48, 64), bool)
    mask[10:20, 30:40] = True
    points = ((16 * 30, 16 * 10, 0), (16 * 30 - 1, 16 * 10, 50), (16 * 39 + 15, 16 * 19 + 15, 100), (16 * 40, 160, 150))
    assert bubbles_inside(points, mask) == (2, 4)
    assert bubbles_inside(((16 * 64, 16 * 48, 0),), np.ones((48, 64), bool)) == (1, 1)  # the border itself
    assert bubbles_inside((), mask) == (0, 0)


def test_who_paints_off_the_object_is_told_from_who_paints_on_it():
    mask = np.zeros((48, 64), bool)
    mask[:, :32] = True
    rounds = [
        made(1, line(1, 10, 1), kind="catch", image="c.png", participant="on"),
        made(2, line(40, 10, 1), kind="catch", image="c.png", participant="off"),
        made(3, line(0, 10, 3, count=20), kind="catch", image="no mask.png", participant="off"),
        made(4, participant="none"),
    ]
    people = {each.participant: each for each in Meter({"c.png": mask}).measure(rounds).people}
    assert (people["on"].catch, people["off"].catch, people["none"].catch) == (1.0, 0.0, None)
    assert people["on"].by_chance == 0.5
    assert people["off"].doubts == ("0% of the bubbles on catch images are on the object",)
    assert people["on"].doubts == people["none"].doubts == ()
    assert (people["on"].rounds, people["none"].rounds) == (0, 1)


def test_the_same_strokes_on_other_images_are_found_and_others_are_not():
    wobbled = tuple((x + 3, y - 2, ms) for x, y, ms in line(10, 10))
    rounds = [
        made(1, image="a"),
        made(2, wobbled, image="b"),
        made(3, tuple((2 * x, 2 * y, ms) for x, y, ms in line(10, 10)), image="c",
             width=128, height=96),  # the same in shares of a larger image
        made(4, line(10, 40), image="d"),
        made(5, line(48, 10, -2), image="e"),  # there and not back
        made(6, line(10, 10, count=9), image="f"),  # too short to tell
        made(7, line(10, 40), image="d", attempt=2),  # the same image again
    ]  # fmt: skip
    assert alike_rounds(rounds) == {"r1", "r2", "r3"}
    assert alike_rounds(rounds[:1]) == set()
    (person,) = Meter({}).measure(rounds).people
    assert person.alike == 3
    assert person.doubts == ("3 rounds with nearly the same strokes",)


def test_agreement_is_with_the_others_alone_and_the_ceiling_is_human_ceiling():
    """Three people paint the left of three images, one paints the right: native size, so that the numbers are exact."""
    rounds = []
    for image in range(3):
        for number, (person, x) in enumerate((("ann", 4), ("bob", 6), ("cid", 8), ("eve", 44))):
            rounds.append(
                made(10 * image + number, line(x, 6 + image, 0, 2, 18), image=f"i{image}", participant=person)
            )
    result = Meter({}, side=None).measure(rounds)
    people = {person.participant: person for person in result.people}
    maps = [
        torch.stack([torch.from_numpy(click_map(each.points, 48, 64)) for each in rounds[i : i + 4]]) for i in (0, 4, 8)
    ]
    expected = [quality.spearman(each[3:].flatten(1), each[:3].mean(0).flatten()[None]).item() for each in maps]
    assert people["eve"].agreement == pytest.approx(sum(expected) / 3)
    assert people["eve"].agreement < quality.LOW_AGREEMENT < people["bob"].agreement
    assert people["eve"].doubts == (f"agrees with others by {people['eve'].agreement:.2f}",)
    assert people["ann"].compared == 3
    assert result.ceiling == pytest.approx(sum(human_ceiling([each]) for each in maps) / 3)
    assert result.shared == 3
    without = Meter({}, side=None).measure(rounds, Filters(people=frozenset({"eve"})))
    assert without.ceiling > result.ceiling
    assert without.left_out == {"its person is excluded": 3}
    assert next(person for person in without.people if person.participant == "eve").agreement is None


def test_shrunk_maps_tell_about_the_same():
    rng = np.random.default_rng(0)
    rounds, sides = [], {"width": 256, "height": 256}
    for number in range(24):
        x, y = (16 * rng.normal((120 + number % 4 * 10, 130), 30, (60, 2))).clip(0, 4096).astype(int).T
        points = tuple(zip(x.tolist(), y.tolist(), range(0, 3000, 50), strict=True))
        rounds.append(made(number, points, image=f"i{number % 4}", participant=f"p{number // 4}", **sides))
    whole, shrunk = (Meter({}, side=side).measure(rounds).ceiling for side in (None, quality.COMPARED_SIDE))
    assert abs(whole - shrunk) < 0.05


def test_two_rounds_of_one_person_are_no_agreement():
    result = Meter({}).measure([made(1), made(2, attempt=2)], Filters(repeats=True))
    assert (result.shared, result.ceiling, result.images[0].agreement) == (0, None, None)
    assert (result.images[0].rounds, result.images[0].people) == (2, 1)


def test_maps_without_ranks_have_no_agreement():
    """Bubbles that cover the whole of a small image make a constant map."""
    small = [made(number, ((16, 16, 0),), participant=f"p{number}", width=2, height=2) for number in range(2)]
    result = Meter({}).measure(small)
    assert (result.ceiling, result.images[0].agreement, result.shared) == (None, None, 1)


def test_recognition_rate_is_of_rounds_played_to_their_end():
    outcomes = ("recognised", "timeout", "timeout", "skip", "interrupted")
    rounds = [made(number, outcome=outcome) for number, outcome in enumerate(outcomes)]
    assert recognition_rate(rounds) == pytest.approx(1 / 3)
    assert recognition_rate(rounds[3:]) is None
    result = Meter({}).measure([*rounds, made(9, kind="practice", outcome="timeout")])
    assert result.recognised == pytest.approx(1 / 3)
    assert result.outcomes == {"recognised": 1, "timeout": 2, "skip": 1, "interrupted": 1}
    assert (result.counted, result.left_out) == (3, {"its outcome is skip": 1, "its outcome is interrupted": 1})
    (person,) = result.people
    assert (person.skips, person.bubbles, person.counted) == (1, 20, 3)


def test_no_rounds_are_no_error():
    result = Meter({}).measure([])
    assert (result.counted, result.ceiling, result.recognised, result.people, result.images) == (0, None, None, [], [])


def test_an_image_is_compared_anew_only_when_its_rounds_have_changed(monkeypatch):
    meter, compared = Meter({}), []
    compare = meter._compare
    monkeypatch.setattr(meter, "_compare", lambda rounds: compared.append(rounds[0].image) or compare(rounds))
    rounds = [made(1, image="a"), made(2, image="a", participant="bob"), made(3, image="b")]
    first = meter.measure(rounds)
    assert meter.measure(rounds) == first
    assert compared == ["a", "b"]
    meter.measure([*rounds, made(4, image="b", participant="bob")])
    assert compared == ["a", "b", "b"]
