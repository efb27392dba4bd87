"""Which function is which method, and what trains beside the student, by the names in arms. See `registry.method`."""

from collections.abc import Mapping

from takd.search_spaces.registry import TABLES, Method, method
from takd.trainables.training.methods import attention, crd, logits, regressions, relations

METHODS: Mapping[str, Method] = TABLES["method"]

method("dist", needs="logits")(logits.dist)
method("hint", needs="embedding", modules=regressions.linear)(regressions.hint)
method("rkd", needs="embedding")(relations.rkd)
method("pkt", needs="embedding")(relations.pkt)
method("sp_pooled", needs="embedding")(relations.sp_pooled)
method("crd", needs="embedding", modules=crd.contrast)(crd.crd)
method("fitnet", needs="maps", modules=regressions.convolutional)(regressions.fitnet)
method("at", needs="maps")(attention.at)
method("sp", needs="maps")(relations.sp)
method("simkd_linear", needs="embedding")(regressions.simkd_linear)
method("simkd", needs="maps")(regressions.simkd)
method("vid", needs="maps", modules=regressions.variational)(regressions.vid)
