"""Train and validate: pairs to tokens, losses, metrics, one fold, cross-validation, finished folds on disk."""
