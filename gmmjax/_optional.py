"""Imports of the optional libraries, so that a missing one says which extra brings it.

The core needs none of them; only the edges (files, plots, the command line) come here.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from gmmjax.status import GmmjaxError


class MissingExtraError(GmmjaxError, ImportError):
    """An optional library is not installed; the text names it and the extra that brings it."""


@contextmanager
def optional_import(extra: str) -> Iterator[None]:
    """Run the imports inside the block; name the `extra` to install if one of them fails.

    Raises:
        MissingExtraError: with the library that is missing and the command that installs it.

    >>> with optional_import("plot"):
    ...     import a_library_that_is_not_there
    Traceback (most recent call last):
    gmmjax._optional.MissingExtraError: ... pip install 'gmmjax[plot]'
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"{error.name} is needed here and is not installed. It comes with the extra {extra!r}: "
            f"pip install 'gmmjax[{extra}]'"
        ) from error
