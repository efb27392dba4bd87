"""Which stages to train and when: Optuna proposes, the graph orders, Ray Tune runs, a lease keeps others out."""
