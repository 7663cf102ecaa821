"""The search: search space, samplers and pruners, studies, trials, workers, results."""
