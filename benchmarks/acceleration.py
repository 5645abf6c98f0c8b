"""Steps to the limit on slow problems: EM, SQUAREM, and a damped Anderson acceleration beside them.

Two unit Gaussians in the plane, 3, 2 and 1.5 standard deviations apart, 6,000 rows, from the same start;
a step is an E-step, refused trials counted. Then lanes of Old Faithful with six full components: steps in
all, and how many ended elsewhere than EM, higher or lower. Float64.
"""

import argparse
import importlib
from functools import partial
from typing import Any

import numpy as np

MOST = 20_000
NEAR = 1e-6
"""Nats below the limit at which a run counts as there."""


def overlapping(apart: float) -> np.ndarray:
    """6,000 centred rows of two unit Gaussians."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6000, 2))
    x[:, 0] += apart * rng.integers(0, 2, 6000)
    return x - x.mean(axis=0)


class Anderson:
    """Anderson acceleration of u → E(M(u)), on the statistics' coordinates, with a ridge.

    The ridge is `damping` times the mean square of the differences. A trial is kept if the objective rises;
    if not, EM's own point is taken and the memory begins anew.
    """

    def __init__(self, memory: int, damping: float) -> None:
        self.memory, self.damping = memory, damping

    def steps(self, model: Any, blocks: Any, limit: float) -> int:
        """E-steps until the objective is within `NEAR` of the limit."""
        import jax
        from jax.flatten_util import ravel_pytree

        em = importlib.import_module("gmmjax.em")
        expect = jax.jit(lambda m: em.expect(m, blocks))

        @jax.jit
        def flat(moments: Any) -> Any:
            return ravel_pytree(moments.coordinates())[0]

        moments, value = expect(model)
        back = ravel_pytree(moments.coordinates())[1]
        maximize = jax.jit(lambda m, moments, u: m.maximize(moments.at(back(u)))[0])
        points: list[np.ndarray] = []  # u
        images: list[np.ndarray] = []  # F(u)
        u, count = np.asarray(flat(moments)), 1
        model = maximize(model, moments, u)
        while count < MOST:
            new, objective = expect(model)
            count += 1
            if float(objective) >= limit - NEAR:
                return count
            points.append(u)
            images.append(np.asarray(flat(new)))
            points, images = points[-self.memory :], images[-self.memory :]
            trial = self._combined(np.stack(points), np.stack(images))
            value, moments = float(objective), new
            kept = False
            if len(points) > 1:
                there = maximize(model, moments, trial)
                tried, reached = expect(there)
                count += 1
                kept = bool(np.isfinite(float(reached))) and float(reached) > value
                if kept and float(reached) >= limit - NEAR:
                    return count
            if kept:
                # The trial's image is known now, so that its E-step is not taken twice.
                points.append(trial)
                images.append(np.asarray(flat(tried)))
                points, images = points[-self.memory :], images[-self.memory :]
                u, moments = images[-1], tried
            else:
                points, images = points[-1:], images[-1:]
                u = images[-1]
            model = maximize(model, moments, u)
        return count

    def _combined(self, points: np.ndarray, images: np.ndarray) -> np.ndarray:
        gaps = images - points
        if len(points) == 1:
            return images[-1]
        change = np.diff(gaps, axis=0)
        square = change @ change.T
        ridge = self.damping * np.trace(square) / len(square) * np.eye(len(square))
        mix = np.linalg.solve(square + ridge, change @ gaps[-1])
        return images[-1] - mix @ np.diff(images, axis=0)


def by_driver(model: Any, blocks: Any, limit: float, accelerate: bool) -> int:
    """E-steps of `em`'s own turns."""
    import jax
    import jax.numpy as jnp

    em = importlib.import_module("gmmjax.em")
    once = em.turn(blocks, tol=0.0, max_steps=MOST)

    @jax.jit
    def run() -> Any:
        empty = em.blank(model, blocks, accelerate=accelerate)
        first = once(empty, model, jnp.asarray(True))
        return jax.lax.while_loop(
            lambda s: (s.objective < limit - NEAR) & (s.n_steps < MOST - 1),
            lambda s: once(s, model, jnp.asarray(False)),
            first,
        ).n_steps

    return int(run()) + 1


def slow_problems() -> None:
    """A line a problem."""
    import jax.numpy as jnp

    import gmmjax
    from gmmjax.blocks import split

    print("E-steps to within 1e-6 nats of the limit (summed log-likelihood)")
    print(f"{'apart':>8}{'EM':>8}{'SQUAREM':>9}   Anderson m=5, damping 0, 1e-8, 1e-4, 1e-2")
    for apart in (3.0, 2.0, 1.5):
        x = overlapping(apart)
        spread = np.stack([np.cov(x.T)] * 2)
        model = gmmjax.GaussianMixture.create([0.5, 0.5], x[:2], spread)
        blocks = split(jnp.asarray(x))
        end = gmmjax.em(model, x, tol=1e-15, max_steps=MOST, accelerate=True)
        limit = float(end.log_likelihood)
        plain, fast = (by_driver(model, blocks, limit, a) for a in (False, True))
        anderson = [Anderson(5, d).steps(model, blocks, limit) for d in (0.0, 1e-8, 1e-4, 1e-2)]
        text = "".join(f"{n if n < MOST else 'over ' + str(MOST):>8}" for n in anderson)
        print(f"{apart:>8}{plain:>8}{fast:>9}   {text}", flush=True)


def lanes(restarts: int) -> None:
    """Where lanes end, with and without; and where EM's first steps are extrapolated too."""
    import jax

    import gmmjax
    from gmmjax import acceleration

    x = np.asarray(gmmjax.datasets.load_faithful().x, float)
    run = partial(
        gmmjax.fit, jax.random.key(0), x, 6, restarts=restarts, init="k-means++", tol=1e-10,
        max_steps=10_000,
    )  # fmt: skip
    plain = run(accelerate=False)
    print(
        f"Old Faithful, 6 full components, {restarts} lanes: {int(plain.lanes.n_steps.sum())} steps by EM, "
        f"best {float(plain.log_likelihood):.4f}"
    )
    usual = acceleration.NEAR
    for near, name in ((usual, "SQUAREM"), (np.inf, "SQUAREM from the first step")):
        acceleration.NEAR = near
        jax.clear_caches()  # it is a constant of the program
        fast = run(accelerate=True)
        sound = (np.asarray(plain.lanes.status) == 0) & (np.asarray(fast.lanes.status) == 0)
        gap = np.asarray(fast.lanes.log_likelihood - plain.lanes.log_likelihood)[sound]
        print(
            f"{int(fast.lanes.n_steps.sum())} by {name}; of {sound.sum()} that converged by both "
            f"{int(np.sum(gap > 1e-3))} ended higher and {int(np.sum(gap < -1e-3))} lower than EM; best "
            f"{float(fast.log_likelihood):.4f}",
            flush=True,
        )
    acceleration.NEAR = usual


def main() -> int:
    """Both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--restarts", type=int, default=100, help="lanes (default 100)")
    arguments = parser.parse_args()
    import jax

    with jax.enable_x64(True):
        slow_problems()
        lanes(arguments.restarts)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
