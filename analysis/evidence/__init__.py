"""What is real: what the students of each arm reached, its intervals and tests, and what may be said of them."""
