"""What a study showed: tables and figures from its Parquet files. No Ray, no torch."""
