"""Pictures of mixtures, on matplotlib axes that the caller owns.

Only the object interface is used: no figure is opened, no backend chosen, no global state read or
changed. Colours are those of Okabe and Ito (2008), which the colour-blind tell apart; past eight
components they repeat with another marker.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from gmmjax._optional import optional_import
from gmmjax.mixture import GaussianMixture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PALETTE = (
    "#0072B2",  # blue
    "#D55E00",  # vermilion
    "#009E73",  # bluish green
    "#CC79A7",  # reddish purple
    "#E69F00",  # orange
    "#56B4E9",  # sky blue
    "#000000",  # black
    "#F0E442",  # yellow, last: pale on white
)
_MARKERS = ("o", "^", "s", "D", "v", "P", "X", "*")
_SIGMAS = (1.0, 2.0, 3.0)
_MAX_POINTS = 20_000


def plot_mixture(
    ax: "Axes",
    model: GaussianMixture,
    x: ArrayLike,
    labels: ArrayLike | None = None,
    *,
    columns: tuple[int, int] = (0, 1),
    feature_names: Sequence[str] | None = None,
) -> None:
    """Draw the data, coloured by component, and the mixture over it.

    Two features or more: a scatter of two of them, with each component's ellipses at 1, 2 and 3
    standard deviations of its marginal in those two. One feature: a histogram, the mixture's
    density and each component's share of it. More than 20,000 rows are thinned evenly for the
    picture, and the title says so.

    Args:
        ax: the axes to draw on.
        model: k components in d features.
        x: the data [n, d].
        labels: the component of each row [n], int; the model's own prediction by default.
        columns: which two features to draw when d > 2.
        feature_names: d names for the axes; x1, x2, ... by default.

    Raises:
        ValueError: x or labels do not fit the model, or a column does not exist.
        ImportError: without the extra `plot`.
    """
    x = np.asarray(x, dtype=float)
    d = model.n_features
    if x.ndim != 2 or x.shape[1] != d:
        raise ValueError(f"x: expected shape [n, {d}], as the model has; got {x.shape}.")
    if labels is None:
        labels = np.asarray(model.predict(jnp.asarray(x)))
    labels = np.asarray(labels)
    if labels.shape != (len(x),):
        raise ValueError(f"labels: expected shape ({len(x)},), one a row; got {labels.shape}.")
    names = list(feature_names or [f"x{j + 1}" for j in range(d)])
    if len(names) != d:
        raise ValueError(f"feature_names: expected {d} names; got {len(names)}.")
    if d == 1:
        _plot_density(ax, model, x[:, 0], labels, names[0])
        return
    if len(columns) != 2 or not all(0 <= j < d for j in columns):
        raise ValueError(f"columns: expected two of 0 to {d - 1}; got {columns}.")
    _plot_plane(ax, model, x, labels, list(columns), names)


def plot_criterion(
    ax: "Axes", ks: Sequence[int], bic: Sequence[float], *, name: str = "BIC"
) -> None:
    """Draw a criterion against the number of components, and ring its minimum.

    Args:
        ax: the axes to draw on.
        ks: numbers of components.
        bic: the criterion for each, smaller is better; NaN where a fit failed.
        name: what the criterion is called.

    Raises:
        ValueError: ks and bic differ in length.
        ImportError: without the extra `plot`.
    """
    with optional_import("plot"):
        from matplotlib.ticker import MaxNLocator
    values = np.asarray(bic, dtype=float)
    if len(ks) != len(values):
        raise ValueError(f"bic: expected {len(ks)} values, one for each k; got {len(values)}.")
    ax.plot(ks, values, marker="o", color=PALETTE[0])
    if np.isfinite(values).any():
        best = int(np.nanargmin(values))
        ax.plot(
            ks[best],
            values[best],
            marker="o",
            markersize=14,
            markerfacecolor="none",
            markeredgewidth=2,
            color=PALETTE[1],
            linestyle="none",
            label=f"k = {ks[best]}",
        )
        ax.legend()
    ax.set_xlabel("number of components k")
    ax.set_ylabel(f"{name} (smaller is better)")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def plot_entropy(ax: "Axes", entropy: ArrayLike) -> None:
    """Draw the entropy of the clusters against their number, from `inference.merge_components`.

    Args:
        ax: the axes to draw on.
        entropy: of 1, 2, ..., k clusters, in nats: `Merging.entropy`.

    Raises:
        ValueError: the entropy is not one number for each number of clusters.
        ImportError: without the extra `plot`.
    """
    with optional_import("plot"):
        from matplotlib.ticker import MaxNLocator
    values = np.asarray(entropy, dtype=float)
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"entropy: expected shape [k], k ≥ 1; got {values.shape}.")
    ax.plot(np.arange(1, len(values) + 1), values, marker="o", color=PALETTE[0])
    ax.set_xlabel("number of clusters")
    ax.set_ylabel("entropy (nats)")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def _style(component: int) -> tuple[str, str]:
    color = PALETTE[component % len(PALETTE)]
    return color, _MARKERS[component // len(PALETTE) % len(_MARKERS)]


def _plot_plane(ax, model, x, labels, columns, names) -> None:
    with optional_import("plot"):
        from matplotlib.patches import Ellipse
    step = -(-len(x) // _MAX_POINTS)
    drawn, drawn_labels = x[::step][:, columns], labels[::step]
    means = np.asarray(model.means)[:, columns]
    covariances = np.asarray(model.covariances)[:, columns][:, :, columns]
    for j in range(model.n_components):
        color, marker = _style(j)
        mine = drawn[drawn_labels == j]
        ax.scatter(
            mine[:, 0],
            mine[:, 1],
            s=16,
            marker=marker,
            color=color,
            alpha=0.6,
            linewidths=0,
            label=f"component {j}",
            rasterized=len(mine) > 2_000,
        )
        # The covariance's own axes: standard deviations along its eigenvectors.
        variances, axes = np.linalg.eigh(covariances[j])
        deviations = np.sqrt(np.maximum(variances, 0))
        angle = np.degrees(np.arctan2(axes[1, 1], axes[0, 1]))
        for sigma in _SIGMAS:
            ax.add_patch(
                Ellipse(
                    tuple(means[j]),
                    width=2 * sigma * deviations[1],
                    height=2 * sigma * deviations[0],
                    angle=angle,
                    facecolor="none",
                    edgecolor=color,
                    linewidth=1.8 - 0.4 * sigma,
                )
            )
        ax.plot(*means[j], marker="+", markersize=9, markeredgewidth=2, color=color)
    ax.set_xlabel(names[columns[0]])
    ax.set_ylabel(names[columns[1]])
    title = "ellipses at 1, 2 and 3 sigma"
    if step > 1:
        title += f"; {len(drawn):,} of {len(x):,} rows drawn"
    ax.set_title(title, fontsize="medium")
    ax.autoscale_view()
    if model.n_components <= 10:
        ax.legend(fontsize="small")


def _plot_density(ax, model, x, labels, name) -> None:
    bins = np.histogram_bin_edges(x, bins=min(100, max(10, int(np.sqrt(len(x))))))
    members = [x[labels == j] for j in range(model.n_components)]
    ax.hist(
        members,
        bins=bins,
        weights=[np.full(len(m), 1 / (len(x) * (bins[1] - bins[0]))) for m in members],
        stacked=True,
        color=[_style(j)[0] for j in range(model.n_components)],
        alpha=0.5,
    )
    margin = 0.05 * (bins[-1] - bins[0])
    grid = np.linspace(bins[0] - margin, bins[-1] + margin, 500)
    parts = np.exp(np.asarray(model.log_joint(jnp.asarray(grid[:, None]))))
    for j in range(model.n_components):
        ax.plot(grid, parts[:, j], color=_style(j)[0], label=f"component {j}")
    ax.plot(grid, parts.sum(axis=1), color="black", linewidth=2, label="mixture")
    ax.set_xlabel(name)
    ax.set_ylabel("density")
    if model.n_components <= 10:
        ax.legend(fontsize="small")
