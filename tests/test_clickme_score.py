"""The map score against SciPy and NumPy: ties, constant maps, permutations, bootstrap, ceiling."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from gala_cuda.clickme import score as score_module
from gala_cuda.clickme.score import (
    MapScoreMeter,
    bootstrap_interval,
    human_ceiling,
    mean_over_layers,
    permutation_p,
    ranks,
    spearman,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def drawn(*shape, seed=0, levels=None):
    """Random numbers; with ``levels``, whole numbers of so many values, of which many are equal."""
    values = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return values if levels is None else (values * levels).floor()


@pytest.mark.parametrize("levels", [None, 3, 1000], ids=["distinct", "many-ties", "few-ties"])
def test_rank_correlation_is_scipys(levels):
    ours, theirs = drawn(6, 400, levels=levels), drawn(6, 400, seed=1, levels=levels) + drawn(6, 400) / 2
    np.testing.assert_array_equal(ranks(ours), stats.rankdata(ours, axis=1))
    expected = [stats.spearmanr(a, b).statistic for a, b in zip(ours, theirs, strict=True)]
    np.testing.assert_allclose(spearman(ours, theirs), expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(spearman(ours.float(), theirs), expected, rtol=0, atol=1e-6)


def test_constant_rows_and_rows_that_hold_no_number_have_no_correlation():
    rows = drawn(4, 30)
    spoilt = rows.clone()
    spoilt[1], spoilt[2, 7] = 0.3, torch.nan
    assert spearman(rows, spoilt).isnan().tolist() == [False, True, True, False]
    assert spearman(spoilt, rows).isnan().tolist() == [False, True, True, False]


def test_maps_are_resized_and_averaged_over_layers():
    maps = {"a": drawn(2, 4, 4), "b": drawn(2, 4, 4, seed=1), "c": drawn(2, 2, 3, seed=2)}
    expected = sum(nn.functional.interpolate(m[:, None], (9, 8), mode="bilinear")[:, 0] for m in maps.values()) / 3
    torch.testing.assert_close(mean_over_layers(maps, (9, 8)), expected)
    assert torch.equal(mean_over_layers(list(maps.values()), (9, 8)), mean_over_layers(maps, (9, 8)))


def filled_meter(ours, theirs, has_map=None, batch=None, **options):
    """A meter with the maps of one layer, added in batches."""
    meter = MapScoreMeter(**options)
    has_map = torch.ones(len(ours), dtype=torch.bool) if has_map is None else has_map
    for part in torch.arange(len(ours)).split(batch or len(ours)):
        meter.add([ours[part]], theirs[part], has_map[part])
    return meter


def test_a_meter_holds_the_correlation_of_each_image_with_a_map():
    theirs = drawn(7, 1, 12, 10, levels=4)
    ours = drawn(7, 12, 10, seed=1) + theirs[:, 0] / 3
    theirs[4] = torch.nan
    has_map = torch.arange(7) != 4
    expected = [stats.spearmanr(ours[i].flatten(), theirs[i].flatten()).statistic for i in range(7) if i != 4]
    for batch in (7, 3, 1):
        meter = filled_meter(ours, theirs, has_map, batch)
        np.testing.assert_allclose(meter.rho, expected, rtol=0, atol=1e-12)
        assert meter.left_out == 0


def test_constant_maps_of_people_are_left_out_and_of_networks_count_as_0():
    theirs, ours = drawn(5, 1, 6, 6), drawn(5, 6, 6, seed=1)
    theirs[1], theirs[3] = 0.5, 0.0
    ours[2], ours[3] = 1.0, 0.0
    score = filled_meter(ours, theirs, every=1).score()
    expected = [stats.spearmanr(ours[i].flatten(), theirs[i].flatten()).statistic for i in (0, 4)]
    assert score.rho == pytest.approx((expected[0] + 0 + expected[1]) / 3)
    assert (score.images, score.left_out) == (3, 2)


@pytest.mark.parametrize("batch", [1, 3, 10])
def test_every_second_image_is_kept_for_the_pairings(batch):
    theirs = drawn(9, 1, 4, 4)
    meter = filled_meter(theirs[:, 0], theirs, batch=batch, every=2)
    kept = torch.cat([ours for ours, _ in meter._ranks])
    assert torch.equal(kept, score_module.standardised_ranks(theirs.flatten(1))[::2].float())


def test_p_counts_pairings_at_least_as_good(monkeypatch):
    """Some of the 24 pairings of four images reach the mean of the true one; random draws come near their fraction."""
    from itertools import permutations

    correlations = torch.tensor(
        [[0.5, 0.3, 0.1, 0.0], [0.2, 0.4, 0.6, 0.1], [0.1, 0.5, 0.3, 0.2], [0.3, 0.1, 0.2, 0.4]]
    )
    observed = correlations.diagonal().sum()
    orders = list(permutations(range(4)))
    share = np.mean([sum(correlations[i, j] for i, j in enumerate(order)) >= observed - 1e-6 for order in orders])
    assert 1 / 24 < share < 0.5
    found = permutation_p(correlations, torch.Generator().manual_seed(0))
    assert found == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / score_module.PERMUTATIONS))
    monkeypatch.setattr(score_module, "PERMUTATIONS", 99)
    certain = permutation_p(torch.eye(30), torch.Generator().manual_seed(0))
    assert certain == 1 / 100


def test_unrelated_maps_have_no_small_p_though_all_look_at_the_middle():
    """Only the pairing counts: that all maps are bright in the middle gives no small p."""
    middle = torch.zeros(6, 6, dtype=torch.float64)
    middle[2:4, 2:4] = 2
    theirs, unrelated = drawn(40, 1, 6, 6) + middle, drawn(40, 6, 6, seed=1) + middle
    score = filled_meter(unrelated, theirs, every=1).score()
    assert score.rho > 0.2
    assert score.p > 0.05
    assert score.stars == ""
    related = filled_meter(unrelated + 0.5 * theirs[:, 0], theirs, every=1).score()
    assert related.p == 1 / (score_module.PERMUTATIONS + 1)
    assert related.stars == "**"


def test_the_interval_is_scipys():
    rho = drawn(50, seed=3)
    ours = bootstrap_interval(rho, torch.Generator().manual_seed(0))
    theirs = stats.bootstrap((rho.numpy(),), np.mean, n_resamples=9999, method="percentile").confidence_interval
    np.testing.assert_allclose(ours, theirs, atol=0.01)
    assert ours[0] < rho.mean() < ours[1]
    assert bootstrap_interval(rho[:1], torch.Generator()) == (rho[0], rho[0])


def test_the_score_is_in_proportion_to_the_ceiling():
    theirs = drawn(8, 1, 6, 6)
    meter = filled_meter(theirs[:, 0] + drawn(8, 6, 6, seed=1), theirs, every=1)
    score = meter.score()
    assert (score.of, score.ceiling, score.ratio) == ("attention", 0.65753, score.rho / 0.65753)
    assert meter.score(0.5).ratio == 2 * score.rho
    assert meter.score() == score
    for ceiling in (0, 1.5):
        with pytest.raises(ValueError, match=rf"ceiling is {ceiling}; expected 0 < ceiling <= 1"):
            meter.score(ceiling)
    with pytest.raises(ValueError, match="there are no human maps to compare with; 1 are constant"):
        filled_meter(theirs[:1, 0], torch.zeros(1, 1, 6, 6), every=1).score()


def test_the_ceiling_is_the_mean_correlation_of_halves():
    """For two people the halves are the two; for four people there are three halvings."""
    two, four, one = drawn(2, 5, 5), drawn(4, 5, 5, seed=1), drawn(1, 5, 5)

    def correlation(a, b):
        return stats.spearmanr(a.mean(0).flatten(), b.mean(0).flatten()).statistic

    assert human_ceiling([two, one]) == pytest.approx(correlation(two[:1], two[1:]))
    of_four = [correlation(four[list(half)], four[list({0, 1, 2, 3} - set(half))]) for half in ((0, 1), (0, 2), (0, 3))]
    found = human_ceiling([four], splits=300)
    assert min(of_four) < found < max(of_four)
    assert found == pytest.approx(np.mean(of_four), abs=0.05)
    assert human_ceiling([two, four], splits=300) == pytest.approx((human_ceiling([two]) + found) / 2, abs=0.05)
    with pytest.raises(ValueError, match="participants has no image with two maps"):
        human_ceiling([one, torch.zeros(2, 5, 5)])
