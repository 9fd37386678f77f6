"""What ``distblock bench hop`` measures: a hop by its own way and by others."""
