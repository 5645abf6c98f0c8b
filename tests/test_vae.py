"""Training, use and the known failures of Gaussian-mixture VAEs, on small nets and few steps."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gmmjax
from gmmjax import em, families, fit, metrics
from gmmjax.uncertain import Uncertain
from gmmjax.vae import (
    Architecture,
    Autoencoder,
    Bernoulli,
    CheckpointError,
    DiscretizedLogistic,
    Normal,
    Training,
    fit_gmvae,
)
from gmmjax.vae import prior as prior_
from gmmjax.vae.networks import LOG_VARIANCE
from gmmjax.vae.run import _with_noise, hand_over  # noqa: F401, the latter named in the docs
from gmmjax.vae.training import shifted

pytestmark = pytest.mark.own_dtype

SMALL = {"latent": 2, "hidden": (16,), "seeds": 2}
FAST = Training(pretrain_epochs=6, epochs=4, batch=40, restarts=2, learning_rate=1e-2)
SHORT = dataclasses.replace(FAST, pretrain_epochs=60, epochs=10)


@pytest.fixture(autouse=True)
def float32():
    with jax.enable_x64(False):
        yield


def rows(n: int = 160) -> tuple[np.ndarray, np.ndarray]:
    """Three clusters in a plane, bent into eight features."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, n)
    z = np.array([[-3.0, 0.0], [3.0, 0.0], [0.0, 4.0]])[y] + 0.5 * rng.normal(size=(n, 2))
    return np.tanh(z @ rng.normal(size=(2, 8)) * 0.5) + 0.05 * rng.normal(size=(n, 8)), y


@pytest.fixture(scope="module")
def trained():
    x, y = rows()
    with jax.enable_x64(False):
        return fit_gmvae(jax.random.key(0), x, 3, training=SHORT, y=y, **SMALL)


def test_it_finds_the_clusters_and_names_them(trained):
    x, y = rows()
    assert float(metrics.matched_accuracy(y, np.asarray(trained.model.predict(x)))) > 0.95
    assert sorted(np.asarray(trained.names).tolist()) == [0, 1, 2]
    named = np.asarray(trained.names)[np.asarray(trained.model.predict(x))]
    assert np.mean(named == y) > 0.95


def test_the_chosen_seed_is_the_one_with_the_best_validation_elbo(trained):
    assert trained.elbo.shape == (2,)
    assert int(trained.best) == int(jnp.argmax(trained.elbo))
    np.testing.assert_array_equal(trained.elbo, trained.history.elbo[-1])
    chosen = jax.tree.leaves(trained.model.prior)
    np.testing.assert_array_equal(
        chosen[0], jax.tree.leaves(trained.seed(int(trained.best)).prior)[0]
    )
    assert trained.stage.tolist() == [0] * 60 + [2] * 10


def test_the_elbo_rises(trained):
    assert bool(jnp.all(trained.history.elbo[59] > trained.history.elbo[0] + 1))
    assert bool(jnp.all(trained.history.elbo[-1] > trained.history.elbo[0] + 1))


def test_use(trained):
    x, _ = rows()
    m, key = trained.model, jax.random.key(1)
    assert m.encode(x).shape == (160, 2)
    assert m.reconstruct(x).shape == m.decode(m.encode(x)).shape == (160, 8)
    assert float(jnp.mean((m.reconstruct(x) - x) ** 2)) < 0.5 * x.var()
    r = m.responsibilities(x)
    np.testing.assert_allclose(jnp.sum(r, axis=1), 1.0, rtol=1e-5)
    assert float(jnp.mean(jnp.argmax(m.responsibilities(x, key), -1) == m.predict(x))) > 0.97
    samples, c = m.sample(key, 50)
    assert samples.shape == (50, 8)
    assert set(c.tolist()) <= {0, 1, 2}
    assert m.interpolate(0, 1, 5).shape == (5, 8)
    again = m.predict(m.sample_component(key, 1, 100, mean=True))
    assert float(jnp.mean(again == 1)) > 0.9
    drawn = m.predict(m.sample_class(key, trained.names, 2, 100, mean=True))
    assert float(jnp.mean(trained.names[drawn] == 2)) > 0.9


def test_the_likelihood_grows_with_the_importance_samples_and_is_above_the_elbo(trained):
    x, _ = rows()
    few, many = (
        float(jnp.mean(trained.model.log_likelihood(jax.random.key(2), x, s))) for s in (1, 200)
    )
    assert few < many
    assert float(trained.elbo[trained.best]) < many + 1.0  # other rows, hence the margin


