"""A study from its space to its tables: the commands, the search, what watches it, and what it exports."""
