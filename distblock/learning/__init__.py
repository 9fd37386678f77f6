"""What is trained: blocks, classifiers, stages and their local loss. Torch only: no Ray, no clock, no files."""