def test_a_row_is_the_same_in_any_company(trained):
    """No batch normalisation, no σ of the batch: nothing of a row depends on the others."""
    x, _ = rows()
    m = trained.model
    np.testing.assert_allclose(m.encode(x[:1])[0], m.encode(x)[0], rtol=1e-4, atol=1e-5)
    z = m.encode(x)
    alone = m.network.log_prob(jnp.asarray(x[:1], jnp.float32), z[:1])
    np.testing.assert_allclose(
        alone[0], m.network.log_prob(jnp.asarray(x, jnp.float32), z)[0], rtol=1e-4
    )


@dataclasses.dataclass(frozen=True)
class TooSure(Normal):
    """Starts from a σ that is e times too small."""

    def start(self, x):
        bias, log_scale = super().start(x)
        return bias, log_scale - 1.0


def test_the_calibrated_sigma_comes_to_the_error_of_a_fixed_reconstruction():
    """With the networks held still, 180 steps leave (1 − 0.02)^180 = 3 % of the way to go."""
    x, _ = rows()
    still = dataclasses.replace(SHORT, learning_rate=0.0, epochs=0)
    fitted = fit_gmvae(jax.random.key(0), x, 3, training=still, likelihood=TooSure(), **SMALL)
    model = fitted.model
    z = model.posterior(np.tile(x, (20, 1))).sample(jax.random.key(3))
    error = float(jnp.sqrt(jnp.mean((model.decode(z) - np.tile(x, (20, 1))) ** 2)))
    np.testing.assert_allclose(jnp.exp(model.network.log_scale[0]), error, rtol=0.05)


def test_no_failure_goes_unseen(trained):
    """Cluster collapse, posterior collapse, dead components: the history shows each."""
    h = trained.history
    assert float(h.cluster_entropy[-1].min()) > 0.9 * np.log(3) - 0.1
    assert float(h.information[-1].min()) > 0.5  # I(x; c), 0 where c says nothing
    assert float(h.usage[-1].min()) > 0.1
    assert int(h.active_units[-1].min()) == 2
    # The prior as it was before the hand-over, equal components, is what collapse looks like.
    assert abs(float(h.information[3, 0])) < 1e-3


@pytest.mark.parametrize(
    ("objective", "update", "family"),
    [("mean-field", "epoch", "VEV"), ("amortised", "gradient", "tied")],
)
def test_every_objective_and_update(objective, update, family):
    x, y = rows()
    settings = dataclasses.replace(
        SHORT, prior_update=update, pretrain="autoencoder", denoise=0.1, patience=3
    )
    result = fit_gmvae(
        jax.random.key(1), x, 3, objective=objective, family=family, training=settings, **SMALL
    )
    assert bool(jnp.all(jnp.isfinite(result.history.elbo)))
    assert float(metrics.matched_accuracy(y, np.asarray(result.model.predict(x)))) > 0.9
    assert float(jnp.sum(result.model.prior.weights)) == pytest.approx(1, abs=1e-5)
    # An autoencoder's last fifth is a VAE: the noise of its codes has been trained.
    assert result.stage.tolist()[:60] == [0] * 48 + [1] * 12
    log_variance = result.model.posterior(x).log_variance
    assert float(jnp.std(log_variance)) > 0


