"""What is set aside on disk while a run lasts: cached outputs of stages, and stages that are not needed now."""
