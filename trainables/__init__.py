"""One stage: its data, its model, its training, and what it leaves in the artifact store."""