def test_pictures_and_labels():
    """Convolutions, shifts, the Bernoulli likelihood and a few labels; component j is class j."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 80)
    x = np.zeros((80, 6, 5))
    x[y == 0, :, 1:3] = 0.9
    x[y == 1, 2:4, :] = 0.9
    labels = np.where(np.arange(80) < 10, y, -1)
    settings = dataclasses.replace(SHORT, shift=1.0, epochs=2)
    result = fit_gmvae(
        jax.random.key(0), x, 2, latent=2, hidden=(16,), channels=(4, 8), likelihood="bernoulli",
        training=settings, y=labels, supervise=True,
    )  # fmt: skip
    assert np.mean(np.asarray(result.model.predict(x)) == y) > 0.95
    samples, _ = result.model.sample(jax.random.key(1), 3)
    assert samples.shape == (3, 6, 5)
    assert set(np.unique(samples).tolist()) <= {0.0, 1.0}


# --- known failures -------------------------------------------------------------------------------


def test_the_noise_of_a_code_stays_in_bounds_for_any_input():
    """An unbounded log-variance head overflows; this one does not, and its gradient is finite."""
    a = Architecture((3,), 2, (4,))
    network = Autoencoder.create(jax.random.key(0), a, Normal(), jnp.ones((2, 3)))

    def spread(params, x):
        moved = dataclasses.replace(network, params=jax.tree.map(lambda p: 30 * p + 1, params))
        return jnp.sum(moved.encode(x).log_variance)

    x = jnp.asarray([[1e6, -1e6, 1e6], [-1e6, 1e6, -1e6]])
    value, gradient = jax.value_and_grad(spread)(network.params, x)
    assert 4 * LOG_VARIANCE[0] - 0.1 <= float(value) <= 4 * LOG_VARIANCE[1] + 0.1
    assert all(bool(jnp.all(jnp.isfinite(g))) for g in jax.tree.leaves(gradient))


@pytest.mark.parametrize("family", ["full", "tied", "diag", "spherical", "tied-diag", "EVI"])
def test_the_priors_free_parameters_are_a_mixture_whatever_they_are(family):
    """π unconstrained, and a component's variance at 0, are ruled out; the way there and back is exact."""
    x, _ = rows()
    start = prior_.standard(3, 2, family)
    prior = dataclasses.replace(start, means=jnp.asarray(x[:3, :2], jnp.float32))
    back = prior_.bound(prior_.free(prior))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), back, prior)
    far = prior_.project(prior_.bound(jax.tree.map(lambda a: a - 40.0, prior_.free(prior))))
    assert float(jnp.sum(far.weights)) == pytest.approx(1, abs=1e-5)
    assert float(jnp.min(jnp.linalg.eigvalsh(far.covariances))) > 0
    if family == "EVI":
        determinants = jnp.linalg.det(far.covariances)
        np.testing.assert_allclose(determinants, determinants[0], rtol=1e-4)


def test_a_component_without_rows_stays_finite_and_keeps_its_place():
    x = jnp.asarray(rows()[0][:, :2], jnp.float32)
    prior = dataclasses.replace(
        prior_.standard(2, 2, "full"), means=jnp.asarray([[0.0, 0.0], [1e4, 1e4]], jnp.float32)
    )
    sums, _ = prior.expect(x, jnp.ones(len(x)))
    new = prior_.refit(prior, sums, gmmjax.Prior.default(x, 2, "full"), 1e-3)
    assert all(bool(jnp.all(jnp.isfinite(a))) for a in jax.tree.leaves((new.means, new.factors)))
    assert float(new.weights[1]) < 1e-3


def test_em_on_codes_keeps_its_clusters_where_noise_is_far_above_their_means_spread():
    """Units of little use: without the M-step that takes the noise in, one component takes every row."""
    key, key_fit = jax.random.split(jax.random.key(0))
    z, c = np.asarray(jax.random.normal(key, (300, 6))), np.arange(300) % 3
    used = 0.2 * z[:, :2] + np.array([[0.0, 1.5], [1.3, -0.8], [-1.3, -0.8]])[c]
    codes = Uncertain(
        jnp.asarray(np.concatenate([used, (0.05 * 2.0**c)[:, None] * z[:, 2:]], axis=1)),
        jnp.concatenate([jnp.full((300, 2), 0.02), jnp.full((300, 4), 0.9)], axis=1),
    )
    start = fit(key_fit, codes.x, 3, restarts=8).model
    collapsed = em(start, codes, tol=1e-6).model
    assert float(metrics.matched_accuracy(c, np.asarray(collapsed.predict(codes)))) < 0.8
    kept = em(_with_noise(start, codes, None, 1e-3), codes, tol=1e-6).model
    assert float(metrics.matched_accuracy(c, np.asarray(kept.predict(codes)))) > 0.98


@pytest.mark.parametrize("channels", [(), (4, 8)])
def test_untrained_networks_say_the_mean_of_the_rows_in_any_unit(channels):
    """So that no random picture has to be unlearnt, which is what collapsed codes of pictures."""
    x = np.asarray(jax.random.uniform(jax.random.key(0), (50, 64)), np.float32) + np.linspace(
        0, 3, 64
    )
    for unit in (1e-3, 1.0, 1e3):
        rows = jnp.asarray(unit * x, jnp.float32)
        network = Autoencoder.create(
            jax.random.key(1), Architecture((8, 8), 2, (32,), channels), Normal(), rows
        )
        q = network.encode(rows)
        assert 0.1 < float(jnp.std(q.mean)) < 10  # the codes tell rows apart whatever the unit
        off = network.decode(q.mean) - jnp.mean(rows, axis=0)
        assert float(jnp.sqrt(jnp.mean(off**2))) < 0.1 * float(
            jnp.std(rows - jnp.mean(rows, axis=0))
        )


