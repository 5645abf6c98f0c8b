"""`select`: its cells against mclust and against `fit`, its criteria, its table, and bad input."""

import csv

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mclust_figures import REFERENCE, data, figures, fit

import gmmjax
from gmmjax import Status, families
from gmmjax.candidate import Candidate, Choice, extract, groups
from gmmjax.selection import _training

pytestmark = pytest.mark.own_dtype
KEY = jax.random.key(0)


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def table(name: str) -> list[dict]:
    with (REFERENCE / name).open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def grid() -> gmmjax.SelectionResult:
    """Old Faithful, three families of two groups, one of which has two families."""
    with jax.enable_x64(True):
        x = data("faithful")
        return gmmjax.select(KEY, x, range(1, 5), ["EEI", "VVI", "EVI"], "icl", restarts=24)


@pytest.mark.parametrize("model", [families.get(name).mclust for name in families.names()])
@pytest.mark.parametrize("dataset", ["faithful", "iris"])
def test_bic_and_icl_are_the_negatives_of_mclusts(dataset, model):
    cell = {"faithful": "faithful_2_threshold", "iris": "iris_3_labels"}[dataset]
    reference = figures(f"me_{cell}")
    k, x = reference["n_components"], data(dataset)
    (row,) = (
        row
        for row in table("me_from_labels.csv")
        if (row["dataset"], row["model"], row["G"], row["init"])
        == (dataset, model, str(k), "class labels")
    )
    mixture = fit(x, reference["start"], k, model, tol=1e-12)[1]
    assert mixture.n_parameters() == int(row["npar"])
    if model == "VVE":  # mclust's M-step stops short of its maximum
        assert -float(mixture.bic(x)) > float(row["BIC"]) - 1e-6
        return
    np.testing.assert_allclose(-mixture.bic(x), float(row["BIC"]), rtol=1e-7)
    np.testing.assert_allclose(-mixture.icl(x), float(row["ICL"]), rtol=1e-5)


@pytest.mark.parametrize("model", ["EEI", "VVI", "EVI"])
def test_no_cell_lies_below_mclusts(grid, model):
    """mclust starts once, hierarchically; from 24 starts BIC must be as good or better in each cell."""
    for row in table("bic_faithful.csv")[:4]:
        cell = grid.cell(int(row["G"]), model)
        bic = 2 * cell.log_likelihood - cell.n_parameters * np.log(272)
        if cell.sound:
            assert bic > float(row[model]) - 1e-2, (cell.family, cell.n_components)


def test_a_cell_is_the_mixture_that_it_says(grid):
    x = data("faithful")
    for cell in grid.cells:
        assert cell.model.n_components == cell.n_components
        assert cell.model.family == cell.family
        np.testing.assert_allclose(cell.model.log_likelihood(x), cell.log_likelihood, rtol=1e-9)
        np.testing.assert_allclose(cell.model.icl(x), cell.criterion, rtol=1e-9)
        np.testing.assert_allclose(np.sum(cell.model.weights), 1.0, rtol=1e-12)
        assert cell.lanes.status.shape == (24,)
        # In the data's units, as the cell's own.
        assert np.max(cell.lanes.log_likelihood) == pytest.approx(cell.log_likelihood, abs=1e-6)


def test_one_component_is_the_closed_form(grid):
    x = data("faithful")
    single = gmmjax.mle.mixture(x, np.zeros(len(x), int), 1, family="diag")
    np.testing.assert_allclose(
        grid.cell(1, "diag").log_likelihood, single.log_likelihood(x), rtol=1e-10
    )


def test_the_best_cell_has_the_least_criterion(grid):
    sound = [cell.criterion for cell in grid.cells if cell.sound]
    assert grid.best.criterion == min(sound)
    assert grid.model is grid.best.model
    lines = grid.table().splitlines()
    assert len(lines) == 6
    assert grid.table().count("*") == 1
    assert f"{grid.best.criterion:.2f}*" in grid.table()
    assert "nan" not in str(grid).lower()


