"""Components narrower than the digits of the data: found, and kept from winning."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gmmjax
from gmmjax import Status, blocks
from gmmjax.rounding import SAMPLE, resolution, too_narrow

KEY = jax.random.key(0)


def of(x, weights=None, block=None) -> np.ndarray:
    weights = None if weights is None else jnp.asarray(weights, float)
    return np.asarray(resolution(blocks.split(jnp.asarray(x, float), weights, block)))


def test_the_least_gap_between_two_values_of_a_column():
    x = np.array([[0.5, 3.0], [0.0, 3.0], [9.0, -4.0], [0.5, 8.0]])
    np.testing.assert_allclose(of(x), [0.5, 0.0])  # of the second below
    np.testing.assert_allclose(of(x, block=3), [0.5, 0.0])  # filled up with a row of weight 0
    np.testing.assert_allclose(of(x, [1.0, 0.0, 1.0, 1.0]), [0.0, 0.0])
    x[:, 1] = [3.0, 3.0, -4.0, 3.5]
    np.testing.assert_allclose(of(x), [0.5, 0.5])
    np.testing.assert_allclose(of(x, [1.0, 1.0, 1.0, 0.0]), [0.5, 0.0])


def test_a_column_that_spreads_less_than_its_gap_counts_categories():
    assert of(np.array([0.0, 0.0, 1.0, 1.0])[:, None]) == 0.0
    assert of(np.arange(4.0)[:, None]) == 1.0


def test_a_column_of_one_value_tells_nothing():
    assert of(np.full((5, 1), 3.0)) == 0.0
    assert of(np.ones((1, 1))) == 0.0


def test_a_gap_of_rounding_in_arithmetic_is_none():
    """0.1 + 0.2 is not 0.3."""
    x = np.array([0.1 + 0.2, 0.3, 0.4, 0.6, 1.0])[:, None]
    np.testing.assert_allclose(of(x), 0.1, rtol=1e-5)


@pytest.mark.parametrize("unit", [1.0, 1e-3])
def test_rows_of_many_are_sampled(unit):
    x = np.random.default_rng(0).integers(0, 50, (5 * SAMPLE + 7, 2)) * unit
    np.testing.assert_allclose(of(x), unit, rtol=1e-3)


def test_continuous_data_have_nearly_no_resolution():
    x = np.random.default_rng(0).normal(size=(2000, 1))
    assert of(x) < 1e-4


@pytest.mark.parametrize("family", gmmjax.families.names())
def test_too_narrow_looks_at_the_variances_of_columns(family):
    covariances = np.array([[[2.0, 0.5], [0.5, 1.0]], [[1.0, 0.0], [0.0, 3.0]]])
    model = gmmjax.GaussianMixture.create([0.5, 0.5], np.zeros((2, 2)), covariances, family)
    variances = np.diagonal(np.asarray(model.covariances), axis1=1, axis2=2)
    for column in range(2):
        least = np.zeros(2)
        least[column] = np.sqrt(12 * variances[:, column].min())
        assert bool(too_narrow(model, jnp.asarray(1.001 * least)))
        assert not bool(too_narrow(model, jnp.asarray(0.999 * least)))


def rounded(n: int = 240) -> np.ndarray:
    """One normal cloud, of which a column is given in whole numbers."""
    x = np.random.default_rng(3).normal(size=(n, 2)) * [1.0, 4.0]
    return np.stack([x[:, 0], np.round(x[:, 1])], axis=1)


def test_a_line_of_equal_values_does_not_win():
    """From a start on one line EM stays there, above the sound optimum; beside another start it loses."""
    x = jnp.asarray(rounded(), float)
    on_a_line = np.where(np.asarray(x[:, 1]) == 0, 1, 0)
    assert on_a_line.sum() > 15  # no component on a handful of rows
    alone = gmmjax.fit(KEY, x, 2, init=on_a_line, max_steps=500)
    assert Status(int(alone.status)) in (Status.SPURIOUS, Status.DEGENERATE)
    among = gmmjax.fit(KEY, x, 2, restarts=24)
    assert float(among.log_likelihood) < float(alone.log_likelihood)
    assert among.status < Status.SPURIOUS


def test_a_knot_of_rows_is_suspect_though_it_touches_no_floor():
    """EM alone calls it converged; `fit` knows that the column has whole numbers only."""
    x = rounded()
    x[:6] = [[0.01 * i, 2.0] for i in range(6)]
    in_knot = (np.arange(len(x)) < 6).astype(int)
    x = jnp.asarray(x, float)
    knot = gmmjax.fit(KEY, x, 2, family="VII", init=in_knot, max_steps=500)
    alone = gmmjax.em(knot.model, x, reg=1e-7)
    assert Status(int(alone.status)) == Status.CONVERGED
    assert Status(int(knot.status)) == Status.SPURIOUS
    assert float(jnp.sqrt(knot.model.covariances[1, 0, 0])) < 1 / np.sqrt(12)


def test_a_prior_holds_narrow_components():
    x = rounded()
    on_a_line = np.where(x[:, 1] == 0, 1, 0)
    prior = gmmjax.Prior.default(x, 2, "full")
    result = gmmjax.fit(KEY, x, 2, init=on_a_line, prior=prior, max_steps=3, tol=0.0)
    assert Status(int(result.status)) == Status.MAX_STEPS


def test_shared_variances_are_not_asked():
    """Three values and three components: one variance for all, as small as the floor lets it be."""
    x = np.concatenate([np.zeros(30), np.ones(30), np.full(4, 30.0)])[:, None]
    assert of(x) == 1.0
    labels = (x[:, 0] > 0.5).astype(int) + (x[:, 0] > 5)
    result = gmmjax.fit(KEY, x, 3, family="EII", init=labels, reg=1e-3)
    assert Status(int(result.status)) == Status.DEGENERATE  # by the floor alone


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_select_chooses_what_mclust_chooses_on_old_faithful(seed):
    """EEE with 3: BIC −2314.316 in mclust. VEV with 7 had 2277, on lines of equal minutes."""
    x = gmmjax.datasets.load_faithful().x
    result = gmmjax.select(jax.random.key(seed), x, restarts=50)
    assert (result.best.family, result.best.n_components) == ("tied", 3)
    assert result.best.criterion == pytest.approx(2314.296, abs=2e-3)