def test_patience_without_joint_training_keeps_the_last():
    x, _ = rows()
    short = dataclasses.replace(SHORT, pretrain_epochs=2, epochs=0, patience=2)
    result = fit_gmvae(jax.random.key(0), x, 3, training=short, **SMALL)
    np.testing.assert_array_equal(result.elbo, result.history.elbo[-1])


def test_online_moments_at_rate_one_are_the_whole_m_step():
    """The prior's closed form is the mixture's own M-step, not one of vae/."""
    x = jnp.asarray(rows()[0][:, :2], jnp.float32)
    for family in ("full", "tied", "diag"):
        prior = dataclasses.replace(prior_.standard(3, 2, family), means=x[:3])
        sums, _ = prior.expect(x, jnp.ones(len(x)))
        zero = jax.tree.map(jnp.zeros_like, sums)
        ours = prior_.refit(prior, prior_.mix(zero, sums, 1.0), None, 0.0)
        theirs, _ = prior.maximize(sums)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5), ours, theirs
        )
        assert families.get(family).name == ours.family


def test_a_prior_rate_too_high_ends_in_a_seed_that_cannot_win_or_an_error():
    x, _ = rows(80)
    wild = dataclasses.replace(
        SHORT, pretrain_epochs=1, epochs=2, prior_update="gradient", prior_rate=1e4, patience=0
    )
    try:
        result = fit_gmvae(jax.random.key(0), x, 3, training=wild, **SMALL)
    except gmmjax.FitError as error:
        assert "finite ELBO" in str(error)  # noqa: PT017
    else:
        assert bool(jnp.isfinite(result.elbo[result.best]))


def test_pictures_move_by_whole_pixels_and_bring_in_zeros():
    x = jnp.arange(1.0, 13.0).reshape(1, 12)
    seen = set()
    for seed in range(30):
        moved = shifted(jax.random.key(seed), x, (3, 4, 1), jnp.asarray(1.0)).reshape(3, 4)
        found = False
        for a in (-1, 0, 1):
            for b in (-1, 0, 1):
                padded = np.pad(np.asarray(x).reshape(3, 4), 1)[1 + a : 4 + a, 1 + b : 5 + b]
                if np.array_equal(padded, moved):
                    seen.add((a, b))
                    found = True
        assert found
    assert len(seen) > 4
    still = shifted(jax.random.key(0), x, (3, 4, 1), jnp.asarray(0.0))
    np.testing.assert_array_equal(still, x)


# --- checkpoints ----------------------------------------------------------------------------------

RUN = """
import sys, jax, numpy as np
sys.path.insert(0, {tests!r})
from test_vae import FAST, SMALL, rows
from gmmjax.vae import fit_gmvae
options = dict(training=FAST, checkpoint={folder!r}, checkpoint_every=1)
fit_gmvae(jax.random.key(5), rows()[0], 3, **options, **SMALL)
"""


