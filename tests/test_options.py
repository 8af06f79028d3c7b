"""Configuration objects as ``opt``: attributes, whether or not they are mappings too."""

import warnings
from argparse import Namespace
from collections import OrderedDict, defaultdict
from collections.abc import MutableMapping
from types import MappingProxyType, SimpleNamespace

import pytest

from rrd_kernels import RRDLoss

VALUES = {"t_dim": 20, "feat_dim": 16, "nce_k": 32, "nce_t_s": 0.3, "nce_t_t": 0.2}


class ByGetattr(dict):
    """A dict whose missing attributes are looked up as keys, as yacs and Munch have it."""

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(name) from error


class BySetattr(dict):
    """A dict that sets each key as an attribute too, as EasyDict does."""

    def __init__(self, **values):
        super().__init__(values)
        for name, value in values.items():
            setattr(self, name, value)


class ByDict(dict):
    """A dict that is its own ``__dict__``."""

    def __init__(self, **values):
        super().__init__(values)
        self.__dict__ = self


class Inventing(dict):
    """A dict that invents an empty one for each missing attribute, as addict does."""

    def __getattr__(self, name):
        return self.get(name, Inventing())


class NotADict(MutableMapping):
    """A mapping that is no dict and gives None for what it lacks, as OmegaConf's can."""

    def __init__(self, **values):
        object.__setattr__(self, "values_", values)

    def __getattr__(self, name):
        return self.values_.get(name)

    def __getitem__(self, key):
        return self.values_[key]

    def __setitem__(self, key, value):
        self.values_[key] = value

    def __delitem__(self, key):
        del self.values_[key]

    def __iter__(self):
        return iter(self.values_)

    def __len__(self):
        return len(self.values_)


KINDS = [SimpleNamespace, Namespace, ByGetattr, BySetattr, ByDict, Inventing, NotADict]


@pytest.mark.parametrize("kind", KINDS)
def test_s_dim_as_a_keyword(kind):
    criterion = RRDLoss(kind(**VALUES), s_dim=12)
    assert (criterion.embed_s.in_features, criterion.embed_t.in_features) == (12, 20)
    assert tuple(criterion.queue.shape) == (32, 16)
    assert (criterion.tau_s, criterion.tau_t) == (0.3, 0.2)
    assert criterion.memory_type == "fifo"
    momentum = {"memory_type": "momentum", "n_data": 40, "nce_t": 0.5, "nce_m": 0.25}
    criterion = RRDLoss(kind(**VALUES, **momentum), s_dim=12)
    assert (criterion.n_data, criterion.nce_t, criterion.nce_m) == (40, 0.5, 0.25)


@pytest.mark.parametrize("kind", KINDS)
def test_all_in_the_options_or_none(kind):
    assert RRDLoss(kind(**VALUES, s_dim=12)).embed_s.in_features == 12
    assert RRDLoss(kind(), s_dim=12, **VALUES).tau_s == 0.3
    with pytest.raises(ValueError, match=r"s_dim must be given, as a keyword or as opt\.s_dim"):
        RRDLoss(kind(**VALUES))


@pytest.mark.parametrize(
    ("name", "value"),
    [("protocol", 2024), ("similarity", "cosine"), ("enqueue", "after"), ("slot_momentum", 0.5)],
)
def test_what_is_not_read_is_warned_of(name, value):
    opt = SimpleNamespace(**VALUES, s_dim=12, **{name: value})
    with pytest.warns(UserWarning, match=rf"opt\.{name} is {value!r}, but is not read"):
        RRDLoss(opt)


def test_no_warning_where_the_keyword_is_given_too():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        criterion = RRDLoss(SimpleNamespace(**VALUES, s_dim=12, protocol="2024"), protocol="2024")
    assert criterion.protocol == "2024"


def test_a_class_with_attributes():
    class Options:
        s_dim, t_dim, feat_dim, nce_k = 12, 20, 16, 32

    assert RRDLoss(Options).embed_s.in_features == 12


@pytest.mark.parametrize(
    "opt",
    [
        VALUES,
        {},
        OrderedDict(VALUES),
        defaultdict(int, VALUES),
        MappingProxyType(VALUES),
        3,
        "fifo",
    ],
    ids=lambda opt: type(opt).__name__,
)
def test_what_has_no_attributes_is_refused(opt):
    wanted = "opt must be an object with attributes, such as a namespace; got"
    with pytest.raises(TypeError, match=wanted):
        RRDLoss(opt, s_dim=12, t_dim=20)