def test_a_masked_step_is_the_step_of_the_mixture_alone():
    """Seven components, of which three count, against three: the same moments, step and status."""
    x = jnp.asarray(data("iris"))
    small = gmmjax.fit(KEY, x, 3, family="EVI", restarts=1, max_steps=2, throw=False).model

    def widen(a):
        return jnp.concatenate([a, jnp.repeat(a[:1], 4, axis=0)])

    wide = jax.tree.map(widen, small)
    wide = gmmjax.GaussianMixture(
        wide.log_weights.at[3:].set(-jnp.inf), wide.means, wide.factors, "diag"
    )
    names = ("diag", "VEI", "EVI")
    choice = Choice(jnp.asarray(3), jnp.asarray(2))
    ones = jnp.ones(len(x))
    moments, ours = Candidate(wide, names).expect(x, ones)
    candidate, status = Candidate(wide, names).maximize(moments, prior=choice, reg=1e-7)
    alone_moments, theirs = small.expect(x, ones)
    alone, alone_status = small.maximize(alone_moments, reg=1e-7)
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)
    assert int(status) == int(alone_status)
    cell = extract(candidate.mixture, 3, "EVI")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8), cell, alone)
    # One that should count and has no weight is not masked.
    four = Choice(jnp.asarray(4), jnp.asarray(2))
    assert int(Candidate(wide, names).maximize(moments, prior=four, reg=1e-7)[1]) >= int(
        Status.EMPTY_COMPONENT
    )


def test_families_that_store_alike_share_a_program():
    found = groups(families.names())
    assert len(found) == 6
    assert sorted(name for group in found for name in group) == sorted(families.names())


def test_cross_validation_is_the_likelihood_of_rows_held_out():
    """Against fits to each fold's training rows, one by one."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=(40, 1)), rng.normal(size=(40, 1)) + 8.0])
    result = gmmjax.select(KEY, x, [1, 2], ["E"], "cv", restarts=6, folds=4)
    training = np.asarray(_training(jax.random.fold_in(KEY, 0), 80, 4))
    assert np.all(np.sum(training == 0, axis=0) == 1)  # each row is held out once
    assert np.all(np.sum(training == 0, axis=1) == 20)
    for cell in result.cells:
        k, held_out = cell.n_components, 0.0
        for used in training:
            kept = gmmjax.fit(KEY, x, k, family="E", weights=used, restarts=6, tol=1e-10).model
            held_out += float(jnp.sum(kept.log_prob(x[used == 0])))
        np.testing.assert_allclose(cell.criterion, -2 * held_out, rtol=1e-4)
    assert result.best.n_components == 2


def test_the_grid_goes_on_where_data_do_not_identify_a_cell():
    """A constant column: no family with a variance there has a density; EII pools the columns."""
    rng = np.random.default_rng(1)
    x = np.stack([np.r_[rng.normal(size=20), rng.normal(size=20) + 9], np.full(40, 3.0)], axis=1)
    result = gmmjax.select(KEY, x, [1, 2], ["EII", "VVI"], restarts=6)
    assert [cell.usable for cell in result.cells] == [True, True, False, False]
    assert result.best.family == "tied-spherical"
    for cell in result.cells:
        assert not np.isnan(cell.criterion)
        assert not np.isnan(cell.log_likelihood)
    assert "diag k=1, diag k=2" in result.message
    assert result.table().count(" -") >= 2


def test_the_bar_counts_every_cell(capsys):
    result = gmmjax.select(KEY, data("faithful"), [1, 2], ["EEI", "VVI"], restarts=6, progress=True)
    assert len(result.cells) == 4
    shown = capsys.readouterr().err
    assert "fitting" in shown
    assert "0/4" in shown
    assert "cell/s" in shown


def test_one_distinct_point():
    x = np.ones((5, 2))
    with pytest.raises(gmmjax.FitError, match="no cell ended with a finite model"):
        gmmjax.select(KEY, x, [1], ["EII"], restarts=6)
    result = gmmjax.select(KEY, x, [1], ["EII"], restarts=6, throw=False)
    assert not result.best.usable
    assert result.best.criterion == np.inf
    with pytest.raises(ValueError, match="number of distinct rows of x; got 2 for 1 distinct"):
        gmmjax.select(KEY, x, [1, 2], ["EII"])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"n_components": []}, "n_components: expected at least one"),
        ({"n_components": range(3, 3)}, "n_components: expected at least one"),
        ({"n_components": [0]}, "n_components: expected at least 1"),
        ({"n_components": [300]}, "distinct rows"),
        ({"families": []}, "families: expected at least one of full, tied"),
        ({"families": ["XYZ"]}, "family: expected one of full, tied.*XYZ"),
        ({"criterion": "BIC?"}, "criterion: expected one of bic, icl, aic, cv"),
        ({"restarts": 0}, "restarts: expected at least 1"),
        ({"criterion": "cv", "folds": 1}, "folds: expected at least 2"),
        ({"tol": -1.0}, "tol"),
    ],
)
def test_arguments_that_cannot_be(options, match):
    with pytest.raises(ValueError, match=match):
        gmmjax.select(KEY, data("faithful"), **options)