@pytest.mark.slow
def test_a_run_that_was_killed_ends_bit_for_bit_as_one_that_was_not(tmp_path):
    x, _ = rows()
    folder = tmp_path / "run"
    code = RUN.format(tests=str(Path(__file__).parent), folder=str(folder))
    environment = {**os.environ, "JAX_ENABLE_X64": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.Popen([sys.executable, "-c", code], env=environment)
    try:
        while not (folder / "2").exists():
            assert child.poll() is None or (folder / "2").exists(), "it ended before it was killed"
            time.sleep(0.01)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    options = {"training": FAST, **SMALL}
    resumed = fit_gmvae(jax.random.key(5), x, 3, checkpoint=folder, checkpoint_every=4, **options)
    whole = fit_gmvae(jax.random.key(5), x, 3, **options)
    assert resumed.history.elbo.shape == (10, 2)
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "run"
    with jax.enable_x64(False):
        fit_gmvae(
            jax.random.key(0), rows()[0], 3, training=FAST, checkpoint=folder, checkpoint_every=5,
            **SMALL,
        )  # fmt: skip
    return folder


def test_a_checkpoint_of_another_architecture_is_refused(saved):
    with pytest.raises(CheckpointError, match=r"architecture is .*hidden=\(16,\).*another folder"):
        fit_gmvae(
            jax.random.key(0), rows()[0], 3, training=FAST, checkpoint=saved,
            **{**SMALL, "hidden": (8,)},
        )  # fmt: skip


def test_a_checkpoint_cut_short_is_refused_and_the_older_one_is_whole(saved, tmp_path):
    import shutil

    folder = tmp_path / "run"
    shutil.copytree(saved, folder)
    files = [p for p in (folder / "10" / "arrays").rglob("*") if p.is_file() and p.stat().st_size]
    for path in files:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    options = {"training": FAST, "checkpoint": folder, **SMALL}
    with pytest.raises(CheckpointError, match=r"10: damaged or cut short.*go on from epoch 5"):
        fit_gmvae(jax.random.key(0), rows()[0], 3, **options)
    shutil.rmtree(folder / "10")
    again = fit_gmvae(jax.random.key(0), rows()[0], 3, **options)
    whole = fit_gmvae(jax.random.key(0), rows()[0], 3, training=FAST, **SMALL)
    np.testing.assert_array_equal(again.elbo, whole.elbo)


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"x": np.full((20, 3), np.nan)}, ValueError, "x: expected finite numbers"),
        ({"x": np.zeros((0, 3))}, ValueError, "x: expected rows"),
        ({"x": np.zeros(5)}, ValueError, "x: expected rows"),
        ({"x": np.zeros((20, 3))}, ValueError, "x: expected rows that differ"),
        ({"likelihood": "bernoulli"}, ValueError, r"x: expected values from 0 to 1 for Bernoulli"),
        ({"likelihood": "poisson"}, ValueError, "likelihood: expected one of"),
        (
            {"x": np.random.default_rng(0).random((20, 3)), "likelihood": DiscretizedLogistic(4)},
            ValueError,
            "x: expected multiples of 1/3",
        ),
        ({"latent": 0}, ValueError, "latent: expected at least 1"),
        ({"hidden": (0,)}, ValueError, "hidden: expected at least 1"),
        ({"channels": (4,)}, ValueError, "channels: expected pictures"),
        ({"shape": (2, 2)}, ValueError, r"x: expected shape \[n, 2, 2\]"),
        ({"n_components": 0}, ValueError, "n_components: expected at least 1"),
        ({"n_components": 500}, ValueError, "n_components: expected at most"),
        ({"training": Training(batch=10_000)}, ValueError, "batch: expected at most the"),
        (
            {"training": Training(epochs=0, pretrain_epochs=0)},
            ValueError,
            "epochs: expected at least",
        ),
        ({"training": Training(prior_update="sgd")}, ValueError, "prior_update: expected one of"),  # type: ignore[arg-type]
        ({"training": Training(prior_rate=2.0)}, ValueError, "prior_rate: expected a step size"),
        ({"training": Training(learning_rate=-1.0)}, ValueError, "learning_rate: expected one"),
        ({"objective": "elbo"}, ValueError, "objective: expected one of"),
        ({"family": "round"}, ValueError, "family: expected one of"),
        ({"supervise": True}, ValueError, "y: expected labels"),
        ({"validation": 1.5}, ValueError, "validation: expected a share below 1"),
        ({"validation": np.zeros((4, 9))}, ValueError, "validation: expected shape"),
    ],
)
def test_bad_input(change, error, text):
    arguments = {"x": rows()[0], "n_components": 3, "training": FAST, **SMALL, **change}
    x, k = arguments.pop("x"), arguments.pop("n_components")
    with pytest.raises(error, match=text):
        fit_gmvae(jax.random.key(0), x, k, **arguments)


def test_bad_input_to_a_model(trained):
    m, x = trained.model, rows()[0]
    with pytest.raises(ValueError, match=r"x: expected shape \[n, 8\]"):
        m.predict(x[:, :5])
    with pytest.raises(ValueError, match=r"z: expected codes of shape \[n, 2\]"):
        m.decode(np.zeros((3, 4)))
    with pytest.raises(ValueError, match="c: expected a component from 0 to 2"):
        m.sample_component(jax.random.key(0), 3, 5)
    with pytest.raises(ValueError, match="label: expected one that names a cluster"):
        m.sample_class(jax.random.key(0), trained.names, 9, 5)
    with pytest.raises(ValueError, match="a: expected a cluster"):
        m.interpolate(7, 0)
    assert Bernoulli().scale == "none"
