"""What watches a study: the terminal, events, profiles, W&B, TensorBoard and Optuna's dashboard."""
