"""What the numbers mean: intervals, comparisons, baselines, and the model one keeps."""
