"""MLflow: executions of notebooks with their pages, Study > Trial > Fold, Training > Fold."""
