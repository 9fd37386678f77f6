"""Who works on what, and when: pure functions and small state machines. Standard library only; time is an argument."""
