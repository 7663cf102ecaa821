"""What a user sets: the parameter tree, composed from ``params/`` and overrides; where files lie; registries."""
