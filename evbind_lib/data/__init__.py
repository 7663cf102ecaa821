"""From the user's files to pairs: the corpus, its folds, sampled negatives."""
