"""Which function is which method, and what trains beside the student, by the names in arms. See `registry.method`."""

from collections.abc import Mapping

from takd.search_spaces.registry import TABLES, Method, method
from takd.trainables.training.methods import relations

METHODS: Mapping[str, Method] = TABLES["method"]

method("rkd", needs="embedding")(relations.rkd)
