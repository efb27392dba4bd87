"""What must last: artifacts, checkpoints and weights, in a folder or a bucket. No torch."""
