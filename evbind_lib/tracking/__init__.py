"""MLflow: executions of notebooks, Study > Trial > Fold, Training > Fold; executed notebooks as pages."""
