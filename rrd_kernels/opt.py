"""Reads ``opt``, the object of settings that published criteria are constructed from."""

from collections.abc import Mapping
from typing import Any


def _is_plain(mapping: Mapping[Any, Any]) -> bool:
    """Whether a mapping's entries are not attributes too, as those of configuration objects are."""
    if hasattr(type(mapping), "__getattr__"):
        return False
    named = [key for key in mapping if isinstance(key, str)]
    if not named:  # with nothing to read: whether it could have attributes
        return not hasattr(mapping, "__dict__")
    return not all(hasattr(mapping, name) for name in named)


def read(opt: object, name: str) -> Any:
    """``opt.name``, or ``None`` if there is none."""
    # Some configuration objects invent an attribute for each name that they lack.
    if isinstance(opt, Mapping) and name not in opt:
        return None
    try:
        return getattr(opt, name, None)
    except KeyError:  # of a class that looks attributes up in a dict
        return None


class Published:
    """The settings of one construction: keywords win over ``opt``'s attributes.

    Raises:
        TypeError: ``opt`` cannot have attributes, as a dict.
    """

    def __init__(self, opt: object | None) -> None:
        if isinstance(opt, int | float | str) or (isinstance(opt, Mapping) and _is_plain(opt)):
            raise TypeError(
                f"opt must be an object with attributes, such as a namespace; got "
                f"{type(opt).__name__}. For a dict pass types.SimpleNamespace(**opt)"
            )
        self._opt = opt

    def setting(self, name: str, given: Any, default: Any = None, needed: bool = True) -> Any:
        """``given``, else ``opt.name``, else the default; an error if there is none of them and it
        is ``needed``."""
        value = given if given is not None else read(self._opt, name)
        if value is None and default is None and needed:
            raise ValueError(f"{name} must be given, as a keyword or as opt.{name}")
        return default if value is None else value
