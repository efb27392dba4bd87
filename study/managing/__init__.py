"""Studies below a root: what there is, what goes, and what nobody uses any more."""
