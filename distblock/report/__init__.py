"""What a person sees of a run: progress while it lasts, tables when it is over."""
